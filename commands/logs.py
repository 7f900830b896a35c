"""Log lines on standard error, for people or, one JSON object a line, for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message`` and, if any, ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; JSON escapes whatever could begin another."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=True)


class TextLines(logging.Formatter):
    """As people read them; control characters of what others sent cannot begin a line of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without the traceback that may follow it."""
        return "".join(
            letter if letter.isprintable() else repr(letter)[1:-1] for letter in super().formatMessage(record)
        )


def set_up_logging(level: str, form: str = "text") -> None:
    """Log lines on standard error; third parties' from WARNING on.

    Args:
        level: of our own lines.
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler()
    text = TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(handlers=[handler])
    for name in ("sameriver", "batch", "commands", "serving", "streaming", "training"):
        logging.getLogger(name).setLevel(level.upper())
