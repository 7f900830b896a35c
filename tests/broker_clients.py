"""Official Pub/Sub clients on a broker, closed properly, and what they received."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import pubsub_v1

from tests.processes import PATIENCE_S

PROJECT = "p1"


def topic_path(name: str, project: str = PROJECT) -> str:
    return f"projects/{project}/topics/{name}"


def subscription_path(name: str, project: str = PROJECT) -> str:
    return f"projects/{project}/subscriptions/{name}"


class Clients:
    """A publisher and a subscriber of the official library, pointed at one broker.

    Attributes:
        publisher, subscriber, schemas: the clients; `ordered` publishes with ordering keys.
        project: where `topic` and `subscription` make theirs.
    """

    def __init__(self, host_port: str, project: str = PROJECT) -> None:
        self.project = project
        # The schema client knows no PUBSUB_EMULATOR_HOST.
        transport = pubsub_v1.SchemaServiceClient.get_transport_class("grpc")
        self.schemas: Any = pubsub_v1.SchemaServiceClient(transport=transport(channel=grpc.insecure_channel(host_port)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PUBSUB_EMULATOR_HOST", host_port)
            self.publisher: Any = pubsub_v1.PublisherClient()
            self.ordered: Any = pubsub_v1.PublisherClient(
                publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
            )
            self.subscriber: Any = pubsub_v1.SubscriberClient()

    def topic(self, name: str = "events", **settings: Any) -> str:
        path = topic_path(name, self.project)
        self.publisher.create_topic(request={"name": path, **settings})
        return path

    def subscription(self, name: str = "job", topic: str = "events", **settings: Any) -> str:
        path = subscription_path(name, self.project)
        request = {"name": path, "topic": topic_path(topic, self.project), **settings}
        self.subscriber.create_subscription(request=request)
        return path

    def close(self) -> None:
        self.publisher.stop()
        self.ordered.stop()
        for client in (self.publisher, self.ordered, self.schemas):
            client.transport.close()
        self.subscriber.close()


@contextmanager
def clients(host_port: str, project: str = PROJECT) -> Iterator[Clients]:
    """Official clients that are closed at the end."""
    made = Clients(host_port, project)
    try:
        yield made
    finally:
        made.close()


class Inbox:
    """A streaming subscriber's callback that keeps what came and wakes whoever waits for it.

    Args:
        handle: what to do with a message; acknowledges if not given.
    """

    def __init__(self, handle: Callable[[Any], object] | None = None) -> None:
        self.messages: list[Any] = []
        self._handle = handle or (lambda message: message.ack())
        self._changed = threading.Condition()

    def __call__(self, message: Any) -> None:
        self._handle(message)
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait_for(self, number: int, timeout_s: float = PATIENCE_S) -> list[Any]:
        """The messages so far, at least `number` of them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.messages) >= number, timeout_s):
                raise AssertionError(f"{len(self.messages)} of {number} messages came within {timeout_s:g} s")
            return list(self.messages)


@contextmanager
def streaming(client: Any, subscription: str, inbox: Inbox, **options: Any) -> Iterator[Any]:
    """Receive into `inbox`; the stream's future. The stream is shut down at the end."""
    future = client.subscribe(subscription, inbox, **options)
    try:
        yield future
    finally:
        future.cancel()
        with contextlib.suppress(Exception):  # what ended the stream is for the test to look at
            future.result(120)
        assert future.done(), "the subscriber did not stop"


def emulator_command() -> list[str]:
    """The command that starts Google's emulator; skips where it is not installed."""
    gcloud, java = shutil.which("gcloud"), shutil.which("java")
    if gcloud is None or java is None:
        pytest.skip("Google's Pub/Sub emulator is not installed (gcloud and java)")
    home = Path(gcloud).resolve().parent.parent
    found = sorted(home.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"))
    if not found:
        pytest.skip("Google's Pub/Sub emulator is not installed (gcloud components install pubsub-emulator)")
    return [java, "-Xmx256m", "-jar", str(found[-1])]
