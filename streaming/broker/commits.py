"""Group commit: requests that arrive while one sync runs share the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from streaming.broker.core import Core
from streaming.broker.resources import Accepted
from streaming.broker.storage import StorageError

PROGRESS_S = 0.1
"""How long acknowledgements wait for a sync of their own, if nothing is published."""

SWEEP_S = 1.0
"""How often retention and expiration are looked at."""

INLINE_BYTES = 65_536
"""A lone commit up to this size is synced on the event loop: two thread switches cost more than the sync (0.4 ms of
1.7 ms from publish to delivery, on a busy machine). Larger ones, and groups, let the loop go on meanwhile."""


class Commits:
    """Makes what the core reports durable, in a thread of its own, and then delivers what was published."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._storage = core.storage
        self._accepted: list[Accepted] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._committing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._thread = None if core.storage.volatile else ThreadPoolExecutor(1, "broker sync")

    def start(self, sweep: Callable[[], bool]) -> None:
        """Write acknowledgements from time to time, and `sweep`. Call on the event loop.

        Args:
            sweep: forgets what is past its time; whether something changed that has to be written.
        """
        self._watching = asyncio.create_task(self._watch(sweep))

    async def publish(self, accepted: Accepted) -> None:
        """Return when the messages are durable and with their subscriptions.

        Raises:
            StorageError: they are neither.
        """
        if self._thread is None:
            self._core.deliver(accepted)
            return
        self._accepted.append(accepted)
        await self.durable()

    async def durable(self) -> None:
        """Return when all that the core reported before is durable.

        Raises:
            StorageError: it is not; changes of topics and subscriptions are tried again with the next commit.
        """
        if self._thread is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await done

    async def close(self) -> None:
        """Write what is left."""
        if self._watching is not None:
            self._watching.cancel()
        if self._thread is not None:
            self._core.report_progress()
            with contextlib.suppress(StorageError):  # logged where it was raised
                await self.durable()
            self._thread.shutdown()

    async def _commit(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                accepted, self._accepted = self._accepted, []
                failure: Exception | None = None
                try:
                    await self._store(accepted, alone=len(waiting) == 1)
                except Exception as error:  # whatever it is, those who wait must know
                    failure = error
                for done in waiting:
                    if done.done():
                        continue  # whoever waited has gone
                    if failure is None:
                        done.set_result(None)
                    else:
                        done.set_exception(failure)
        finally:
            self._committing = None

    async def _store(self, accepted: list[Accepted], *, alone: bool) -> None:
        stored = self._core.store(accepted)
        self._core.report_progress()
        self._storage.seal(self._core.next_id)
        if alone and sum(one.batch.size_bytes for one in stored) < INLINE_BYTES:
            self._storage.sync()
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._storage.sync)
        for one in stored:
            self._core.deliver(one, durable=True)

    async def _watch(self, sweep: Callable[[], bool]) -> None:
        swept = self._core.clock.monotonic_us()
        while True:
            await asyncio.sleep(PROGRESS_S)
            news = False
            if self._core.clock.monotonic_us() - swept >= SWEEP_S * 1e6:
                swept = self._core.clock.monotonic_us()
                news = sweep()
            if self._core.report_progress() or news:
                with contextlib.suppress(StorageError):
                    await self.durable()
