"""Dynamic batching: what runs together, what is refused, and that nobody gets another's rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch_parameters import BatchingParameters, read_batching
from serving.batching import Batcher
from serving.metrics import Metrics
from serving.status import Code, RefusalError
from serving.tensorflow_c import Tensor
from tests.official_client import Answer
from tests.processes import Started, start, wait_until
from tests.serving_calls import ask_all
from tests.serving_models import put

FLOAT, STRING = 1, 7


def rows(*values: float) -> Tensor:
    return Tensor(FLOAT, (len(values),), np.array(values, np.float32))


def shaped(*shape: int) -> Tensor:
    return Tensor(FLOAT, shape, np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape))


def texts(*values: bytes) -> Tensor:
    return Tensor(STRING, (len(values),), list(values))


class Model:
    """Adds one; keeps what it was given; waits at a gate if told to; refuses numbers below zero."""

    def __init__(self) -> None:
        self.given: list[list[Tensor]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, feeds: list[Tensor], _time_left_s: float | None) -> list[Tensor]:
        self.given.append(feeds)
        assert self.gate.wait(120)
        if isinstance(feeds[0].values, list):
            return [Tensor(STRING, feeds[0].shape, [value + b"!" for value in feeds[0].values])]
        if (feeds[0].values < 0).any():
            raise RefusalError(Code.INVALID_ARGUMENT, "below 0")
        return [Tensor(FLOAT, feeds[0].shape, feeds[0].values + 1)]

    @property
    def sizes(self) -> list[int]:
        return [feeds[0].shape[0] for feeds in self.given]


class Bench:
    """A batcher, its model, and callers that wait."""

    def __init__(self, **parameters: Any) -> None:
        self.model = Model()
        self.parameters = BatchingParameters(**{"num_batch_threads": 1, **parameters})
        self.metrics = Metrics()
        self.batcher = Batcher(self.parameters, self.metrics)
        self.pool = ThreadPoolExecutor(64)

    def run(self, *feeds: Tensor, time_left_s: float | None = None) -> list[Tensor]:
        names = [f"x{number}:0" for number in range(len(feeds))]
        return self.batcher.run(self.parameters, ("m", 1), names, list(feeds), time_left_s, self.model)

    def ask(self, *feeds: Tensor, time_left_s: float | None = None) -> Future[list[Tensor]]:
        """From a thread; returns once the request is in the queue."""
        before = self.waiting()
        future = self.pool.submit(self.run, *feeds, time_left_s=time_left_s)
        wait_until(lambda: future.done() or self.waiting() > before or self.model.given, what="a request queued")
        return future

    def _wait_for(self, wanted: int, last: Future[list[Tensor]]) -> None:
        wait_until(lambda: self.waiting() >= wanted or last.done(), what="a request queued")

    def waiting(self) -> int:
        return sum(len(batch.tasks) for queue in self.batcher._queues.values() for batch in list(queue.batches))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block runs, the one thread is at work on a row of 1000, and requests wait."""
        self.model.gate.clear()
        first = self.ask(rows(1000))
        wait_until(lambda: self.model.given, what="the model at work")
        try:
            yield
        finally:
            self.model.gate.set()
            assert first.result(120)[0].values == 1001

    def queue(self, *requests: Tensor, time_left_s: float | None = None) -> list[Future[list[Tensor]]]:
        """Requests put in order into the queue of a busy batcher."""
        futures = []
        for number, feed in enumerate(requests):
            futures.append(self.pool.submit(self.run, feed, time_left_s=time_left_s))
            self._wait_for(number + 1, futures[-1])
        return futures


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**parameters: Any) -> Bench:
        made.append(Bench(**parameters))
        return made[-1]

    yield make
    for one in made:
        one.model.gate.set()
        one.batcher.stop()
        one.pool.shutdown()


def values(future: Future[list[Tensor]]) -> list[Any]:
    found = future.result(120)[0].values
    return found if isinstance(found, list) else found.tolist()


def refusal(future: Future[list[Tensor]]) -> tuple[Code, str]:
    error = future.exception(120)
    assert isinstance(error, RefusalError), error
    return error.code, error.text


def test_requests_that_wait_run_together_and_each_gets_its_rows(bench: Callable[..., Bench]) -> None:
    one = bench()
    with one.busy():
        futures = one.queue(rows(1, 2), rows(3), rows(), rows(4, 5, 6))
    assert [values(future) for future in futures] == [[2, 3], [4], [], [5, 6, 7]]
    assert one.model.sizes == [1, 6]
    assert ':batching_session:queuing_latency_count{thread_pool_name="model_server_batch_threads"} 5' in (
        one.metrics.page()
    )


def test_texts_run_together_too_and_not_with_numbers(bench: Callable[..., Bench]) -> None:
    one = bench()
    with one.busy():
        futures = one.queue(texts(b"a"), rows(1), texts(b"b", b"c" * 30), rows(2))
    assert [values(future) for future in futures] == [[b"a!"], [2], [b"b!", b"c" * 30 + b"!"], [3]]
    assert sorted(one.model.sizes) == [1, 2, 3]


def test_a_batch_is_no_larger_than_allowed(bench: Callable[..., Bench]) -> None:
    one = bench(max_batch_size=3)
    with one.busy():
        futures = one.queue(rows(1), rows(2), rows(3, 4), rows(5))
    assert [values(future) for future in futures] == [[2], [3], [4, 5], [6]]
    assert one.model.sizes == [1, 2, 3]
    assert refusal(one.ask(rows(1, 2, 3, 4))) == (
        Code.INVALID_ARGUMENT,
        "Task size 4 is larger than maximum input batch size 3",
    )


def test_a_full_queue_refuses(bench: Callable[..., Bench]) -> None:
    one = bench(max_batch_size=1, max_enqueued_batches=2)
    with one.busy():
        futures = one.queue(rows(1), rows(2), rows(3))
        assert refusal(futures[2]) == (
            Code.UNAVAILABLE,
            (
                "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued "
                "and max_enqueued_batches is 2"
            ),
        )
    assert [values(future) for future in futures[:2]] == [[2], [3]]


def test_large_requests_are_split_if_told_to(bench: Callable[..., Bench]) -> None:
    one = bench(
        max_batch_size=10, max_execution_batch_size=3, enable_large_batch_splitting=True, max_enqueued_batches=3
    )
    with one.busy():
        futures = one.queue(rows(1, 2), rows(3, 4, 5, 6, 7), rows(8, 9, 10))
        code, text = refusal(futures[2])
    assert code == Code.UNAVAILABLE
    assert "task size is 3 but scheduling capacity is only 2 (num_enqueued_batches=3," in text
    assert [values(future) for future in futures[:2]] == [[2, 3], [4, 5, 6, 7, 8]]
    assert one.model.sizes == [1, 3, 3, 1]


def test_what_nobody_waits_for_any_more_is_not_computed(bench: Callable[..., Bench]) -> None:
    one = bench()
    with one.busy():
        late, in_time = one.queue(rows(1), time_left_s=0.05)[0], one.pool.submit(one.run, rows(2))
        assert refusal(late) == (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        wait_until(lambda: one.waiting() >= 2, what="both queued")
    assert values(in_time) == [3]
    assert one.model.sizes == [1, 1]


def test_a_batch_waits_for_others_no_longer_than_told(bench: Callable[..., Bench]) -> None:
    one = bench(batch_timeout_micros=600_000_000, max_batch_size=2)
    futures = [one.pool.submit(one.run, rows(1)), one.pool.submit(one.run, rows(2))]
    assert sorted(values(future)[0] for future in futures) == [2, 3]  # at once: the batch is full
    assert one.model.sizes == [2]
    soon = bench(batch_timeout_micros=1000)
    assert list(soon.run(rows(1))[0].values) == [2]


def test_one_bad_request_harms_no_other(bench: Callable[..., Bench]) -> None:
    one = bench()
    with one.busy():
        futures = one.queue(rows(1), rows(-1), rows(2))
    assert values(futures[0]) == [2]
    assert refusal(futures[1]) == (Code.INVALID_ARGUMENT, "below 0")
    assert values(futures[2]) == [3]


def test_rows_of_other_shapes_are_refused_unless_padded(bench: Callable[..., Bench]) -> None:
    one = bench()
    with one.busy():
        futures = one.queue(shaped(1, 2), shaped(1, 3))
    for future in futures:
        assert refusal(future) == (
            Code.FAILED_PRECONDITION,
            (
                "Tensors with name 'x0:0' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim."
            ),
        )
    padded = bench(pad_variable_length_inputs=True)
    with padded.busy():
        futures = padded.queue(shaped(1, 2), shaped(1, 3), shaped(2, 1))
    assert values(futures[0]) == [[2, 3, 2]]
    assert values(futures[1]) == [[2, 3, 4]]
    assert values(futures[2]) == [[2, 2, 2], [3, 2, 2]]


def test_batches_are_filled_up_to_an_allowed_size(bench: Callable[..., Bench]) -> None:
    one = bench(allowed_batch_sizes=(1, 4, 8), max_batch_size=8)
    with one.busy():
        futures = one.queue(rows(1), rows(2, 3))
    assert [values(future) for future in futures] == [[2], [3, 4]]
    assert one.model.sizes == [1, 4]
    assert list(one.model.given[1][0].values) == [1, 2, 3, 2]


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ([], "Batching Run() must have at least one input tensor"),
        ([shaped()], "Batching Run() input tensors must have at least one dimension"),
        ([rows(1), rows(1, 2)], "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_what_has_no_rows_cannot_be_batched(bench: Callable[..., Bench], feeds: list[Tensor], text: str) -> None:
    with pytest.raises(RefusalError) as caught:
        bench().run(*feeds)
    assert (caught.value.code, caught.value.text) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (shaped(), "Batched output tensor has 0 dimensions"),
        (rows(1, 2, 3), "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes"),
    ],
)
def test_a_model_that_does_not_keep_rows_apart_cannot_be_batched(
    bench: Callable[..., Bench], output: Tensor, text: str
) -> None:
    one = bench()
    with pytest.raises(RefusalError, match=text.replace("(", r"\(")) as caught:
        one.batcher.run(one.parameters, ("m",), ["x"], [rows(1)], None, lambda _feeds, _left: [output])
    assert caught.value.code == Code.FAILED_PRECONDITION


@given(st.lists(st.lists(st.integers(0, 1000), max_size=5), min_size=1, max_size=20), st.integers(5, 12))
def test_batched_answers_are_those_of_each_request_alone(requests: list[list[int]], size: int) -> None:
    one = Bench(max_batch_size=size, num_batch_threads=2, max_enqueued_batches=100)
    try:
        futures = [one.pool.submit(one.run, rows(*request)) for request in requests]
        assert [values(future) for future in futures] == [[value + 1 for value in request] for request in requests]
    finally:
        one.batcher.stop()
        one.pool.shutdown()


def test_parameters_are_read_with_the_real_names(tmp_path: Path) -> None:
    path = tmp_path / "batching.config"
    path.write_text(
        "max_batch_size { value: 128 } batch_timeout_micros { value: 0 } max_enqueued_batches { value: 7 }\n"
        'num_batch_threads { value: 3 } thread_pool_name { value: "p" } allowed_batch_sizes: [32, 128]\n'
        "pad_variable_length_inputs: true"
    )
    assert read_batching(path) == BatchingParameters(128, 0, 7, 3, "p", False, 0, (32, 128), True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size: 1", "Error parsing text-format tensorflow.serving.BatchingParameters"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
        ("allowed_batch_sizes: [2, 1]", "allowed_batch_sizes entries must be monotonically increasing"),
        (
            "allowed_batch_sizes: [2, 4]",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4",
        ),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 2000 }",
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to",
        ),
    ],
)
def test_parameters_that_cannot_work_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "batching.config"
    path.write_text(text)
    with pytest.raises(RefusalError) as caught:
        read_batching(path)
    assert said in caught.value.text


# The same over gRPC, with models.

SPEC = 'model_spec {{ name: "{}" signature_name: "{}" }} '
FLOATS = 'inputs {{ key: "x" value {{ dtype: DT_FLOAT tensor_shape {{ {} }} float_val: [{}] }} }}'


def predict(model: str, shape: str, numbers: str, signature: str = "") -> tuple[str, str]:
    return "Predict", SPEC.format(model, signature) + FLOATS.format(shape, numbers)


EXAMPLE = 'examples { features { feature { key: "x" value { float_list { value: 2 } } } } }'
CALLS = {
    "predict": predict("half", "dim { size: 2 }", "1, 2"),
    "scalar": predict("half", "", "1"),
    "too many": predict("half", "dim { size: 5 }", "1"),
    "no rows for output": predict("slow", "dim { size: 2 }", "1, 1"),
    "describe": ("Predict", SPEC.format("flights", "describe")),
    "regress": ("Regress", SPEC.format("estimator", "regress_x_to_y") + f"input {{ example_list {{ {EXAMPLE} }} }}"),
    "unchecked method": predict("estimator", "dim { size: 1 } dim { size: 1 }", "1", "odd_method"),
    "regress by default": ("Regress", SPEC.format("estimator", "") + f"input {{ example_list {{ {EXAMPLE} }} }}"),
    "alone": predict("own", "dim { size: 5 }", "1"),
    "not at all": predict("none", "dim { size: 5 }", "1"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answer]]:
    folder = tmp_path_factory.mktemp("batched")
    names = {"half": "half_plus_two", "flights": "flights", "slow": "slow", "estimator": "estimator"}
    listed = ""
    for name, model in {**names, "own": "half_plus_two", "none": "half_plus_two"}.items():
        version = put(model, folder / name, 1)
        if name != "none":
            most = 10 if name == "own" else 4
            (version / "batching_params.pbtxt").write_text(f"max_batch_size {{ value: {most} }}")
        listed += f'config {{ name: "{name}" base_path: "{folder / name}" }} '
    (folder / "models.config").write_text(f"model_config_list {{ {listed} }}")
    server: Started = start(
        ["-m", "serving.server", "--port=0", f"--model_config_file={folder / 'models.config'}", "--enable_batching",
         "--enable_per_model_batching_parameters"], ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield ask_all(server.line.split()[-1], CALLS)
    server.kill()


@pytest.mark.parametrize(
    ("label", "code", "text"),
    [
        ("scalar", "INVALID_ARGUMENT", "Batching Run() input tensors must have at least one dimension"),
        ("too many", "INVALID_ARGUMENT", "Task size 5 is larger than maximum input batch size 4"),
        ("no rows for output", "FAILED_PRECONDITION", "0th dimension does not equal the sum"),
        ("regress by default", "FAILED_PRECONDITION", "No regression inputs found in SignatureDef"),
    ],
)
def test_refusals_of_a_batching_server(answers: dict[str, Answer], label: str, code: str, text: str) -> None:
    assert answers[label].code == code
    assert text in answers[label].details


def test_a_batching_server_answers_as_any(answers: dict[str, Answer]) -> None:
    assert answers["predict"].response["outputs"]["y"]["float_val"] == [2.5, 3.0]
    assert answers["regress"].response["result"] == {"regressions": [{"value": 3.0}]}
    assert sorted(answers["describe"].response["outputs"]) == ["definitions", "fingerprint"]
    assert answers["unchecked method"].response["outputs"]["y"]["float_val"] == [2.5]
    for label in ("alone", "not at all"):
        assert answers[label].response["outputs"]["y"]["float_val"] == [2.5] * 5
