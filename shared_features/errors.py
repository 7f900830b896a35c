"""Every error that Sameriver expects, in one tree.

    SameriverError
    ├── DefinitionError      an app, feature, key or schema is defined wrongly (raised at import)
    ├── ConfigurationError   a command's setting cannot work: port in use, folder unwritable, model missing
    ├── FingerprintError     a job's features are not those its model was trained on
    ├── HistoryError         a table of history is missing, incomplete or of another shape
    └── EventError           one event is unusable; carries the reason code of its dead letter

Each message is one sentence that names the thing, what was wanted, what was got and the next step.
Commands print it and exit 2; anything else is a defect and is logged whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared_features.source_lines import SourceLine, caller


class SameriverError(Exception):
    """Base of every expected error; the text is written for the person who can mend it."""


class DefinitionError(SameriverError):
    """An app, feature, key or schema is defined wrongly.

    Args:
        message: one sentence.
        at: the line to name; by default the line of the app's file that is being executed, if there is one.
    """

    def __init__(self, message: str, at: SourceLine | None = None) -> None:
        super().__init__(message)
        self.at = at or caller()

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.at is None else f"{message} ({self.at})"


class ConfigurationError(SameriverError):
    """A command's setting cannot work as given."""


class FingerprintError(SameriverError):
    """A job's features are not those its model was trained on."""


class HistoryError(SameriverError):
    """A table of history is missing, incomplete or of another shape."""


class EventError(SameriverError):
    """One event is unusable.

    Args:
        reason: stable code for machines, for example ``malformed_json``.
        detail: one sentence for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is nearest to it, or nothing.

    >>> did_you_mean("depature_delay", ["departure_delay", "distance"])
    "; did you mean 'departure_delay'?"
    """
    from difflib import get_close_matches

    nearest = get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
