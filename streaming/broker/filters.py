"""The filter language of subscriptions: which messages, by their attributes, a subscription gets.

    attributes:key      attributes.key = "value"      attributes.key != "value"      hasPrefix(attributes.key, "pre")
    NOT condition (or -condition)      condition AND condition      condition OR condition      (condition)

A message without the attribute is unequal to every value. AND and OR need parentheses where they meet.
https://cloud.google.com/pubsub/docs/subscription-message-filter#filtering_syntax
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from streaming.broker.errors import RefusedError, invalid, too_large

Filter = Callable[[Mapping[str, str]], bool]

MAX_BYTES = 256
MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<sign>!=|[:=.,()]) | (?P<minus>-) """
    r"""| (?P<word>[^\W][\w\-]*) )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[xX]([0-9a-fA-F]{2})|([0-7]{3})|(.))", re.DOTALL)
_SINGLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class _Token(NamedTuple):
    kind: str
    text: str


def parse(text: str) -> Filter:
    """What a filter expression means.

    >>> parse('attributes.colour = "red" AND NOT attributes:old')({"colour": "red"})
    True

    Raises:
        RefusedError: INVALID_ARGUMENT for more than 256 bytes or anything that is not an expression.
    """
    if len(text.encode()) > MAX_BYTES:
        raise too_large("filter size", len(text.encode()), MAX_BYTES)
    parser = _Parser(text)
    found = parser.expression(0)
    if parser.next is not None:
        raise parser.wrong("the end")
    return found


class _Parser:
    """Recursive descent over one filter.

    Attributes:
        next: the token that comes next, None at the end.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self.next: _Token | None = None
        self._advance()

    def expression(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise self.wrong("fewer parentheses")
        parts = [self._condition(depth)]
        operator = ""
        while self.next is not None and self.next.text in ("AND", "OR") and self.next.kind == "word":
            if operator and self.next.text != operator:
                raise self.wrong("parentheses where AND and OR meet")
            operator = self._take("word")
            parts.append(self._condition(depth))
        if len(parts) == 1:
            return parts[0]
        together = all if operator == "AND" else any
        return lambda attributes: together([part(attributes) for part in parts])

    def _condition(self, depth: int) -> Filter:
        negated = False
        while self.next in (_Token("word", "NOT"), _Token("minus", "-")):
            negated = not negated
            self._advance()
        if self.next == _Token("sign", "("):
            self._advance()
            found = self.expression(depth + 1)
            self._sign(")")
        else:
            found = self._comparison()
        return (lambda attributes: not found(attributes)) if negated else found

    def _comparison(self) -> Filter:
        name = self._take("word")
        if name == "hasPrefix":
            self._sign("(")
            if self._take("word") != "attributes":
                raise self.wrong("attributes")
            key = self._member()
            self._sign(",")
            prefix = self._string()
            self._sign(")")
            return lambda attributes: key in attributes and attributes[key].startswith(prefix)
        if name != "attributes":
            raise self.wrong("attributes or hasPrefix")
        if self.next == _Token("sign", ":"):
            self._advance()
            key = self._key()
            return lambda attributes: key in attributes
        key = self._member()
        if self.next == _Token("sign", "="):
            self._advance()
            value = self._string()
            return lambda attributes: attributes.get(key) == value
        self._sign("!=")
        value = self._string()
        return lambda attributes: attributes.get(key) != value

    def _member(self) -> str:
        self._sign(".")
        return self._key()

    def _key(self) -> str:
        if self.next is not None and self.next.kind == "string":
            return self._string()
        return self._take("word")

    def _string(self) -> str:
        return _ESCAPE.sub(_unescaped, self._take("string")[1:-1])

    def _sign(self, wanted: str) -> None:
        if self.next != _Token("sign", wanted):
            raise self.wrong(wanted)
        self._advance()

    def _take(self, kind: str) -> str:
        if self.next is None or self.next.kind != kind:
            raise self.wrong("a quoted string" if kind == "string" else "a name")
        text = self.next.text
        self._advance()
        return text

    def _advance(self) -> None:
        rest = self._text[self._place :]
        if not rest.strip():
            self.next = None
            return
        found = _TOKEN.match(rest)
        if found is None:
            self.next = _Token("odd", rest.strip()[0])
            return
        self._place += found.end()
        kind = found.lastgroup or ""
        self.next = _Token(kind, found[kind])

    def wrong(self, wanted: str) -> RefusedError:
        got = "the end" if self.next is None else self.next.text
        return invalid(f"Invalid filter expression: {self._text!r}: wanted {wanted}, got {got}.")


def _unescaped(found: re.Match[str]) -> str:
    for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
        if found[group] is not None:
            number = int(found[group], base)
            return chr(number) if number < 0x110000 else "\ufffd"
    return _SINGLE.get(found[5], found[5])
