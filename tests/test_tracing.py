"""Traces from publish to reaction, at a real collector's endpoint; and none where nobody asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from shared_features.errors import ConfigurationError
from streaming.job import JobSettings, StreamingJob, create_topics
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, Subscriber, create_subscription
from streaming.tracing import Tracing
from tests.otlp_receiver import Receiver
from tests.processes import Started, wait_until
from tests.serving_steps import to_messages
from tests.shop.app import app
from tests.test_verify import sales

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@dataclass
class Bench:
    endpoint: Endpoint
    receiver: Receiver
    publisher: Publisher
    subscribers: dict[str, Subscriber]
    received: dict[str, dict[str, Message]]

    def publish(self, *messages: OutgoingMessage) -> None:
        self.publisher.publish("shop-events", messages)

    def wait_for(self, topic: str, event_ids: set[str]) -> dict[str, Message]:
        """The messages about these events, by event."""
        found = self.received[topic]

        def there() -> bool:
            for message in (messages := self.subscribers[topic].pull(1000, 0.2)):
                found[message.attributes["event_id"]] = message
            self.subscribers[topic].acknowledge([message.ack_id for message in messages])
            return event_ids <= found.keys()

        wait_until(there, what=f"{topic} of {event_ids}")
        return found


@pytest.fixture(scope="module")
def bench(start_session_process: Callable[..., Started], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    broker = start_session_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    endpoint = Endpoint("sameriver", broker.line.rsplit(" ", 1)[-1])
    create_topics(app, endpoint)
    subscribers = {}
    for topic in ("predictions", "reaction-praise"):
        create_subscription(endpoint, f"test-{topic}", f"shop-{topic}")
        subscribers[topic] = Subscriber(endpoint, f"test-{topic}")
    publisher = Publisher(endpoint)
    with Receiver() as receiver:
        settings = JobSettings(endpoint, tmp_path_factory.mktemp("archive"), traces=receiver.url)
        job = StreamingJob(app, settings)
        running = threading.Thread(target=job.run, daemon=True)
        running.start()
        yield Bench(endpoint, receiver, publisher, subscribers, {topic: {} for topic in subscribers})
        job.stop()
        running.join()
    publisher.close()
    for subscriber in subscribers.values():
        subscriber.close()
    broker.kill()


def sale(name: str, number: int, **attributes: str) -> OutgoingMessage:
    """A sale large enough for the reaction."""
    shop = {"sold_at": time.time_ns() // 1_000, "shop": name, "till": 1, "amount": 9.5, "units": 1, "paid": True}
    return OutgoingMessage(
        json.dumps({"event_id": f"{name}{number}", **shop}).encode(), {"event_type": "sale", **attributes}
    )


def test_one_event_is_one_trace_from_publish_to_reaction(bench: Bench) -> None:
    bench.publish(sale("one", 1, traceparent=PARENT, tracestate="vendor=1"))
    prediction = bench.wait_for("predictions", {"one1"})["one1"]
    steps = ["decode", "stage shop", "stage till", "features", "predict big_sale", "archive", "publish"]
    wanted = {"process shop-events", "shop work", *steps}
    wait_until(lambda: wanted <= set(bench.receiver.trace(TRACE)), what="all spans, which may be exported apart")
    spans = bench.receiver.trace(TRACE)
    process, work = spans["process shop-events"], spans["shop work"]
    assert process.parent_span_id.hex() == "b7ad6b7169203331"
    assert process.trace_state == "vendor=1"
    assert work.parent_span_id == process.span_id
    assert {spans[name].parent_span_id for name in steps} == {work.span_id}
    begun = [spans[name].start_time_unix_nano for name in steps]
    assert begun == sorted(begun)
    assert prediction.attributes["traceparent"] == f"00-{TRACE}-{process.span_id.hex()}-01"
    assert bench.receiver.services == {"sameriver-shop"}


def test_a_reaction_goes_on_in_the_trace(bench: Bench) -> None:
    trace_id = TRACE.replace("0af", "2af")
    bench.publish(sale("two", 1, traceparent=PARENT.replace("0af", "2af")))
    reaction = bench.wait_for("reaction-praise", {"two1"})["two1"]
    wanted = {"reaction praise", "process shop-events"}  # they may be exported apart
    wait_until(lambda: wanted <= set(bench.receiver.trace(trace_id)), what="the reaction's span and the event's")
    spans = bench.receiver.trace(trace_id)
    assert spans["reaction praise"].parent_span_id == spans["process shop-events"].span_id
    assert reaction.attributes["traceparent"].split("-")[1:3] == [trace_id, spans["reaction praise"].span_id.hex()]


def test_messages_together_are_one_work_linked_to_their_traces(bench: Bench, tmp_path: Path) -> None:
    """`sameriver publish` begins a trace for each; some take part in none."""
    events = tmp_path / "events.jsonl"
    lines = [json.loads(sale("many", number).data) for number in range(40)]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["publish", str(events), "--app", "tests/shop", "--type", "sale", "--traces", bench.receiver.url]
    result = CliRunner().invoke(main, [*words, "--emulator", str(bench.endpoint.host_port)])
    assert result.exit_code == 0, result.output
    bench.publish(sale("none", 1), sale("none", 2, traceparent=NOT_SAMPLED), sale("none", 3, traceparent="nonsense"))
    predictions = bench.wait_for("predictions", {f"many{n}" for n in range(40)} | {f"none{n}" for n in (1, 2, 3)})
    published = {span.trace_id.hex(): span.span_id for span in bench.receiver.named("publish shop-events")}
    assert len(published) == 40

    def processed() -> dict[str, bytes]:
        of_events = bench.receiver.named("process shop-events")
        return {span.trace_id.hex(): span.parent_span_id for span in of_events if span.trace_id.hex() in published}

    wait_until(lambda: processed() == published, what="a span of each event below that of its publisher")
    traces = {predictions[f"many{number}"].attributes["traceparent"].split("-")[1] for number in range(40)}
    assert traces == set(published)
    assert all("traceparent" not in predictions[f"none{number}"].attributes for number in (1, 2, 3))

    def linked() -> set[str]:
        works = [span for span in bench.receiver.named("shop work") if len(span.links) > 1]
        return {link.trace_id.hex() for work in works for link in work.links}

    wait_until(lambda: linked() >= set(published) or len(linked()) > 20, what="works linked to their messages")
    assert "sameriver-publish" in bench.receiver.services


def test_googles_own_client_begins_traces_too(bench: Bench) -> None:
    """And where nobody asks for traces, nothing of the SDK is imported."""
    program = (
        "import sys, streaming.tracing\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
        "from google.cloud import pubsub_v1\n"
        "from google.cloud.pubsub_v1.types import PublisherOptions\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "client = pubsub_v1.PublisherClient(publisher_options=PublisherOptions(enable_open_telemetry_tracing=True))\n"
        "with trace.get_tracer('test').start_as_current_span('their own') as span:\n"
        "    print(f'{span.get_span_context().trace_id:032x}')\n"
        "    topic = 'projects/sameriver/topics/shop-events'\n"
        "    client.publish(topic, sys.stdin.buffer.read(), event_type='sale').result(120)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=sale("google", 1).data,
        env={"PUBSUB_EMULATOR_HOST": str(bench.endpoint.host_port)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    prediction = bench.wait_for("predictions", {"google1"})["google1"]
    trace_id = done.stdout.decode().strip()
    assert prediction.attributes["traceparent"].split("-")[1] == trace_id
    wait_until(lambda: "process shop-events" in bench.receiver.trace(trace_id), what="its span")


def test_spans_can_go_to_a_file(tmp_path: Path) -> None:
    tracing = Tracing(str(tmp_path / "spans.jsonl"), "shop")
    (message,) = to_messages(app, sales(1))
    work = tracing.begin([message._replace(attributes={"googclient_traceparent": PARENT})], "shop")
    work.step("decode", 1, 2)
    work.end()
    tracing.close()
    spans = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert [span["name"] for span in spans] == ["decode", "shop work", "process shop-events"]
    assert {span["context"]["trace_id"] for span in spans} == {f"0x{TRACE}"}


def test_a_target_that_cannot_be_is_named(tmp_path: Path) -> None:
    for target in ("grpc://host:4317", str(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"traces cannot .*: give"):
            Tracing(target, "shop")
