"""What a model server takes in before it says no: slow senders, compressed bombs, tensors that lie about their size."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from serving import wire
from serving.http import Answer, HttpServer
from tests.processes import Started, start, wait_until
from tests.serving_models import put

GROWTH_LIMIT_BYTES = 200 * 2**20


@contextmanager
def http_server(**limits: Any) -> Iterator[HttpServer]:
    def answer(_method: str, _path: str, _headers: object, body: bytes) -> Answer:
        return Answer(200, body or b"nothing")

    server = HttpServer("127.0.0.1", 0, answer, connections=8, **limits)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def slow() -> Iterator[HttpServer]:
    with http_server(idle_s=0.4, request_s=0.6) as server:
        yield server


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=120)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n",
     b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"],
)  # fmt: skip
def test_who_sends_nothing_more_is_hung_up_on(slow: HttpServer, sent: bytes) -> None:
    with connect(slow) as connection:
        connection.sendall(sent)
        assert connection.recv(1000) == b""


def still_open(connection: socket.socket) -> bool:
    """Send one more byte; whether the other side still listens a tenth of a second later."""
    try:
        connection.sendall(b"x")
        return connection.recv(100) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_a_byte_now_and_then_does_not_hold_a_connection(slow: HttpServer) -> None:
    with connect(slow) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        connection.settimeout(0.1)
        wait_until(lambda: not still_open(connection), what="it is hung up on")


def test_a_connection_that_is_used_lives_longer_than_a_request_may_take() -> None:
    with http_server(idle_s=600.0, request_s=1.0) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        began, pause = time.monotonic(), threading.Event()
        while time.monotonic() < began + 1.2:
            connection.request("POST", "/", b"x")
            assert connection.getresponse().read() == b"x"
            pause.wait(0.1)
        connection.close()


def test_slow_senders_leave_room_for_others_in_the_end(slow: HttpServer) -> None:
    held = [connect(slow) for _ in range(8)]
    try:

        def answered() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=120)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            except (http.client.HTTPException, ConnectionError):
                return False
            finally:
                connection.close()

        wait_until(answered, what="an answer once the idle ones are hung up on")
    finally:
        for one in held:
            one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("limits")
    put("flights", folder, 1)
    started = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=flights",
         f"--model_base_path={folder}"],
        ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield started
    started.kill()


def code(channel: grpc.Channel, data: bytes, compressed: bool = False) -> str:
    compression = grpc.Compression.Gzip if compressed else None
    try:
        channel.unary_unary(wire.PREDICT, None, None)(data, timeout=120, compression=compression)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def lie(*sizes: int, **fields: object) -> bytes:
    request = wire.PredictRequest()
    request.model_spec.name = "flights"
    tensor = request.inputs["delay"]
    tensor.dtype = 1
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        setattr(tensor, name, value) if name == "tensor_content" else getattr(tensor, name).extend(value)
    carrier = request.inputs["carrier"]
    carrier.dtype = 7
    carrier.tensor_shape.dim.add(size=sizes[0] if sizes else 1)
    carrier.string_val.append(b"x" * 1000)
    return bytes(request.SerializeToString())


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that the process had since its peak began anew."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


@contextmanager
def in_little_memory(process: psutil.Process) -> Iterator[None]:
    """What is done meanwhile may take so much more memory at its peak, and no more."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = process.memory_info().rss
    yield
    assert peak_bytes(process) - before < GROWTH_LIMIT_BYTES


def test_bombs_are_refused_in_little_memory(server: Started) -> None:
    process = psutil.Process(server.process.pid)
    options = [("grpc.max_send_message_length", -1)]
    bombs = {
        "larger than a message": (b"\x00" * (65 * 2**20), True),
        "zeros": (b"\x00" * (60 * 2**20), True),
        "one value for 1e12": (lie(10**12, float_val=[1.0]), False),
        "one text for 1e9": (lie(10**9, float_val=[1.0]), False),
        "overflow": (lie(2**62, 2**62, float_val=[1.0]), False),
        "negative": (lie(-1, float_val=[1.0]), False),
        "content too short": (lie(10**6, tensor_content=b"\x00" * 4), False),
        "254 dimensions": (lie(*[2] * 254, float_val=[1.0]), False),
        "300 dimensions": (lie(*[1] * 300, float_val=[1.0]), False),
    }
    found = {}
    with grpc.insecure_channel(server.line.split()[-1], options) as channel:
        assert code(channel, lie(1, float_val=[1.0])) == "OK"
        for name, (data, compressed) in bombs.items():
            with in_little_memory(process):
                found[name] = code(channel, data, compressed)
        assert code(channel, lie(1, float_val=[1.0])) == "OK"
    assert found.pop("larger than a message") == "RESOURCE_EXHAUSTED"
    assert found.pop("zeros") == "INTERNAL"
    assert set(found.values()) == {"INVALID_ARGUMENT"}
    path, host = "/v1/models/flights:predict", server.wait_for_line("REST API on").split()[-1]
    for body, headers in (
        (gzip.compress(b" " * 200_000_000, 1), {"Content-Encoding": "gzip"}),
        (b'{"instances": ' + b"[" * 1_000_000, {}),
        (b'{"instances": [' + b"9" * 1_000_000 + b"]}", {}),
    ):
        connection = http.client.HTTPConnection(host, timeout=120)
        with in_little_memory(process):
            connection.request("POST", path, body, headers)
            assert connection.getresponse().status in (400, 413)
        connection.close()


def test_what_waited_too_long_for_a_thread_is_not_computed(
    start_process: Callable[..., Started], tmp_path: Path
) -> None:
    put("slow", tmp_path, 1)
    server = start_process(
        ["-m", "serving.server", "--port=0", "--model_name=slow", f"--model_base_path={tmp_path}",
         "--grpc_max_threads=1"],
        ready="listening on",
    )  # fmt: skip
    request = wire.PredictRequest()
    request.model_spec.name = "slow"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(1e30)  # for ever, if it were computed without a deadline
    data = request.SerializeToString()
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        predict = channel.unary_unary(wire.PREDICT, None, None)
        calls = [predict.future(data, timeout=0.5) for _ in range(20)]
        assert {call.code().name for call in calls} == {"DEADLINE_EXCEEDED"}
        request.inputs["x"].float_val[0] = 3
        predict(request.SerializeToString(), timeout=120)  # twenty times half a second would be too long to wait
