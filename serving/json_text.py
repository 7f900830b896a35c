"""JSON text as TensorFlow Serving writes it.

Source: tensorflow_serving/util/json_tensor.cc (WriteDecimal) and RapidJSON's PrettyWriter. A float is written with 6
digits if these give it back, else 9 (17 for a double), always with a point; NaN and Infinity are bare words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_FLOAT_LIMIT = 3.4028234e38  # RapidJSON's IsFloat
_SHOWN_CHARACTERS = 10_000
_ESCAPES = {number: f"\\u{number:04X}" for number in range(32)}
_ESCAPES.update({ord(raw): f"\\{letter}" for raw, letter in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)})


def quoted(text: str) -> str:
    """A JSON string, escaped as RapidJSON does.

    >>> print(quoted('a "b" \\x1f é'))
    "a \\"b\\" \\u001F é"
    """
    return f'"{text.translate(_ESCAPES)}"'


def decimal(value: float, single: bool = False) -> str:
    """A float as the real server writes it.

    >>> [decimal(v) for v in (2.0, 0.1, 1 / 3, 9e6, float("nan"))]
    ['2.0', '0.1', '0.33333333333333331', '9e+06', 'NaN']
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "-Infinity" if value < 0 else "Infinity"
    text = f"{value:g}"
    back = float(np.float32(text)) if single else float(text)
    if back != value:
        text = f"{value:.9g}" if single else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def decimals(values: list[float], single: bool) -> list[str]:
    """`decimal` of each."""
    texts = [f"{value:g}" for value in values]
    array = np.array(values)
    back = np.array(texts, np.float64)  # NaN and infinity, too
    same = (back.astype(np.float32) if single else back) == array
    digits = 9 if single else 17
    for index in np.flatnonzero(~same & np.isfinite(array)).tolist():
        texts[index] = f"{values[index]:.{digits}g}"
    for index in np.flatnonzero(~np.isfinite(array)).tolist():
        texts[index] = decimal(values[index])
    return [text if "." in text or "e" in text or not text[-1].isdigit() else text + ".0" for text in texts]


class PrettyWriter:
    """Writes JSON with RapidJSON's PrettyWriter's white space, which clients' golden files have."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._levels: list[list[Any]] = []  # [is array, values so far]
        self.single_line_arrays = False

    def text(self) -> str:
        """All that was written."""
        return "".join(self._parts)

    def size(self) -> int:
        """Pieces written so far, of a character or more each."""
        return len(self._parts)

    def raw(self, token: str) -> None:
        """A value that is JSON already."""
        self._prefix()
        self._parts.append(token)

    def values(self, tokens: Sequence[str]) -> None:
        """Several values of an array that are JSON already."""
        if tokens:
            self.raw(tokens[0])
            level = self._levels[-1]
            level[1] += len(tokens) - 1
            between = ", " if self.single_line_arrays else ",\n" + " " * 4 * len(self._levels)
            self._parts.append(between.join(("", *tokens[1:])))

    def string(self, value: str) -> None:
        """A string or a key."""
        self.raw(quoted(value))

    def start(self, bracket: str) -> None:
        """Begin an array or an object."""
        self.raw(bracket)
        self._levels.append([bracket == "[", 0])

    def end(self, bracket: str) -> None:
        """End the innermost."""
        is_array, count = self._levels.pop()
        if count and not (is_array and self.single_line_arrays):
            self._parts.append("\n" + " " * 4 * len(self._levels))
        self._parts.append(bracket)

    def _prefix(self) -> None:
        if not self._levels:
            return
        level = self._levels[-1]
        is_array, count = level
        if is_array:
            if count:
                self._parts.append(", " if self.single_line_arrays else ",")
            if not self.single_line_arrays:
                self._parts.append("\n" + " " * 4 * len(self._levels))
        elif count % 2:
            self._parts.append(": ")
        else:
            self._parts.append((",\n" if count else "\n") + " " * 4 * len(self._levels))
        level[1] += 1


def shown(value: Any) -> str:
    """A JSON value as refusals quote it."""
    if isinstance(value, float):
        single = abs(value) <= _FLOAT_LIMIT
        return decimal(float(np.float32(value)) if single else value, single)
    writer = PrettyWriter()
    _write(writer, value)
    return writer.text()[:_SHOWN_CHARACTERS]


def _write(writer: PrettyWriter, value: Any) -> None:
    if writer.size() > _SHOWN_CHARACTERS:
        return
    if isinstance(value, dict):
        writer.start("{")
        for key, inner in value.items():
            writer.string(key)
            _write(writer, inner)
        writer.end("}")
    elif isinstance(value, list):
        writer.start("[")
        for inner in value:
            _write(writer, inner)
        writer.end("]")
    elif isinstance(value, str):
        writer.string(value)
    elif value is None or isinstance(value, bool):
        writer.raw({None: "null", True: "true", False: "false"}[value])
    else:
        finite = isinstance(value, int) or math.isfinite(value)
        writer.raw(repr(value).replace("e+", "e") if finite else decimal(value))
