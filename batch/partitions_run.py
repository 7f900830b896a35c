"""Fold a history in a work folder and find what was counted: how every batch job begins."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam

from batch import runner
from batch.counts import counted
from batch.partitions import shards_for
from batch.partitions_ended import Ended
from batch.partitions_steps import Fold, Folded
from batch.tables import History
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.plan import Plan

SPLITS_LAST_S = 5 * 3600
"""For how long the splits of a table can be read: BigQuery forgets after six hours how it cut one."""


def settled(scratch: Path, source: History, shards: int | None, span: int | None = None) -> tuple[History, int]:
    """The splits to read and the number of shards: of a run that was cut off those of which its folder was made.

    Args:
        shards: wanted; None chooses by the rows.
        span: see `Fold`; what was made with another one is of no use.
    """
    if shards is not None and shards < 1:
        raise ConfigurationError(f"the number of shards is {shards}, wanted 1 or more")
    path = scratch / "settled.json"
    if path.exists():
        held = json.loads(path.read_bytes())
        splits = [split.encode() for split in held["splits"]]
        readable = splits == source.splits or time.time() - path.stat().st_mtime < SPLITS_LAST_S
        if readable and held["span"] == span:
            return replace(source, splits=splits), held["shards"]
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    shards = shards_for(source.rows) if shards is None else shards
    temporary = path.with_suffix(".new")
    made_of = {"splits": [split.decode() for split in source.splits], "shards": shards, "span": span}
    temporary.write_text(json.dumps(made_of), "utf-8")
    temporary.replace(path)
    return source, shards


def folded(
    plan: Plan,
    source: History,
    scratch: Path,
    ended: Callable[[Plan], Ended],
    columns: Sequence[str],
    shards: int,
    options: Sequence[str],
    watch: runner.Progress,
    *,
    ending: Sequence[str] = (),
    then: Callable[[Fold, Sequence[Any]], Sequence[Any]] | None = None,
    **more: Any,
) -> dict[str, int]:
    """Fold a history in a work folder, see `batch.partitions_steps`; what was counted.

    Args:
        source, shards: as `settled`.
        ended, columns, more: see `Fold`.
        ending: event types that come to the end besides the one predicted on.
        then: the steps behind the end, see `Folded`.
    """
    total = (source.rows or 0) * (1 + len(plan.stages) + (then is not None))
    with runner.watched(watch, total) as token:
        types = tuple(dict.fromkeys([plan.app.predict_on.name, *ending]))
        carried = tuple(dict.fromkeys(columns))
        fold = Fold(plan.app, str(scratch), carried, shards, source.archived, ended, types, token, **more)
        counts = counted(
            scratch / "counts",
            options,
            lambda pipeline: (
                pipeline
                | "splits" >> beam.Create(source.splits, reshuffle=len(source.splits) > 1)
                | "fold" >> Folded(fold, then)
            ),
        )
    check_published(source, counts)
    return counts


def check_published(source: History, counts: dict[str, int]) -> None:
    """HistoryError where some events have a publish time and others have none."""
    if counts.get("events.published") and counts.get("events.unpublished"):
        raise HistoryError(
            f"history {source.uri} has {counts['events.unpublished']} events without a publish_time and "
            f"{counts['events.published']} with one: wanted it on all or on none; fill it in or drop the column"
        )


def starting(prefix: str, counts: dict[str, int]) -> dict[str, int]:
    """The counts whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): number for name, number in counts.items() if name.startswith(prefix)}
