"""Validate: do events fit the schema and its rules, and are their features what training saw?

a history           every event is checked as a job checks it; features are computed as for training rows
training rows       their features
an archive          the features that were served
messages            each is decoded and checked as a job does; only features of the event itself have a value here
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.admission import OUT_OF_RANGE, admit
from batch.archive_rows import Wanted, find_rows
from batch.drift import Drift, FieldDrift, Limits
from batch.tables import open_history, read_split
from batch.traindata import MANIFEST, features_of_history
from shared_features.aggregates import Aggregate
from shared_features.app import App
from shared_features.columns import Evaluator, is_one_of
from shared_features.kernel import out_of_range
from shared_features.plan import make_plan
from shared_features.validate import REASONS
from streaming.intake import Intake
from streaming.topics import Message

Progress = Callable[[float, str], None]


@dataclass(slots=True)
class Validation:
    """What was found.

    Attributes:
        source: what was looked at. kind: ``history``, ``training``, ``archive`` or ``messages``.
        events: checked against the schema; 0 where that was done before.
        refused: events that a job would refuse, by reason. example: why the first of some messages was.
        rows: whose features were looked at.
        fields: each feature. left_out: features that cannot be computed from single events.
    """

    source: str
    kind: str
    events: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    example: str | None = None
    rows: int = 0
    fields: list[FieldDrift] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """What is wrong, in words."""
        told = [f"{count:,} events are refused: {reason}" for reason, count in self.refused.items()]
        return told + [f"{one.feature}: {text}" for one in self.fields for text in one.violations]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            **{name: getattr(self, name) for name in ("source", "kind", "events", "refused", "example", "rows")},
            "fields": [one.as_dict() for one in self.fields],
            "left_out": self.left_out,
            "violations": self.violations,
            "ok": not self.violations,
        }


def validate_table(
    app: App, uri: str, statistics: Mapping[str, Any], limits: Limits, progress: Progress | None = None
) -> Validation:
    """Look at a table: an archive, training rows, or a history (`batch.tables.open_history` says what that can be).

    Args:
        statistics: of the model, see `training.sketches.read_reference`.

    Raises:
        HistoryError: there is no such table, or it has not the app's columns.
    """
    tell = progress or _silent
    drift = Drift(statistics, _names(statistics), limits)
    if (Path(uri) / "archive.json").is_file():
        found = Validation(uri, "archive")
        _take_archive(app, Path(uri), drift, found, tell)
    elif (Path(uri) / MANIFEST).is_file():
        found = Validation(uri, "training")
        _take_training(app, Path(uri), drift, found)
    else:
        found = Validation(uri, "history")
        _take_history(app, uri, drift, found, tell)
    found.fields = drift.result()
    return found


def _names(statistics: Mapping[str, Any]) -> list[str]:
    return [*statistics["numbers"], *statistics["texts"]]


def _take_archive(app: App, folder: Path, drift: Drift, found: Validation, tell: Progress) -> None:
    columns = [f"feature.{name}" for name in app.features]
    wanted = Wanted(["event_type"], lambda block: is_one_of(block.column("event_type"), app.predict_on.name), columns)
    for block in find_rows(folder, wanted, progress=tell):
        # In Parquet an archive's lists are of any size.
        drift.add({name: block.column(f"feature.{name}").cast(one.arrow_type) for name, one in app.features.items()})
        found.rows += block.num_rows


def _take_training(app: App, folder: Path, drift: Drift, found: Validation) -> None:
    for path in sorted(folder.glob("*/*.parquet")):
        with pq.ParquetFile(path) as file:
            for block in file.iter_batches(columns=[*app.features]):
                drift.add({name: block.column(name) for name in app.features})
                found.rows += block.num_rows


def _take_history(app: App, uri: str, drift: Drift, found: Validation, tell: Progress) -> None:
    plan = make_plan(app)
    source = open_history(uri, plan)
    for number, split in enumerate(source.splits):
        tell(0.5 * number / len(source.splits), "check events")
        for block in read_split(split):
            _, left_out = admit(plan, block)
            found.events += block.num_rows
            for reason, count in left_out.items():
                if reason in REASONS or reason == OUT_OF_RANGE:
                    found.refused[reason] = found.refused.get(reason, 0) + count
    features = features_of_history(app, uri, progress=lambda done, step: tell(0.5 + done / 2, step))
    found.rows = features.num_rows
    for batch in features.to_batches(max_chunksize=100_000):
        drift.add({name: batch.column(name) for name in app.features})


def validate_messages(
    app: App, messages: Sequence[Message], statistics: Mapping[str, Any], limits: Limits, source: str
) -> Validation:
    """Look at messages of the events topic; features that need the past are left out."""
    alone = {
        name: value
        for name, value in app.features.items()
        if not any(isinstance(node, Aggregate) for node in value.walk())
    }
    drift = Drift(statistics, alone, limits)
    taken = Intake(app.event_types).take(messages)
    found = Validation(source, "messages", taken.events)
    for refused in taken.refused:
        found.refused[refused.reason] = found.refused.get(refused.reason, 0) + 1
        found.example = found.example or refused.detail
    block = taken.block
    too_big = out_of_range(make_plan(app), block) if block.num_rows else {}
    if too_big:
        found.refused[OUT_OF_RANGE] = found.refused.get(OUT_OF_RANGE, 0) + len(too_big)
        found.example = found.example or next(iter(too_big.values()))
        keep = np.ones(block.num_rows, np.bool_)
        keep[list(too_big)] = False
        block = block.filter(pa.array(keep))
    block = block.filter(pc.equal(block.column("event_type"), app.predict_on.name))
    evaluator = Evaluator(block)
    drift.add({name: evaluator.array(value) for name, value in alone.items()} if block.num_rows else {})
    found.rows, found.fields = block.num_rows, drift.result()
    found.left_out = [name for name in app.features if name not in alone]
    return found


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""
