"""Rows as Parquet files, in a folder here or at ``gs://``: see `batch.writers`.

A piece is written below ``_pieces``, which readers pass over, and gets its name when it is committed. With an
identity the name ends in a hash of the identities that the file holds: the same rows never get two names.
"""

from __future__ import annotations

import logging
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.existing import KnownRows, absent, differing_rows
from batch.files import Files, open_files
from batch.writers import PieceGoneError, Reject, Shape, Written, read_token, token_of
from shared_features.blocks import nest
from shared_features.errors import ConfigurationError
from shared_features.hashing import hash_columns

PIECES = "_pieces"
ROW_GROUP_ROWS = 65_536

_KEPT_S = 86_400.0
_NAME = re.compile(r"[A-Za-z0-9_=.-]+(/[A-Za-z0-9_=.-]+)*")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParquetDestination:
    """A folder of Parquet files."""

    uri: str
    shape: Shape

    def prepare(self) -> None:
        open_files(self.uri).remove_older(f"{PIECES}/", _KEPT_S)

    def piece(self, name: str, reject: Reject | None = None) -> ParquetPiece:  # noqa: ARG002
        """Begin a file; nothing is ever refused."""
        if not _NAME.fullmatch(name) or ".." in name:
            raise ConfigurationError(
                f"a piece of {self.uri} cannot be named {name!r}: wanted letters, digits and _ - . = /"
            )
        return ParquetPiece(open_files(self.uri), self.shape, name)

    def commit(self, tokens: Sequence[bytes]) -> Written:
        files, total = open_files(self.uri), Written()
        for token in tokens:
            parts, written = read_token(token)
            if _waits(files, parts) and not files.publish(parts["staged"], parts["final"]):
                written = _name_taken(self.uri, files, parts, written)
            total += written
        return total


def _waits(files: Files, parts: dict[str, str]) -> bool:
    """Whether the piece has rows and has not its name yet; PieceGoneError if it is nowhere."""
    if not parts["staged"]:
        return False
    if files.checksum(parts["staged"]) is not None:
        return True
    if files.checksum(parts["final"]) is None:
        raise PieceGoneError(
            f"piece {parts['staged']} for {parts['final']} is gone before it was committed: write it again"
        )
    return False


def _name_taken(uri: str, files: Files, parts: dict[str, str], written: Written) -> Written:
    same = files.checksum(parts["staged"]) == files.checksum(parts["final"])
    files.remove(parts["staged"])
    if same:
        return written
    log.error("%s/%s was there and holds other rows than those to be written now: it stays", uri, parts["final"])
    return replace(written, rows=0, existing=written.existing + written.rows, differing=written.rows)


class ParquetPiece:
    """One file on its way."""

    def __init__(self, files: Files, shape: Shape, name: str) -> None:
        self._files, self._shape, self._name = files, shape, name
        self._staged = f"{PIECES}/{uuid.uuid4().hex}.parquet"
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._written, self._hash, self._token = Written(), 0, b""
        self._known = KnownRows(files, shape)

    def write(self, block: pa.RecordBatch) -> None:
        identity = self._shape.identity
        if identity and block.num_rows:
            there = self._known.rows(block)
            if there.num_rows:
                left_out = block.num_rows
                differing = differing_rows(self._shape, block, there)
                block = absent(block, identity, there)
                left_out -= block.num_rows
                self._written += Written(existing=left_out, differing=differing)
            self._hash = zlib.crc32(hash_columns([block.column(identity)]).tobytes(), self._hash)
        if not block.num_rows:
            return
        table = pa.Table.from_batches([nest(_plain_lists(block.select(self._shape.schema.names)))])
        if self._writer is None:
            self._file = self._files.create(self._staged)
            self._writer = pq.ParquetWriter(
                self._file, table.schema.with_metadata(self._shape.schema.metadata), compression="zstd"
            )
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._written += Written(rows=block.num_rows)

    @property
    def token(self) -> bytes:
        return self._token

    def __enter__(self) -> ParquetPiece:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None and self._file is not None:
            try:
                self._writer.close()
                self._file.close()
            finally:
                if error is not None:
                    self._files.remove(self._staged)
        if error is None:
            suffix = f"-{self._hash:08x}" if self._shape.identity else ""
            staged = self._staged if self._written.rows else ""
            self._token = token_of(self._written, staged=staged, final=f"{self._name}{suffix}.parquet")


def _plain_lists(block: pa.RecordBatch) -> pa.RecordBatch:
    """Lists of a fixed size as lists of any size: of the others, Arrow does not read null ones back from Parquet."""
    columns = [
        pc.cast(column, pa.list_(column.type.value_field)) if pa.types.is_fixed_size_list(column.type) else column
        for column in block.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=block.schema.names)
