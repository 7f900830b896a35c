"""Live quality: what predictions turned out to be worth, by window of time, model and version, as labels come.

A prediction is joined to its label as in training (`batch.labels`), whichever comes first, and a label that comes late
takes the place of a later one that came before it. Both must come within the app's lateness behind the newest event
that the archive held by then; so it is known when nothing further can come, and what was kept can be forgotten. What
comes later is counted and left out. Windows are by the event time of what was predicted on, from midnight UTC 1970 on.

All sums are of integers, so the table depends on the archive's rows and their order only, not on how they were cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batch.labels import first_labels, join_column, label_events
from batch.scores import Scores
from shared_features.app import App
from shared_features.columns import is_one_of
from shared_features.schema import TIMESTAMP
from streaming.results import PREDICTED

OUTPUT = "probability"
Integers = npt.NDArray[np.int64]


class Served(NamedTuple):
    """Whose predictions are counted together: those of one window (its begin, microseconds), model and version."""

    window_us: int
    model: str
    version: int


@dataclass(slots=True)
class Tally:
    """What is known of some predictions.

    Attributes:
        predictions: how many. scores: of those whose outcome is known.
        kpis: of each KPI the sum of its units, and how many have one.
    """

    predictions: int = 0
    scores: Scores = field(default_factory=Scores)
    kpis: dict[str, tuple[int, int]] = field(default_factory=dict)


class Quality:
    """Joins predictions to labels.

    Args:
        app: with or without a label; without one predictions are only counted.
        window_us: length of a window, microseconds.

    Attributes:
        too_late: predictions and labels that came too late to be joined.
    """

    def __init__(self, app: App, window_us: int) -> None:
        self.app, self._window_us = app, window_us
        self._within_us = 0 if app.label is None else app.label.within_us
        self._models = [model.name for model in app.models if OUTPUT in model.outputs]
        self._tallies: dict[Served, Tally] = {}
        self._settled: dict[Served, dict[str, Any]] = {}
        self._groups: list[Served] = []
        self._waiting: pa.RecordBatch | None = None  # predictions, with the label that they have
        self._labels: pa.RecordBatch | None = None
        self.too_late = {"predictions": 0, "labels": 0}

    def fold(self, block: pa.RecordBatch, newest_us: Integers) -> None:
        """Take in an archive's next rows.

        Args:
            newest_us: for each row the newest event time up to it, microseconds; rising, shape [rows].
        """
        times = block.column("event_time").cast(pa.int64()).to_numpy()
        in_time = times >= newest_us - self.app.lateness_us
        predicted = is_one_of(block.column("outcome"), PREDICTED)
        self.too_late["predictions"] += int((predicted & ~in_time).sum())
        came = self._predictions(block.filter(pa.array(predicted & in_time)))
        if self.app.label is not None:
            self.too_late["labels"] += label_events(self.app, block.filter(pa.array(~in_time))).num_rows
            self._join(came, label_events(self.app, block.filter(pa.array(in_time))))
        self._forget(int(newest_us[-1]))

    def settled_before_us(self, newest_us: int) -> int:
        """Windows that begin before this are final once an event of ``newest_us`` has come."""
        return newest_us - self.app.lateness_us - self._within_us - self._window_us

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table: ``window``, ``model``, ``version``, ``predictions``, figures, ``kpi.<name>``."""
        for served in sorted({*self._settled, *self._tallies}):
            yield self.row(served)

    def row(self, served: Served) -> dict[str, Any]:
        """Of one window, model and version."""
        found = self._settled.get(served)
        if found is None:
            tally = self._tallies[served]
            found = {"window": served.window_us, "model": served.model, "version": served.version}
            found |= {"predictions": tally.predictions, **tally.scores.figures()}
            for kpi in self.app.kpis:
                found[f"kpi.{kpi.name}"] = kpi.mean(*tally.kpis.get(kpi.name, (0, 0)))
        return found

    def served(self, window_us: int, model: str) -> Served | None:
        """Of one window the version that made most of a model's predictions; None if there are none."""
        found = [(one.predictions, served) for served, one in self._tallies.items() if served[:2] == (window_us, model)]
        return max(found)[1] if found else None

    def windows(self) -> list[int]:
        """Where the windows begin that are not final."""
        return sorted({served.window_us for served in self._tallies})

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        numbers = ("positives", "auc", "log_loss", "brier", "calibration_error")
        return pa.schema(
            [("window", TIMESTAMP), ("model", pa.string()), ("version", pa.int64()), ("predictions", pa.int64())]
            + [("labelled", pa.int64()), *((name, pa.float64()) for name in numbers)]
            + [(f"kpi.{kpi.name}", pa.float64()) for kpi in self.app.kpis]
        )

    def _predictions(self, block: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Count predictions; of each model those that wait for a label."""
        found = []
        for model in self._models:
            said, made_by = f"prediction.{model}.{OUTPUT}", f"version.{model}"
            if said not in block.schema.names:
                continue
            rows = block.filter(pc.and_(block.column(said).is_valid(), block.column(made_by).is_valid()))
            if not rows.num_rows:
                continue
            windows = rows.column("event_time").cast(pa.int64()).to_numpy() // self._window_us * self._window_us
            versions = rows.column(made_by).to_numpy()
            pairs, which = np.unique(np.stack([windows, versions]), axis=1, return_inverse=True)
            groups = np.empty(pairs.shape[1], np.int64)
            counts = np.bincount(which.ravel(), minlength=pairs.shape[1])
            for place, (window, version) in enumerate(pairs.T.tolist()):
                served = Served(window, model, version)
                if served not in self._tallies:
                    self._tallies[served] = Tally()
                    self._groups.append(served)
                groups[place] = self._groups.index(served)
                self._tallies[served].predictions += int(counts[place])
            if self.app.label is not None:
                found.append(self._waiting_rows(rows, model, rows.column(said), groups[which.ravel()]))
        return found

    def _waiting_rows(self, rows: pa.RecordBatch, model: str, said: pa.Array, groups: Integers) -> pa.RecordBatch:
        columns = {
            "join": rows.column(join_column(self.app)),
            "event_time": rows.column("event_time"),
            "group": pa.array(groups),
            "said": said,
            "label": pa.nulls(rows.num_rows, pa.bool_()),
        }
        for kpi in self.app.kpis:
            mine = (kpi.model or self._models[0]) == model
            for label in (False, True):
                units, there = kpi.units(self.app, rows, np.full(rows.num_rows, label))
                columns[_kpi_column(kpi.name, label)] = pa.array(units, mask=~there if mine else np.ones_like(there))
        return pa.RecordBatch.from_pydict(columns)

    def _join(self, came: list[pa.RecordBatch], labels: pa.RecordBatch) -> None:
        """Find the labels of predictions that came and of those whose labels did; count what changes."""
        waiting = _together(self._waiting, *came)
        self._labels = _together(self._labels, labels)
        if waiting is None or self._labels is None:
            return
        joins = pa.concat_arrays([*(one.column("join") for one in came), labels.column("join")]).unique()
        touched = pc.is_in(waiting.column("join"), value_set=joins)
        rows = waiting.filter(touched)
        theirs = self._labels.filter(pc.is_in(self._labels.column("join"), value_set=joins))
        found, _ = first_labels(rows.column("join"), rows.column("event_time"), theirs, self._within_us)
        before = rows.column("label")
        same = pc.or_(pc.and_(found.is_null(), before.is_null()), pc.fill_null(pc.equal(found, before), False))
        self._count(rows.filter(pc.and_(pc.invert(same), before.is_valid())), -1)
        place = rows.schema.get_field_index("label")
        rows = rows.set_column(place, "label", found)
        self._count(rows.filter(pc.and_(pc.invert(same), found.is_valid())), 1)
        self._waiting = _together(waiting.filter(pc.invert(touched)), rows)

    def _count(self, rows: pa.RecordBatch, sign: int) -> None:
        groups, labels = rows.column("group").to_numpy(), rows.column("label").to_numpy(zero_copy_only=False)
        for group in np.unique(groups).tolist():
            mine = groups == group
            tally = self._tallies[self._groups[group]]
            part, of = rows.filter(pa.array(mine)), labels[mine].astype(np.bool_)
            tally.scores.add(part.column("said").to_numpy(), of, sign)
            for kpi in self.app.kpis:
                units = pc.if_else(
                    part.column("label"),
                    part.column(_kpi_column(kpi.name, True)),
                    part.column(_kpi_column(kpi.name, False)),
                )
                total, count = tally.kpis.get(kpi.name, (0, 0))
                total += sign * sum(units.drop_null().to_pylist())
                tally.kpis[kpi.name] = total, count + sign * (len(units) - units.null_count)

    def _forget(self, newest_us: int) -> None:
        """Settle windows, and drop predictions and labels that nothing can change any more."""
        needed_us = newest_us - self.app.lateness_us - self._within_us
        if self._waiting is not None:
            self._waiting = _since(self._waiting, needed_us)
        if self._labels is not None:
            self._labels = _since(self._labels, needed_us)
        for served in [one for one in self._tallies if one.window_us < self.settled_before_us(newest_us)]:
            self._settled[served] = self.row(served)
            del self._tallies[served]


def _kpi_column(name: str, label: bool) -> str:
    return f"kpi.{name}.{label}"


def _since(rows: pa.RecordBatch, least_us: int) -> pa.RecordBatch:
    times = rows.column("event_time").cast(pa.int64())
    return (
        rows
        if not rows.num_rows or pc.min(times).as_py() >= least_us
        else rows.filter(pc.greater_equal(times, least_us))
    )


def _together(*batches: pa.RecordBatch | None) -> pa.RecordBatch | None:
    there = [one for one in batches if one is not None]
    return (
        pa.Table.from_batches(there).combine_chunks().to_batches()[0] if sum(map(len, there)) else (there or [None])[0]
    )
