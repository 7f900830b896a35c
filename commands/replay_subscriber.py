"""Receive what a job publishes through Google's official client, independently of the job: a process of its own.

    python -m commands.replay_subscriber --project sameriver --predictions flights-predictions \
        --reactions flights-reaction-rebook --dead-letters flights-dead-letters

It makes topics and subscriptions, says ``{"ready": true}``, and prints what it got, some times a second:
``{"predictions": [[event_id, prediction_id, probability, received_ns], …], "dead_letters": [reason, …],
"reactions": [[id, name, event_id, started], …]}``. Of several models' predictions only those of ``--model`` come.
``received_ns`` is the machine's monotonic clock in the client's callback; ``started`` says at which end a reaction is
told that is told at both, else it is null. SIGTERM ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

import click
from google.api_core.exceptions import AlreadyExists
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1 import types

from commands.group import stop_with_parent

REPORT_S = 0.04


class _Received:
    """What came and nobody has been told of yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._predictions: list[tuple[str, str, float | None, int]] = []
        self._reactions: list[tuple[str, str, str, bool | None]] = []
        self._reasons: list[str] = []

    def prediction(self, message: Any) -> None:
        received_ns = time.monotonic_ns()
        record = json.loads(message.data)
        probability = record["outputs"].get("probability")
        with self._lock:
            self._predictions.append((record["event_id"], record["prediction_id"], probability, received_ns))
        message.ack()

    def reaction(self, message: Any) -> None:
        record = json.loads(message.data)
        with self._lock:
            started = (record["payload"].get("started") or {}).get("boolean")
            self._reactions.append((record["reaction_id"], record["reaction"], record["event_id"], started))
        message.ack()

    def dead_letter(self, message: Any) -> None:
        with self._lock:
            self._reasons.append(message.attributes.get("reason", "unknown"))
        message.ack()

    def report(self) -> None:
        with self._lock:
            record = {
                "predictions": self._predictions,
                "reactions": self._reactions,
                "dead_letters": self._reasons,
            }
            self._predictions, self._reactions, self._reasons = [], [], []
        if any(record.values()):
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()


def subscribe(project: str, topic: str, model: str | None = None) -> str:
    """A new subscription to the topic, which is made if it does not exist; its full name.

    Args:
        model: the only one whose predictions are to come.
    """
    with pubsub_v1.SubscriberClient() as admin:
        publisher = pubsub_v1.PublisherClient()
        path = publisher.topic_path(project, topic)
        try:
            publisher.create_topic(name=path)
        except AlreadyExists:
            pass
        finally:
            publisher.stop()
        name = str(admin.subscription_path(project, f"{topic}-demo-{os.urandom(4).hex()}"))
        wanted = "" if model is None else f'attributes.model = "{model}"'
        admin.create_subscription(request={"name": name, "topic": path, "filter": wanted})
    return name


@click.command()
@click.option("--project", required=True)
@click.option("--predictions", required=True)
@click.option("--reactions", multiple=True)
@click.option("--dead-letters", required=True)
@click.option("--model")
def main(project: str, predictions: str, reactions: tuple[str, ...], dead_letters: str, model: str | None) -> None:
    """Print what comes on the topics until SIGTERM."""
    received, stopping = _Received(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    stop_with_parent()
    callbacks = {predictions: received.prediction, dead_letters: received.dead_letter}
    callbacks |= dict.fromkeys(reactions, received.reaction)
    flow = types.FlowControl(max_messages=20_000, max_bytes=256 << 20)
    with ExitStack() as stack:
        for topic, callback in callbacks.items():
            client = stack.enter_context(pubsub_v1.SubscriberClient())
            only = model if topic == predictions else None
            pulling = client.subscribe(subscribe(project, topic, only), callback, flow_control=flow)
            stack.callback(pulling.cancel)
        sys.stdout.write('{"ready": true}\n')
        sys.stdout.flush()
        while not stopping.wait(REPORT_S):
            received.report()
    received.report()


if __name__ == "__main__":
    main()
