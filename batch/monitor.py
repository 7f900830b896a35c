"""The monitor: live quality, drift and alarms, folded from a job's archive as from a finished one.

    archive ── rows in their order ──> quality (labels joined)  ──┐
                       │                                          ├──> alarms, judged once for each window
                       └─────────────> drift (against training) ──┘

The clock is the newest event time that the archive held so far. As it passes a window's end, the window's drift is
judged; as it passes the end and the time that labels may take, its quality and KPIs are. What comes later still changes
the tables, but no alarm. The moments depend on the archive's rows and their order only, so the same archive gives the
same alarms, live, after a restart, and later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.drifts import SCHEMA, Drifts, Reference
from batch.quality import Quality, Served
from shared_features.app import App
from shared_features.kpis import Alarm
from shared_features.schema import TIMESTAMP

FEWEST_LABELLED = 200
"""A window with fewer labels is not judged by quality or KPIs."""

ALARMS = pa.schema(
    [
        ("window", TIMESTAMP),
        *((name, pa.string()) for name in ("alarm", "model", "of", "kind")),
        ("version", pa.int64()),
        ("on", pa.bool_()),
        ("value", pa.float64()),
        ("judged_at", TIMESTAMP),
    ]
)


@dataclass(slots=True)
class _State:
    on: bool = False
    beyond: int = 0  # windows in a row


class Monitor:
    """A view (see `batch.views.View`) of the alarms that went on and off; quality and drift stand beside it.

    Args:
        app: its label, KPIs and alarms.
        reference: what each version saw in training, see `batch.drifts.Reference`.
        window_us: length of a window, microseconds.

    Attributes:
        quality, drifts: the tables that alarms are judged by.
        newest_us: newest event time so far; None before the first row.
        judged: by ``drift`` or ``quality`` and by model, whose window was judged last.
    """

    name = "alarms"
    key: Sequence[str] = ("window", "alarm", "model", "of")

    def __init__(self, app: App, reference: Reference, window_us: int) -> None:
        self.app, self.window_us = app, window_us
        self.quality, self.drifts = Quality(app, window_us), Drifts(app, window_us, reference)
        self.newest_us: int | None = None
        self._labels_us = 0 if app.label is None else app.label.within_us
        self.judged: dict[tuple[str, str], Served] = {}
        self._states: dict[tuple[str, str, str], _State] = {}
        self._switched: list[dict[str, Any]] = []

    def fold(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Take in an archive's next rows; the alarms that went on or off."""
        before = len(self._switched)
        times = block.column("event_time").cast(pa.int64()).to_numpy()
        first = times[0] if self.newest_us is None else self.newest_us
        newest = np.maximum(np.maximum.accumulate(times), first)
        # The clock passes a window's end, or the end of what labels may take, at these rows.
        passed = np.stack([newest // self.window_us, (newest - self._labels_us) // self.window_us])
        moved = np.flatnonzero((np.diff(passed, axis=1, prepend=self._passed(int(first))) > 0).any(axis=0))
        for begin, end in zip([0, *moved.tolist()], [*moved.tolist(), block.num_rows], strict=True):
            self._fold(block.slice(begin, end - begin), newest[begin:end])
        return self._table(self._switched[before:])

    def _passed(self, at_us: int) -> Any:
        return np.array([[at_us // self.window_us], [(at_us - self._labels_us) // self.window_us]])

    def _fold(self, block: pa.RecordBatch, newest_us: Any) -> None:
        if not block.num_rows:
            return
        self.newest_us = int(newest_us[0])
        self._judge()
        self.newest_us = int(newest_us[-1])
        self.drifts.fold(block, newest_us)
        self.quality.fold(block, newest_us)

    def table(self) -> pa.RecordBatch:
        """Every time that an alarm went on or off."""
        return self._table(self._switched)

    def alarms(self) -> dict[tuple[str, str, str], bool]:
        """Whether each alarm that was judged, by its words, model and what it is of, is on."""
        return {name: state.on for name, state in self._states.items()}

    def standing(self) -> list[dict[str, Any]]:
        """Of each alarm that is on when it went on."""
        newest = {(row["alarm"], row["model"], row["of"]): row for row in self._switched}
        return [row for row in newest.values() if row["on"]]

    def write(self, folder: Path) -> None:
        """Write ``quality.parquet``, ``drift.parquet`` and ``alarms.parquet``, each in place of the one before."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"quality": (self.quality.rows(), self.quality.schema), "drift": (self.drifts.rows(), SCHEMA)}
        for name, (rows, schema) in {**tables, "alarms": (iter(self._switched), ALARMS)}.items():
            temporary = folder / f".{name}.new"
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)
            os.replace(temporary, folder / f"{name}.parquet")

    def _judge(self) -> None:
        """Judge the windows that the clock has passed."""
        for kind, after_us in (("drift", 0), ("quality", self._labels_us)):
            for window in self.quality.windows():
                if window + self.window_us + after_us > (self.newest_us or 0):
                    break
                for model in self.app.models:
                    before = self.judged.get((kind, model.name))
                    served = self.quality.served(window, model.name)
                    if served is not None and (before is None or window > before.window_us):
                        self.judged[kind, model.name] = served
                        self._judge_one(kind, served)

    def _judge_one(self, kind: str, served: Served) -> None:
        for alarm in self.app.alarms:
            if (alarm.kind == "drift") == (kind == "drift"):
                for of, value in self._values(alarm, served):
                    self._switch(alarm, served, of, value)

    def _values(self, alarm: Alarm, served: Served) -> Iterator[tuple[str, float]]:
        """What an alarm judges, by what it is of."""
        if alarm.kind == "drift":
            for one in self.drifts.of(served):
                name = one.feature.partition("[")[0]
                value, chance = (one.psi, one.chance) if alarm.metric == "psi" else (one.ks, one.ks_chance)
                if value is not None and (not alarm.of or name in alarm.of):
                    yield one.feature, max(0.0, value - chance)
            return
        row = self.quality.row(served)
        figure = row.get(alarm.metric if alarm.kind == "quality" else f"kpi.{alarm.metric}")
        if figure is not None and row["labelled"] >= FEWEST_LABELLED:
            yield "", figure

    def _switch(self, alarm: Alarm, served: Served, of: str, value: float) -> None:
        state = self._states.setdefault((alarm.words, served.model, of), _State())
        state.beyond = state.beyond + 1 if alarm.is_beyond(value) else 0
        switches = alarm.is_over(value) if state.on else state.beyond >= alarm.windows
        if not switches:
            return
        state.on = not state.on
        found = {"window": served.window_us, "alarm": alarm.words, "model": served.model, "of": of}
        found |= {"kind": alarm.kind, "version": served.version, "on": state.on, "value": value}
        self._switched.append({**found, "judged_at": self.newest_us})

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows, schema=ALARMS)
