"""Clean rules: what an app says about values that mean "unknown", lie out of bounds or are written carelessly.

    position = EventType(
        "position", "position.avsc", time="received_at",
        clean={
            "speed": Clean(null=[102.3], between=(0, 102.2), outside="dead_letter"),
            "callsign": Clean(case="upper", strip=" @", null=[""]),
        },
    )

Rules are applied where rows enter, live and in batch, by the one function `clean_block`, before rows are checked and
folded. So features, labels, the archive and the training rows all hold the cleaned value; a dead letter holds
the message as it came. A rule that was applied once changes nothing the second time: rows of an archive may pass again.
Rules are part of the fingerprint; an app without any has the fingerprint that it always had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.columns import FEW_ROWS
from shared_features.errors import DefinitionError, did_you_mean

if TYPE_CHECKING:
    from shared_features.schema import EventSchema, FieldType

Bound = int | float | None
_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True, slots=True)
class Clean:
    """What becomes of the values of one field; the options go in this order.

    Args:
        case: of strings: ``"upper"`` or ``"lower"`` for the letters A to Z; others stay as they are, so that no
            edition of Unicode decides a feature.
        strip: of strings: True takes spaces, tabs and line ends off both ends, a string takes its characters off.
        null: values that mean "not available"; they become null. Strings are compared after ``case`` and ``strip``,
            numbers exactly (of an Avro ``float`` the nearest one counts too).
        between: of numbers: (lowest, highest) allowed, both included; None leaves a side open.
        outside: what becomes of a number out of bounds: ``"null"``; ``"clip"``, the bound that is nearer; or
            ``"dead_letter"``, the event is refused with the reason ``out_of_range``.

    Null stays null. NaN and infinity are no matter of rules: they are refused as always.

    Raises:
        DefinitionError: an option is of a wrong type, or there is none.

    >>> Clean(null=[511], between=(0, 360), outside="null").definition
    {'between': [0, 360], 'null': [511], 'outside': 'null'}
    """

    case: Literal["upper", "lower"] | None = None
    strip: bool | str = False
    null: Sequence[Any] = ()
    between: tuple[Bound, Bound] | None = None
    outside: Literal["null", "clip", "dead_letter"] = "null"
    definition: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.case not in (None, "upper", "lower"):
            raise DefinitionError(f"Clean got case={self.case!r}, wanted 'upper' or 'lower'")
        if not isinstance(self.strip, bool | str) or self.strip == "":
            raise DefinitionError(f"Clean got strip={self.strip!r}, wanted True or the characters to take off")
        if isinstance(self.null, str) or not isinstance(self.null, Sequence):
            raise DefinitionError(f"Clean got null={self.null!r}, wanted a list of values such as [{self.null!r}]")
        if self.outside not in ("null", "clip", "dead_letter"):
            raise DefinitionError(f"Clean got outside={self.outside!r}, wanted 'null', 'clip' or 'dead_letter'")
        if self.between is None and self.outside != "null":
            raise DefinitionError(f"Clean got outside={self.outside!r} without between=(lowest, highest): give both")
        if self.between is not None:
            _check_bounds(self.between)
        if not (self.case or self.strip or self.null or self.between):
            raise DefinitionError("Clean got no option, wanted at least one of case, strip, null and between")
        said: dict[str, Any] = {"case": self.case, "strip": self.strip, "null": list(self.null)}
        if self.between is not None:
            said |= {"between": list(self.between), "outside": self.outside}
        object.__setattr__(self, "definition", {name: said[name] for name in sorted(said) if said[name]})

    @property
    def gives_null(self) -> bool:
        """Whether a value can become null."""
        return bool(self.null) or (self.between is not None and self.outside == "null")


def _check_bounds(between: Any) -> None:
    good = isinstance(between, tuple | list) and len(between) == 2 and any(bound is not None for bound in between)
    if not good or not all(bound is None or _is_number(bound) for bound in between):
        raise DefinitionError(f"Clean got between={between!r}, wanted (lowest, highest), numbers, one may be None")
    if None not in between and between[0] > between[1]:
        raise DefinitionError(f"Clean got between={between!r}, wanted the lowest first")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


# -- definition ---------------------------------------------------------------------------------------------
def checked_rules(schema: EventSchema, rules: Mapping[str, Clean]) -> dict[str, Clean]:
    """The rules of an event type by field, in the schema's order, after a check that each can work.

    Raises:
        DefinitionError: names the rule and what to change.
    """
    for name, rule in rules.items():
        place = f"the clean rule of {schema.name}.{name}"
        found = schema.fields.get(name)
        if found is None:
            raise DefinitionError(
                f"{place}: event type {schema.name!r} has no field {name!r}: it has {sorted(schema.fields)}"
                f"{did_you_mean(name, schema.fields)}"
            )
        if not isinstance(rule, Clean):
            raise DefinitionError(f"{place} is {rule!r}, wanted Clean(...)")
        if name in (schema.time, schema.id):
            raise DefinitionError(f"{place}: the field is the event's time or identity, which no rule may change")
        _check_fits(place, rule, found)
        if rule.gives_null and not found.nullable:
            raise DefinitionError(
                f'{place} can give null, but the field is required: make its type ["null", …] in {schema.path}, or '
                "use outside='clip' or 'dead_letter'"
            )
    return {name: rules[name] for name in schema.fields if name in rules}


def _check_fits(place: str, rule: Clean, of: FieldType) -> None:
    texts, numbers = of.arrow == pa.string(), of.arrow in (pa.int64(), pa.float64())
    if not (texts or numbers):
        raise DefinitionError(f"{place}: the field is a {of.avro}, wanted a number or a string")
    if numbers and (rule.case or rule.strip):
        raise DefinitionError(f"{place} has case= or strip=, which are for strings; the field is a {of.avro}")
    if texts and rule.between is not None:
        raise DefinitionError(f"{place} has between=, which is for numbers; the field is a {of.avro}")
    bounds = [] if rule.between is None else [bound for bound in rule.between if bound is not None]
    for value in [*rule.null, *bounds]:
        fits = isinstance(value, str) if texts else _is_number(value)
        if fits and of.arrow == pa.int64():
            fits = type(value) is int and -(2**63) <= value < 2**63
        if not fits:
            raise DefinitionError(f"{place} names {value!r}, wanted values of the field's type, {of.avro}")
    if rule.outside == "clip" and any(bound in _twins(rule.null, of) for bound in bounds):
        raise DefinitionError(f"{place} clips to a value that null= takes away: move the bound")


def _twins(values: Iterable[Any], of: FieldType) -> list[Any]:
    """The values; of an Avro ``float`` also what becomes of them in 32 bits."""
    found = list(values)
    return found + [float(np.float32(value)) for value in found] if of.avro == "float" else found


# -- rows ---------------------------------------------------------------------------------------------------
def clean_block(block: pa.RecordBatch, schemas: Iterable[EventSchema]) -> pa.RecordBatch:
    """The block with the rules of ``schemas`` applied to their columns ``<type>.<field>``.

    Values out of bounds that are to be dead-lettered stay, for `check_bounds` to find. Columns that are not there are
    passed over; their absence is told by whoever checks rows. Without rules the block itself comes back.

    Args:
        block: rows of any event types, before they are checked.
        schemas: event types; those without rules cost nothing.
    """
    for schema in schemas:
        for name, rule in schema.clean.items():
            index = block.schema.get_field_index(f"{schema.name}.{name}")
            if index < 0 or block.schema.field(index).type != schema.fields[name].arrow:
                continue
            values = block.column(index)
            column = clean_column(values, rule, schema.fields[name])
            if column is not values:
                block = block.set_column(index, block.schema.field(index), column)
    return block


def clean_column(values: pa.Array, rule: Clean, of: FieldType) -> pa.Array:
    """One field's values after its rule; the array itself where nothing changes.

    Args:
        values: of the field's Arrow type; null stays null.
        rule: of the field, as `checked_rules` let it pass.
        of: the field.
    """
    if values.null_count == len(values) or (len(values) <= FEW_ROWS and _is_clean(values, rule, of)):
        return values
    return _clean_texts(values, rule) if of.arrow == pa.string() else _clean_numbers(values, rule, of)


def _is_clean(values: pa.Array, rule: Clean, of: FieldType) -> bool:
    """Whether nothing changes, for few rows: a live event is one, where calls of Arrow cost more than comparisons."""
    if of.arrow == pa.string():
        unknown = _tidy_nulls(rule.case, rule.strip, tuple(rule.null))
        return all(text is None or _is_tidy(text, rule, unknown) for text in values.to_pylist())
    nulls = _twins(rule.null, of)
    low, high = (None, None) if rule.between is None or rule.outside == "dead_letter" else rule.between
    lowest = None if low is None else min(_twins([low], of))
    highest = None if high is None else max(_twins([high], of))
    for number in values.to_pylist():
        if number is None:
            continue
        if number in nulls or (lowest is not None and number < lowest) or (highest is not None and number > highest):
            return False
    return True


def _is_tidy(text: str, rule: Clean, unknown: frozenset[str]) -> bool:
    if rule.case is not None and not (
        text.isascii() and text == (text.upper() if rule.case == "upper" else text.lower())
    ):
        return False
    if rule.strip and text != text.strip(_SPACES if rule.strip is True else rule.strip):
        return False
    return text not in unknown


@cache
def _tidy_nulls(case: Literal["upper", "lower"] | None, strip: bool | str, null: tuple[str, ...]) -> frozenset[str]:
    if not null:
        return frozenset()
    return frozenset(_tidy(pa.array(list(null), pa.string()), Clean(case=case, strip=strip, null=null)).to_pylist())


def _clean_texts(values: pa.Array, rule: Clean) -> pa.Array:
    cleaned = _tidy(values, rule)
    if rule.null:
        unknown = pc.is_in(cleaned, value_set=_tidy(pa.array(list(rule.null), pa.string()), rule))
        if unknown.true_count:
            cleaned = pc.if_else(unknown, pa.scalar(None, pa.string()), cleaned)
    return cleaned


def _tidy(values: pa.Array, rule: Clean) -> pa.Array:
    """Case, then strip: the other way round a second pass could take off what the first has made."""
    if rule.case is not None:
        values = pc.ascii_upper(values) if rule.case == "upper" else pc.ascii_lower(values)
    if rule.strip:
        whole = rule.strip is True
        values = pc.ascii_trim_whitespace(values) if whole else pc.utf8_trim(values, characters=rule.strip)
    return values


def _clean_numbers(values: pa.Array, rule: Clean, of: FieldType) -> pa.Array:
    numbers, valid = _numbers(values)
    gone = np.zeros(len(numbers), np.bool_)
    for unknown in _twins(rule.null, of):
        gone |= numbers == unknown
    new = numbers
    if rule.between is not None and rule.outside != "dead_letter":
        below, above = _outside(numbers, rule, of)
        if rule.outside == "null":
            gone |= below | above
        elif (below | above).any():
            low, high = (0 if bound is None else bound for bound in rule.between)
            new = np.where(below, numbers.dtype.type(low), np.where(above, numbers.dtype.type(high), numbers))
            new = np.where(gone, numbers, new)
    if new is numbers and not (gone & valid).any():
        return values
    return pa.array(new, mask=gone | ~valid)


def _numbers(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, 0 where null, and where they are not null."""
    valid = np.asarray(values.is_valid())
    return (values.fill_null(0) if values.null_count else values).to_numpy(zero_copy_only=False), valid


def _outside(numbers: np.ndarray, rule: Clean, of: FieldType) -> tuple[np.ndarray, np.ndarray]:
    """Which finite numbers are below the lowest and above the highest; bool, shape [rows]."""
    assert rule.between is not None
    finite = np.isfinite(numbers) if of.arrow == pa.float64() else np.ones(len(numbers), np.bool_)
    low, high = (None if bound is None else _twins([bound], of) for bound in rule.between)
    nowhere = np.zeros(len(numbers), np.bool_)
    below = nowhere if low is None else finite & (numbers < min(low))
    above = nowhere if high is None else finite & (numbers > max(high))
    return below, above


def out_of_bounds(values: pa.Array, rule: Clean, of: FieldType) -> np.ndarray:
    """Rows that a rule refuses (``outside="dead_letter"``); bool, shape [rows].

    Args:
        values: after `clean_column`.
    """
    if rule.between is None or rule.outside != "dead_letter":
        return np.zeros(len(values), np.bool_)
    numbers, valid = _numbers(values)
    below, above = _outside(numbers, rule, of)
    found: np.ndarray = valid & (below | above)
    return found


def bounds_sentence(label: str, rule: Clean, value: object) -> str:
    """Why a value is refused, in one sentence.

    >>> bounds_sentence("position.speed", Clean(between=(0, 102.2), outside="dead_letter"), 130.0)
    'position.speed must be from 0 to 102.2, got 130.0.'
    """
    low, high = rule.between or (None, None)
    wanted = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
    return f"{label} must be {wanted}, got {value}."
