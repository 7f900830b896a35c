"""The source: one splittable element that pulls the subscription for as long as the job lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker

from streaming import runtime
from streaming.topics import Message
from streaming.work import Work

CALL_S = 2.0
"""How long one call pulls before it defers: a bundle costs about 8 ms, whatever it carries, and events wait for it."""

PULL_TIMEOUT_S = 0.1

WORK_BYTES = 1 << 20
"""A work ends with the message that reaches this: blocks of events are large, and a work is held as a whole. Half as
much makes each event a fifth dearer, because the steps cost something for each work, too."""

_LIVE, _DONE = "live", "done"


def portions(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages in order, cut into works of about `WORK_BYTES`."""
    start = size = 0
    for number, message in enumerate(messages, 1):
        size += len(message.data)
        if size >= WORK_BYTES or number == len(messages):
            yield messages[start:number]
            start, size = number, 0


class PullTracker(RestrictionTracker):
    """A restriction without positions: ``live`` until it is split off, then ``done``.

    What was pulled is safe in the subscription until acknowledged, so nothing needs to be remembered here.
    """

    def __init__(self, restriction: str) -> None:
        self._restriction = restriction

    def current_restriction(self) -> str:
        return self._restriction

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(fraction=0.0 if self._restriction == _LIVE else 1.0)

    def check_done(self) -> bool:
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[str, str] | None:  # noqa: ARG002
        if self._restriction == _DONE:
            return None
        self._restriction = _DONE
        return _DONE, _LIVE

    def try_claim(self, position: object) -> bool:  # noqa: ARG002
        return self._restriction == _LIVE

    def is_bounded(self) -> bool:
        return False


class _Pulling(beam.transforms.core.RestrictionProvider):
    def initial_restriction(self, element: bytes) -> str:  # noqa: ARG002
        return _LIVE

    def create_tracker(self, restriction: str) -> PullTracker:
        return PullTracker(restriction)

    def restriction_size(self, element: bytes, restriction: str) -> int:  # noqa: ARG002
        return 1

    def restriction_coder(self) -> beam.coders.Coder:
        return beam.coders.StrUtf8Coder()


class PullMessages(beam.DoFn):
    """job id -> `Work` with the messages of one pull, until the job is told to stop.

    Guarantees at-least-once delivery in the order of the subscription; does not guarantee block sizes.
    """

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_Pulling()),  # noqa: B008
    ) -> Iterator[tuple[bytes, Work]]:
        job, until = runtime.get(element), time.monotonic() + CALL_S
        while not job.stopping.is_set() and time.monotonic() < until:
            if not tracker.try_claim(None):
                return
            if job.saver is not None:
                job.saver.between_works()
            for part in portions(job.subscriber.pull(job.max_messages, PULL_TIMEOUT_S)):
                yield element, Work(part)
        if not job.stopping.is_set():
            tracker.defer_remainder()
