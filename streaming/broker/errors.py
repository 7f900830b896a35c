"""What the broker answers to a request that it cannot serve, with Pub/Sub's own codes and wording.

Clients retry by code and people search for the text, so both follow the service.
"""

from __future__ import annotations

from shared_features.errors import SameriverError


class RefusedError(SameriverError):
    """A request is refused.

    Args:
        code: name of the gRPC status code, for example ``NOT_FOUND``.
        text: one sentence for people.
        metadata: sent as google.rpc.ErrorInfo; of exactly-once subscriptions, why each ack id failed.
        reason: of the ErrorInfo.
    """

    def __init__(self, code: str, text: str, metadata: dict[str, str] | None = None, reason: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.metadata = metadata or {}
        self.reason = reason


def invalid(text: str) -> RefusedError:
    """INVALID_ARGUMENT: the request can never succeed as it is."""
    return RefusedError("INVALID_ARGUMENT", text)


def not_found(name: str) -> RefusedError:
    """NOT_FOUND, naming the last part of the resource as the service does."""
    return RefusedError("NOT_FOUND", f"Resource not found (resource={name.rpartition('/')[2]}).")


def already_exists(name: str) -> RefusedError:
    """ALREADY_EXISTS, naming the last part of the resource as the service does."""
    return RefusedError(
        "ALREADY_EXISTS", f"Resource already exists in the project (resource={name.rpartition('/')[2]})."
    )


def exhausted(text: str) -> RefusedError:
    """RESOURCE_EXHAUSTED: it can succeed later; clients try again."""
    return RefusedError("RESOURCE_EXHAUSTED", text)


def too_small(what: str, got: int, minimum: int) -> RefusedError:
    """INVALID_ARGUMENT for a number below its range."""
    return invalid(
        f"The value for {what} is too small. You passed {got} in the request, but the minimum value is {minimum}."
    )


def too_large(what: str, got: int, maximum: int) -> RefusedError:
    """INVALID_ARGUMENT for a number or size above its range."""
    return invalid(
        f"The value for {what} is too large. You passed {got} in the request, but the maximum value is {maximum}."
    )
