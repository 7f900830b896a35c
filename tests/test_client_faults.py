"""The client against a server that misbehaves on purpose, call by call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from serving import wire
from serving.client import ModelClient
from serving.model_error import ModelError
from serving.tensors import numbers, write_numbers

Answer = Callable[[Any, grpc.ServicerContext], Any]
BLOCK = pa.record_batch({"x": [1.0, 2.0, 3.0, 4.0]})


class ScriptedServer:
    """y = 2 x, unless the script has something else for the next call of Predict."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.calls = 0
        self.version = 1
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(4))
        methods = {
            wire.PREDICT: grpc.unary_unary_rpc_method_handler(
                self._predict, wire.PredictRequest.FromString, wire.PredictResponse.SerializeToString
            ),
            wire.GET_MODEL_METADATA: grpc.unary_unary_rpc_method_handler(
                self._metadata, None, wire.GetModelMetadataResponse.SerializeToString
            ),
        }
        handlers = {path.rpartition("/")[2]: handler for path, handler in methods.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.PREDICTION_SERVICE, handlers),)
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.calls += 1
            answer = self.script.pop(0) if self.script else self.double
        return answer(request, context)

    def double(self, request: Any, _: grpc.ServicerContext) -> Any:
        response = wire.PredictResponse()
        response.model_spec.version.value = self.version
        write_numbers(response.outputs["y"], 1, 2 * numbers(request.inputs["x"]))
        return response

    def _metadata(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        signatures = wire.SignatureDefMap()
        signature = signatures.signature_def["serving_default"]
        for info in (signature.inputs["x"], signature.outputs["y"]):
            info.dtype = 1
            info.tensor_shape.dim.add(size=-1)
        response = wire.GetModelMetadataResponse()
        response.model_spec.version.value = self.version
        response.metadata["signature_def"].Pack(signatures)
        return response


def fails(code: str, details: str = "because") -> Answer:
    return lambda _, context: context.abort(grpc.StatusCode[code], details)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.stop()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"])
def test_what_may_pass_is_tried_again(server: ScriptedServer, code: str) -> None:
    server.script = [fails(code), fails(code)]
    with ModelClient(server.target, "m") as model:
        prediction = model.predict(BLOCK).result(120)
    assert prediction.outputs["y"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert server.calls == 3


@pytest.mark.parametrize("code", ["NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_what_no_row_causes_fails_the_block_at_once(server: ScriptedServer, code: str) -> None:
    server.script = [fails(code)]
    with ModelClient(server.target, "m") as model:
        future = model.predict(BLOCK)
        with pytest.raises(ModelError, match=f"{code}.*because") as caught:
            future.result(120)
    assert caught.value.code == code
    assert server.calls == 1


def test_a_call_without_an_answer_is_given_up_at_its_deadline(server: ScriptedServer) -> None:
    ended = threading.Event()

    def hangs(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        ended.wait(120)
        return wire.PredictResponse()

    server.script = [hangs]
    with ModelClient(server.target, "m", deadline_s=0.3) as model:
        assert model.predict(BLOCK).result(120).refused == {}
    assert ended.wait(120)  # the server is told
    assert server.calls >= 2  # more where a busy machine is late again


def test_a_message_too_large_is_sent_in_pieces_instead_of_for_ever(server: ScriptedServer) -> None:
    server.script = [fails("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)")]
    with ModelClient(server.target, "m") as model:
        prediction = model.predict(BLOCK).result(120)
    assert prediction.outputs["y"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert server.calls == 3


def test_one_block_is_answered_by_one_version(server: ScriptedServer) -> None:
    """The version changes between the two halves of a block that was refused: all of it is asked again."""

    def next_version(request: Any, context: grpc.ServicerContext) -> Any:
        server.version = 2
        return server.double(request, context)

    server.script = [fails("INVALID_ARGUMENT"), server.double, next_version]
    with ModelClient(server.target, "m") as model:
        prediction = model.predict(BLOCK).result(120)
    assert prediction.model_version == 2
    assert prediction.outputs["y"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert prediction.refused == {}
    assert server.calls == 4


def test_an_answer_of_another_length_is_no_answer(server: ScriptedServer) -> None:
    def short(request: Any, context: grpc.ServicerContext) -> Any:
        response = wire.PredictResponse()
        write_numbers(response.outputs["y"], 1, np.zeros(3, np.float32))
        return response

    server.script = [short]
    with ModelClient(server.target, "m") as model:
        future = model.predict(BLOCK)
        with pytest.raises(ModelError, match=r"output 'y' of shape \[3\] to 4 rows"):
            future.result(120)


def test_no_more_calls_are_under_way_than_allowed(server: ScriptedServer) -> None:
    release, most = threading.Event(), []
    running = threading.Semaphore(0)

    def waits(request: Any, context: grpc.ServicerContext) -> Any:
        running.release()
        release.wait(120)
        most.append(server.calls)
        return server.double(request, context)

    with ModelClient(server.target, "m", in_flight=2) as model:
        model.metadata()
        server.script = [waits, waits]
        futures = [model.predict(BLOCK), model.predict(BLOCK)]
        third = threading.Thread(target=lambda: futures.append(model.predict(BLOCK)), daemon=True)
        third.start()
        assert running.acquire(timeout=120)
        assert running.acquire(timeout=120)
        assert len(futures) == 2
        assert server.calls == 2
        release.set()
        third.join(120)
        assert [future.result(120).refused for future in futures] == [{}, {}, {}]
    assert most[0] == 2
