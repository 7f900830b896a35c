"""The streaming job as a process, on a real broker: bad input, duplicates, draining, kill -9 and coming back."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from batch.verify import verify
from cli import main
from streaming.archive import read_commits
from streaming.dead_letters import read_dead_letters
from streaming.event_blocks import block_message
from streaming.job import create_topics
from streaming.messages import plain
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, Subscriber, create_subscription
from tests.faults.jobs import Job, Jobs
from tests.processes import Started, new_seed, wait_until
from tests.serving_steps import to_messages
from tests.shop.app import app
from tests.test_verify import sales

Start = Callable[..., Started]


class Bench:
    """A broker with the app's topics, a publisher, and what has arrived on the result topics so far."""

    def __init__(self, start: Start, jobs: Jobs, folder: Path) -> None:
        self.jobs, self.archive = jobs, folder / "archive"
        broker = start(["-m", "streaming.broker", "--port", "0"], ready="listening on")
        self.host_port = broker.line.rsplit(" ", 1)[-1]
        self.endpoint = Endpoint("sameriver", self.host_port)
        create_topics(app, self.endpoint)
        self._subscribers = {}
        for topic in ("predictions", "dead-letters", "reaction-praise"):
            create_subscription(self.endpoint, f"test-{topic}", f"shop-{topic}")
            self._subscribers[topic] = Subscriber(self.endpoint, f"test-{topic}")
        self.received: dict[str, list[Message]] = {topic: [] for topic in self._subscribers}
        self._publisher = Publisher(self.endpoint)

    def stream(self, *options: str) -> Job:
        """The job, ready to pull."""
        arguments = ["stream", "--app", "tests/shop", "--emulator", self.host_port, *options]
        job = self.jobs.start([*arguments, "--archive", str(self.archive), "--json"])
        job.wait_ready()
        return job

    def publish(self, messages: list[OutgoingMessage]) -> None:
        self._publisher.publish("shop-events", messages)

    def take(self, topic: str) -> list[Message]:
        """All that has arrived on ``topic`` so far, newly arrived ones included and acknowledged."""
        subscriber = self._subscribers[topic]
        while messages := subscriber.pull(1000, 0.05):
            self.received[topic] += messages
            subscriber.acknowledge([message.ack_id for message in messages])
        return self.received[topic]

    def ids(self) -> set[str]:
        return {message.attributes["event_id"] for message in self.take("predictions")}

    def archived_rows(self) -> int:
        if not (self.archive / "archive.json").exists():
            return 0
        return sum(commit.block.num_rows for commit in read_commits(self.archive))

    def has_archived_more_than(self, rows: int) -> bool:
        return self.archived_rows() > rows

    def close(self) -> None:
        for subscriber in self._subscribers.values():
            subscriber.close()
        self._publisher.close()


@pytest.fixture
def bench(start_process: Start, warm_jobs: Jobs, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(start_process, warm_jobs, tmp_path)
    yield bench
    bench.close()


def outgoing(block: pa.RecordBatch) -> list[OutgoingMessage]:
    return [OutgoingMessage(message.data, message.attributes) for message in to_messages(app, block)]


def sale_ids(block: pa.RecordBatch) -> set[str]:
    types, ids = block.column("event_type").to_pylist(), block.column("event_id").to_pylist()
    return {event_id for event_type, event_id in zip(types, ids, strict=True) if event_type == "sale"}


def by_type(block: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
    return [(name, block.filter(pc.equal(block.column("event_type"), name))) for name in app.event_types]


def halves(block: pa.RecordBatch) -> list[pa.RecordBatch]:
    middle = block.num_rows // 2
    return [block.slice(0, middle), block.slice(middle)]


def poison(rng: random.Random) -> list[tuple[str, OutgoingMessage]]:
    """Messages that cannot be used, each with the reason that its dead letter must give."""
    good = {"event_id": "x", "sold_at": 1_700_000_000_000_000, "amount": 1.0}

    def one(reason: str, data: bytes | dict[str, Any], **attributes: str) -> tuple[str, OutgoingMessage]:
        payload = data if isinstance(data, bytes) else json.dumps(data).encode()
        return reason, OutgoingMessage(payload, {"event_type": "sale", **attributes})

    cases = [
        one("malformed_json", b"{"),
        one("malformed_json", b'{"event_id": "\xff"}'),
        one("malformed_json", b"[" * 100_000),
        one("malformed_avro", b"\x01", encoding="avro"),
        one("unknown_event_type", good, event_type="refund"),
        one("missing_field", {"event_id": "x"}),
        one("wrong_type", {**good, "amount": "much"}),
        one("not_finite", b'{"event_id": "x", "sold_at": 1700000000000000, "amount": NaN}'),
        one("timestamp_out_of_range", {**good, "sold_at": -1}),
        one("in_the_future", {**good, "sold_at": 4_000_000_000_000_000}),
        one("out_of_range", {**good, "amount": 1e300}),
        one("oversized", {**good, "kind": "x" * (1 << 20)}),
    ]
    rng.shuffle(cases)
    return cases


def test_bad_input_goes_to_the_dead_letters_and_touches_nothing_else(bench: Bench) -> None:
    history = sales(120)
    good, bad = outgoing(history), poison(random.Random(7))
    mixed = list(good)
    for i, (_, message) in enumerate(bad):
        mixed.insert(i * 9 + 4, message)
    bench.publish(mixed)
    job = bench.stream()
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is predicted")
    wait_until(lambda: len(bench.take("dead-letters")) == len(bad), what="every bad message is a dead letter")
    letters = read_dead_letters(bench.received["dead-letters"])
    assert sorted((letter.reason, letter.data) for letter in letters) == sorted(
        (reason, message.data) for reason, message in bad
    )
    mend_and_replay(bench, bad)
    wait_until(lambda: "mended" in bench.ids(), what="the mended event is predicted")
    look_at_status(bench, job.wait_ready()["monitoring"], dead_letters=len(bad))
    totals = job.drain()
    assert (totals["received"], totals["dead_letters"], totals["duplicates"]) == (133, len(bad), 0)
    assert totals["outcomes"] == {"predicted": 91, "folded": 30}
    archived = sameriver("status", "--archive", str(bench.archive), exit_code=1)
    assert (archived["running"], archived["balanced"], archived["received"]) == (False, True, 133)
    report = verify(app, bench.archive)
    assert (report.events, report.mismatches) == (121, 0)


def look_at_status(bench: Bench, url: str, *, dead_letters: int) -> None:
    """`sameriver status` and the metrics of a job that has done all there was to do: the equation holds."""
    status = partial(sameriver, "status", "--archive", str(bench.archive))
    wait_until(lambda: status()["in_flight"] == 0, what="what was published is acknowledged")
    check_status(status(), dead_letters)
    with httpx.Client(base_url=url, timeout=120) as client:
        assert client.get("/readyz").json()["ready"]
        assert client.get("/healthz").status_code == 200
        metrics = client.get("/metrics").text
    assert 'sameriver_events_total{end="predicted"} 91.0' in metrics
    assert 'sameriver_dead_letters_total{reason="not_finite"} 1.0' in metrics
    assert "sameriver_events_received_total 133.0" in metrics


def check_status(status: dict[str, Any], dead_letters: int) -> None:
    assert status["running"]
    assert status["ready"]
    assert status["balanced"]
    assert (status["received"], status["in_flight"]) == (133, 0)
    assert (status["predicted"], status["folded"], status["dead_letters"]) == (91, 30, dead_letters)


def sameriver(*words: str, exit_code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*words, "--app", "tests/shop", "--json"])
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def mend_and_replay(bench: Bench, bad: list[tuple[str, OutgoingMessage]]) -> None:
    """`deadletters list` gives all, a mended one is sent again, the others are refused again and stay."""

    def deadletters(*words: str, exit_code: int = 0) -> dict[str, Any]:
        return sameriver("deadletters", *words, "--emulator", bench.host_port, exit_code=exit_code)

    file = bench.archive.parent / "letters.jsonl"
    listed = deadletters("list", "--to", str(file))
    assert listed["reasons"] == dict(Counter(reason for reason, _ in bad))
    (wrong,) = [one for one in listed["dead_letters"] if one["reason"] == "wrong_type"]
    assert deadletters("show", wrong["id"])["detail"] == wrong["detail"]
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    (line,) = [line for line in lines if line["id"] == wrong["id"]]
    line["data"] = {**json.loads(line["data"]), "event_id": "mended", "amount": 2.5}
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    sent = deadletters("replay", "--from", str(file), exit_code=2)
    assert (sent["sent"], sent["refused"], sent["missing"]) == (1, len(bad) - 1, [])
    assert deadletters("list", "--reason", "wrong_type")["count"] == 0


@pytest.mark.soak
def test_a_thousand_bad_messages_among_ten_thousand(bench: Bench) -> None:
    """9,000 events end as they should, 1,000 as dead letters with reason and bytes; the job runs on."""
    seed = new_seed()
    draw, history = random.Random(seed), sales(9_000)
    bad = [one for _ in range(84) for one in poison(draw)][:1_000]
    mixed = outgoing(history)
    for _, message in bad:
        mixed.insert(draw.randrange(len(mixed)), message)
    job = bench.stream()
    for start in range(0, len(mixed), 200):
        bench.publish(mixed[start : start + 200])
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is predicted")
    wait_until(lambda: len(bench.take("dead-letters")) >= len(bad), what="every bad message is a dead letter")
    letters = read_dead_letters(bench.received["dead-letters"])
    wanted = Counter((reason, message.data) for reason, message in bad)
    assert Counter((letter.reason, letter.data) for letter in letters) == wanted, f"seed {seed}"
    assert sameriver("deadletters", "list", "--emulator", bench.host_port)["count"] == len(bad)
    totals = job.drain()
    assert (totals["received"], totals["dead_letters"]) == (10_000, 1_000)
    print(f"seed {seed}: {totals}")
    assert verify(app, bench.archive).mismatches == 0


@pytest.mark.parametrize("count", [200, pytest.param(1_000, marks=pytest.mark.soak)])
def test_each_event_published_three_times_is_predicted_once(bench: Bench, count: int) -> None:
    """Alone, in a block, and in a compressed block half the size."""
    history = sales(count)
    messages = outgoing(history)
    for event_type, part in by_type(history):
        messages.append(block_message(app.event_types[event_type], part))
        messages += [block_message(app.event_types[event_type], half, compression="zstd") for half in halves(part)]
    random.Random(3).shuffle(messages)
    bench.publish(messages)
    job = bench.stream()
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is predicted")
    status = partial(sameriver, "status", "--archive", str(bench.archive))
    wait_until(lambda: status()["received"] == 3 * count, what="the last copies have come, too")
    totals = job.drain()
    asked = count * 3 // 4
    assert (totals["duplicates"], totals["outcomes"]) == (2 * count, {"predicted": asked, "folded": count - asked})
    assert len(bench.take("predictions")) == asked
    assert len({message.attributes["prediction_id"] for message in bench.received["predictions"]}) == asked
    amounts = dict(zip(history.column("event_id").to_pylist(), history.column("sale.amount").to_pylist(), strict=True))
    praised = {message.attributes["event_id"] for message in bench.take("reaction-praise")}
    assert praised == {event_id for event_id, amount in amounts.items() if amount is not None and amount > 2.0}
    assert verify(app, bench.archive).mismatches == 0


def test_kill_9_loses_nothing_and_state_comes_back_exactly(bench: Bench) -> None:
    """Two kills while events flow; in each the work was not finished. The archive verifies as a whole.

    The job stands still before it is killed, wherever it is, and more events come: it cannot finish them first.
    """
    history = sales(4000)
    messages = outgoing(history)
    archived = 0
    for start in (0, 1500):
        job = bench.stream()
        bench.publish(messages[start : start + 500])
        wait_until(partial(bench.has_archived_more_than, archived), what="rows are archived after the restart")
        bench.publish(messages[start + 500 : start + 1000])
        os.kill(job.pid, signal.SIGSTOP)
        bench.publish(messages[start + 1000 : start + 1500])
        job.kill()
        archived = bench.archived_rows()
        assert archived < start + 1500, "the work was finished before the kill, which then proves nothing"
    job = bench.stream()
    recovered = job.wait_ready()["recovered_rows"]
    assert recovered == archived
    bench.publish(messages[3000:])
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is predicted")
    job.drain()
    by_id: dict[str, set[bytes]] = {}
    for message in bench.take("predictions"):
        by_id.setdefault(message.attributes["prediction_id"], set()).add(message.data)
    assert len(by_id) == 3000
    assert all(len(versions) == 1 for versions in by_id.values())  # published again: the same bits
    report = verify(app, bench.archive)
    assert (report.events, report.predictions, report.mismatches) == (4000, 3000, 0)


def test_a_restart_publishes_what_was_archived_but_not_marked_published(bench: Bench) -> None:
    history = sales(20)
    bench.publish(outgoing(history))
    job = bench.stream()
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is predicted")
    job.drain()
    (segment,) = (path for path in bench.archive.glob("*.log") if path.stat().st_size)
    data = segment.read_bytes()
    last_mark = data.rindex(b"SRF1P")
    first_mark = data.index(b"SRF1P")
    segment.write_bytes(data[:first_mark] if first_mark == last_mark else data[:last_mark])
    before = len(bench.take("predictions"))
    job = bench.stream()
    wait_until(lambda: len(bench.take("predictions")) > before, what="predictions come again")
    job.drain()
    again = bench.received["predictions"]
    assert len({message.attributes["prediction_id"] for message in again}) == 15
    assert {message.data for message in again[before:]} <= {message.data for message in again[:before]}


def test_collect_mode_publishes_features_and_ctrl_c_drains(bench: Bench) -> None:
    """A team without history or model collects: every event is recorded with its features."""
    history = sales(40)
    bench.publish(outgoing(history))
    job = bench.stream("--collect")
    wait_until(lambda: bench.ids() == sale_ids(history), what="every sale is recorded")
    assert job.drain(signal.SIGINT)["outcomes"] == {"recorded": 30, "folded": 10}
    recorded = [plain(message.data) for message in bench.received["predictions"]]
    assert all(record["model"] == "" and record["outputs"] == {} for record in recorded)
    names = {frozenset(name.partition("[")[0] for name in record["features"]) for record in recorded}
    assert names == {frozenset(app.features)}
    report = verify(app, bench.archive)
    assert (report.events, report.predictions, report.mismatches) == (40, 0, 0)
