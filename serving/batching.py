"""Dynamic batching: requests that arrive together run together, by TensorFlow Serving's rules and parameters.

Source: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h and
tensorflow_serving/batching/batching_session.cc. One queue per version and set of tensors; one pool of threads for all.

One rule is ours: where the real server answers every request of a batch with the error that one of them caused, here
each of them then runs by itself, so that nobody is refused for what a stranger sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.batch_parameters import BatchingParameters
from serving.batch_tensors import cut, joined, padded_to_largest, size_of, split
from serving.metrics import Metrics
from serving.status import Code, RefusalError, invalid
from serving.tensorflow_c import Tensor

Compute = Callable[[list[Tensor], "float | None"], list[Tensor]]
_QUEUES = 256  # names of outputs come from requests: beyond so many sets of them, requests run alone


class _Task:
    """Rows that wait: a request, or a piece of a large one."""

    __slots__ = ("abandoned", "deadline", "done", "enqueued", "error", "feeds", "outputs", "size")

    def __init__(self, feeds: list[Tensor], size: int, deadline: float | None) -> None:
        self.feeds = feeds
        self.size = size
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.outputs: list[Tensor] = []
        self.error: BaseException | None = None
        self.abandoned = False
        self.done = threading.Lock()  # released once there is an answer: cheaper than an Event
        self.done.acquire()

    def expired(self, now: float) -> bool:
        return self.abandoned or (self.deadline is not None and self.deadline <= now)


@dataclass(slots=True)
class _Batch:
    opened: float = 0.0
    size: int = 0
    tasks: list[_Task] = field(default_factory=list)


class _Queue:
    """Batches of one kind in order of arrival; the last one is open."""

    __slots__ = ("batches", "compute", "names", "parameters")

    def __init__(self, parameters: BatchingParameters, names: Sequence[str], compute: Compute) -> None:
        self.parameters = parameters
        self.names = names
        self.compute = compute
        self.batches: deque[_Batch] = deque([_Batch()])

    def due(self) -> float | None:
        """When the first batch may run; None if nothing waits."""
        first = self.batches[0]
        if not first.tasks:
            return None
        if len(self.batches) > 1 or first.size >= self.parameters.execution_size:
            return 0.0
        return first.opened + self.parameters.batch_timeout_micros / 1e6


class Batcher:
    """Threads that take batches off queues and run them.

    Args:
        parameters: that say how many threads there are, and their name.
        metrics: that waiting times are counted in.
    """

    def __init__(self, parameters: BatchingParameters, metrics: Metrics | None = None) -> None:
        self._name = parameters.thread_pool_name
        self._metrics = metrics or Metrics()
        self._news = threading.Condition()
        self._queues: dict[tuple[Any, ...], _Queue] = {}
        self._idle = 0
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{parameters.thread_pool_name} {number}", daemon=True)
            for number in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Run what waits, then end the threads."""
        with self._news:
            self._stopped = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join()

    def run(
        self,
        parameters: BatchingParameters,
        key: tuple[Any, ...],
        names: Sequence[str],
        feeds: list[Tensor],
        time_left_s: float | None,
        compute: Compute,
    ) -> list[Tensor]:
        """Compute a request's tensors together with others of the same key; waits for the answer.

        Args:
            parameters: of the queue.
            key: requests of one key may run together.
            names: of the feeds, for messages.
            feeds: tensors whose first dimension is the row, all of the same number of rows.
            time_left_s: until the caller no longer waits; None waits for ever.
            compute: runs feeds (the seconds left are its second argument).

        Raises RefusalError with the real server's code and text: inputs that cannot be batched, a queue that is
        full (UNAVAILABLE), a deadline that passed while waiting.
        """
        size = size_of(feeds)
        deadline = None if time_left_s is None else time.monotonic() + time_left_s
        kind = (*key, *(feed.dtype for feed in feeds))
        tasks = self._schedule(kind, feeds, size, deadline, _Queue(parameters, names, compute))
        if tasks is None:
            return compute(feeds, time_left_s)
        for task in tasks:
            if not task.done.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
                for one in tasks:
                    one.abandoned = True
                raise RefusalError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        for task in tasks:
            if task.error is not None:
                raise task.error
        if len(tasks) == 1:
            return tasks[0].outputs
        return [joined(list(parts)) for parts in zip(*(task.outputs for task in tasks), strict=True)]

    def _schedule(
        self, key: tuple[Any, ...], feeds: list[Tensor], size: int, deadline: float | None, new: _Queue
    ) -> list[_Task] | None:
        """Put a request into its queue (`new` if there is none); None if it must run alone."""
        wanted = new.parameters
        if size > wanted.max_batch_size:
            raise invalid(f"Task size {size} is larger than maximum input batch size {wanted.max_batch_size}")
        with self._news:
            queue = self._queues.get(key)
            if queue is None:
                if len(self._queues) >= _QUEUES or self._stopped:
                    return None
                queue = self._queues[key] = new
            sizes = self._piece_sizes(queue, size)
            pieces = [feeds] if len(sizes) == 1 else cut(feeds, sizes)
            tasks = [_Task(piece, rows, deadline) for piece, rows in zip(pieces, sizes, strict=True)]
            for task in tasks:
                batch = queue.batches[-1]
                if batch.tasks and batch.size + task.size > wanted.execution_size:
                    batch = _Batch()
                    queue.batches.append(batch)
                opened = not batch.tasks
                if opened:
                    batch.opened = task.enqueued
                batch.tasks.append(task)
                batch.size += task.size
                if self._idle and (opened or batch.size >= wanted.execution_size):
                    self._news.notify()
        return tasks

    @staticmethod
    def _piece_sizes(queue: _Queue, size: int) -> list[int]:
        """Rows of each piece of a request of `size` rows; RefusalError if the queue has no room."""
        wanted = queue.parameters
        batches, last = len(queue.batches), queue.batches[-1].size
        if not wanted.enable_large_batch_splitting:
            if last + size > wanted.max_batch_size and batches >= wanted.max_enqueued_batches:
                raise RefusalError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{batches} batches enqueued and max_enqueued_batches is {wanted.max_enqueued_batches}",
                )
            return [size]
        room = (wanted.max_enqueued_batches - batches) * wanted.execution_size + wanted.execution_size - last
        if size > room:
            raise RefusalError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; task size is "
                f"{size} but scheduling capacity is only {room} (num_enqueued_batches={batches}, "
                f"max_enqueued_batches={wanted.max_enqueued_batches}, open_batch_size={last}, "
                f"max_execution_batch_size={wanted.execution_size})",
            )
        sizes = []
        free = wanted.execution_size - last
        while size > 0:
            if free:
                sizes.append(min(free, size))
                size -= sizes[-1]
            free = wanted.execution_size
        return sizes or [0]

    def _work(self) -> None:
        while True:
            with self._news:
                found = self._take()
                while found is None:
                    if self._stopped and not self._queues:
                        return
                    self._idle += 1
                    self._news.wait(self._pause_s())
                    self._idle -= 1
                    found = self._take()
                if self._queues and self._idle:
                    self._news.notify()  # what is left may be due for another thread
            self._process(*found)

    def _take(self) -> tuple[_Queue, list[_Task]] | None:
        """The batch that has been due for longest."""
        now = time.monotonic()
        oldest, key = None, None
        for one, queue in self._queues.items():
            due = queue.due()
            if due is not None and (due <= now or self._stopped):
                opened = queue.batches[0].opened
                if oldest is None or opened < oldest:
                    oldest, key = opened, one
        if key is None:
            return None
        queue = self._queues[key]
        batch = queue.batches.popleft()
        if not queue.batches:
            del self._queues[key]  # made anew by the next request: what nobody asks for any more takes no memory
        return queue, batch.tasks

    def _pause_s(self) -> float | None:
        dues = [due for queue in self._queues.values() if (due := queue.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _process(self, queue: _Queue, tasks: list[_Task]) -> None:
        now = time.monotonic()
        live = []
        for task in tasks:
            self._metrics.queued(self._name, now - task.enqueued)
            if task.expired(now):
                task.error = RefusalError(
                    Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
                )
                task.done.release()
            else:
                live.append(task)
        if not live:
            return
        try:
            self._together(queue, live, now)
        except BaseException as error:
            if len(live) > 1 and not (isinstance(error, RefusalError) and error.code in _OF_THE_BATCH):
                self._alone(queue, live)
            else:
                for task in live:
                    task.error = error
        for task in live:
            task.done.release()

    def _together(self, queue: _Queue, tasks: Sequence[_Task], now: float) -> None:
        wanted = queue.parameters
        columns = [list(parts) for parts in zip(*(task.feeds for task in tasks), strict=True)]
        rows = sum(task.size for task in tasks)
        if wanted.pad_variable_length_inputs:
            columns = [padded_to_largest(parts) for parts in columns]
        padding = wanted.rounded(rows) - rows
        feeds = [joined(parts, padding, name) for parts, name in zip(columns, queue.names, strict=True)]
        deadlines = [task.deadline for task in tasks]
        latest = None if None in deadlines else max(one for one in deadlines if one is not None)
        outputs = queue.compute(feeds, None if latest is None else latest - now)
        pieces = [split(output, [task.size for task in tasks], padding) for output in outputs]
        for number, task in enumerate(tasks):
            task.outputs = [piece[number] for piece in pieces]

    def _alone(self, queue: _Queue, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            now = time.monotonic()
            try:
                self._together(queue, [task], now)
            except BaseException as error:
                task.error = error


# What no single request is the cause of.
_OF_THE_BATCH = (Code.DEADLINE_EXCEEDED, Code.FAILED_PRECONDITION)
