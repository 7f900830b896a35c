"""What Beam's in-process runner needs to run for weeks and to wait for nothing: two defects of 2.77.0, mended."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.worker import statesampler

SAMPLING_PERIOD_MS = 2

_patching = threading.Lock()


@contextmanager
def mended() -> Iterator[None]:
    """While it lasts, pipelines of this process keep memory flat and end their bundles at once.

    Memory: each bundle's monitoring infos are chained on a generator over all earlier ones, about 5 KB a bundle for
    ever; a list in its place lets the old ones go.

    Bundles: the end of a bundle waits for the thread that samples states to wake, and that sleeps the longer the
    bundle has lasted, up to 200 ms: events that came meanwhile waited. It sleeps `SAMPLING_PERIOD_MS` at most.
    """
    original: Callable[..., Any] = fn_runner.consolidate_monitoring_infos
    sampler: Any = statesampler.StateSampler.__init__
    defaults = sampler.__defaults__

    def consolidated(*args: Any, **kwargs: Mapping[str, Any]) -> list[Any]:
        return list(itertools.chain(original(*args, **kwargs)))

    with _patching:
        fn_runner.consolidate_monitoring_infos = consolidated
        sampler.__defaults__ = (SAMPLING_PERIOD_MS,)
    try:
        yield
    finally:
        with _patching:
            fn_runner.consolidate_monitoring_infos = original
            sampler.__defaults__ = defaults


def without_sampling() -> None:
    """Let no bundle of this process start a thread that samples in which step time passes, and wait for its end.

    In a worker of a cluster each bundle would wait a tenth of its length for it.
    """

    def start(sampler: Any) -> None:
        statesampler.set_current_tracker(sampler)

    def stop(_sampler: Any) -> None:
        statesampler.set_current_tracker(None)

    sampling: Any = statesampler.StateSampler
    sampling.start, sampling.stop_if_still_running = start, stop
