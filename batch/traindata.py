"""Training rows: what was knowable at the moment of each prediction, with what then came to pass.

    <out>/train/2013-01.parquet …      one file per month (UTC) of event time, rows by (event_time, event_id)
    <out>/validate/…  <out>/test/…
    <out>/_training.json               what made them, what was left out and why

With another format than Parquet: the same rows as ``2013-01-00000-of-00003.csv`` …, see `batch.formats`.

Columns: ``event_id``, ``event_time``, ``publish_time``, one per feature, ``label``. The same app and history give
the same bytes, whatever the shards and the runner. They are made in ``.<out>.work`` beside it, from which a run that
was killed goes on, and renamed when they are whole; if they are there, made from the same definitions and the same
history, they are kept as they are.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch import formats, runner
from batch.labels import LABEL_NULL, NO_LABEL
from batch.lateness import Lateness
from batch.partitions import WITHOUT_KEY
from batch.partitions_run import starting
from batch.rows import OUTSIDE, UNSPLIT, row_schema, write_rows
from batch.splits import FOREVER_US, Splits, by_share, microseconds
from batch.tables import History, open_history
from shared_features.app import App
from shared_features.errors import ConfigurationError, HistoryError, SameriverError
from shared_features.plan import Plan, make_plan
from shared_features.validate import MAX_FUTURE_S
from streaming.locks import take_lock

MANIFEST = "_training.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """What `make_training_rows` made, or found made.

    Attributes:
        folder: where the rows are.
        reused: whether they were there already.
        app, fingerprint: by which definitions.
        history: URI of the history.
        splits: by event time, see `Splits.as_dict`.
        rows, label_share: rows and share of true labels per split.
        events: events read.
        events_left_out: events that were not folded, by reason.
        rows_left_out: events predicted on that gave no row, by reason.
        without_key: events of a key's types whose key is null, by key: they saw nulls and were seen by nobody.
        files, bytes: Parquet files written and their size together.
        seconds: how long making them took, wall clock.
    """

    folder: str
    reused: bool
    app: str
    fingerprint: str
    history: str
    splits: dict[str, str | None]
    rows: dict[str, int]
    label_share: dict[str, float]
    events: int
    events_left_out: dict[str, int]
    rows_left_out: dict[str, int]
    without_key: dict[str, int]
    files: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return dataclasses.asdict(self)


def make_training_rows(
    app: App,
    history: str | Path,
    out: str | Path,
    *,
    splits: Splits | None = None,
    shards: int | None = None,
    runner_options: Sequence[str] = (),
    progress: runner.Progress | None = None,
    file_format: formats.Format = "parquet",
    rows_per_file: int = formats.ROWS_PER_FILE,
    lateness: Lateness | None = None,
    span: int | None = None,
) -> TrainingSummary:
    """Write training rows to ``out``, or find that they are there already, and sum them up.

    Args:
        history: a folder or file of Parquet, or ``bq://project.dataset.table``; see `open_history`.
        splits: which rows train, validate and test; None divides the time of the history, see `by_share`.
        shards: into how many shards keys go; None chooses by the rows. Changes nothing in them.
        runner_options: Beam's; see `runner.run`. Workers must see ``out`` and the history.
        progress: called with the share done and the step at work.
        file_format: of the files; ``train`` takes Parquet.
        rows_per_file: of files that are no Parquet.
        lateness: delays of arrival for a history that has none.
        span: so many days of a shard (of an archive, millions of positions) are folded side by side with those that
            follow; None folds them in turn. Changes nothing in the rows.

    Raises:
        HistoryError: the history is missing, has not the app's columns, or gives no row.
        ConfigurationError: the app has no label, the history needs ``splits``, or ``out`` cannot be written or
            holds something else.
    """
    started = time.monotonic()
    watch = progress or _silent
    watch(0.0, "look at the history")
    if app.label is None:
        raise ConfigurationError(f"app {app.name!r} has no label to train on: add label=Label(...) to it")
    source = open_history(history, make_plan(app))
    out = Path(out)
    splits = splits or by_share(source)
    origin = _origin(app, source, splits)
    if lateness is not None:
        origin |= {"lateness": lateness.digest}
    if file_format != "parquet":
        origin |= {"format": file_format, "rows_per_file": rows_per_file}
    held = _manifest(out)
    if held is not None and source.version is not None and held["origin"] == origin and _intact(out, held):
        watch(1.0, "reused")
        return _summary(out, held, reused=True)
    _check_target(out, held)
    with _working(out, origin, known=source.version is not None) as work:
        fold, bounds = work / "fold", splits.bounds_us()
        counts = write_rows(
            app, source, fold, bounds, shards, runner_options, watch, lateness, labelled=True, span=span
        )
        folder = fold / "out"
        if not folder.exists():
            raise HistoryError(
                f"history {source.uri} gives no training row for app {app.name!r} ({_listed(counts)}): "
                "wanted events predicted on, within the splits, with a label"
            )
        formats.convert(folder, file_format, rows_per_file)
        seconds = round(time.monotonic() - started, 3)
        manifest = {"origin": origin, "files": _files(folder), "counts": counts, "seconds": seconds}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _put(folder, out, work)
    watch(1.0, "written")
    return _summary(out, manifest, reused=False)


@dataclasses.dataclass(frozen=True)
class MadeFrom:
    """What training rows were made from, so that they can be made again.

    Attributes:
        history: URI of the history.
        splits: by event time.
        fits: whether the app's features and label are those of the rows.
    """

    history: str
    splits: Splits
    fits: bool


def made_from(app: App, out: str | Path) -> MadeFrom | None:
    """What the training rows in ``out`` were made from; None if there are none."""
    held = _manifest(Path(out))
    if held is None:
        return None
    origin = held["origin"]
    label = None if app.label is None else app.label.definition
    fits = [origin["fingerprint"], origin["features"], origin["label"]] == [app.fingerprint, list(app.features), label]
    return MadeFrom(origin["history"], Splits.from_dict(origin["splits"]), fits)


def features_of_history(
    app: App,
    history: str | Path,
    *,
    event_ids: Iterable[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    published_until: datetime | None = None,
    shards: int | None = None,
    runner_options: Sequence[str] = (),
    progress: runner.Progress | None = None,
    lateness: Lateness | None = None,
    span: int | None = None,
) -> pa.Table:
    """The features that training rows would have, with or without a label, by the same steps.

    Args:
        event_ids: only these events; None takes all.
        since, until: only events predicted on with event time in [since, until), aware datetimes. What their
            windows can reach is folded all the same, so that they are as full as in training.
        published_until: fold only what was published before; without it, all that came later is read too.
        lateness: delays of arrival for a history that has none; then all of it is read.
        span: see `make_training_rows`.

    Returns:
        ``event_id``, ``event_time``, ``publish_time`` and one column per feature, by (event_time, event_id).

    Raises:
        HistoryError: as for `make_training_rows`.
    """
    plan = make_plan(app)
    warm = None if lateness is not None else _warm_from(plan, since)
    source = open_history(history, plan, since=warm, until=published_until)
    ids = None if event_ids is None else pa.array(list(event_ids), pa.string())
    bounds = [(UNSPLIT, microseconds(since, -FOREVER_US), microseconds(until, FOREVER_US))]
    with tempfile.TemporaryDirectory(prefix="sameriver-") as name:
        watch = progress or _silent
        work = Path(name)
        write_rows(app, source, work, bounds, shards, runner_options, watch, lateness, labelled=False, span=span)
        tables = [row_schema(app, labelled=False).empty_table()]
        for path in sorted((work / "out" / UNSPLIT).glob("*.parquet")):
            table = pq.read_table(path)
            tables.append(table if ids is None else table.filter(pc.is_in(table["event_id"], ids)))
        return pa.concat_tables(tables).combine_chunks()


def _warm_from(plan: Plan, since: datetime | None) -> datetime | None:
    """From which publish time on history decides the features of events from ``since`` on.

    What is published before ``since`` - lateness - longest window - 10 min has an event time of at most
    ``since`` - lateness - longest window: it lies in no window of an event from ``since`` on, and cannot be the
    greatest event time of its key once that event is folded (contract C2). A window of the last n events
    reaches back without limit: all history is needed.
    """
    if since is None or any(stage.counts_events for stage in plan.stages):
        return None
    reach_us = plan.app.lateness_us + max((stage.longest_us for stage in plan.stages), default=0)
    return since - timedelta(microseconds=reach_us, seconds=MAX_FUTURE_S)


# -- the folder ---------------------------------------------------------------------------------------------
def _origin(app: App, source: History, splits: Splits) -> dict[str, Any]:
    """All that decides the rows."""
    assert app.label is not None
    return {
        "format_version": FORMAT_VERSION,
        "app": app.name,
        "fingerprint": app.fingerprint,
        "features": list(app.features),
        "label": app.label.definition,
        "splits": splits.as_dict(),
        "history": source.uri,
        "history_version": source.version,
    }


def _manifest(out: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"origin", "files", "counts"} <= set(manifest) else None


def _intact(out: Path, manifest: dict[str, Any]) -> bool:
    return bool(_files(out) == manifest["files"])


def _files(folder: Path) -> dict[str, int]:
    """Sizes of the files of rows, by their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in formats.SUFFIXES.values())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _check_target(out: Path, held: dict[str, Any] | None) -> None:
    """Refuse to replace what is not ours."""
    if held is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(
            f"training rows cannot be written to {out}, which holds something else: name an empty folder"
        )


@contextmanager
def _working(out: Path, origin: dict[str, Any], *, known: bool) -> Iterator[Path]:
    """A work folder beside ``out``: that of a run that was killed, where it was making the same; it is gone at the end.

    Args:
        known: whether ``origin`` tells one content of the history from another.
    """
    work = out.with_name(f".{out.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = take_lock(work / "lock")
    except OSError as error:
        raise ConfigurationError(
            f"training rows cannot be written to {out} ({error.strerror or error}): make the folder writable or name "
            "another one"
        ) from error
    if lock is None:
        raise ConfigurationError(f"training rows are being written to {out} already: wait, or name another folder")
    with lock:
        made, sought = work / "origin.json", json.dumps(origin, sort_keys=True)
        if not known or not made.exists() or made.read_text("utf-8") != sought:
            shutil.rmtree(work / "fold", ignore_errors=True)
            made.write_text(sought, "utf-8")
        try:
            yield work
        except SameriverError:
            _remove(work)
            raise
        _remove(work)


def _remove(work: Path) -> None:
    """Under another name first: who comes next begins a folder of their own."""
    gone = work.with_name(f"{work.name}.{secrets.token_hex(4)}")
    work.rename(gone)
    shutil.rmtree(gone)


def _put(folder: Path, out: Path, work: Path) -> None:
    """Rename ``folder`` to ``out``; what was there is gone only once the new rows are in place."""
    if out.exists():
        shutil.rmtree(work / "old", ignore_errors=True)
        out.rename(work / "old")
    folder.rename(out)


def _summary(out: Path, manifest: dict[str, Any], *, reused: bool) -> TrainingSummary:
    counts, origin = manifest["counts"], manifest["origin"]
    splits = ("train", "validate", "test")
    rows = {split: counts.get(f"rows.{split}", 0) for split in splits}
    return TrainingSummary(
        folder=str(out),
        reused=reused,
        app=origin["app"],
        fingerprint=origin["fingerprint"],
        history=origin["history"],
        splits=origin["splits"],
        rows=rows,
        label_share={split: counts.get(f"positive.{split}", 0) / rows[split] for split in splits if rows[split]},
        events=counts.get("events.read", 0),
        events_left_out=starting("left_out.", counts),
        rows_left_out={name: counts.get(f"rows.{name}", 0) for name in (NO_LABEL, LABEL_NULL, OUTSIDE)},
        without_key=starting(WITHOUT_KEY, counts),
        files=len(manifest["files"]),
        bytes=sum(manifest["files"].values()),
        seconds=manifest["seconds"],
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing read"


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""
