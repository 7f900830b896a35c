"""Versions come and go under load, damage is survived, and a command that cannot work says so in one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pyarrow as pa
import pytest

from serving import wire
from serving.client import ModelClient, Prediction
from serving.wire import State
from tests.processes import Started, wait_until
from tests.serving_models import exported, put

Start = Callable[..., Started]
BLOCK = pa.record_batch({"x": [1.0, 2.0]})
POLL = "--file_system_poll_wait_seconds=0.05"


def serve(start_process: Start, base_path: Path, *flags: str, name: str = "half") -> Started:
    return start_process(
        ["-m", "serving.server", "--port=0", f"--model_name={name}", f"--model_base_path={base_path}", POLL, *flags],
        ready="listening on 127.0.0.1:",
    )


def target(server: Started) -> str:
    return server.line.split()[-1]


def client(server: Started, name: str = "half") -> ModelClient:
    return ModelClient(target(server), name)


def states(server: Started, name: str = "half") -> dict[int, str]:
    """Version to state, by GetModelStatus."""
    request = wire.GetModelStatusRequest()
    request.model_spec.name = name
    with grpc.insecure_channel(target(server)) as channel:
        answer = channel.unary_unary(wire.GET_MODEL_STATUS, None, wire.GetModelStatusResponse.FromString)(
            request.SerializeToString(), timeout=120
        )
    return {one.version: State(one.state).name for one in answer.model_version_status}


@contextmanager
def load(model: ModelClient, threads: int = 3) -> Iterator[list[Prediction]]:
    """Requests without a pause from several threads; any that fails, fails the test."""
    answers: list[Prediction] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                answers.append(model.predict(BLOCK).result(120))
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in running:
            thread.join(120)
    assert errors == []


def test_a_new_version_takes_over_under_load_without_a_failed_request(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    server = serve(start_process, tmp_path)
    with client(server) as model, load(model) as answers:
        wait_until(lambda: len(answers) > 50, what="answers of version 1")
        put("half_plus_three", tmp_path, 2)
        wait_until(lambda: answers[-1].model_version == 2, what="answers of version 2")
        wait_until(lambda: states(server) == {2: "AVAILABLE", 1: "END"}, what="version 1 unloaded")
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 50, what="answers after that")
    offsets = {1: 2.0, 2: 3.0}
    for answer in answers:
        assert answer.refused == {}
        offset = offsets[answer.model_version]
        assert answer.outputs["y"].tolist() == [0.5 + offset, 1.0 + offset]
    # TensorFlow's own lines (E0000 …) may tell that there is no GPU, whenever it finds out.
    assert [line for line in server.lines if " ERROR " in line and not line.startswith("E0")] == []


def test_a_version_that_is_taken_back_gives_way_to_the_one_before(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    two = put("half_plus_three", tmp_path, 2)
    server = serve(start_process, tmp_path)
    with client(server) as model, load(model) as answers:
        wait_until(lambda: len(answers) > 10, what="answers")
        shutil.rmtree(two)
        wait_until(lambda: answers[-1].model_version == 1, what="answers of version 1")
    # Version 1 answers while version 2 is being unloaded.
    wait_until(lambda: states(server) == {2: "END", 1: "AVAILABLE"}, what="version 2 unloaded")


def test_a_corrupt_version_is_logged_and_ignored_until_it_is_mended(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    server = serve(start_process, tmp_path)
    with client(server) as model, load(model) as answers:
        two = put("broken", tmp_path, 2)
        line = server.wait_for_line("cannot be loaded")
        assert "model half version 2" in line
        assert f"from {two} (" in line
        assert "version 1 goes on serving" in line
        assert states(server) == {2: "LOADING", 1: "AVAILABLE"}
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 20, what="answers beside the corrupt version")
        assert answers[-1].model_version == 1
        shutil.copy(exported() / "half_plus_three" / "saved_model.pb", tmp_path / "aside")
        os.replace(tmp_path / "aside", two / "saved_model.pb")  # or half of it might be read
        wait_until(lambda: answers[-1].model_version == 2, what="answers of the mended version")
    said = [line for line in server.lines if "cannot be loaded" in line]
    assert len(said) == 1


def test_a_version_given_up_says_why_in_its_status(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    server = serve(start_process, tmp_path, "--max_num_load_retries=0")
    (tmp_path / "2").mkdir()
    wait_until(lambda: states(server).get(2) == "END", what="version 2 given up")
    request = wire.GetModelStatusRequest()
    request.model_spec.name = "half"
    request.model_spec.version.value = 2
    with grpc.insecure_channel(target(server)) as channel:
        method = channel.unary_unary(wire.GET_MODEL_STATUS, None, wire.GetModelStatusResponse.FromString)
        status = method(request.SerializeToString(), timeout=120).model_version_status[0].status
    assert status.error_code == 5
    assert "Could not find SavedModel" in status.error_message


def test_folders_that_are_no_versions_are_skipped(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, "0007")
    for name in ("new", "8.tmp", "9x", " 10", "99999999999999999999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    server = serve(start_process, tmp_path)
    assert states(server) == {7: "AVAILABLE"}


def test_the_base_path_may_be_away_for_a_while(start_process: Start, tmp_path: Path) -> None:
    base = tmp_path / "base"
    put("half_plus_two", base, 1)
    server = serve(start_process, base)
    base.rename(tmp_path / "elsewhere")
    assert "No such file" in server.wait_for_line("cannot read")
    with client(server) as model:
        assert model.predict(BLOCK).result(120).model_version == 1
    (tmp_path / "elsewhere").rename(base)
    put("half_plus_three", base, 2)
    wait_until(lambda: states(server).get(2) == "AVAILABLE", what="version 2")


def test_a_link_out_of_the_models_folder_is_refused(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path / "base", 1)
    server = serve(start_process, tmp_path / "base")
    (tmp_path / "base" / "2").symlink_to(exported() / "half_plus_three")
    assert "leads out of the model's folder" in server.wait_for_line("version 2 cannot be loaded")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_after_what_is_under_way(
    start_process: Start, tmp_path: Path, number: signal.Signals
) -> None:
    put("slow", tmp_path, 1)
    server = serve(start_process, tmp_path, name="slow")
    with client(server, "slow") as model:
        model.predict(pa.record_batch({"x": [1.0]})).result(120)
        begun, steps = psutil.Process(server.process.pid), 50_000.0
        while True:
            used_s, steps = begun.cpu_times().user, 2 * steps
            under_way = model.predict(pa.record_batch({"x": [steps]}))
            wait_until(lambda before=used_s: begun.cpu_times().user > before + 0.05, what="the server at work")  # type: ignore[misc]
            begun.suspend()
            if not under_way.done():  # else it was quicker than this test, and gets more to do
                break
            begun.resume()
        begun.send_signal(number)
        begun.resume()
        assert server.wait() == 0
        assert under_way.result(120).outputs["y"].tolist() == [steps]
    assert not any("Traceback" in line for line in server.lines)


def test_a_call_past_its_deadline_ends_and_frees_the_server(start_process: Start, tmp_path: Path) -> None:
    put("slow", tmp_path, 1)
    server = serve(start_process, tmp_path, "--grpc_max_threads=1", name="slow")
    request = wire.PredictRequest()
    request.model_spec.name = "slow"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(1e30)  # for ever
    with grpc.insecure_channel(target(server)) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(wire.PREDICT, None, None)(request.SerializeToString(), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with client(server, "slow") as model:
        assert model.predict(pa.record_batch({"x": [3.0]})).result(120).outputs["y"].tolist() == [3.0]


def test_it_listens_on_this_machine_only(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    server = serve(start_process, tmp_path)
    listening = psutil.Process(server.process.pid).net_connections(kind="inet")
    addresses = {one.laddr.ip.removeprefix("::ffff:") for one in listening if one.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


def refusal(start_process: Start, *flags: str) -> str:
    """What a server that cannot start prints: one sentence, exit code 2."""
    server = start_process(["-m", "serving.server", *flags])
    assert server.wait() == 2
    said = [line for line in server.lines if " INFO " not in line and " ERROR " not in line and " WARNING " not in line]
    assert len(said) == 1, server.tail()
    return said[0]


def test_a_taken_port_is_one_sentence(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(start_process, f"--port={port}", f"--model_base_path={tmp_path}")
    assert f"port {port}" in said


def test_a_port_that_another_server_has_is_one_sentence(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    port = target(serve(start_process, tmp_path)).rpartition(":")[2]
    assert f"port {port}" in refusal(start_process, f"--port={port}", f"--model_base_path={tmp_path}")


def test_a_missing_model_is_one_sentence(start_process: Start, tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    assert str(missing) in refusal(start_process, "--port=0", f"--model_base_path={missing}", "--model_name=m")
    said = refusal(start_process, "--port=0", f"--model_base_path={tmp_path}", "--model_name=m")
    assert "'m' needs a folder per version" in said
    assert "--model_base_path or --model_config_file" in refusal(start_process, "--port=0")


def test_a_model_that_does_not_load_is_one_sentence(start_process: Start, tmp_path: Path) -> None:
    put("broken", tmp_path, 3)
    said = refusal(start_process, "--port=0", f"--model_base_path={tmp_path}", "--model_name=m")
    assert "version 3" in said
    assert "does not load" in said


def test_a_config_file_that_cannot_be_used_is_one_sentence(start_process: Start, tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    flags = ("--port=0", f"--model_config_file={config}")
    assert "No such file" in refusal(start_process, *flags)
    config.write_text("model_config_list { config { nme: 1 } }")
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in refusal(start_process, *flags)
    put("half_plus_two", tmp_path / "half", 1)
    config.write_text(
        f'model_config_list {{ config {{ name: "half" base_path: "{tmp_path}/half" version_labels '
        '{ key: "canary" value: 7 } } }'
    )
    assert "Request to assign label to version 7 of model half, which is not currently available for inference" in (
        refusal(start_process, *flags)
    )


def test_a_changed_config_file_replaces_the_models_and_a_bad_one_does_not(start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path / "half", 1)
    put("half_plus_three", tmp_path / "half", 2)
    put("flights", tmp_path / "flights", 1)
    config = tmp_path / "models.config"

    def write(text: str) -> None:
        aside = tmp_path / "aside"
        aside.write_text(f"model_config_list {{ {text} }}")
        os.replace(aside, config)

    half = f'name: "half" base_path: "{tmp_path}/half"'
    write(f"config {{ {half} model_version_policy {{ specific {{ versions: 1 }} }} }}")
    server = start_process(
        ["-m", "serving.server", "--port=0", f"--model_config_file={config}", POLL,
         "--model_config_file_poll_wait_seconds=0.05"], ready="listening on 127.0.0.1:",
    )  # fmt: skip
    with client(server) as model, load(model) as answers:
        wait_until(lambda: len(answers) > 5, what="answers")
        both = "model_version_policy { specific { versions: [1, 2] } }"
        write(f'config {{ {half} {both} }} config {{ name: "flights" base_path: "{tmp_path}/flights" }}')
        server.wait_for_line("config file read again: 2 models")
        assert states(server, "flights") == {1: "AVAILABLE"}
        wait_until(lambda: answers[-1].model_version == 2, what="version 2")
        write(f'config {{ {half} {both} }} config {{ name: "none" base_path: "{tmp_path}/none" }}')
        assert "did not become available: {{name: none}" in server.wait_for_line("cannot be used")
        assert states(server, "flights") == {1: "AVAILABLE"}
        write(f"config {{ {half} {both} version_labels {{ key: 'stable' value: 2 }} }}")
        server.wait_for_line("config file read again: 1 models")
        write(f"config {{ {half} {both} version_labels {{ key: 'stable' value: 9 }} }}")
        server.wait_for_line("label to version 9 of model half")
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model flights"):
        states(server, "flights")
