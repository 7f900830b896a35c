"""Where rows go: a folder of Parquet, here or at ``gs://``, or a BigQuery table. Four verbs, the same for all three.

    destination = open_destination("bq://project.dataset.predictions", shape)
    destination.prepare()                          # once: makes the table, adds columns that it has not
    with destination.piece("2013-11-01/0007") as piece:         # anywhere, as often as it takes
        piece.write(block)
    written = destination.commit([piece.token])    # once, by whoever collects the tokens

A piece is what one bundle writes: a pending stream of BigQuery's Storage Write API, or one Parquet file. None of it
is seen before it is committed. A piece that is not committed (its worker died, its bundle was done again) leaves
nothing that a reader could see; the service forgets it, and files of it go with the next `Destination.prepare` after a
day.

Guaranteed:

* A committed piece is there whole. BigQuery: all pieces of one `commit` at one moment; files: one by one.
* `commit` of the same tokens again adds nothing and succeeds, also where the first call was cut off.
* With an identity: a row whose identity was there before the piece was begun is not written again, so that a
  second run adds nothing. What is there wins; where it is not the same, bit for bit, that is counted (`differing`)
  and logged, never overwritten (contract C7).
* Without an identity the *name* of a piece is the identity of its file: a file of that name wins. A BigQuery table
  knows no names: whoever writes without identity asks first what is there.

Not guaranteed: an order of rows; that two commits at the same time with the same identities see each other; that
identities within one commit differ.

Destinations and tokens are plain values: they can be handed to other processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Protocol

import pyarrow as pa

from shared_features.errors import ConfigurationError, HistoryError

Reject = Callable[[pa.RecordBatch, Sequence[str]], None]
"""Is given rows that the destination refuses, with its reason for each of them."""


NEARLY = 1e-6
"""TensorFlow's last bits vary with the size of a batch: so far may two answers to one request be apart."""


class PieceGoneError(HistoryError):
    """A piece that was not committed is not there any more, so that it never will be."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows look like.

    Attributes:
        schema: columns of the blocks to be written, flat (``feature.delay``); stored nested, as `blocks.nest` does.
        identity: string column of which each value is there at most once; empty if there is none.
        keys: top-level columns to cluster a BigQuery table by, before ``event_time``.
        uncompared: columns that may differ between two rows of one identity.
        nearly: float columns that are the same where they differ by at most `NEARLY`.
    """

    schema: pa.Schema
    identity: str = ""
    keys: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    nearly: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the rows that were given.

    Attributes:
        rows: written. existing: left out, for they were there. differing: of these, how many were not the same.
        rejected: refused by the destination.
    """

    rows: int = 0
    existing: int = 0
    differing: int = 0
    rejected: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


class Piece(Protocol):
    """Rows of one bundle on their way. Leaving its context finishes it, or abandons it after an error."""

    def write(self, block: pa.RecordBatch) -> None:
        """Add rows; their memory is free on return, but for some megabytes.

        Raises:
            HistoryError: the destination cannot be written, or refuses rows and nobody takes them.
        """
        ...

    @property
    def token(self) -> bytes:
        """What `Destination.commit` wants, once the piece is finished."""
        ...

    def __enter__(self) -> Piece: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Destination(Protocol):
    """Where rows of one shape go."""

    @property
    def uri(self) -> str:
        """As given."""
        ...

    @property
    def shape(self) -> Shape:
        """Of all its rows."""
        ...

    def prepare(self) -> None:
        """Make it ready to be written; what is there stays.

        Raises:
            HistoryError: it cannot be reached, or has a column of another type.
        """
        ...

    def piece(self, name: str, reject: Reject | None = None) -> Piece:
        """Begin a piece.

        Args:
            name: path of its file, without ``.parquet``: letters, digits and ``_ - . = /``.
            reject: takes refused rows; without it a refused row is an error.
        """
        ...

    def commit(self, tokens: Sequence[bytes]) -> Written:
        """Let everybody see these pieces.

        Raises:
            PieceGoneError: a piece is gone.
            HistoryError: it cannot be reached.
        """
        ...


def open_destination(uri: str, shape: Shape) -> Destination:
    """The destination that a URI names; nothing is looked at before `Destination.prepare`.

    Args:
        uri: a folder, ``gs://bucket/folder``, or ``bq://project.dataset.table``.

    Raises:
        ConfigurationError: the URI names none of these.
    """
    if uri.startswith("bq://"):
        from batch.bigquery_writer import BigQueryDestination

        return BigQueryDestination(uri, shape)
    from batch.parquet_writer import ParquetDestination

    if "://" in uri and not uri.startswith("gs://"):
        raise ConfigurationError(
            f"{uri} names no destination: wanted a folder, gs://bucket/folder or bq://project.dataset.table"
        )
    return ParquetDestination(uri, shape)


def token_of(written: Written, **parts: str) -> bytes:
    """A piece's token: what became of its rows, and where they wait."""
    return json.dumps({**parts, "written": asdict(written)}, sort_keys=True).encode()


def read_token(token: bytes) -> tuple[dict[str, str], Written]:
    """What `token_of` was given.

    Raises:
        HistoryError: these bytes are no token.
    """
    try:
        parts = json.loads(token)
        return parts, Written(**parts.pop("written"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise HistoryError(f"a token of a written piece was wanted, got {token[:80]!r}") from None
