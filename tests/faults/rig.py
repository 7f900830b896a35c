"""A broker, a job on it, a publisher that keeps account of what was acknowledged, and a collector of what comes out."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.pubsub_v1 import types

from shared_features.app import App
from streaming.archive import read_commits
from streaming.job import create_topics
from streaming.naming import subscription_of
from streaming.topics import (
    Endpoint,
    Message,
    OutgoingMessage,
    Publisher,
    Subscriber,
    create_subscription,
    create_topic,
)
from tests.faults import app as rules
from tests.faults.jobs import APP, Job, Jobs
from tests.processes import PATIENCE_S, new_seed, wait_until

_numbers = itertools.count()


class Collector:
    """Receives a topic from now on, on a thread of its own.

    Attributes:
        by_event: event id -> the different messages about it.
        copies: how many messages came.
    """

    def __init__(self, endpoint: Endpoint, topic: str) -> None:
        create_subscription(endpoint, f"collect-{topic}", topic)
        self._subscriber = Subscriber(endpoint, f"collect-{topic}")
        self.by_event: dict[str, set[tuple[str, bytes]]] = {}
        self.copies = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"collect {topic}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            messages = self._subscriber.pull(1_000, 0.1)
            self._take(messages)
            self._subscriber.acknowledge([message.ack_id for message in messages])

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.copies += 1
            of = message.attributes.get("event_id") or message.attributes.get("original_event_id", "")
            told = (message.attributes.get("prediction_id", ""), message.data)
            self.by_event.setdefault(of, set()).add(told)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(120)
        self._subscriber.close()


class Rig:
    """One app in a project of its own on a broker.

    Args:
        jobs: what starts jobs.
        broker: ``host:port`` that publisher and collectors speak to.
        folder: for the archive.
        seed: of what is published; printed where a test fails.
        job_broker: ``host:port`` that the job speaks to: a proxy's, or the same.
        app, file: which app, and where it is.
        retain: whether the job's subscription keeps what was acknowledged, so that it can be sought back.
    """

    def __init__(
        self,
        jobs: Jobs,
        broker: str,
        folder: Path,
        *,
        seed: int | None = None,
        job_broker: str | None = None,
        app: App = rules.app,
        file: str = APP,
        retain: bool = False,
    ) -> None:
        self.app, self._file = app, file
        self.jobs, self.archive = jobs, folder / "archive"
        self.seed = new_seed() if seed is None else seed
        self.draw = random.Random(self.seed)
        self.endpoint = Endpoint(f"faults-{next(_numbers)}", broker)
        self.job_broker = job_broker or broker
        if retain:
            self._retain()
        create_topics(app, self.endpoint)
        self.predictions = Collector(self.endpoint, f"{app.name}-predictions")
        self.dead_letters = Collector(self.endpoint, f"{app.name}-dead-letters")
        self._publisher = Publisher(self.endpoint)
        self.published: list[str] = []
        self.x: dict[str, int] = {}
        self.meter: dict[str, str] = {}
        self.next = itertools.count()

    def _event(self, number: int) -> OutgoingMessage:
        """A reading, at most two minutes old."""
        record: dict[str, Any] = {
            "event_id": f"r{number}",
            "read_at": time.time_ns() // 1000 - self.draw.randrange(120_000_000),
            "meter": "abcdefgh"[self.draw.randrange(8)],
            "x": self.draw.randrange(-5, 6),
        }
        self.x[f"r{number}"], self.meter[f"r{number}"] = record["x"], record["meter"]
        return OutgoingMessage(json.dumps(record).encode(), {"event_type": "reading"})

    def publish(self, count: int, *, copies: int = 1) -> None:
        """Publish new readings, each some times; returns when the broker has acknowledged them."""
        numbers = [next(self.next) for _ in range(count)]
        messages = [self._event(number) for number in numbers] * copies
        self.draw.shuffle(messages)
        self._publisher.publish(f"{self.app.name}-events", messages)
        self.published += [f"r{number}" for number in numbers]

    def _retain(self) -> None:
        create_topic(self.endpoint, f"{self.app.name}-events")
        made = types.Subscription.pb()(
            name=self.endpoint.subscription(subscription_of(self.app)),
            topic=self.endpoint.topic(f"{self.app.name}-events"),
            ack_deadline_seconds=60,
            retain_acked_messages=True,
        )
        self._admin("CreateSubscription", made)

    def seek_to_the_start(self) -> None:
        """All that was ever published comes to the job again."""
        request = types.SeekRequest.pb()(subscription=self.endpoint.subscription(subscription_of(self.app)))
        request.time.FromSeconds(int(time.time()) - 86_400)
        self._admin("Seek", request)

    def _admin(self, method: str, request: Any) -> None:
        with self.endpoint.channel() as channel:
            call = channel.unary_unary(f"/google.pubsub.v1.Subscriber/{method}", None, None)
            call(request.SerializeToString(), timeout=120, wait_for_ready=True)

    def publish_poison(self) -> None:
        """A message that cannot be used."""
        self._publisher.publish(f"{self.app.name}-events", [OutgoingMessage(b"{", {"event_type": "reading"})])

    def command(self, *words: str) -> Job:
        """A command on this rig's topics, ended."""
        there = ["--app", self._file, "--emulator", self.endpoint.host_port or "", "--project", self.endpoint.project]
        job = self.jobs.start([*words, *there, "--json"])
        job.wait()
        return job

    def start_job(self, *options: str, limits: Mapping[str, int] | None = None, wait: bool = True) -> Job:
        """A job on this rig's archive."""
        arguments = ["stream", "--app", self._file, "--emulator", self.job_broker, "--project", self.endpoint.project]
        job = self.jobs.start([*arguments, "--archive", str(self.archive), "--json", *options], limits)
        if wait:
            job.wait_ready()
        return job

    def archived(self) -> int:
        """Rows that are durable."""
        if not (self.archive / "archive.json").exists():
            return 0
        return sum(commit.block.num_rows for commit in read_commits(self.archive))

    def missing(self) -> int:
        """Readings acknowledged to the publisher that have no prediction yet."""
        return len(set(self.published) - self.predictions.by_event.keys())

    def wait_predicted(self, timeout_s: float = PATIENCE_S) -> None:
        """Until nothing is missing."""
        wait_until(lambda: not self.missing(), timeout_s, f"all is predicted (seed {self.seed})")

    def check(self, *options: str) -> dict[str, Any]:
        """Nothing lost, nothing else, one prediction each with the same bits; the archive verifies. The report.

        Args:
            options: of ``sameriver verify``.
        """
        seed = f"seed {self.seed}"
        found = self.predictions.by_event
        assert found.keys() == set(self.published), seed
        assert all(len(versions) == 1 for versions in found.values()), seed
        report = self.verified(*options)
        assert (report["events"], report["mismatches"]) == (len(self.published), 0), seed
        return report

    def verified(self, *options: str) -> dict[str, Any]:
        """What ``sameriver verify`` says of the archive."""
        verify = self.jobs.start(["verify", "--app", self._file, "--archive", str(self.archive), "--json", *options])
        assert verify.wait() == 0, verify.log.read_text("utf-8")
        return verify.records()[-1]

    def close(self) -> None:
        for collector in (self.predictions, self.dead_letters):
            collector.close()
        self._publisher.close()
