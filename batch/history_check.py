"""Whether a history is fit to train on, before anything is made of it: counted by type, compared with the last one.

What is looked for are the ways in which data goes wrong between two trainings: an event type that comes no more, a
field that is suddenly null, half of the events missing, nothing new at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch.tables import open_history, read_split
from shared_features.app import App
from shared_features.errors import HistoryError
from shared_features.plan import make_plan
from shared_features.whole_files import replace_text

MORE_NULLS = 0.2
"""A field may not be null in so much more of its rows than before."""
FEWER_EVENTS = 0.5
"""Of an event type there must be at least this share of the events that there were."""


@dataclass(slots=True)
class Counted:
    """One event type in a history.

    Attributes:
        events: how many.
        nulls: field to the share of its events where it is null.
        first, last: event times, ISO 8601 in UTC; None where there is no event.
    """

    events: int = 0
    nulls: dict[str, float] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None


def count_history(app: App, history: str | Path) -> dict[str, Any]:
    """Count a history: ``history``, ``version`` (of its content, None where it cannot be told) and ``types``.

    Raises:
        HistoryError: it is not there, or its columns are not those that the app needs.
    """
    source = open_history(history, make_plan(app))
    fields = [name for name in source.schema.names if name.partition(".")[0] in app.event_types and "." in name]
    counts: dict[str, Counted] = {}
    nulls: dict[str, int] = {}
    for split in source.splits:
        for block in read_split(split):
            for name in pc.unique(block.column("event_type")).to_pylist():
                rows = block.filter(pc.fill_null(pc.equal(block.column("event_type"), name), False))
                one = counts.setdefault(name, Counted())
                one.events += rows.num_rows
                ends = pc.min_max(rows.column("event_time").cast(pa.timestamp("us", "UTC"))).as_py()
                if ends["min"] is not None:
                    one.first = min(filter(None, (one.first, ends["min"].isoformat())))
                    one.last = max(filter(None, (one.last, ends["max"].isoformat())))
                for place in fields:
                    if place.startswith(f"{name}."):
                        nulls[place] = nulls.get(place, 0) + rows.column(place).null_count
    for name, one in counts.items():
        mine = [place for place in fields if place.startswith(f"{name}.")]
        one.nulls = {place: nulls.get(place, 0) / max(one.events, 1) for place in mine}
    types = {name: asdict(counts.get(name, Counted())) for name in app.event_types}
    return {"history": source.uri, "version": source.version, "types": types}


def check_history(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with a counted history, a sentence each; nothing where it may be trained on.

    Args:
        found: of `count_history`.
        before: of the last one that was accepted; None: there was none.
    """
    wrong = [f"there is no event of type {name!r}" for name, one in found["types"].items() if not one["events"]]
    for name, old in ({} if before is None else before["types"]).items():
        new = found["types"].get(name)
        if new is None or not new["events"]:
            continue
        if new["events"] < FEWER_EVENTS * old["events"]:
            wrong.append(f"events of type {name!r} are {new['events']:,}, and were {old['events']:,} before")
        if old["last"] is not None and new["last"] is not None and new["last"] < old["last"]:
            wrong.append(f"the newest event of type {name!r} is of {new['last'][:19]}, and was of {old['last'][:19]}")
        wrong += [
            f"{place} is null in {share:.0%} of its events, and was in {old['nulls'][place]:.0%}"
            for place, share in new["nulls"].items()
            if place in old["nulls"] and share > old["nulls"][place] + MORE_NULLS
        ]
    return wrong


def accept_history(
    app: App, history: str | Path, accepted: Path, *, anyway: bool = False
) -> tuple[dict[str, Any], bool]:
    """Count and check a history, and remember it as the last one that was accepted.

    Args:
        accepted: file that remembers; its folder is made.
        anyway: accept it, whatever is wrong.

    Returns:
        What was counted, and whether this very content had been accepted already.

    Raises:
        HistoryError: something is wrong, with everything that is; or the file is damaged.
    """
    try:
        before = json.loads(accepted.read_text("utf-8")) if accepted.is_file() else None
    except ValueError as error:
        raise HistoryError(f"{accepted} is damaged ({error}): remove it, and no history was accepted yet") from error
    version = open_history(history, make_plan(app)).version
    if before is not None and version is not None and before["version"] == json.loads(json.dumps(version)):
        return before, True
    found = count_history(app, history)
    wrong = check_history(found, before)
    if wrong and not anyway:
        raise HistoryError(
            f"History {history} is not fit to train on: {'; '.join(wrong)}; mend it, or give --accept-data if it is "
            "right."
        )
    accepted.parent.mkdir(parents=True, exist_ok=True)
    replace_text(accepted, json.dumps(found, indent=1) + "\n")
    return found, False
