"""Backfill: features and predictions of a past range, as rows of the stream's archive (contract C7).

    <out>/publish_date=2013-11-01/<run>-….parquet     rows predicted on
    <out>/_backfill/<run>.json                        what made them, and what was counted
    <out>/_work-<run>/                                while it runs: what a run that was cut off goes on from

A *run* is a hash of all that decides its rows: app and features, history, range, models. The same run again finds
itself done. Another one leaves out the rows that are there: what is there wins, and what is there with other values is
counted, never overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch import runner
from batch.backfill_out import Outcome, intact, is_here, put_in_place, put_reactions
from batch.backfill_rows import TOO_LATE, Asking, RowsOf, archive_schema
from batch.partitions import WITHOUT_KEY
from batch.partitions_run import folded, settled, starting
from batch.reaction_steps import Predicted, columns_for, fold_reactions, folds_in_place
from batch.tables import History, open_history
from shared_features.app import App
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.fingerprint import canonical
from shared_features.plan import Plan, make_plan
from shared_features.reactions import remembers
from shared_features.schema import TIMESTAMP
from shared_features.validate import MAX_FUTURE_S
from streaming.locks import take_lock

MANIFESTS = "_backfill"
FORMAT_VERSION = 2
_FOREVER_US = 2**62


@dataclasses.dataclass(frozen=True)
class BackfillSummary:
    """What a backfill did.

    Attributes:
        out: where the rows are.
        run: by which its files and its manifest are named.
        reused: whether it was done before.
        app, fingerprint, history: of what.
        rows: rows predicted on in the range, by outcome.
        reactions: of these rows, how often each reaction fired.
        rows_added, rows_there, rows_differing: written; left out because they were there; of these, with other values.
        reactions_added, reactions_there: rows of reactions written; left out because they were there.
        events, events_left_out, without_key: read; not folded, by reason; without a key, by key.
        files, bytes, seconds: written, and how long it took, wall clock.
    """

    out: str
    run: str
    reused: bool
    app: str
    fingerprint: str
    history: str
    rows: dict[str, int]
    reactions: dict[str, int]
    rows_added: int
    rows_there: int
    rows_differing: int
    reactions_added: int
    reactions_there: int
    events: int
    events_left_out: dict[str, int]
    without_key: dict[str, int]
    files: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return dataclasses.asdict(self)


def backfill(
    app: App,
    history: str | Path,
    out: str | Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    asking: Asking | None = None,
    reactions: str | None = None,
    whole_history: bool = False,
    work: Path | None = None,
    shards: int | None = None,
    span: int | None = None,
    runner_options: Sequence[str] = (),
    progress: runner.Progress | None = None,
) -> BackfillSummary:
    """Write features, and with ``asking`` predictions, of the events of a range, or find that they are there already.

    Args:
        app: whose features, and whose models where ``asking`` is given.
        history: a folder or file of Parquet, or ``bq://project.dataset.table``; see `open_history`.
        out: a folder, ``gs://bucket/folder`` or ``bq://project.dataset.table``.
        since, until: rows of [since, until) by publish time; aware datetimes, None is open. Of the events before, what
            the range's windows can reach is folded; where reactions remember, all, and it is predicted on, too.
        asking: where the models are that predict; None collects features only.
        reactions: where a row of each reaction that fired goes, too: a folder, ``gs://…`` or ``bq://…``.
        whole_history: fold all that was published before ``until``, however old.
        work: folder for what waits between two steps; it is gone at the end. None: in ``out``, which is a folder then.
        shards: into how many shards keys go; None chooses by the rows. Changes only the columns that say so.
        span: so many days of a shard (of an archive, millions of positions) are folded side by side with those that
            follow; None folds them in turn.
        runner_options: Beam's; see `runner.run`. Workers must see ``work`` and the history.
        progress: called with the share done and the step at work.

    Raises:
        HistoryError: as `open_history`; or the range has events that came so late that more history is needed.
        ConfigurationError: the range is empty, ``out`` cannot be written, or another backfill writes there.
    """
    if since is not None and until is not None and since >= until:
        raise ConfigurationError(f"a range from {since} to {until} holds nothing: wanted --from before --to")
    started = time.monotonic()
    watch = progress or _silent
    plan = make_plan(app)
    remembering = asking is not None and remembers(app)
    warm = None if whole_history or remembering else warm_from(plan, since)
    source = open_history(history, plan, since=warm, until=until)
    origin = _origin(app, source, since, until, asking, whole=whole_history)
    if reactions is not None:
        origin |= {"reactions_to": reactions}
    if not is_here(out):  # what waits between two steps, tokens among it, belongs to one destination
        origin |= {"out": str(out)}
    run = hashlib.blake2b(canonical(origin).encode(), digest_size=8).hexdigest()
    home = _home(out, work)
    with locked(home):
        held = _manifest(home, run)
        if held is not None and source.version is not None and intact(out, held["outcome"]["files"]):
            watch(1.0, "done before")
            return _summary(str(out), run, held, reused=True, seconds=time.monotonic() - started)
        scratch = home / f"_work-{run}"
        since_us, until_us = _us(since, -_FOREVER_US), _us(until, _FOREVER_US)
        rows = RowsOf(str(scratch / "out"), since_us, until_us, _grace_us(plan, since, warm), asking)
        columns = [field.name for field in app.predict_on.block_fields]
        source, shards = settled(scratch, source, shards, span)
        if asking is not None and remembering:
            in_place = folds_in_place(plan, source, span)
            predicted = Predicted(str(scratch), shards, asking, in_place, rows)
            needed = columns_for(app, source)
            counts = folded(plan, source, scratch, predicted, needed, shards, runner_options, watch, span=span)
            counts |= fold_reactions(app, scratch, shards, rows, runner_options, watch, in_place=in_place)
        else:
            counts = folded(plan, source, scratch, rows, columns, shards, runner_options, watch, span=span)
        _check_late(plan, counts)
        watch(0.99, "put rows in place")
        schema = archive_schema(plan, predicted=asking is not None)
        fired = Outcome() if reactions is None else put_reactions(app, reactions, scratch / "out", run)
        outcome = put_in_place(app, out, scratch / "out", run, schema)
        parts = {"outcome": outcome, "reactions": fired}
        manifest = {"origin": origin, "counts": counts} | {k: dataclasses.asdict(part) for k, part in parts.items()}
        _write(home / MANIFESTS / f"{run}.json", manifest)
        shutil.rmtree(scratch)
    watch(1.0, "written")
    return _summary(str(out), run, manifest, reused=False, seconds=time.monotonic() - started)


def _check_late(plan: Plan, counts: dict[str, int]) -> None:
    if counts.get(TOO_LATE):
        raise HistoryError(
            f"{counts[TOO_LATE]} events of the range came later than the app's lateness of "
            f"{plan.app.lateness_us // 1_000_000} s: what their windows reach was not read; run again with the whole "
            "history (--whole-history)"
        )


def warm_from(plan: Plan, since: datetime | None) -> datetime | None:
    """From which publish time on history decides the features of events that are at most the lateness late.

    Of what was published before, every event time lies at least lateness and longest window before the event time of
    such an event, and at least the lateness before what makes it late (contract C2). A window of the last n events
    reaches back without limit: all history is needed.
    """
    if since is None or any(stage.counts_events for stage in plan.stages):
        return None
    reach_us = 2 * plan.app.lateness_us + max((stage.longest_us for stage in plan.stages), default=0)
    return since - timedelta(microseconds=reach_us, seconds=MAX_FUTURE_S)


def _grace_us(plan: Plan, since: datetime | None, warm: datetime | None) -> int:
    """Events of the range that happened before this time need more history than is read."""
    return -_FOREVER_US if warm is None or since is None else _us(since, 0) - plan.app.lateness_us


def _origin(
    app: App, source: History, since: datetime | None, until: datetime | None, asking: Asking | None, *, whole: bool
) -> dict[str, Any]:
    """All that decides the rows."""
    return {
        "format_version": FORMAT_VERSION,
        "app": app.name,
        "fingerprint": app.fingerprint,
        "features": list(app.features),
        "history": source.uri,
        "history_version": source.version,
        "since": None if since is None else since.astimezone(UTC).isoformat(),
        "until": None if until is None else until.astimezone(UTC).isoformat(),
        "whole_history": whole,
        "models": None if asking is None else asking.versions,
        "reactions": [] if asking is None else [reaction.definition for reaction in app.reactions],
        "remembered": asking is not None and remembers(app),
    }


def _home(out: str | Path, work: Path | None) -> Path:
    if work is not None:
        return work
    if not is_here(out):
        raise ConfigurationError(f"a backfill into {out} wants a folder for what waits between two steps: give work")
    if (Path(out) / "archive.json").exists():
        raise ConfigurationError(f"{out} is the archive of a job, which alone writes there: name another folder")
    return Path(out)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One backfill at a time."""
    try:
        (home / MANIFESTS).mkdir(parents=True, exist_ok=True)
        lock = take_lock(home / MANIFESTS / "lock")
    except OSError as error:
        raise ConfigurationError(
            f"rows cannot be written to {home} ({error.strerror}): make the folder writable or name another one"
        ) from error
    if lock is None:
        raise ConfigurationError(f"another backfill writes to {home}: wait for it, or name another folder")
    with lock:
        yield


def _manifest(home: Path, run: str) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = json.loads((home / MANIFESTS / f"{run}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return held


def _write(path: Path, manifest: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _summary(out: str, run: str, manifest: dict[str, Any], *, reused: bool, seconds: float) -> BackfillSummary:
    counts, origin, outcome, fired = (manifest[part] for part in ("counts", "origin", "outcome", "reactions"))
    return BackfillSummary(
        out=out,
        run=run,
        reused=reused,
        app=origin["app"],
        fingerprint=origin["fingerprint"],
        history=origin["history"],
        rows=starting("rows.", counts),
        reactions=starting("reaction.", counts),
        rows_added=0 if reused else outcome["added"],
        rows_there=outcome["added"] + outcome["there"] if reused else outcome["there"],
        rows_differing=outcome["differing"],
        reactions_added=0 if reused else fired["added"],
        reactions_there=fired["added"] + fired["there"] if reused else fired["there"],
        events=counts.get("events.read", 0),
        events_left_out=starting("left_out.", counts),
        without_key=starting(WITHOUT_KEY, counts),
        files=len(outcome["files"]),
        bytes=sum(outcome["files"].values()),
        seconds=round(seconds, 3),
    )


def _us(bound: datetime | None, otherwise: int) -> int:
    return otherwise if bound is None else int(pa.scalar(bound, TIMESTAMP).value)


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""
