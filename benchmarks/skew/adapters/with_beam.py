"""Beam: sliding windows of the feature's length, a twelfth of it apart (60 minutes every 5, as often published).

Each event is put into twelve windows; of each window, the events of its last slice are emitted with the aggregate
of the window. The same transforms run on a finished table, and on a stream whose watermark is the time of arrival.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.transforms.window import SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from benchmarks.skew.cases import NO_ANSWER, Ask, Case, Event, Value
from benchmarks.skew.systems import Answers

SLICES = 12
AGGREGATES: dict[str, Any] = {
    "count": len,
    "sum": np.sum,
    "mean": np.mean,
    "variance": np.var,
    "min": np.min,
    "max": np.max,
    "last": lambda values: values[-1],
}

Arrived: TypeAlias = tuple[str, Ask, Event]
"""Case, what it asks for, and one of its events."""

_found: dict[tuple[str, str], Value] = {}


class EmitLastSlice(beam.DoFn):
    """The events of one key and window → those of its last slice, each with the aggregate of the window."""

    def process(
        self, element: tuple[str, Iterable[Arrived]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[tuple[tuple[str, str], Value]]:
        arrived = sorted(element[1], key=lambda one: one[2].at_us)
        for case, ask, event in arrived:
            if event.at_us >= window.end.micros - ask.over_us // SLICES:
                seen = [other for _, _, other in arrived if ask.include_self or other is not event]
                values = [other.value for other in seen if other.value is not None]
                empty = 0 if ask.operation == "count" else None
                yield (case, event.event_id), _plain(AGGREGATES[ask.operation](values)) if values else empty


class Feature(beam.PTransform[Any, Any]):
    """Events with their event time as timestamp → ((case, event id), value)."""

    def __init__(self, over_us: int) -> None:
        super().__init__()
        self._windows = SlidingWindows(Duration(micros=over_us), Duration(micros=over_us // SLICES))
        self._over_us = over_us

    def expand(self, events: Any) -> Any:
        return (
            events
            | "of length" >> beam.Filter(lambda one: one[1].over_us == self._over_us)
            | "by identity" >> beam.WithKeys(lambda one: f"{one[0]}/{one[2].event_id}").with_output_types(_KEYED)
            | "once" >> DeduplicatePerKey(event_time_duration=Duration(86_400))
            | "by key" >> beam.MapTuple(lambda _, one: (f"{one[0]}/{one[2].key}", one)).with_output_types(_KEYED)
            | "windows" >> beam.WindowInto(self._windows)
            | "group" >> beam.GroupByKey()
            | "emit" >> beam.ParDo(EmitLastSlice())  # type: ignore[no-untyped-call]
        )


_KEYED = tuple[str, Any]


def batch(cases: Sequence[Case]) -> Answers:
    """The finished table: every event is there from the start."""
    return _run(cases, FnApiRunner(), beam.Create(_arrived(cases)))


def stream(cases: Sequence[Case]) -> Answers:
    """The same transforms, event by event, with the watermark at the time of arrival: that of an ideal source."""
    source = TestStream()
    for arrives_ms, together in itertools.groupby(_arrived(cases), key=lambda one: one[2].arrives_us // 1000):
        source.advance_watermark_to(_moment(arrives_ms * 1000))  # it takes whole milliseconds
        source.add_elements([TimestampedValue(one, _moment(one[2].at_us // 1000 * 1000)) for one in together])
    return _run(cases, BundleBasedDirectRunner(), source.advance_watermark_to_infinity())


def _run(cases: Sequence[Case], runner: Any, source: Any) -> Answers:
    """One pipeline for all cases: their names are part of the key, so they are other keys' events to each other."""
    _found.clear()
    options = PipelineOptions(["--direct_num_workers=1", "--direct_running_mode=in_memory", "--streaming"])
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        events = pipeline | "events" >> source | "stamp" >> beam.Map(_stamped)
        for over_us in {case.ask.over_us for case in cases}:
            _ = events | f"feature {over_us}" >> Feature(over_us) | f"keep {over_us}" >> beam.Map(_keep)
    return {case.name: [_found.get((case.name, one.event_id), NO_ANSWER) for one in case.events] for case in cases}


def _keep(pair: tuple[tuple[str, str], Value]) -> None:
    _found[pair[0]] = pair[1]


def _arrived(cases: Sequence[Case]) -> list[Arrived]:
    arrived = [(case.name, case.ask, event) for case in cases for event in case.events]
    return sorted(arrived, key=lambda one: one[2].arrives_us)


def _stamped(one: Arrived) -> Any:
    return TimestampedValue(one, _moment(one[2].at_us))


def _moment(microseconds: int) -> Timestamp:
    return Timestamp(micros=microseconds)


def _plain(value: Any) -> Value:
    """Python's own number, without NumPy's type."""
    number: Value = value.item() if isinstance(value, np.generic) else value
    return number
