"""Refusals with TensorFlow Serving's codes and words."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Canonical status codes, the same numbers in gRPC and TensorFlow (google/rpc/code.proto)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RefusalError(Exception):
    """A request is answered with a status other than OK; `text` goes to the caller."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def invalid(text: str) -> RefusalError:
    """INVALID_ARGUMENT."""
    return RefusalError(Code.INVALID_ARGUMENT, text)


def not_found(text: str) -> RefusalError:
    """NOT_FOUND."""
    return RefusalError(Code.NOT_FOUND, text)


def failed_precondition(text: str) -> RefusalError:
    """FAILED_PRECONDITION."""
    return RefusalError(Code.FAILED_PRECONDITION, text)
