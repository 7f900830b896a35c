"""A gateway on a thread of this process, before topics that do as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import orjson

from serving.gateway.desk import Desk, DeskSettings
from serving.gateway.ports import Arrival, NotPublishedError, OutgoingEvent, Published, Refused
from serving.gateway.server import GatewayServer, Tls
from serving.gateway.web import application
from shared_features import load_app
from shared_features.app import App
from streaming.messages import plain
from tests.processes import REPOSITORY, wait_until

SHOP = load_app(str(REPOSITORY / "tests" / "shop"))


class FakeTopics:
    """Keeps what is published; a test says what arrives.

    Attributes:
        published: every event stored, in order.
        react: called with each stored event; what it returns arrives. None: nothing comes by itself.
        refuse: text of the error that publishing raises; "" stores.
        hold: publishing waits until this is set.
    """

    def __init__(self) -> None:
        self.published: list[OutgoingEvent] = []
        self.react: Callable[[OutgoingEvent], list[Arrival]] | None = None
        self.refuse = ""
        self.hold = threading.Event()
        self.hold.set()
        self.trouble = ""
        self.arrived: Callable[[list[Arrival]], None] = lambda _: None

    def publish(self, events: Sequence[OutgoingEvent]) -> None:
        self.hold.wait(120)
        if self.refuse:
            raise NotPublishedError(self.refuse)
        self.published += events
        for event in events:
            if self.react is not None:
                self.arrived(self.react(event))

    def follow(self, arrived: Callable[[list[Arrival]], None]) -> None:
        self.arrived = arrived

    def failure(self) -> str:
        return self.trouble

    def close(self) -> None:
        pass


def identity(event: OutgoingEvent) -> tuple[str, str]:
    return event.attributes["event_type"], event.attributes["event_id"]


def prediction_of(
    event: OutgoingEvent,
    probability: float,
    *,
    reactions: tuple[str, ...] = (),
    model: str = "big_sale",
    version: int = 0,
) -> Published:
    """The prediction that a job would publish for an event."""
    event_type, event_id = identity(event)
    prediction_id = f"{abs(hash((event_id, model, version))):032x}"[-32:]
    record = {
        "prediction_id": prediction_id, "app": "shop", "event_type": event_type, "event_id": event_id, "key": {},
        "outputs": {"probability": probability}, "model": model, "model_version": version, "fingerprint": "f" * 64,
        "event_time": 1, "publish_time": 1, "late": False, "reactions": reactions, "features": {},
    }  # fmt: skip
    return Published(event_type, event_id, prediction_id, "", orjson.dumps(record))


def reaction_of(prediction: Published, name: str = "praise") -> Published:
    """The reaction that belongs to a prediction."""
    record = {"reaction_id": "ab" * 16, "reaction": name, "payload": {"amount": {"double": 9.0}}}
    return prediction._replace(name=name, data=orjson.dumps(record))


def refusal_of(event: OutgoingEvent, sha256: str, reason: str = "beyond_horizon") -> Refused:
    """The dead letter of an event."""
    return Refused(*identity(event), sha256, reason, "it is too old")


def answer_all(event: OutgoingEvent) -> list[Arrival]:
    """What a job does: a prediction for each sale, praise for those above 2."""
    if event.attributes["event_type"] != "sale":
        return []
    big = (orjson.loads(event.data).get("amount") or 0.0) > 2.0
    prediction = prediction_of(event, float(big), reactions=("praise",) if big else ())
    return [prediction, reaction_of(prediction)] if big else [prediction]


class Running:
    """A gateway and a client of it."""

    def __init__(self, topics: FakeTopics, desk: Desk, client: httpx.Client, port: int) -> None:
        self.topics, self.desk, self.client, self.port = topics, desk, client, port

    def post(self, body: Any, wait_s: float | None = None, **more: Any) -> httpx.Response:
        """POST an event, a list, or bytes as they are."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        query = "" if wait_s is None else f"?wait_s={wait_s}"
        return self.client.post(f"/v1/apps/{self.desk.app.name}/events{query}", content=content, **more)


@contextmanager
def running(
    app: App = SHOP, settings: DeskSettings | None = None, tls: Tls | None = None, client: Any = None, **web: Any
) -> Iterator[Running]:
    """A gateway on a free port, with topics that answer as a job would."""
    topics = FakeTopics()
    topics.react = answer_all
    desk = Desk(app, topics, plain, settings or DeskSettings())
    server = GatewayServer(desk, application(desk, version="1.2.3", **web), host="127.0.0.1", port=0, tls=tls)
    server.start()
    scheme = "http" if tls is None else "https"
    try:
        with httpx.Client(base_url=f"{scheme}://127.0.0.1:{server.port}", timeout=120, **(client or {})) as http:
            yield Running(topics, desk, http, server.port)
    finally:
        topics.hold.set()
        server.stop()


def wait_for_events(topics: FakeTopics, count: int) -> None:
    """Return when so many events are stored."""
    wait_until(lambda: len(topics.published) >= count, what=f"{count} published events")
