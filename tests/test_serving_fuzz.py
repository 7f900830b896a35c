"""Thousands of mutated requests: every one answered, no crash, memory bounded."""

from __future__ import annotations

import http.client
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest

from serving import wire
from serving.tensors import write_numbers, write_strings
from tests.processes import Started
from tests.serving_models import put

GROWTH_LIMIT_BYTES = 200 * 2**20


def valid_request() -> bytes:
    import numpy as np

    request = wire.PredictRequest(output_filter=["probability"])
    request.model_spec.name = "flights"
    request.model_spec.signature_name = "serving_default"
    write_numbers(request.inputs["delay"], 1, np.arange(3, dtype=np.float32))
    write_strings(request.inputs["carrier"], [b"UA", b"AA" * 20, b""], (3,))
    return bytes(request.SerializeToString())


def mutated(valid: bytes, randomness: random.Random) -> bytes:
    data = bytearray(valid)
    for _ in range(randomness.randrange(1, 5)):
        kind = randomness.randrange(5)
        at = randomness.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] = randomness.randrange(256)
        elif kind == 1 and data:
            data[at] ^= 1 << randomness.randrange(8)
        elif kind == 2:
            del data[at : at + randomness.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = randomness.choice([b"\xff" * 9 + b"\x01", b"\x80" * 8, b"\x00", randomness.randbytes(5)])
        else:
            piece = data[at : at + randomness.randrange(1, 30)]
            data[at:at] = piece
    return bytes(data)


def soak_or_short(count: int) -> list[object]:
    return [count // 10, pytest.param(count, marks=pytest.mark.soak)]


@pytest.fixture(params=["each alone", "in batches"])
def server(start_process: Callable[..., Started], tmp_path: Path, request: pytest.FixtureRequest) -> Started:
    put("flights", tmp_path, 1)
    return start_process(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=flights",
         f"--model_base_path={tmp_path}", f"--enable_batching={str(request.param == 'in batches').lower()}"],
        ready="listening on 127.0.0.1:",
    )  # fmt: skip


@pytest.mark.parametrize("count", soak_or_short(10_000))
def test_mutated_grpc_requests(server: Started, count: int) -> None:
    randomness = random.Random(5)
    valid = valid_request()
    requests = [mutated(valid, randomness) for _ in range(count)]
    process = psutil.Process(server.process.pid)
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        predict = channel.unary_unary(wire.PREDICT, None, None)

        def ask(request: bytes) -> str:
            try:
                predict(request, timeout=120)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        assert ask(valid) == "OK"
        before = process.memory_info().rss
        with ThreadPoolExecutor(4) as pool:
            answers = Counter(pool.map(ask, requests))
        assert ask(valid) == "OK"
    assert not answers.keys() & {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}, server.tail()
    assert answers.keys() >= {"OK", "INVALID_ARGUMENT", "INTERNAL"}
    assert process.memory_info().rss - before < GROWTH_LIMIT_BYTES
    assert not any("Traceback" in line for line in server.lines), server.tail()


@pytest.mark.parametrize("count", soak_or_short(10_000))
def test_mutated_rest_bodies(server: Started, count: int) -> None:
    randomness = random.Random(6)
    rows = b'[{"delay": 1.5e1, "carrier": {"b64": "VUE="}}, {"delay": NaN, "carrier": "\\u00e9\\ud83d"}]'
    valid = b'{"signature_name": "serving_default", "instances": %b}' % rows
    process = psutil.Process(server.process.pid)
    host, _, port = server.wait_for_line("REST API on").split()[-1].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)

    def ask(body: bytes) -> int:
        connection.request("POST", "/v1/models/flights:predict", body)
        reply = connection.getresponse()
        reply.read()
        return reply.status

    assert ask(valid) == 200
    before = process.memory_info().rss
    statuses = Counter(ask(mutated(valid, randomness)) for _ in range(count))
    assert ask(valid) == 200
    connection.close()
    assert statuses.keys() <= {200, 400}, server.tail()
    assert statuses[400] > count / 3
    assert process.memory_info().rss - before < GROWTH_LIMIT_BYTES
    assert not any("Traceback" in line for line in server.lines), server.tail()
