"""What stands around the job in `sameriver bench stream`: processes, the receiver of predictions, the null loop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_features.blocks import from_ipc
from shared_features.errors import SameriverError
from streaming.prediction_blocks import PREDICTION_BLOCK
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, Subscriber

ROOT = Path(__file__).resolve().parent.parent
BROKER = ("-m", "cli", "broker", "--port", "0", "--json")
JOB = ("-m", "cli", "stream", "--prediction-blocks")
SERVE = ("-m", "cli", "serve", "--port", "0")
NULL_LOOP = ("-m", "benchmarks.stream_load")
START_S, QUIET_S = 180.0, 120.0


class Process:
    """A Python process of ours, ready once it has printed a line with some words in it."""

    def __init__(self, arguments: Sequence[str], ready: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if ready in line:
                self.line = line.strip()
                break
        else:
            raise SameriverError(f"the benchmark's process {' '.join(arguments[:3])} ended before it was ready")
        threading.Thread(target=self._drain, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.terminate()
        self._process.wait(START_S)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self._process.kill()
        self._process.wait()


class Receiver:
    """Counts the messages that arrive on a subscription."""

    def __init__(self, endpoint: Endpoint, subscription: str) -> None:
        self._subscriber = Subscriber(endpoint, subscription, max_messages=50_000)
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            messages = self._subscriber.pull(10_000, 0.1)
            now = time.monotonic()
            with self._changed:
                self._count = self._note(messages, now)
                self._changed.notify_all()
            if messages:
                self._subscriber.acknowledge([message.ack_id for message in messages])

    def _note(self, messages: Sequence[Message], now: float) -> int:  # noqa: ARG002
        """Take what has arrived; the count as it is now."""
        return self._count + len(messages)

    def count(self) -> int:
        """How many have arrived."""
        return self._count

    def wait_for(self, count: int) -> None:
        """Return when so many have arrived, or when nothing more comes: what is missing is counted as lost."""
        seen, until = -1, 0.0
        with self._changed:
            while self._count < count:
                if self._count > seen:
                    seen, until = self._count, time.monotonic() + QUIET_S
                elif time.monotonic() > until:
                    return
                self._changed.wait(0.5)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._subscriber.close()


class EventReceiver(Receiver):
    """Counts the events whose predictions have arrived, and notes each one's first arrival."""

    def __init__(self, endpoint: Endpoint, subscription: str) -> None:
        self._arrived: dict[str, float] = {}
        super().__init__(endpoint, subscription)

    def _note(self, messages: Sequence[Message], now: float) -> int:
        for message in messages:
            for event_id in _event_ids(message):
                self._arrived.setdefault(event_id, now)
        return len(self._arrived)

    def seen(self) -> set[str]:
        with self._changed:
            return set(self._arrived)

    def arrived(self, event_id: str) -> float:
        return self._arrived[event_id]


def _event_ids(message: Message) -> list[str]:
    if message.attributes["schema"] == PREDICTION_BLOCK:
        found: list[str] = from_ipc(message.data).column("event_id").to_pylist()
        return found
    return [message.attributes["event_id"]]


def job_status(url: str) -> dict[str, Any]:
    """What the job says of itself."""
    if not url.startswith("http://127.0.0.1:"):
        raise SameriverError(f"a job of the benchmark is at http://127.0.0.1, got {url}")
    with urllib.request.urlopen(f"{url}/status", timeout=5.0) as answer:  # noqa: S310 - checked above
        found: dict[str, Any] = json.loads(answer.read())
    return found


def main(host_port: str) -> None:
    """The null loop: pull, publish the same elsewhere, acknowledge."""
    endpoint = Endpoint("bench", host_port)
    subscriber, publisher = Subscriber(endpoint, "null-in"), Publisher(endpoint)
    print("ready", flush=True)
    while True:
        messages = subscriber.pull(1_000, 1.0)
        if messages:
            publisher.publish("null-out", [OutgoingMessage(one.data, one.attributes) for one in messages])
            subscriber.acknowledge([one.ack_id for one in messages])


if __name__ == "__main__":
    main(sys.argv[1])
