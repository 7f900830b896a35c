"""Events in files as messages: JSON lines, CSV, Avro containers and Parquet, checked by the job's own decoder.

An app may read further formats: ``readers.py`` beside its ``app.py`` has ``READERS``, name of the format to a function
of the file's lines (bytes) that yields, with the number of its line, each event as a dict, ``event_type`` among its
entries, or, of a line that cannot be used, the line and why.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.app import App, load_beside
from shared_features.blocks import flatten
from shared_features.decode import Decoder, Received
from shared_features.errors import ConfigurationError
from shared_features.schema import EventSchema
from streaming.topics import OutgoingMessage

FORMATS = ("jsonl", "csv", "avro", "parquet")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".avro": "avro",
    ".parquet": "parquet",
}
CHUNK = 1_000
GZIP = b"\x1f\x8b"
"""How such a file begins."""

SHOWN_BYTES = 60
"""Of a line that is no event."""


class Row(NamedTuple):
    """One event of a file.

    Attributes:
        number: the line (JSON lines, CSV, an app's format) or row (Avro, Parquet) from 1 on.
        message: of the event.
        wrong: what an app's reader found wrong with it, if anything.
    """

    number: int
    message: OutgoingMessage
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that the job would dead-letter."""

    number: int
    reason: str
    detail: str


class EventFile:
    """The events of one file.

    Args:
        app: whose events these are.
        source: path, or ``-`` for standard input.
        file_format: one of `FORMATS` or of the app's own; None goes by the name's ending, JSON lines for
            standard input.
        event_type: of every row; None takes it from the row: its column ``event_type``, the name of an Avro
            schema, or the app's only type.

    Raises:
        ConfigurationError: the file is missing or of no known format, or there is no such event type.
    """

    def __init__(self, app: App, source: str, *, file_format: str | None = None, event_type: str | None = None) -> None:
        self._app, self.source = app, source
        self._given_type = event_type
        if event_type is None and len(app.event_types) == 1:
            self._given_type = next(iter(app.event_types))
        self._type_of(event_type)
        path = Path(source)
        if source != "-" and not path.exists():
            raise ConfigurationError(f"file {source} of events was not found: give its path, or - for standard input")
        module = load_beside(app.spec, "readers")
        self._readers: Mapping[str, Callable[[Iterable[bytes]], Any]] = getattr(module, "READERS", {})
        known = {**_SUFFIXES, **{f".{name}": name for name in self._readers}}
        found = file_format or ("jsonl" if source == "-" else known.get(path.suffix.lower()))
        if file_format is not None and file_format not in (*FORMATS, *self._readers):
            raise ConfigurationError(
                f"app {app.name!r} reads no format {file_format!r}: wanted {', '.join((*FORMATS, *self._readers))}"
            )
        if path.is_dir() and source != "-":
            found = "parquet"
        if found is None:
            raise ConfigurationError(
                f"file {source} has no ending that tells its format: wanted one of {', '.join(known)}, or --format"
            )
        self.format = found

    def rows(self, stdin: IO[bytes]) -> Iterator[Row]:
        """Every row as a message, unchecked.

        Raises:
            ConfigurationError: the file is not of its format.
        """
        if self.format == "parquet":
            yield from self._parquet(stdin)
            return
        own = {"jsonl": self._json_lines, "csv": self._csv, "avro": self._avro}
        reader = own.get(self.format, self._app_s)
        if self.source == "-":
            yield from reader(stdin)
            return
        with Path(self.source).open("rb") as file:
            if file.peek(2).startswith(GZIP):
                raise ConfigurationError(
                    f"file {self.source} is compressed by gzip: `gunzip` it, or pipe it in "
                    f"(gunzip -c {self.source} | sameriver publish - --format {self.format} …)"
                )
            yield from reader(file)

    def _type_of(self, name: str | None) -> EventSchema | None:
        if name is not None and name not in self._app.event_types:
            raise ConfigurationError(
                f"app {self._app.name!r} has no event type {name!r}: it has {', '.join(self._app.event_types)}"
            )
        return None if name is None else self._app.event_types[name]

    def _message(self, data: bytes, event_type: object) -> OutgoingMessage:
        known = self._given_type or event_type
        return OutgoingMessage(data, {"event_type": known} if isinstance(known, str) and known else {})

    def _json_lines(self, file: IO[bytes]) -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            data = line.strip()
            if not data:
                continue
            event_type: object = None
            if self._given_type is None:
                try:
                    event_type = json.loads(data).get("event_type")
                except (ValueError, AttributeError, RecursionError):
                    event_type = next(iter(self._app.event_types))  # malformed: any type says so
            yield Row(number, self._message(data, event_type))

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            reader = csv.DictReader(text, strict=True)
            for values in reader:
                event_type = self._given_type or values.get("event_type")
                schema = self._app.event_types.get(str(event_type))
                typed = {
                    name: _csv_value(value, schema.fields[name].avro if schema and name in schema.fields else "string")
                    for name, value in values.items()
                    if name is not None
                }
                yield Row(reader.line_num, self._message(_dumps(typed), event_type))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.source} cannot be read as CSV in UTF-8 ({error}): mend the file") from None
        finally:
            text.detach()  # the file is closed by whoever opened it

    def _app_s(self, file: IO[bytes]) -> Iterator[Row]:
        """By the app's own reader."""
        for number, event in self._readers[self.format](file):
            if isinstance(event, tuple):
                line, why = event
                wrong = f"The line is nothing that format {self.format} takes ({why}): {line[:SHOWN_BYTES]!r}."
                yield Row(number, self._message(line, next(iter(self._app.event_types))), wrong)
            else:
                values = dict(event)
                event_type = values.pop("event_type", None)
                yield Row(number, self._message(_dumps(values), event_type))

    def _avro(self, file: IO[bytes]) -> Iterator[Row]:
        import fastavro

        try:
            reader = fastavro.reader(file)
            schema: Any = reader.writer_schema
            name = str(schema.get("name", "")) if isinstance(schema, dict) else ""
            by_schema = {str(known.avro["name"]): of for of, known in self._app.event_types.items()}
            own = by_schema.get(name, name if name in self._app.event_types else None)
            for number, record in enumerate(reader, 1):
                values = record if isinstance(record, dict) else {}
                event_type = values.get("event_type", own)
                yield Row(number, self._message(_dumps(values), event_type))
        except (ValueError, EOFError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{self.source} cannot be read as an Avro container file ({error}): mend the file, or give --format"
            ) from None

    def _parquet(self, stdin: IO[bytes]) -> Iterator[Row]:
        number = 0
        try:
            for source in self._parquet_files(stdin):
                for batch in pq.ParquetFile(source).iter_batches(CHUNK):
                    for values in self._plain_rows(batch):
                        number += 1
                        event_type = values.pop("event_type", None)
                        yield Row(number, self._message(_dumps(values), event_type))
        except (pa.ArrowException, OSError) as error:
            raise ConfigurationError(f"{self.source} cannot be read as Parquet ({error}): mend the file") from None

    def _parquet_files(self, stdin: IO[bytes]) -> list[Any]:
        if self.source == "-":
            return [pa.BufferReader(stdin.read())]
        path = Path(self.source)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise ConfigurationError(f"folder {path} has no Parquet files: name one that has, or a file of events")
        return files

    def _plain_rows(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """Rows by field name; a history's, with one struct per type, become those of their own type."""
        schemas = self._app.event_types
        if not any(pa.types.is_struct(field.type) and field.name in schemas for field in batch.schema):
            yield from batch.to_pylist()
            return
        for row in flatten(batch).to_pylist():
            schema = schemas.get(str(row["event_type"]))
            if schema is None:
                yield {"event_type": row["event_type"]}
                continue
            values = {name: row.get(f"{schema.name}.{name}") for name in schema.fields}
            values[schema.time] = row["event_time"]
            if schema.id:
                values[schema.id] = row["event_id"]
            yield {"event_type": schema.name, **values}


def check_rows(decoder: Decoder, rows: list[Row], now_us: int) -> tuple[list[Row], list[BadRow]]:
    """Rows that the job would take if they were published at ``now_us``, and the others with the reason."""
    rejected = decoder.decode(as_received(rows, now_us)).rejected
    bad = {
        one.index: BadRow(rows[one.index].number, one.reason, rows[one.index].wrong or one.detail) for one in rejected
    }
    return [row for index, row in enumerate(rows) if index not in bad], [bad[index] for index in sorted(bad)]


def as_received(rows: Sequence[Row], now_us: int, prefix: str = "") -> list[Received]:
    """The rows' messages as they will be received if they are published at ``now_us``.

    Args:
        prefix: of the message ids, which are the rows' numbers.
    """
    return [Received(row.message.data, row.message.attributes, f"{prefix}{row.number}", now_us) for row in rows]


def chunks(rows: Iterable[Row], size: int = CHUNK, most_s: float = math.inf) -> Iterator[list[Row]]:
    """Rows in lists of ``size``, or as many as came within ``most_s``; the last ones also if a signal ends the rows."""
    chunk: list[Row] = []
    begin_s = time.monotonic()
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == size or time.monotonic() - begin_s > most_s:
                ready, chunk = chunk, []
                yield ready
                begin_s = time.monotonic()
    except SystemExit:  # a signal, see `commands.group`
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _csv_value(text: object, kind: str) -> object:
    """A cell as the schema's type has it in JSON; what cannot be read stays text, and is refused as such."""
    if not isinstance(text, str) or text == "":
        return None
    try:
        if kind in ("int", "long") or (kind.startswith("timestamp") and text.lstrip("-").isdecimal()):
            return int(text)
        if kind in ("float", "double"):
            return float(text)
    except ValueError:
        return text
    if kind == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    return text


def _dumps(values: Mapping[Any, Any]) -> bytes:
    """JSON of one event; NaN stands as text, where a number is refused as well but the reason can be read."""
    plain = {str(name): _plain(value) for name, value in values.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, default=str).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
