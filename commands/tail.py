"""`sameriver tail`: what comes out of a job, as it comes."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.options import app_option, pubsub_options
from commands.signals import stop_signal
from streaming.naming import reaction_topics, topic

if TYPE_CHECKING:
    from streaming.topics import Endpoint, Message

PULL_S = 0.5
REACH_S = 10.0


@click.command()
@click.argument(
    "what",
    type=click.Choice(["predictions", "reactions", "deadletters"]),
    default="predictions",
    help="What to print.",
)
@app_option
@pubsub_options
@click.option("--max", "at_most", type=click.IntRange(1), help="End after this many.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), help="End when nothing came for this many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print each as one JSON object on a line.")
def tail(
    what: str,
    app_name: str,
    project: str,
    emulator: str | None,
    at_most: int | None,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Print predictions, reactions or dead letters from now on.

    It has a subscription of its own, deleted at the end, so that it takes nothing from anybody. Ctrl-C ends it.
    """
    app = options.load(app_name)
    topics = {
        "predictions": [topic(app.name, "predictions")],
        "reactions": list(reaction_topics(app).values()),
        "deadletters": [topic(app.name, "dead-letters")],
    }[what]
    show = (lambda record: output.print_json(record)) if as_json else _Table(what)
    with stop_signal() as stop, ExitStack() as stack:
        stop.drain = lambda: None
        stopping = stop.asked
        arrivals: SimpleQueue[Message] = SimpleQueue()
        for name in topics:
            stack.enter_context(subscribed(options.endpoint(project, emulator), name, arrivals, stopping))
        click.echo(f"tailing {', '.join(topics) or 'no topic: the app has no reactions'}", err=True)
        decode: Callable[[Message], list[dict[str, Any]]] = _dead_letter if what == "deadletters" else _record
        left = at_most
        for message in until_quiet(arrivals, stopping, at_most, timeout_s if topics else 0.0):
            records = decode(message)[:left]
            for record in records:
                show(record)
            left = None if left is None else left - len(records)
            if left == 0:
                break


@contextmanager
def subscribed(
    endpoint: Endpoint, name: str, arrivals: SimpleQueue[Message], stopping: threading.Event
) -> Iterator[None]:
    """A subscription of our own to the topic, whose messages go to ``arrivals``."""
    from streaming.topics import Subscriber, create_subscription, delete_subscription

    subscription = f"{name}-tail-{os.urandom(4).hex()}"
    with options.reaching(endpoint):
        create_subscription(endpoint, subscription, name, deadline_s=REACH_S)
    try:
        subscriber = Subscriber(endpoint, subscription)
        ended = threading.Event()

        def pull() -> None:
            while not (stopping.is_set() or ended.is_set()):
                messages = subscriber.pull(1_000, PULL_S)
                for message in messages:
                    arrivals.put(message)
                if messages:
                    subscriber.acknowledge([message.ack_id for message in messages])

        thread = threading.Thread(target=pull, name=f"tail {name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)
            subscriber.close()
    finally:
        delete_subscription(endpoint, subscription)


def until_quiet(
    arrivals: SimpleQueue[Message], stopping: threading.Event, at_most: int | None, timeout_s: float | None
) -> Iterator[Message]:
    """Messages as they arrive, until there are enough, it is quiet for so long, or it is told to stop."""
    shown, quiet_since_s = 0, time.monotonic()
    while not stopping.is_set() and (at_most is None or shown < at_most):
        try:
            message = arrivals.get(timeout=0.1)
        except Empty:
            if timeout_s is not None and time.monotonic() - quiet_since_s >= timeout_s:
                return
            continue
        yield message
        shown, quiet_since_s = shown + 1, time.monotonic()


def _record(message: Message) -> list[dict[str, Any]]:
    from streaming.messages import plain
    from streaming.prediction_blocks import PREDICTION_BLOCK, block_predictions

    if message.attributes.get("schema") == PREDICTION_BLOCK:
        return block_predictions(message.data, message.attributes)
    return [plain(message.data)]


def _dead_letter(message: Message) -> list[dict[str, Any]]:
    """The letter's attributes, and its data as text or, where it is none, as base64."""
    record: dict[str, Any] = dict(message.attributes)
    try:
        record["data"] = message.data.decode("utf-8")
    except UnicodeDecodeError:
        record["data_base64"] = base64.b64encode(message.data).decode("ascii")
    return [record]


class _Table:
    """Lines for people, with a heading before the first."""

    def __init__(self, what: str) -> None:
        self._what, self._begun = what, False
        self._columns: Callable[[dict[str, Any]], list[tuple[str, int, str]]] = {
            "predictions": _prediction_columns,
            "reactions": _reaction_columns,
            "deadletters": _dead_letter_columns,
        }[what]

    def __call__(self, record: dict[str, Any]) -> None:
        columns = self._columns(record)
        if not self._begun:
            self._begun = True
            click.secho("  ".join(name.ljust(width) for name, width, _ in columns).rstrip(), bold=True)
        click.echo("  ".join(printable(text).ljust(width) for _, width, text in columns).rstrip())


def printable(text: str) -> str:
    """The text without what could steer a terminal: it came from others."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _prediction_columns(record: dict[str, Any]) -> list[tuple[str, int, str]]:
    outputs = ", ".join(f"{name} {value:.3f}" for name, value in record["outputs"].items()) or "features only"
    return [
        ("event time (UTC)", 19, _time(record["event_time"])),
        ("event", 34, record["event_id"]),
        ("outputs", 20, outputs),
        ("model", 18, f"{record['model']}/{record['model_version']}" if record["model"] else ""),
        ("key", 0, _pairs(record["key"])),
        *([("features", 0, _pairs(record["features"]))] if record.get("features") else []),
    ]


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _reaction_columns(record: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [
        ("event time (UTC)", 19, _time(record["event_time"])),
        ("reaction", 12, record["reaction"]),
        ("event", 34, record["event_id"]),
        ("payload", 0, _pairs(record["payload"])),
    ]


def _dead_letter_columns(record: dict[str, Any]) -> list[tuple[str, int, str]]:
    data = record.get("data") or record.get("data_base64") or ""
    return [
        ("reason", 22, record["reason"]),
        ("message", 12, record["message_id"]),
        ("detail", 0, f"{record['detail']}  {data[:80]}"),
    ]


def _time(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M:%S}"
