"""The same features in the commonly published way: one dict per event, sliding windows, and a group by key each."""

from __future__ import annotations

import math
import time
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import SlidingWindows, TimestampedValue

from benchmarks.positions import WINDOWS_S

SLIDES = 6
"""Windows in which each event falls: a window begins every sixth of its length."""


def _features(keyed: tuple[int, Any]) -> dict[str, Any]:
    vessel, speeds = keyed
    values = list(speeds)
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return {"vessel": vessel, "count": len(values), "mean": mean, "std": deviation}


def _keyed(event: dict[str, Any]) -> tuple[int, float]:
    return event["vessel"], event["speed"]


def _timed(event: dict[str, Any]) -> TimestampedValue[dict[str, Any]]:
    return TimestampedValue(event, event["at"])


def per_element_rate(rows: pa.RecordBatch) -> float:
    """Events a second through Beam's in-process runner, all six windows of count, mean and deviation."""
    times = rows.column("event_time").cast(pa.int64()).to_pylist()
    vessels, speeds = rows.column("position.vessel").to_pylist(), rows.column("position.speed").to_pylist()
    events = [
        {"at": at / 1e6, "vessel": vessel, "speed": speed}
        for at, vessel, speed in zip(times, vessels, speeds, strict=True)
    ]
    begin = time.monotonic()
    options = PipelineOptions(["--direct_num_workers=1", "--direct_running_mode=in_memory"])
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        timed = pipeline | beam.Create(events) | beam.Map(_timed)
        for window_s in WINDOWS_S:
            _ = (
                timed
                | f"Windows {window_s}" >> beam.WindowInto(SlidingWindows(window_s, window_s / SLIDES))
                | f"Key {window_s}" >> beam.Map(_keyed)
                | f"Group {window_s}" >> beam.GroupByKey()
                | f"Features {window_s}" >> beam.Map(_features)
            )
    return len(events) / (time.monotonic() - begin)
