"""A Beam step that works on several elements at a time, and the words its results are told apart by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

AT_A_TIME = 2
"""Elements in work at once: the calls of Arrow, NumPy and the kernel let each other run."""


class SideBySide(beam.DoFn):
    """`work` of some elements at a time, in threads; their results come out as they are done, the last at bundle's end.

    For elements that are heavy and few: a runner gives them to a worker one by one.
    """

    def prepare(self) -> None:
        """Called once in each worker."""

    def work(self, element: Any) -> Iterator[Any]:
        """The outputs of one element; called in a thread."""
        raise NotImplementedError

    def setup(self) -> None:
        self.prepare()
        self._pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix=type(self).__name__)

    def start_bundle(self) -> None:
        self._running: deque[Future[list[Any]]] = deque()

    def process(self, element: Any) -> Iterator[Any]:
        self._running.append(self._pool.submit(lambda: list(self.work(element))))
        while len(self._running) > AT_A_TIME or (self._running and self._running[0].done()):
            yield from self._running.popleft().result()

    def finish_bundle(self) -> Iterator[Any]:
        while self._running:
            for output in self._running.popleft().result():
                if isinstance(output, TaggedOutput):
                    yield tagged(output.tag, GlobalWindows.windowed_value(output.value))
                else:
                    yield GlobalWindows.windowed_value(output)

    def teardown(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def tagged(tag: str, value: Any) -> Any:
    """``value`` for the output ``tag``."""
    return TaggedOutput(tag, value)
