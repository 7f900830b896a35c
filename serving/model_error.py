"""The error that callers of a model may expect; apart from the client, which imports next to nothing."""

from __future__ import annotations

from shared_features.errors import SameriverError


class ModelError(SameriverError):
    """A model server refuses a call for a reason that no row can mend (no such model, signature, right ...).

    Args:
        message: one sentence.
        code: name of the gRPC status code, for example ``NOT_FOUND``; "" where the server was not the cause.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
