"""Resource names, checked as the service checks them.

https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
"""

from __future__ import annotations

import re

from streaming.broker.errors import RefusedError, invalid

DELETED_TOPIC = "_deleted-topic_"
DELETED_SCHEMA = "_deleted-schema_"

_ID = r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}"
_PROJECT = r"projects/[^/\s]+"
_PATTERNS = {
    kind: re.compile(rf"{_PROJECT}/{kind}/{_ID}") for kind in ("topics", "subscriptions", "snapshots", "schemas")
}
_PROJECT_PATTERN = re.compile(_PROJECT)


def bad_name(name: str) -> RefusedError:
    """The refusal of a name that no resource can have."""
    return invalid(
        f"Invalid resource name given (name={name}). Refer to "
        "https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names for more information."
    )


def check_name(name: str, kind: str) -> str:
    """``projects/P/<kind>/ID`` unchanged.

    Raises:
        RefusedError: INVALID_ARGUMENT; the id must be 3 to 255 of ``A-Za-z0-9-_.~+%``, begin with a letter and
            not with ``goog``.
    """
    if not _PATTERNS[kind].fullmatch(name):
        raise bad_name(name)
    return name


def check_project(name: str) -> str:
    """``projects/P`` unchanged.

    Raises:
        RefusedError: INVALID_ARGUMENT.
    """
    if not _PROJECT_PATTERN.fullmatch(name):
        raise bad_name(name)
    return name
