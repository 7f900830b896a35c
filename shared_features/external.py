"""External models: what a model elsewhere says about a text becomes part of the event.

    review = EventType(
        "review", "review.avsc", time="written_at",
        external=[External("sentiment", version=3, of="text", fills={"mood": "score"}, recorded="mood_version")],
    )

The schema names the fields ``mood`` (``["null", "double"]``) and ``mood_version`` (``["null", "long"]``), which
publishers leave out. Where an event enters, live or by `sameriver ask`, the model is asked about ``text`` and the
fields are filled; from then on they are fields like any others, in features, archive, verify and training rows.

What was recorded counts: a row that carries values of this very version is not asked about again, neither in batch
nor live. So a feature never depends on when, how often or beside which other texts a model was asked: networks give
other last bits for other batch sizes. The version, and what is filled from what, are part of the fingerprint.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import DefinitionError, HistoryError, did_you_mean

if TYPE_CHECKING:
    from shared_features.schema import EventSchema

_OUTPUT = re.compile(r"([A-Za-z_][\w.-]{0,127})(?:\[(\d{1,5})\])?\Z")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class External:
    """A model elsewhere, and which fields of an event it fills.

    Args:
        model: its name where it is served.
        version: of the model, a whole number from 1 on.
        of: the field that it is asked about, a string; a null is not asked about, and fills nulls.
        fills: nullable ``double`` field to output of the model; ``"embedding[3]"`` is one place of a list.
        recorded: nullable ``long`` field that takes the version.
        is_base64: the string is the base64 of bytes, such as an image; the model gets the bytes.
        max_bytes: what is longer is refused unasked.
        batch: texts of one call at most. This and what follows may change without changing what is said.
        texts_per_s: asked by one process at most; None for no limit.
        timeout_s: of one call.

    Raises:
        DefinitionError: an option is of a wrong type.
    """

    model: str
    version: int
    of: str
    fills: Mapping[str, str]
    recorded: str
    is_base64: bool = False
    max_bytes: int = 65_536
    batch: int = 64
    texts_per_s: float | None = None
    timeout_s: float = 10.0
    outputs: dict[str, tuple[str, int | None]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not _NAME.match(self.model):
            raise DefinitionError(f"External got model={self.model!r}, wanted a name of letters, digits, '_', '.', '-'")
        if type(self.version) is not int or self.version < 1:
            raise DefinitionError(f"External model {self.model!r} got version={self.version!r}, wanted 1 or more")
        if not self.fills:
            raise DefinitionError(f"External model {self.model!r} fills no field: wanted fills={{field: output}}")
        found = {}
        for name, output in self.fills.items():
            parts = _OUTPUT.match(output) if isinstance(output, str) else None
            if parts is None:
                raise DefinitionError(
                    f"External model {self.model!r} fills {name!r} from {output!r}, wanted the name of an output such "
                    "as 'score', or one of its places, 'embedding[3]'"
                )
            found[name] = (parts[1], None if parts[2] is None else int(parts[2]))
        for option in ("max_bytes", "batch", "timeout_s", "texts_per_s"):
            value = getattr(self, option)
            if not (value is None and option == "texts_per_s") and not value > 0:
                raise DefinitionError(f"External model {self.model!r} got {option}={value!r}, wanted more than 0")
        object.__setattr__(self, "outputs", found)

    @property
    def definition(self) -> dict[str, Any]:
        """All that decides the values, as plain JSON values."""
        said = {"model": self.model, "version": self.version, "of": self.of, "fills": dict(self.fills)}
        return {**said, "recorded": self.recorded, "is_base64": self.is_base64, "max_bytes": self.max_bytes}

    def __str__(self) -> str:
        return f"external model {self.model!r}, version {self.version}"


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said about some texts.

    Attributes:
        values: by field float64, shape [texts]; NaN where it was refused.
        refused: by text why there is no value, a sentence.
    """

    values: dict[str, np.ndarray]
    refused: dict[int, str]


Ask = Callable[[External, Sequence[bytes]], Said]
"""Puts texts, each once, to a model; waits until there is an answer for each."""


def checked_externals(schema: EventSchema, externals: Sequence[External]) -> list[External]:
    """The external models of an event type, after a check that each can work.

    Raises:
        DefinitionError: names the model and what to change.
    """
    filled: set[str] = set()
    for one in externals:
        if not isinstance(one, External):
            raise DefinitionError(f"event type {schema.name!r} has external={one!r}, wanted a list of External(...)")
        place = f"{one} of event type {schema.name!r}"
        for name, kind in [(one.of, "string"), (one.recorded, "long"), *((name, "double") for name in one.fills)]:
            found = schema.fields.get(name)
            if found is None:
                near = did_you_mean(name, schema.fields)
                raise DefinitionError(f"{place} names field {name!r}, which the schema does not have{near}")
            if name in (schema.time, schema.id):
                raise DefinitionError(f"{place} names {name!r}, which is the event's time or identity")
            if found.avro != kind:
                raise DefinitionError(f"{place} names {name!r}, a {found.avro}, wanted a {kind}")
            if name == one.of:
                continue
            if not found.nullable:
                raise DefinitionError(
                    f'{place} fills {name!r}, which is required: make its type ["null", "{kind}"] in {schema.path}, '
                    "for it is null where there is no text"
                )
            if name in filled or name in schema.clean:
                raise DefinitionError(f"{place} fills {name!r}, which another rule of the type changes too")
            filled.add(name)
    asked = {one.of for one in externals} & filled
    if asked:
        raise DefinitionError(f"event type {schema.name!r} asks about {sorted(asked)}, which an external model fills")
    return list(externals)


def has_externals(schemas: Mapping[str, EventSchema]) -> bool:
    """Whether any model has to be asked about events of these types."""
    return any(schema.external for schema in schemas.values())


def filled_columns(schemas: Mapping[str, EventSchema]) -> set[str]:
    """Columns of blocks that external models fill: a history of before may not have them."""
    every = [(name, one) for name, schema in schemas.items() for one in schema.external]
    return {f"{name}.{field}" for name, one in every for field in (*one.fills, one.recorded)}


def answered(
    block: pa.RecordBatch, schemas: Mapping[str, EventSchema], ask: Ask
) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Fill what external models say about the rows that do not carry it.

    Args:
        block: rows of any event types, cleaned and checked.
        schemas: event type to schema.
        ask: asked about each distinct text once.

    Returns:
        The block, and why a row has no answer: such a row must not be folded.
    """
    refused: dict[int, str] = {}
    for name, schema in schemas.items():
        for one in schema.external:
            here = np.asarray(pc.equal(block.column("event_type"), name).fill_null(False))
            if here.any():
                block = _filled(block, schema, one, here, ask, refused)
    return block, refused


def require_answered(block: pa.RecordBatch, schemas: Mapping[str, EventSchema], app: str) -> pa.RecordBatch:
    """The block, every text of which must carry what was said about it.

    Raises:
        HistoryError: one does not.
    """

    def nobody(external: External, texts: Sequence[bytes]) -> Said:
        raise HistoryError(
            f"{len(texts)} texts of the history do not carry what {external} says about them: run "
            f"`sameriver ask --app {app}` first, and give the history that it writes"
        )

    return answered(block, schemas, nobody)[0]


def _filled(
    block: pa.RecordBatch, schema: EventSchema, one: External, here: np.ndarray, ask: Ask, refused: dict[int, str]
) -> pa.RecordBatch:
    """The block with the fields of one model filled on its rows ``here``; rows without a text have nulls there."""
    texts = block.column(f"{schema.name}.{one.of}")
    asked = here & np.asarray(texts.is_valid())
    version = block.column(f"{schema.name}.{one.recorded}")
    known = np.asarray(pc.equal(version, one.version).fill_null(False))
    for name in one.fills:
        known &= np.asarray(block.column(f"{schema.name}.{name}").is_valid())
    open_rows = np.flatnonzero(asked & ~known)
    stray = here & ~asked  # a value without a text is nobody's answer
    columns = {name: block.column(f"{schema.name}.{name}") for name in one.fills}
    if len(open_rows) == 0 and not any((stray & np.asarray(values.is_valid())).any() for values in columns.values()):
        return block
    said, place = _put(one, texts.take(pa.array(open_rows)), ask)
    for row, detail in zip(open_rows.tolist(), (said.refused.get(index) for index in place.tolist()), strict=True):
        if detail is not None:
            refused.setdefault(row, f"{schema.name}.{one.of}: {detail}")
    for name, before in columns.items():
        block = _set(block, f"{schema.name}.{name}", before, open_rows, said.values[name][place], stray)
    good = np.isfinite(said.values[next(iter(columns))][place])
    versions = np.where(good, float(one.version), np.nan)
    return _set(block, f"{schema.name}.{one.recorded}", version, open_rows, versions, stray)


def _set(
    block: pa.RecordBatch, name: str, before: pa.Array, rows: np.ndarray, values: np.ndarray, stray: np.ndarray
) -> pa.RecordBatch:
    """The block with ``values`` (NaN is null) on ``rows`` of a column, and nulls where it is ``stray``."""
    new = before.fill_null(0).to_numpy(zero_copy_only=False).copy()
    null = np.asarray(before.is_null()) | stray
    new[rows], null[rows] = np.nan_to_num(values), np.isnan(values)
    index = block.schema.get_field_index(name)
    return block.set_column(index, block.schema.field(index), pa.array(new, before.type, mask=null))


def _put(one: External, texts: pa.Array, ask: Ask) -> tuple[Said, np.ndarray]:
    """What is said about each distinct text, and for each text which of these it is."""
    coded = texts.dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    values = {name: np.full(len(distinct), np.nan) for name in one.fills}
    refused: dict[int, str] = {}
    contents: dict[int, bytes] = {}
    for index, text in enumerate(distinct):
        content = _content(one, text)
        if isinstance(content, str):
            refused[index] = content
        else:
            contents[index] = content
    if contents:
        said = ask(one, list(contents.values()))
        places = list(contents)
        for name, found in said.values.items():
            values[name][places] = found
        refused |= {places[index]: detail for index, detail in said.refused.items()}
        for index in places:
            _check(one, index, values, refused)
    return Said(values, refused), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _check(one: External, index: int, values: dict[str, np.ndarray], refused: dict[int, str]) -> None:
    """Refuse an answer that its fields cannot hold."""
    for name in one.fills:
        value = values[name][index]
        if index not in refused and not np.isfinite(value):
            refused[index] = f"{one} says {value} for {name!r}, which is no finite number"
    if index in refused:
        for name in one.fills:
            values[name][index] = np.nan


def _content(one: External, text: str) -> bytes | str:
    """What is sent, or why it is not."""
    content = text.encode()
    if len(content) > one.max_bytes:
        return f"{one} takes {one.max_bytes} bytes at most, got {len(content)}"
    if not one.is_base64:
        return content
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        return f"{one} is asked about base64, got other characters"
