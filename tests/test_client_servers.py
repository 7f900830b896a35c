"""One client, several servers: asked in turn, left alone when they fail, known by certificates and tokens."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest

from serving import channels
from serving.backends import FIRST_EJECTION_S, LONGEST_EJECTION_S, SLOW_CALLS, Backends
from serving.client import ClientAccess, ModelClient
from serving.model_error import ModelError
from tests.certificates import Authority
from tests.processes import Started, wait_until
from tests.serving_models import put
from tests.test_client_faults import BLOCK, ScriptedServer, fails

Start = Callable[..., Started]


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def servers() -> Iterator[list[ScriptedServer]]:
    scripted = [ScriptedServer() for _ in range(3)]
    yield scripted
    for server in scripted:
        server.stop()


def targets(servers: list[ScriptedServer]) -> str:
    return " , ".join(server.target for server in servers)


# Who is asked


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def three(clock: Clock) -> Iterator[Backends]:
    found = Backends("a:1,b:1, c:1 ,a:1", clock=clock)
    yield found
    found.close()


def asked(backends: Backends, times: int) -> str:
    return "".join(backends.choose().target[0] for _ in range(times))


def test_servers_are_asked_in_turn_each_named_once(three: Backends) -> None:
    assert str(three) == "a:1, b:1, c:1"
    assert asked(three, 7) == "abcabca"
    with pytest.raises(ValueError, match="At least one model server"):
        Backends(" , ")


def test_one_that_is_away_is_left_out_for_longer_each_time(three: Backends, clock: Clock) -> None:
    second = three.all[1]
    for attempt in range(8):
        three.failed(second, "UNAVAILABLE", "because")
        three.failed(second, "UNAVAILABLE", "the same cause")
        pause_s = min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2**attempt)
        clock.now_s += pause_s - 0.01
        assert "b" not in asked(three, 4)
        clock.now_s += 0.02
        assert "b" in asked(three, 4)
    three.answered(second)
    three.failed(second, "UNAVAILABLE", "because")
    clock.now_s += FIRST_EJECTION_S
    assert "b" in asked(three, 4)  # what was long ago is forgotten


def test_one_slow_call_ejects_nobody_several_in_a_row_do(three: Backends) -> None:
    first = three.all[0]
    for _ in range(SLOW_CALLS - 1):
        three.failed(first, "DEADLINE_EXCEEDED", "slow")
    assert "a" in asked(three, 3)
    three.answered(first)
    for _ in range(SLOW_CALLS):
        assert "a" in asked(three, 3)
        three.failed(first, "DEADLINE_EXCEEDED", "slow")
    assert "a" not in asked(three, 3)
    three.failed(three.all[1], "RESOURCE_EXHAUSTED", "full")  # there, only busy
    assert "b" in asked(three, 2)


def test_when_all_are_away_the_one_that_may_be_back_first_is_asked(three: Backends, clock: Clock) -> None:
    for backend in three.all[1:] + three.all[:1]:
        three.failed(backend, "UNAVAILABLE", "because")
        clock.now_s += 0.1
    assert asked(three, 3) == "bbb"
    assert not three.others_answer(three.all[1])


# What callers see


def test_blocks_are_spread_evenly(servers: list[ScriptedServer]) -> None:
    with ModelClient(targets(servers), "m", in_flight=6) as model:
        futures = [model.predict(BLOCK) for _ in range(60)]
        assert all(future.result(120).outputs["y"].tolist() == [2.0, 4.0, 6.0, 8.0] for future in futures)
    assert [server.calls for server in servers] == [20, 20, 20]


def test_a_block_that_one_server_does_not_answer_goes_to_the_next_at_once(servers: list[ScriptedServer]) -> None:
    servers[1].stop()
    with ModelClient(targets(servers), "m") as model:
        for _ in range(20):
            assert model.predict(BLOCK).result(120).refused == {}
    assert servers[0].calls + servers[2].calls == 20


def test_the_pieces_of_a_split_block_are_asked_of_one_server(servers: list[ScriptedServer]) -> None:
    """The others may serve another version; a block is answered by one."""
    for version, server in enumerate(servers, 1):
        server.version = version
        server.script = [fails("INVALID_ARGUMENT")]
    with ModelClient(targets(servers), "m") as model:
        versions = {model.predict(BLOCK).result(120).model_version for _ in range(3)}
    assert versions == {1, 2, 3}
    assert [server.calls for server in servers] == [3, 3, 3]  # whole, left half, right half


def test_two_clients_of_a_process_share_each_channel(servers: list[ScriptedServer]) -> None:
    before = len(channels._channels)
    with ModelClient(targets(servers), "m") as one, ModelClient(targets(servers[:2]), "other") as other:
        assert len(channels._channels) == before + 3
        assert one._backends.all[1].channel is other._backends.all[1].channel
    assert len(channels._channels) == before


def test_one_of_two_real_servers_is_killed_and_comes_back(
    start_process: Start, tmp_path: Path, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL in the middle of a stream of blocks with bad rows: every block is answered, every bad row is found."""
    put("picky", tmp_path, 1)
    caplog.set_level(logging.INFO, "sameriver.model")
    ports = [free_port(), free_port()]

    def serve(port: int) -> Started:
        command = ["-m", "serving.server", f"--port={port}", "--model_name=picky", f"--model_base_path={tmp_path}"]
        return start_process(command, ready="listening on 127.0.0.1:")

    second, _ = serve(ports[1]), serve(ports[0])
    x = np.arange(40.0)
    x[[3, 17]] = -1.0
    block = pa.record_batch({"x": x})
    with ModelClient(",".join(f"127.0.0.1:{port}" for port in ports), "picky", in_flight=8) as model:
        futures = [model.predict(block) for _ in range(20)]
        os.kill(second.process.pid, signal.SIGKILL)
        futures += [model.predict(block) for _ in range(40)]
        assert all(sorted(future.result(120).refused) == [3, 17] for future in futures)
        assert f"model server 127.0.0.1:{ports[1]} does not answer" in caplog.text
        serve(ports[1])

        def back() -> bool:
            model.predict(block).result(120)
            return f"model server 127.0.0.1:{ports[1]} answers again" in caplog.text

        wait_until(back, what="the second server in the round again")


# Who is who


def test_certificates_and_a_token_are_shown_and_asked_for(
    start_process: Start, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    put("half_plus_two", tmp_path / "models", 1)
    authority = Authority()
    (tmp_path / "authority.pem").write_text(authority.pem)
    server, client = authority.pair("server"), authority.pair("client")
    certificate, key = client.write(tmp_path, "client")
    token = tmp_path / "token"
    token.write_text("planted-secret-4f6a\n")
    token.chmod(0o600)
    config = tmp_path / "ssl.config"
    texts = {"server_key": server.key, "server_cert": server.certificate, "custom_ca": authority.pem}
    config.write_text(
        "".join(f"{name}: {json.dumps(text)}\n" for name, text in texts.items()) + "client_verify: true\n"
    )
    config.chmod(0o600)
    started = start_process(
        ["-m", "serving.server", "--port=0", "--model_name=half", f"--model_base_path={tmp_path / 'models'}",
         f"--ssl_config_file={config}", f"--auth_token_file={token}"], ready="listening on 127.0.0.1:",
    )  # fmt: skip
    target = started.line.split()[-1]
    known = ClientAccess(tmp_path / "authority.pem", Path(certificate), Path(key), token)
    block = pa.record_batch({"x": [1.0]})
    with ModelClient(target, "half", access=known) as model:
        assert model.predict(block).result(120).outputs["y"].tolist() == [2.5]
    wrong = tmp_path / "wrong"
    wrong.write_text("another-secret-7777")
    with (
        ModelClient(target, "half", access=ClientAccess(known.authority, known.certificate, known.key, wrong)) as model,
        pytest.raises(ModelError, match="UNAUTHENTICATED") as caught,
    ):
        model.metadata()
    assert "another-secret" not in str(caught.value)
    for access in (ClientAccess(token_file=token), ClientAccess(known.authority, token_file=token)):
        with ModelClient(target, "half", access=access, deadline_s=2.0) as model:  # plaintext; no certificate
            answered = threading.Thread(target=lambda m=model: _try(m), daemon=True)
            answered.start()
            answered.join(1.0)
            assert answered.is_alive()  # it waits: what is wrong with a connection cannot be told from a server away
        answered.join(120)


def _try(model: ModelClient) -> None:
    with pytest.raises(ModelError, match="closed"):
        model.metadata()


def test_half_a_pair_or_a_file_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give both"):
        ModelClient("localhost:1", "m", access=ClientAccess(certificate=tmp_path / "c"))
    with pytest.raises(FileNotFoundError):
        ModelClient("localhost:1", "m", access=ClientAccess(authority=tmp_path / "none"))
    assert ClientAccess().credentials() is None
    assert isinstance(ClientAccess(tls=True).credentials(), grpc.ChannelCredentials)
