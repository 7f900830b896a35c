"""What every call needs: the core, what is durable, and the desks of the subscriptions."""

from __future__ import annotations

from typing import Any

from streaming.broker.commits import Commits
from streaming.broker.core import Core
from streaming.broker.desk import Desk
from streaming.broker.errors import RefusedError, too_large, too_small
from streaming.broker.resources import Subscribed
from streaming.broker.snapshots import Snapshots

Context = Any  # grpc.aio.ServicerContext; the type stubs know only the synchronous one


class Calls:
    """State that the calls of all services share."""

    def __init__(self, core: Core, commits: Commits) -> None:
        self.core = core
        self.commits = commits
        self.snapshots = Snapshots(core)
        self._desks: dict[int, Desk] = {}
        self._stopping = False
        core.gone = self._gone

    def sweep(self) -> bool:
        """Forget what is past its time; whether topics, subscriptions or snapshots changed."""
        now_us = self.core.clock.wall_us()
        for desk in self._desks.values():
            if desk.in_use():
                desk.subscribed.active_us = now_us
        self.core.forget(now_us)
        changed = self.snapshots.expire()
        return self.core.expire() or changed

    def stop(self) -> None:
        """End every stream and waiting pull with UNAVAILABLE."""
        self._stopping = True
        for desk in self._desks.values():
            desk.close()

    def desk(self, subscribed: Subscribed) -> Desk:
        """The desk of a subscription."""
        desk = self._desks.get(subscribed.uid)
        if desk is None:
            desk = self._desks[subscribed.uid] = Desk(subscribed, self.core.clock)
        return desk

    def check_open(self, desk: Desk) -> None:
        """UNAVAILABLE, NOT_FOUND or FAILED_PRECONDITION if there is nothing to wait for any more."""
        if self._stopping:
            raise RefusedError("UNAVAILABLE", "The broker is shutting down: connect again.")
        if desk.closed:
            self.core.pullable(desk.subscribed.config.name)  # says whether deleted or detached
            raise RefusedError("UNAVAILABLE", "The subscription was made anew: connect again.")

    def modify(self, subscribed: Subscribed, ack_ids: Any, seconds: list[int]) -> None:
        """Move deadlines, and make sure that the next one is not missed."""
        try:
            subscribed.queue.modify(ack_ids, seconds, self.core.clock.monotonic_us())
        finally:
            self.desk(subscribed).arm()

    def _gone(self, subscribed: Subscribed) -> None:
        desk = self._desks.pop(subscribed.uid, None)
        if desk is not None:
            desk.close()


def deadline(seconds: int) -> int:
    """An ack deadline unchanged, if it is one."""
    if seconds < 0:
        raise too_small("ack_deadline_seconds", seconds, 0)
    if seconds > 600:
        raise too_large("ack_deadline_seconds", seconds, 600)
    return seconds
