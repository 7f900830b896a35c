"""Where requests meet answers: events are taken in, validated and published together, and waited for one by one.

While one group is on its way to the topic the next one gathers, so that a quiet gateway adds nothing to an event's
way, a busy one shares decoding and publishing among many, and events reach the topic in the order in which they came.
Everything but publishing runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from serving.gateway.intake import Event, Fault, Intake, InvalidError
from serving.gateway.memory import Entry, Memory
from serving.gateway.ports import Arrival, NotPublishedError, Plain, Topics
from shared_features.app import App

log = logging.getLogger("sameriver.gateway")

GROUP_EVENTS = 1_000
"""Most events that are validated and published together: about 10 ms of the event loop."""


@dataclass(frozen=True, slots=True)
class DeskSettings:
    """Limits of one gateway.

    Attributes:
        wait_s: how long a request waits for its predictions unless it says otherwise.
        longest_wait_s: most that a request may ask for.
        max_in_flight: events of requests that wait; beyond it requests are turned away (429).
        max_events: in one list.
        remember: events remembered, the newest; see `serving.gateway.memory`.
    """

    wait_s: float = 5.0
    longest_wait_s: float = 60.0
    max_in_flight: int = 2_000
    max_events: int = 1_000
    remember: int = 100_000


class BusyError(Exception):
    """More events wait already than the gateway takes."""


class UnavailableError(Exception):
    """The events could not be published; the text says why."""


@dataclass(slots=True, eq=False)
class _Request:
    events: list[Event]
    accepted: asyncio.Future[list[Entry]]


class Desk:
    """The gateway of one app, without HTTP.

    Args:
        app: the app.
        topics: its topics.
        plain: reads the data of predictions and reactions.
        settings: limits.
    """

    def __init__(self, app: App, topics: Topics, plain: Plain, settings: DeskSettings) -> None:
        self.app, self.settings = app, settings
        self.memory = Memory(app, settings.remember, plain)
        self.in_flight = 0
        self.since_s = time.time()
        self._topics = topics
        self._intake = Intake(app, settings.max_events)
        self._waiting: deque[_Request] = deque()
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._pump: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._closing = False

    def start(self) -> None:
        """Begin to follow the topics; on the event loop that will serve."""
        loop = asyncio.get_running_loop()

        def arrived(arrivals: list[Arrival]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever would ask
                loop.call_soon_threadsafe(self.memory.take, arrivals)

        self._pump = asyncio.create_task(self._run())
        self._topics.follow(arrived)

    async def stop(self) -> None:
        """Publish what was accepted, then stop."""
        self._closing = True
        self._news.set()
        if self._pump is not None:
            await self._pump
        self._publisher.shutdown()

    def trouble(self) -> str:
        """Why the gateway cannot answer; "" if it can."""
        return "it is stopping" if self._closing else self._topics.failure()

    async def submit(self, body: bytes, wait_s: float, trace: str = "") -> tuple[list[Event], list[Entry], bool]:
        """Take a request's events in, publish those that are new, and wait for what becomes of them.

        Args:
            body: of the request.
            wait_s: how long to wait.
            trace: the request's ``traceparent``, which goes on with its events; "" for none.

        Returns:
            The events, what is known of each at the end of the wait, and whether the body was a list.

        Raises:
            InvalidError: the body or an event cannot be used; nothing was published.
            BusyError: too many wait already.
            UnavailableError: nothing could be published.
        """
        until_s = time.monotonic() + wait_s
        if self.in_flight >= self.settings.max_in_flight:  # before any work is done for it
            raise BusyError
        events, is_list = self._intake.read(body)
        for event in events:
            event.trace = trace
        # One request always gets in when nobody waits, however long its list is.
        if self.in_flight and self.in_flight + len(events) > self.settings.max_in_flight:
            raise BusyError
        if self._closing:
            raise UnavailableError("the gateway is stopping")
        self.in_flight += len(events)
        try:
            request = _Request(events, asyncio.get_running_loop().create_future())
            self._waiting.append(request)
            self._news.set()
            entries = await request.accepted
            for entry in entries:
                if entry.stored is not None:
                    await entry.stored.wait()  # however short the wait: what is answered is safe in the topic
            for entry in entries:
                await self.wait(entry, until_s - time.monotonic())
        finally:
            self.in_flight -= len(events)
        failed = [entry for entry in entries if entry.failure]
        if failed:
            raise UnavailableError(failed[0].failure)
        return events, entries, is_list

    async def wait(self, entry: Entry, seconds: float) -> None:
        """Return when the entry is complete, or after so many seconds."""
        if entry.is_complete() or seconds <= 0:
            return
        if entry.complete is None:
            entry.complete = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await entry.complete.wait()
        except TimeoutError:
            return

    async def _run(self) -> None:
        """Validate and publish in groups until told to stop."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                group: list[_Request] = []
                count = 0
                while self._waiting and (not group or count + len(self._waiting[0].events) <= GROUP_EVENTS):
                    count += len(self._waiting[0].events)
                    group.append(self._waiting.popleft())
                await self._handle(group)
            if self._closing:
                return

    async def _handle(self, group: list[_Request]) -> None:
        try:
            accepted = self._accept(group)
            new = [(event, entry) for request in accepted for event, entry in request]
            if new:
                await self._publish(new)
        except Exception:
            log.exception("a group of events failed")
            for request in group:
                if not request.accepted.done():
                    request.accepted.set_exception(UnavailableError("an unexpected error, which the log has whole"))

    def _accept(self, group: Sequence[_Request]) -> list[list[tuple[Event, Entry]]]:
        """Answer invalid requests; for the others, the events that are new with their entries."""
        stored = asyncio.Event()
        found: list[list[Fault]] = self._intake.validate([request.events for request in group])
        published = []
        for request, faults in zip(group, found, strict=True):
            if request.accepted.done():
                continue  # the caller has gone
            if faults:
                request.accepted.set_exception(InvalidError(faults))
                continue
            entries, new = [], []
            for event in request.events:
                entry = self.memory.entry(event.event_type, event.event_id)
                entries.append(entry)
                if self._is_new(entry, event):
                    entry.stored = stored
                    new.append((event, entry))
            request.accepted.set_result(entries)
            published.append(new)
        return published

    def _is_new(self, entry: Entry, event: Event) -> bool:
        """Whether the event has to be published: nothing is known of it, or only that other data was refused."""
        if entry.prediction is not None or (entry.asked and entry.refused is None):
            return False
        sha256 = event.sha256()
        if entry.refused is not None and entry.refused.sha256 == sha256:
            return False
        entry.asked, entry.refused, entry.failure = True, None, ""
        entry.sha256 = sha256
        return True

    async def _publish(self, new: Sequence[tuple[Event, Entry]]) -> None:
        loop = asyncio.get_running_loop()
        messages = [event.message() for event, _ in new]
        try:
            await loop.run_in_executor(self._publisher, self._topics.publish, messages)
        except Exception as error:
            if not isinstance(error, NotPublishedError):
                log.exception("publishing failed")
            log.warning("%d events could not be published: %s", len(new), error)
            self.memory.unpublished([entry for _, entry in new], f"the event was not published: {error}")
        else:
            for event, entry in new:
                if event.event_type != self.app.predict_on.name:
                    self.memory.final(entry)
        for _, entry in new:
            if entry.stored is not None:
                entry.stored.set()

    def answer(self, entry: Entry) -> dict[str, Any]:
        """What is known of an event now, as JSON has it."""
        known: dict[str, Any] = {
            "status": "pending",
            "event_type": entry.event_type,
            "event_id": entry.event_id,
            "ask_again": f"/v1/predictions/{entry.ticket}",
        }
        if entry.prediction is not None:
            record = self.memory.record(entry.prediction)
            known |= {
                "status": "predicted" if record["model"] else "recorded",
                "prediction_id": record["prediction_id"],
                "outputs": record["outputs"],
                "model": record["model"],
                "model_version": record["model_version"],
                "event_time": record["event_time"],
                "late": record["late"],
                "reactions": [self._reaction(entry, name) for name in sorted(entry.reactions)],
                "reactions_complete": entry.due <= entry.reactions.keys(),
            }
            if entry.others:
                records = [record, *(self.memory.record(entry.others[name]) for name in sorted(entry.others))]
                shown = ("model", "model_version", "prediction_id", "outputs")
                known["predictions"] = [{name: one[name] for name in shown} for one in records]
            if record["features"]:
                known["features"] = record["features"]
        elif entry.refused is not None:
            known |= {"status": "refused", "reason": entry.refused.reason, "detail": entry.refused.detail}
        elif entry.final:
            known["status"] = "accepted"
        return known

    def _reaction(self, entry: Entry, name: str) -> dict[str, Any]:
        record = self.memory.record(entry.reactions[name])
        return {"reaction": name, "reaction_id": record["reaction_id"], "payload": record["payload"]}
