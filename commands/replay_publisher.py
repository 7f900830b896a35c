"""Publish a replay through Google's official client, at a steady rate or at full speed: a process of its own.

    python -m commands.replay_publisher REPLAY --project sameriver --topic flights-events

It says ``{"ready": true}``, then takes one JSON object a line from standard input: ``{"phase": 1, "rate": 255}``
publishes that phase's messages (a rate of null: at once). It prints ``{"sent": [[row, call_ns], …]}`` for the events
that the broker has acknowledged (``call_ns``: the machine's monotonic clock as publish was called), and
``{"phase_done": 1, "failed": 0}`` when every message of the phase has been. All messages have one ordering key, so
that they are stored in the order of the replay.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import click
import pyarrow as pa
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1 import types

ORDERING_KEY = "replay"
REPORT_S = 0.05
ACKNOWLEDGED_S = 60.0


class _Sent:
    """What the broker has acknowledged and nobody has been told of yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pairs: list[tuple[int, int]] = []
        self.failed = 0

    def note(self, rows: list[int], call_ns: int, done: Future[str]) -> None:
        with self._lock:
            if done.exception() is None:
                self._pairs += [(row, call_ns) for row in rows]
            else:
                self.failed += 1

    def report(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        if pairs:
            _say({"sent": pairs})


def _say(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def publish_phase(client: Any, topic: str, table: pa.Table, phase: int, rate: float | None) -> int:
    """Publish the messages of one phase; how many were not acknowledged."""
    messages = [one for one in table.to_pylist() if one["phase"] == phase]
    sent, futures = _Sent(), []
    begun_s = said_s = time.monotonic()
    for place, message in enumerate(messages):
        if rate is not None:
            wait_s = begun_s + place / rate - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
        call_ns = time.monotonic_ns()
        future = client.publish(topic, message["data"], ordering_key=ORDERING_KEY, **json.loads(message["attributes"]))
        future.add_done_callback(lambda done, rows=message["rows"], call_ns=call_ns: sent.note(rows, call_ns, done))
        futures.append(future)
        if time.monotonic() - said_s >= REPORT_S:
            said_s = time.monotonic()
            sent.report()
    deadline_s = time.monotonic() + ACKNOWLEDGED_S
    while not all(future.done() for future in futures) and time.monotonic() < deadline_s:
        time.sleep(REPORT_S / 5)
        sent.report()
    sent.report()
    return sent.failed + sum(not future.done() for future in futures)


@click.command()
@click.argument("replay", type=click.Path(exists=True, dir_okay=False))
@click.option("--project", required=True)
@click.option("--topic", required=True)
def main(replay: str, project: str, topic: str) -> None:
    """Publish the phases of REPLAY as standard input asks for them."""
    with pa.OSFile(replay) as file:
        table = pa.ipc.open_file(file).read_all()
    client = pubsub_v1.PublisherClient(
        batch_settings=types.BatchSettings(max_messages=1_000, max_bytes=4_000_000, max_latency=0.001),
        publisher_options=types.PublisherOptions(enable_message_ordering=True),
    )
    path = client.topic_path(project, topic)
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        failed = publish_phase(client, path, table, asked["phase"], asked["rate"])
        _say({"phase_done": asked["phase"], "failed": failed})
    client.stop()


if __name__ == "__main__":
    main()
