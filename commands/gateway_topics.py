"""An app's topics as the gateway uses them: events out, predictions, reactions and dead letters in."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.gateway.ports import Arrival, NotPublishedError, OutgoingEvent, Published, Refused
from shared_features.errors import ConfigurationError
from streaming.naming import reaction_topics, topic, topics_of
from streaming.topics import (
    Endpoint,
    Message,
    OutgoingMessage,
    Publisher,
    Subscriber,
    TopicError,
    create_subscription,
    create_topic,
    delete_subscription,
)

if TYPE_CHECKING:
    from shared_features.app import App

log = logging.getLogger("sameriver.gateway")

PUBLISH_S = 5.0
REACH_S = 30.0
PULL_S = 0.5
HELD = 2_000
"""Arrivals of a topic that are acknowledged late, so that a gateway that comes back receives them again."""

AT_ONCE = 500
"""Acknowledgements that are sent together, at least."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}\Z")


@dataclass(frozen=True, slots=True)
class _Followed:
    topic: str
    subscription: str
    read: Callable[[Message], Arrival | None]


class GatewayTopics:
    """The topics of one app, for one gateway.

    Each gateway has subscriptions of its own under its name: all gateways see everything, and one that comes back
    under its name receives what came meanwhile and the last `HELD` arrivals of each topic.

    Args:
        app: the app.
        endpoint: where its topics are; they are made if they do not exist.
        name: of this gateway; no other that runs may have it.

    Raises:
        ConfigurationError: the name cannot be part of a subscription's.
        TopicError: the topics cannot be reached.
    """

    def __init__(self, app: App, endpoint: Endpoint, name: str) -> None:
        if not _NAME.match(name):
            raise ConfigurationError(
                f"gateway name {name!r} cannot be used: wanted up to 31 lower-case letters, digits and -"
            )
        self._endpoint = endpoint
        self._events = topic(app.name, "events")
        readers = {topic(app.name, "predictions"): _prediction, topic(app.name, "dead-letters"): _dead_letter}
        readers |= dict.fromkeys(reaction_topics(app).values(), _reaction)
        self._followed = [_Followed(of, f"{of}-{name}", read) for of, read in readers.items()]
        for made in topics_of(app).values():
            create_topic(endpoint, made, deadline_s=REACH_S)
        for one in self._followed:
            create_subscription(endpoint, one.subscription, one.topic, deadline_s=REACH_S)
        self._publisher = Publisher(endpoint, deadline_s=PUBLISH_S)
        self._stopping = threading.Event()
        self._failure = ""
        self._threads: list[threading.Thread] = []

    def publish(self, events: Sequence[OutgoingEvent]) -> None:
        """See `serving.gateway.ports.Topics`."""
        try:
            self._publisher.publish(self._events, [OutgoingMessage(one.data, one.attributes) for one in events])
        except TopicError as error:
            raise NotPublishedError(f"the topic does not take it ({error.code.name})") from error

    def follow(self, arrived: Callable[[list[Arrival]], None]) -> None:
        """See `serving.gateway.ports.Topics`."""
        for one in self._followed:
            thread = threading.Thread(target=self._run, args=(one, arrived), name=f"follow {one.topic}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def failure(self) -> str:
        """See `serving.gateway.ports.Topics`."""
        return self._failure

    def close(self) -> None:
        """Stop and give back what was not acknowledged; the subscriptions stay for the next one of this name."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
        self._publisher.close()

    def delete(self) -> None:
        """Delete the subscriptions: this gateway is not coming back. After `close`."""
        for one in self._followed:
            delete_subscription(self._endpoint, one.subscription, deadline_s=PUBLISH_S)

    def _run(self, followed: _Followed, arrived: Callable[[list[Arrival]], None]) -> None:
        subscriber = Subscriber(self._endpoint, followed.subscription)
        held: deque[str] = deque()
        try:
            while not self._stopping.is_set():
                messages = subscriber.pull(1_000, PULL_S)
                if not messages:
                    continue
                found = [arrival for arrival in map(followed.read, messages) if arrival is not None]
                if found:
                    arrived(found)
                held.extend(message.ack_id for message in messages)
                if len(held) > HELD + AT_ONCE:
                    subscriber.acknowledge([held.popleft() for _ in range(len(held) - HELD)])
        except Exception as error:
            self._failure = f"nothing is received from {followed.topic} any more"
            if isinstance(error, TopicError):
                log.error("%s: %s", self._failure, error)
            else:
                log.exception("%s", self._failure)
        finally:
            subscriber.close()


def _prediction(message: Message) -> Arrival | None:
    return _published(message, "")


def _reaction(message: Message) -> Arrival | None:
    return _published(message, message.attributes.get("reaction", ""))


def _published(message: Message, name: str) -> Arrival | None:
    attributes = message.attributes
    try:
        return Published(
            attributes["event_type"], attributes["event_id"], attributes["prediction_id"], name, message.data
        )
    except KeyError as error:
        log.warning("a message without the attribute %s is none of the job's: left aside", error)
        return None


def _dead_letter(message: Message) -> Arrival | None:
    """The dead letter of an event with an identity; of others nobody can ask."""
    attributes = message.attributes
    event_type, event_id = attributes.get("original_event_type"), attributes.get("original_event_id")
    get = attributes.get
    if not event_type or not event_id or get("reason") == "export_refused":  # that one has its prediction
        return None
    return Refused(event_type, event_id, get("sha256", ""), get("reason", ""), get("detail", ""))
