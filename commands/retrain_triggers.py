"""What calls for a retraining: a schedule, or an alarm of `sameriver monitor` that stands and was not yet answered.

Asked by level, not by edge: the monitor's table says which alarms stand, and a file beside the reports which of them
were answered, and when. The file is written after a retraining has ended; one that was killed is called for again, and
finds what it had done. So nothing is lost or done twice, whoever stops when.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

KINDS = ("drift", "quality", "kpi")
FILE = "triggers.json"


@dataclass(frozen=True, slots=True)
class Triggers:
    """When to retrain.

    Attributes:
        model: its name.
        alarms: the table that the monitor writes; none stands while it is not there.
        answered: the file that remembers.
        kinds: of alarms that call for it, of `KINDS`.
        every: after so long without a retraining; None: no schedule.
        again: after so long, if an alarm that was answered still stands; None: one answer is enough.
    """

    model: str
    alarms: Path
    answered: Path
    kinds: Collection[str] = ()
    every: timedelta | None = None
    again: timedelta | None = None

    def due(self, now: datetime) -> list[str]:
        """Why a retraining is called for, in words; empty if it is not."""
        known = self._known()
        last = None if known is None else datetime.fromisoformat(known["retrained"])
        passed = None if last is None else now - last
        found = []
        if self.every is not None and (passed is None or passed >= self.every):
            found.append("the first time" if passed is None else f"the last time is {passed} ago")
        answered = [] if known is None else known["alarms"]
        is_again = self.again is not None and passed is not None and passed >= self.again
        for row in self._standing():
            if _key(row) not in answered or is_again:
                of = f" of {row['of']}" if row["of"] else ""
                found.append(f"{row['alarm']}{of} since {row['window']:%Y-%m-%d %H:%M}")
        return found

    def answer(self, standing: Sequence[list[str]], now: datetime) -> None:
        """Remember that a retraining has ended, which was called for while ``standing`` alarms stood."""
        from shared_features.whole_files import replace_text

        self.answered.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.answered, json.dumps({"retrained": now.isoformat(), "alarms": list(standing)}) + "\n")

    def standing(self) -> list[list[str]]:
        """The alarms that stand, for `answer`."""
        return [_key(row) for row in self._standing()]

    def _known(self) -> dict[str, Any] | None:
        if not self.answered.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.answered.read_text("utf-8"))
            return {"retrained": found["retrained"], "alarms": found["alarms"]}
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self.answered, error, "no retraining has answered an alarm yet") from error

    def _standing(self) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.alarms.is_file():
            return []
        try:
            rows = pq.read_table(self.alarms).to_pylist()
        except pa.ArrowException as error:
            raise _damaged(self.alarms, error, "`sameriver monitor` writes it anew") from error
        newest = {(row["alarm"], row["of"]): row for row in rows if row["model"] == self.model}
        return [row for row in newest.values() if row["on"] and row["kind"] in self.kinds]


def _damaged(path: Path, error: Exception, then: str) -> Exception:
    from shared_features.errors import ConfigurationError

    return ConfigurationError(f"{path} is damaged ({error}): remove it, and {then}")


def _key(row: dict[str, Any]) -> list[str]:
    return [row["window"].astimezone(UTC).isoformat(), row["alarm"], row["of"]]
