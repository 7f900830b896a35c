"""What the embedded broker does a second: publish and deliver at once, durable, in batches of 1,000.

Three processes: publishers, the broker and a subscriber, each with a core's share of work. The broker's figure is
its processor time per message, because what is left of two cores for the others says nothing about it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.pubsub_v1 import types

from shared_features.errors import SameriverError

ROOT = Path(__file__).resolve().parent.parent
TOPIC = "projects/bench/topics/events"
SUBSCRIPTION = "projects/bench/subscriptions/job"
IN_FLIGHT = 4
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def run(
    *, messages: int = 1_000_000, batch: int = 1000, message_bytes: int = 100, durable: bool = True, folder: str = ""
) -> dict[str, Any]:
    """Publish and deliver ``messages`` through a broker of its own.

    Args:
        messages: how many.
        batch: messages of one publish request, at most 1,000.
        message_bytes: payload of each.
        durable: on disk; False keeps them in memory.
        folder: where the broker's folder is made; a temporary one if empty.

    Returns:
        ``messages_per_s`` from the first publish to the last acknowledgement, ``broker_us_per_message`` and
        ``core_messages_per_s`` (processor time of the broker alone), ``publish_p50_ms`` and ``publish_p99_ms`` of a
        request, ``broker_rss_mb``, and ``lost`` and ``duplicates``.

    Raises:
        SameriverError: a process failed.
    """
    with tempfile.TemporaryDirectory(dir=folder or None) as data:
        where = ["--data-dir", data] if durable else []
        broker = _start("-m", "streaming.broker", "--port", "0", *where)
        try:
            assert broker.stdout is not None
            port = broker.stdout.readline().rpartition(":")[2].strip()
            if not port:
                raise SameriverError("the broker did not start: run `python -m streaming.broker` to see why")
            _prepare(port)
            process = psutil.Process(broker.pid)
            before = process.cpu_times()
            sizes = (str(messages), str(batch), str(message_bytes))
            subscriber = _start("-m", "benchmarks.broker", "subscribe", port, *sizes)
            publisher = _start("-m", "benchmarks.broker", "publish", port, *sizes)
            sent, got = _result(publisher), _result(subscriber)
            after = process.cpu_times()
            rss = process.memory_info().rss
        finally:
            broker.terminate()
            broker.wait(30)
    cpu_s = after.user + after.system - before.user - before.system
    wall_s = got["ended"] - sent["began"]
    return {
        "messages": messages, "batch": batch, "message_bytes": message_bytes, "durable": durable,
        "messages_per_s": round(messages / wall_s),
        "broker_us_per_message": round(cpu_s / messages * 1e6, 2),
        "core_messages_per_s": round(messages / cpu_s),
        "publish_p50_ms": sent["p50_ms"], "publish_p99_ms": sent["p99_ms"],
        "publisher_cpu_s": sent["cpu_s"], "subscriber_cpu_s": got["cpu_s"],
        "broker_rss_mb": round(rss / 1e6), "lost": messages - got["different"], "duplicates": got["duplicates"],
    }  # fmt: skip


def _start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-P", *arguments], stdout=subprocess.PIPE, text=True, env=environment)


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SameriverError(f"a process of the benchmark ended with {process.returncode}: see what it printed")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def _prepare(port: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        topic = types.Topic.pb()(name=TOPIC)
        channel.unary_unary("/google.pubsub.v1.Publisher/CreateTopic", None, None)(topic.SerializeToString())
        made = types.Subscription.pb()(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=60)
        channel.unary_unary("/google.pubsub.v1.Subscriber/CreateSubscription", None, None)(made.SerializeToString())


def _publish(port: str, messages: int, batch: int, message_bytes: int) -> dict[str, Any]:
    """Requests are serialised once: their cost is not what is measured."""
    one = types.PubsubMessage.pb()(data=os.urandom(message_bytes))
    request = types.PublishRequest.pb()(topic=TOPIC, messages=[one] * batch).SerializeToString()
    took_ms: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        call: Any = channel.unary_unary("/google.pubsub.v1.Publisher/Publish", None, None)
        under_way: deque[tuple[float, Any]] = deque()
        began = time.time()
        for _ in range(messages // batch):
            if len(under_way) == IN_FLIGHT:
                at, answer = under_way.popleft()
                answer.result()
                took_ms.append((time.perf_counter() - at) * 1e3)
            under_way.append((time.perf_counter(), call.future(request, timeout=60)))
        for _, answer in under_way:
            answer.result()
    took_ms.sort()
    return {
        "began": began, "cpu_s": round(time.process_time(), 2),
        "p50_ms": round(took_ms[len(took_ms) // 2], 2), "p99_ms": round(took_ms[len(took_ms) * 99 // 100], 2),
    }  # fmt: skip


def _subscribe(port: str, messages: int) -> dict[str, Any]:
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    made = types.StreamingPullRequest.pb()
    parse = types.StreamingPullResponse.pb().FromString
    requests.put(made(subscription=SUBSCRIPTION, stream_ack_deadline_seconds=60).SerializeToString())
    seen: set[str] = set()
    came = 0
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        call: Any = channel.stream_stream("/google.pubsub.v1.Subscriber/StreamingPull", None, None)
        stream = call(_until_none(requests))
        for data in stream:
            received = parse(data).received_messages
            requests.put(made(ack_ids=[one.ack_id for one in received]).SerializeToString())
            seen.update([one.message.message_id for one in received])
            came += len(received)
            if len(seen) >= messages:
                break
        ended = time.time()
        threading.Timer(0.5, stream.cancel).start()  # the last acknowledgements are on their way
        try:
            for _ in stream:
                came += 1
        except grpc.RpcError:
            pass
        requests.put(None)
    cpu_s = round(time.process_time(), 2)
    return {"ended": ended, "different": len(seen), "duplicates": came - len(seen), "cpu_s": cpu_s}


def _until_none(requests: queue.SimpleQueue[bytes | None]) -> Iterator[bytes]:
    while (one := requests.get()) is not None:
        yield one


def main(arguments: Sequence[str] | None = None) -> None:
    """One role of the benchmark, or all of it with the options of `run`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broker", description=__doc__)
    parser.add_argument("role", nargs="?", choices=("run", "publish", "subscribe"), default="run")
    parser.add_argument("port", nargs="?", default="")
    parser.add_argument("messages", nargs="?", type=int, default=1_000_000)
    parser.add_argument("batch", nargs="?", type=int, default=1000)
    parser.add_argument("message_bytes", nargs="?", type=int, default=100)
    parser.add_argument("--in-memory", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.role == "publish":
        result = _publish(chosen.port, chosen.messages, chosen.batch, chosen.message_bytes)
    elif chosen.role == "subscribe":
        result = _subscribe(chosen.port, chosen.messages)
    else:
        result = run(
            messages=chosen.messages, batch=chosen.batch, message_bytes=chosen.message_bytes,
            durable=not chosen.in_memory,
        )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
