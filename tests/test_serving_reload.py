"""Reloads: warmed up before they serve, asked for over gRPC, logged, watched, and not felt by requests."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import wire
from serving.background import NICENESS, in_background
from serving.client import ModelClient
from serving.loading import Loader, LoadSettings
from serving.metrics import Metrics
from serving.records import framed, masked_crc32c, records
from serving.status import Code, RefusalError
from serving.tensorflow_c import TensorFlowError
from serving.tensors import write_numbers
from serving.warmup import FILE
from tests.processes import Started, start, wait_until
from tests.serving_calls import ask
from tests.serving_models import exported, put

PREDICT = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'


def spec(name: str, more: str = "") -> str:
    return f'model_spec {{ name: "{name}" {more} }} '


def predict_record(*values: float, alias: str = "x") -> bytes:
    record = wire.PredictionLog()
    record.predict_log.request.model_spec.name = "anything"
    write_numbers(record.predict_log.request.inputs[alias], 1, np.array(values, np.float32))
    return bytes(record.SerializeToString())


def regress_record() -> bytes:
    record = wire.PredictionLog()
    request = record.regress_log.request
    request.model_spec.signature_name = "regress_x_to_y"
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1.0)
    return bytes(record.SerializeToString())


def with_requests(version: Path, *given: bytes, raw: bytes = b"") -> Path:
    path = version / FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(map(framed, given)) + raw)
    return version


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., int]:
    """Load a model with such warm-up requests; how many were answered, by the metrics."""

    def loaded(model: str, *given: bytes, raw: bytes = b"", iterations: int = 1) -> int:
        version = with_requests(put(model, tmp_path / model, 1), *given, raw=raw)
        metrics = Metrics()
        loader = Loader(LoadSettings(warm_up_iterations=iterations), metrics)
        loader("m", 1, version, None).close()
        page = metrics.page()
        runs = re.search(r":runtime_latency_count\{.*\} (\d+)", page)
        assert re.search(r':model_warmup_latency_count\{model_path=".*",status="OK"\} 1', page)
        assert f'model_warmup_records_read{{model_path="{version}"}} {len(given)}\n' in page
        return int(runs.group(1)) if runs else 0

    return loaded


def test_recorded_requests_are_answered_before_a_version_serves(load: Callable[..., int]) -> None:
    assert load("half_plus_two", predict_record(1), predict_record(1, 2)) == 2
    assert load("estimator", regress_record(), iterations=3) == 3


@pytest.mark.parametrize(
    ("given", "raw", "code", "text"),
    [
        ([predict_record(1, alias="w")], b"", Code.INVALID_ARGUMENT, "Signature input alias: x"),
        ([b"\xff"], b"", Code.INVALID_ARGUMENT, "Failed to parse warmup record"),
        ([b"\x2a\x00"], b"", Code.UNIMPLEMENTED, "Unsupported log_type for warmup: 5"),
        ([b"\x3a\x00"], b"", Code.UNIMPLEMENTED, "Unsupported log_type for warmup: 7"),
        ([], b"junk", Code.DATA_LOSS, "Please verify your warmup data is in TFRecord format"),
        ([], b"j" * 50, Code.DATA_LOSS, "Please verify your warmup data is in TFRecord format"),
        ([predict_record(1)] * 1001, b"", Code.INVALID_ARGUMENT, "Number of warmup records exceeds the maximum (1000)"),
    ],
)
def test_a_request_that_fails_fails_the_load(
    load: Callable[..., int], given: list[bytes], raw: bytes, code: Code, text: str
) -> None:
    with pytest.raises(TensorFlowError) as caught:
        load("half_plus_two", *given, raw=raw)
    assert caught.value.code == code
    assert text in caught.value.message


def test_records_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "records"
    whole = framed(b"one") + framed(b"") + framed(b"three")
    path.write_bytes(whole)
    assert list(records(path)) == [b"one", b"", b"three"]
    assert masked_crc32c(b"\x00" * 32) == (0x8A9136AA >> 15 | (0x8A9136AA << 17 & 0xFFFFFFFF)) + 0xA282EAD8 & 0xFFFFFFFF
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RefusalError):
            list(records(path))
        path.write_bytes(whole[:at])
        if at not in (0, 19, 35):
            with pytest.raises(RefusalError):
                list(records(path))


def test_loading_has_a_low_priority_and_hands_back_what_is_raised() -> None:
    import os

    assert in_background(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), "x") == NICENESS
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, "x")
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        in_background(lambda: gate.wait(120), "x", 0.01)
    gate.set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, Path]]:
    folder = tmp_path_factory.mktemp("reload")
    put("half_plus_two", folder / "half", 1)
    logged = f'log_collector_config {{ filename_prefix: "{folder}/log" }} sampling_config {{ sampling_rate: 0.5 }}'
    half = f'config {{ name: "half" base_path: "{folder}/half" logging_config {{ {logged} }} }}'
    (folder / "models.config").write_text(f"model_config_list {{ {half} }}")
    started = start(
        ["-m", "serving.server", "--port=0", f"--model_config_file={folder / 'models.config'}",
         "--enable_grpc_healthcheck_service", "--file_system_poll_wait_seconds=0.05"],
        ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield started, folder
    started.kill()


def test_a_sample_of_requests_is_logged_and_can_warm_up_a_version(server: tuple[Started, Path]) -> None:
    started, folder = server
    with grpc.insecure_channel(started.line.split()[-1]) as channel:
        for _ in range(4):
            assert ask(channel, "Predict", spec("half") + PREDICT).code == "OK"

        def written() -> list[bytes]:
            with contextlib.suppress(RefusalError):  # half a record so far
                return [data for path in folder.glob("log.*.tfrecord") for data in records(path)]
            return []

        wait_until(lambda: len(written()) == 2, what="two of four requests in the log")
        log = wire.PredictionLog.FromString(written()[0])
        assert log.log_metadata.model_spec.version.value == 1
        assert log.log_metadata.sampling_config.sampling_rate == 0.5
        assert log.predict_log.response.outputs["y"].float_val[:] == [2.5]
        (path,) = folder.glob("log.*.tfrecord")
        assert path.stat().st_mode & 0o077 == 0
        put("half_plus_three", folder / "aside", 2)
        version = with_requests(folder / "aside" / "2", *written())
        version.rename(folder / "half" / "2")
        assert "half version 2: 2 warm-up requests answered" in started.wait_for_line("warm-up requests answered")
        wait_until(lambda: ask(channel, "Predict", spec("half") + PREDICT).response["model_spec"]["version"] == "2")


def test_a_reload_over_grpc_says_how_counters_grew(server: tuple[Started, Path]) -> None:
    started, folder = server
    put("flights", folder / "flights", 1)
    path = f"{folder}/half"
    listed = (
        f'config {{ name: "half" base_path: "{path}" logging_config {{ sampling_config {{ sampling_rate: 1 }} }} }}'
    )
    more = f'config {{ name: "flights" base_path: "{folder}/flights" }}'
    name = "/tensorflow/serving/request_count"
    with grpc.insecure_channel(started.line.split()[-1]) as channel:
        request = f'config {{ model_config_list {{ {listed} {more} }} }} metric_names: ["{name}", "none"]'
        answer = ask(channel, "HandleReloadConfigRequest", request)
        assert answer.code == "OK"
        assert [one["name"] for one in answer.response["metric"]] == [name]
        assert ask(channel, "GetModelStatus", spec("flights")).response["model_version_status"][0]["version"] == "1"
        started.wait_for_line("logging_config is taken from config files only")
        label = f'config {{ name: "half" base_path: "{path}" version_labels {{ key: "canary" value: 9 }} }}'
        answer = ask(channel, "HandleReloadConfigRequest", f"config {{ model_config_list {{ {label} }} }}")
        assert answer.code == "FAILED_PRECONDITION"
        assert "Request to assign label to version 9 of model half" in answer.details
        assert ask(channel, "GetModelStatus", spec("flights")).code == "OK"  # a bad reload changes nothing


def test_health_can_be_watched(server: tuple[Started, Path]) -> None:
    started, _ = server
    with grpc.insecure_channel(started.line.split()[-1]) as channel:
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            wire.HealthCheckRequest.SerializeToString,
            wire.HealthCheckResponse.FromString,
        )
        for service, status in (("PredictionService", 1), ("another", 3)):
            call = watch(wire.HealthCheckRequest(service=service), timeout=120)
            assert next(call).status == status
            call.cancel()
        many = [watch(wire.HealthCheckRequest(), timeout=120) for _ in range(17)]
        with pytest.raises(grpc.RpcError) as caught:
            [next(call) for call in many]
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in many:
            call.cancel()
        wait_until(lambda: _answers(watch), what="a free place to watch from")


def _answers(watch: Any) -> bool:
    call: Any = watch(wire.HealthCheckRequest(), timeout=120)
    try:
        return bool(next(call))
    except grpc.RpcError:
        return False
    finally:
        call.cancel()


def test_requests_of_the_version_before_warm_up_the_next(tmp_path: Path) -> None:
    metrics = Metrics()
    loader = Loader(LoadSettings(), metrics)
    first = loader("m", 1, exported() / "half_plus_two", None)
    request = wire.PredictionLog.FromString(predict_record(1, 2)).predict_log.request
    first.predict(request)
    first.keep("Predict", request)
    second = loader("m", 2, exported() / "half_plus_three", first)
    assert len(second._runs) == 1
    other = loader("m", 3, exported() / "flights", first)  # cannot answer it: no reason not to serve
    for one in (first, second, other):
        one.close()


def test_reloads_are_not_felt(start_process: Callable[..., Started], tmp_path: Path) -> None:
    """The bench measures by how much; here it is that no request waits for a load to end."""
    put("flights", tmp_path, 1)
    server = start_process(
        ["-m", "serving.server", "--port=0", "--model_name=flights", f"--model_base_path={tmp_path}",
         "--file_system_poll_wait_seconds=0.05"], ready="listening on",
    )  # fmt: skip
    import pyarrow as pa

    block = pa.record_batch({"delay": [1.0], "carrier": ["UA"]})
    versions = []
    with ModelClient(server.line.split()[-1], "flights") as model:
        model.predict(block).result(120)
        for number in (2, 3):
            put("flights", tmp_path, number)
            while (found := model.predict(block).result(120)).model_version < number:
                versions.append(found.model_version)
    assert versions == sorted(versions)
