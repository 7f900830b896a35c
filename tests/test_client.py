"""The client against the real server: values, refused rows, a server that goes and comes back."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.client import ModelClient, Prediction
from serving.model_error import ModelError
from serving.retry import LONGEST_PAUSE_S, pause_s
from tests.processes import Started, start, wait_until
from tests.serving_models import DEFINITIONS, FINGERPRINT, put

Start = Callable[..., Started]
MODELS = ("half_plus_two", "flights", "picky", "logarithm", "whole", "two_inputs")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    listed = ""
    for name in MODELS:
        put(name, folder / name, 3)
        listed += f'config {{ name: "{name}" base_path: "{folder / name}" }} '
    (folder / "models.config").write_text(f"model_config_list {{ {listed} }}")
    server = start(
        ["-m", "serving.server", "--port=0", f"--model_config_file={folder / 'models.config'}"],
        ready="listening on 127.0.0.1:",
    )
    yield server.line.split()[-1]
    server.kill()


def test_a_block_in_columns_out(target: str) -> None:
    block = pa.record_batch({"delay": [1.0, None, 500.0], "carrier": ["UA", None, "elsewhere"], "unasked": [1, 2, 3]})
    with ModelClient(target, "flights") as model:
        prediction = model.predict(block).result(120)
    assert sorted(prediction.outputs) == ["pair", "probability"]  # numbers only
    np.testing.assert_allclose(prediction.outputs["probability"], [0.101, 0.9, 1.0], rtol=1e-6)
    assert prediction.outputs["probability"].dtype == np.float64
    assert prediction.outputs["pair"].tolist() == [[1.0, 2.0], [0.0, 1.0], [500.0, 501.0]]
    assert prediction.refused == {}
    assert prediction.model_version == 3


def test_it_asks_the_server_what_the_model_takes(target: str) -> None:
    with ModelClient(target, "flights") as model:
        signature = model.metadata()
        assert signature.inputs == {"carrier": "DT_STRING", "delay": "DT_FLOAT"}
        assert signature.outputs == {"copy": "DT_STRING", "pair": "DT_FLOAT", "probability": "DT_FLOAT"}
        assert signature.model_version == 3
        description = model.describe()
    assert description.fingerprint == FINGERPRINT
    assert description.definitions == {"features": {"x": 1}} == json.loads(DEFINITIONS)
    assert description.model_version == 3


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_blocks_of_any_size_in_flight_at_once(target: str, rows: int) -> None:
    with ModelClient(target, "half_plus_two", in_flight=8) as model:
        futures: list[Future[Prediction]] = []
        for shift in range(20):
            futures.append(model.predict(pa.record_batch({"x": np.arange(rows) + float(shift)})))
        for shift, future in enumerate(futures):
            y = future.result(120).outputs["y"]
            np.testing.assert_array_equal(y, 0.5 * (np.arange(rows) + shift) + 2)


@pytest.mark.parametrize("bad", [[], [0], [63], [5, 40, 41], list(range(64))])
def test_a_refused_block_is_split_until_the_bad_rows_are_found(target: str, bad: list[int]) -> None:
    x = np.arange(64.0)
    x[bad] = -1.0
    with ModelClient(target, "picky") as model:
        prediction = model.predict(pa.record_batch({"x": x})).result(120)
    assert sorted(prediction.refused) == bad
    assert all("x below 0" in reason and "INVALID_ARGUMENT" in reason for reason in prediction.refused.values())
    wanted = np.sqrt(np.where(x < 0, np.nan, x))
    np.testing.assert_allclose(prediction.outputs["y"], wanted, rtol=1e-6)


def test_answers_that_are_not_finite_are_refused_row_by_row(target: str) -> None:
    with ModelClient(target, "logarithm") as model:
        prediction = model.predict(pa.record_batch({"x": [1.0, 0.0, math.e, -1.0, None]})).result(120)
    assert sorted(prediction.refused) == [1, 3, 4]
    assert "output 'y' is -inf" in prediction.refused[1]
    np.testing.assert_allclose(prediction.outputs["y"], [0.0, np.nan, 1.0, np.nan, np.nan], atol=1e-6)


def test_rows_that_an_integer_input_cannot_take_are_not_sent(target: str) -> None:
    with ModelClient(target, "whole") as model:
        prediction = model.predict(pa.record_batch({"n": pa.array([1, None, 3], pa.int64())})).result(120)
        nothing = model.predict(pa.record_batch({"n": pa.array([None], pa.int64())})).result(120)
    np.testing.assert_array_equal(prediction.outputs["y"], [2.0, np.nan, 6.0])
    assert list(prediction.refused) == [1]
    assert list(nothing.refused) == [0]
    assert nothing.model_version == 3


def test_a_block_without_a_column_of_the_model_is_the_callers_fault(target: str) -> None:
    with ModelClient(target, "two_inputs") as model:
        future = model.predict(pa.record_batch({"x": [1.0]}))
        with pytest.raises(ModelError, match=r"two_inputs.*takes 'w'"):
            future.result(120)
        assert model.predict(pa.record_batch({"x": [1.0], "w": [2.0]})).result(120).refused == {}


def test_no_such_model_signature_or_description_is_said(target: str) -> None:
    with (
        ModelClient(target, "absent") as model,
        pytest.raises(ModelError, match=r"NOT_FOUND.*Servable not found for request: Latest\(absent\)") as caught,
    ):
        model.metadata()
    assert caught.value.code == "NOT_FOUND"
    with ModelClient(target, "picky", signature_name="other") as model, pytest.raises(ModelError, match="'other'"):
        model.predict(pa.record_batch({"x": [1.0]}))
    with ModelClient(target, "picky") as model, pytest.raises(ModelError, match="describe") as caught:
        model.describe()
    assert caught.value.code == "FAILED_PRECONDITION"


def test_two_clients_share_the_connection(target: str) -> None:
    with ModelClient(target, "picky") as one:
        with ModelClient(target, "picky") as other:
            assert one._backends.all[0].channel is other._backends.all[0].channel
        assert one.predict(pa.record_batch({"x": [4.0]})).result(120).outputs["y"].tolist() == [2.0]


def serve(start_process: Start, base_path: Path, port: int) -> Started:
    return start_process(
        ["-m", "serving.server", f"--port={port}", "--model_name=half", f"--model_base_path={base_path}",
         "--file_system_poll_wait_seconds=0.05"], ready="listening on 127.0.0.1:",
    )  # fmt: skip


def test_a_killed_server_is_waited_for_and_said_once(
    start_process: Start, tmp_path: Path, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    put("half_plus_two", tmp_path, 1)
    port = free_port()
    server = serve(start_process, tmp_path, port)
    caplog.set_level(logging.INFO, "sameriver.model")
    block = pa.record_batch({"x": np.arange(100.0)})
    with ModelClient(f"127.0.0.1:{port}", "half", in_flight=6) as model:
        assert model.predict(block).result(120).refused == {}
        server.stop(signal.SIGKILL)
        futures = [model.predict(block) for _ in range(6)]
        wait_until(lambda: caplog.records, what="a word on the server that is away")
        assert not any(future.done() for future in futures)
        serve(start_process, tmp_path, port)
        for future in futures:
            np.testing.assert_array_equal(future.result(120).outputs["y"], 0.5 * np.arange(100) + 2)
    assert [record.message.partition(" after ")[0] for record in caplog.records] == [
        caplog.records[0].message,
        f"model server 127.0.0.1:{port} answers again",
    ]
    assert "does not answer (UNAVAILABLE" in caplog.records[0].message


def test_a_client_may_come_before_its_server(
    start_process: Start, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    put("half_plus_two", tmp_path, 1)
    port = free_port()
    with ModelClient(f"127.0.0.1:{port}", "half") as model:
        serve(start_process, tmp_path, port)
        assert model.metadata().inputs == {"x": "DT_FLOAT"}


def test_closing_ends_what_is_under_way(free_port: Callable[[], int], start_process: Start, tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    port = free_port()
    server = serve(start_process, tmp_path, port)
    model = ModelClient(f"127.0.0.1:{port}", "half", in_flight=2)
    block = pa.record_batch({"x": [1.0]})
    model.predict(block).result(120)
    server.stop(signal.SIGKILL)
    futures = [model.predict(block), model.predict(block)]
    model.close()
    model.close()
    for future in [*futures, model.predict(block)]:
        with pytest.raises(ModelError, match="closed before the answer"):
            future.result(120)


def test_a_new_version_with_another_input_is_asked_for_what_it_takes(
    start_process: Start, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    put("half_plus_two", tmp_path, 1)
    server = serve(start_process, tmp_path, free_port())
    whole, part = pa.record_batch({"x": [1.0, 2.0], "w": [0.0, 0.0]}), pa.record_batch({"x": [1.0, 2.0]})
    with ModelClient(server.line.split()[-1], "half") as model:
        assert model.predict(part).result(120).model_version == 1
        put("two_inputs", tmp_path, 2)
        wait_until(lambda: any("version 1 is unloaded" in line for line in server.lines), what="version 2 alone")
        prediction = model.predict(whole).result(120)
        assert (prediction.model_version, prediction.refused) == (2, {})
        with pytest.raises(ModelError, match="takes 'w'"):
            model.predict(part).result(120)


def test_one_row_costs_little_more_than_the_call(target: str) -> None:
    """A generous bound: what is measured stands in the README."""
    block = pa.record_batch({"delay": [1.0], "carrier": ["UA"]})
    with ModelClient(target, "flights") as model:
        took = []
        for _ in range(300):
            began = time.perf_counter()
            model.predict(block).result(120)
            took.append(time.perf_counter() - began)
    assert min(took) < 0.02  # of the others some waited for a processor


def test_pauses_grow_with_jitter_and_are_bounded() -> None:
    for attempt in (1, 2, 5, 10, 1000):
        drawn = [pause_s(attempt) for _ in range(200)]
        assert min(drawn) > 0
        assert max(drawn) <= min(LONGEST_PAUSE_S, 0.05 * 2 ** min(attempt, 16))
        assert len(set(drawn)) > 100
