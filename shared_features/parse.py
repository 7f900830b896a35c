"""Bytes of single events → Python values, strictly; each malformed one is a fault of its own row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import orjson
from fastavro import schemaless_reader

from shared_features.schema import EventSchema
from shared_features.validate import Faults, shown

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


class _NotFiniteError(ValueError):
    pass


def parse_json(texts: Sequence[bytes], max_depth: int, faults: Faults) -> list[dict[str, Any]]:
    """Each text as a JSON object.

    Args:
        texts: one event each.
        max_depth: objects and lists in one another; deeper ones are not parsed.
        faults: gets ``malformed_json``, ``not_finite`` (NaN and Infinity, which Python writes and JSON does
            not know) or ``wrong_type`` (no object) by position in ``texts``.

    Returns:
        One dict per text, empty where there is a fault.
    """
    # Text that opens few brackets cannot be deep; only what might be is measured, one by one.
    if max(map(_opened, texts), default=0) <= max_depth:
        try:
            records = list(map(orjson.loads, texts))
        except orjson.JSONDecodeError:
            pass
        else:
            if all(type(record) is dict for record in records):
                return records
    return [_object(row, text, max_depth, faults) for row, text in enumerate(texts)]


def _object(row: int, text: bytes, max_depth: int, faults: Faults) -> dict[str, Any]:
    if _opened(text) > max_depth and _depth(text) > max_depth:
        faults.add(row, "malformed_json", f"An event may be nested {max_depth} deep at most, got more.")
        return {}
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason, detail = _why_no_json(text, error)
        faults.add(row, reason, detail)
        return {}
    if type(record) is dict:
        return record
    faults.add(row, "wrong_type", f"An event must be a JSON object, got {shown(record)}.")
    return {}


def _opened(text: bytes) -> int:
    return text.count(b"{") + text.count(b"[")


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _why_no_json(text: bytes, error: Exception) -> tuple[str, str]:
    """Tells a number that is not finite, a frequent slip of publishers, from text that is no JSON at all."""
    try:
        json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=len)
    except _NotFiniteError as found:
        return "not_finite", f"A number must be finite, got {shown(str(found))}."
    except (ValueError, RecursionError):
        pass
    return "malformed_json", f"The data is no JSON: {error}."


def _refuse(constant: str) -> float:
    raise _NotFiniteError(constant)


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise _NotFiniteError(number)
    return value


def wire_schema(schema: EventSchema) -> dict[str, Any]:
    """The schema without logical types: timestamps stay integers, which Arrow takes as they are."""
    fields = [{"name": field["name"], "type": _bare(field["type"])} for field in schema.avro["fields"]]
    return {"type": "record", "name": schema.avro["name"], "fields": fields}


def _bare(declared: Any) -> Any:
    if isinstance(declared, list):
        return [_bare(branch) for branch in declared]
    if isinstance(declared, dict) and declared["type"] != "enum":
        return declared["type"]
    return declared


def parse_avro(
    data: Sequence[bytes], wire: dict[str, Any], label: str, faults: Faults, first_row: int = 0
) -> list[dict[str, Any]]:
    """Each item as one Avro binary datum: no container, no header, nothing behind it.

    Args:
        data: one event each.
        wire: :func:`wire_schema` of the type, parsed.
        label: the event type, for the sentences.
        faults: gets ``malformed_avro`` by position in ``data``, counted from ``first_row``.

    Returns:
        One dict per item, empty where there is a fault.
    """
    return [_datum(first_row + row, item, wire, label, faults) for row, item in enumerate(data)]


def _datum(row: int, data: bytes, wire: dict[str, Any], label: str, faults: Faults) -> dict[str, Any]:
    source = BytesIO(data)
    try:
        record = schemaless_reader(source, wire, None)
    except Exception as error:  # fastavro raises whatever foreign bytes lead it to
        why = str(error) or type(error).__name__
        faults.add(row, "malformed_avro", f"The data is no Avro datum of {label}: {shown(why)}.")
        return {}
    behind = len(data) - source.tell()
    if behind or not isinstance(record, dict):
        faults.add(row, "malformed_avro", f"The Avro datum of {label} has {behind} bytes behind it.")
        return {}
    return record
