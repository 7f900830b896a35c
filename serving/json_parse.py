"""JSON of a request, as RapidJSON reads it for TensorFlow Serving, with its words where it does not.

Source: rapidjson/reader.h and rapidjson/error/en.h. NaN and Infinity are bare words; what follows the document is
not looked at. Nesting is bounded, which it is not there.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

from serving.json_text import shown
from serving.status import RefusalError, invalid

DEPTH_LIMIT = 64
_BLANK = " \t\r\n\ufeff"
_TOO_BIG = "Number too big to be stored in double."
# What Python's parser says, by its beginning, and what RapidJSON says.
_WORDS = {
    "Expecting value": "Invalid value.",
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid \\escape": "Invalid escape character in string.",
}
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body begins with. RefusalError if there is none."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused("Invalid encoding in string.", error.start) from None
    start = len(text) - len(text.lstrip(_BLANK))
    if start == len(text):
        raise _refused("The document is empty.", len(body))
    try:
        value = _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        raise _refused(_words(error), len(text[: error.pos].encode())) from None
    except RecursionError:
        raise invalid(f"JSON Parse error: Nested deeper than {DEPTH_LIMIT} levels") from None
    except ValueError:  # more digits than Python converts
        raise invalid(f"JSON Parse error: {_TOO_BIG}") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {shown(value)} Is not object")
    if _depth(value) > DEPTH_LIMIT:
        raise invalid(f"JSON Parse error: Nested deeper than {DEPTH_LIMIT} levels")
    return value


def double(value: float) -> float:
    """A number that no integer type holds, as RapidJSON has it: a double. RefusalError if none holds it."""
    try:
        return float(value)
    except OverflowError:
        raise invalid(f"JSON Parse error: {_TOO_BIG}") from None


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(_TOO_BIG)
    return value


_DECODER = json.JSONDecoder(parse_float=_parse_float)


def _refused(words: str, offset: int) -> RefusalError:
    return invalid(f"JSON Parse error: {words} at offset: {offset}")


def _words(error: json.JSONDecodeError) -> str:
    for beginning, words in _WORDS.items():
        if error.msg.startswith(beginning):
            return words
    after = error.doc[error.pos : error.pos + 1]
    if error.doc[error.pos - 1 : error.pos].isdigit() and after and after in ".eE":
        return "Miss fraction part in number." if after == "." else "Miss exponent in number."
    open_brackets: list[str] = []
    for piece in _TOKENS.findall(error.doc, 0, error.pos):
        if piece in "[{":
            open_brackets.append(piece)
        elif piece in "]}" and open_brackets:
            open_brackets.pop()
    if open_brackets and open_brackets[-1] == "[":
        return "Missing a comma or ] after an array element."
    return "Missing a comma or } after an object member."


def _depth(value: Any) -> int:
    depth = 0
    level = [value]
    while level:
        depth += 1
        inside = itertools.chain.from_iterable(one.values() if type(one) is dict else one for one in level)
        level = [one for one in inside if type(one) is list or type(one) is dict]
    return depth
