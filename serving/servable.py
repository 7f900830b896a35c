"""One loaded version of a model, and Predict on it by TensorFlow Serving's rules.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc and tensorflow/cc/saved_model/util.cc.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

from serving import wire
from serving.batch_parameters import BatchingParameters
from serving.batching import Batcher
from serving.metrics import Metrics
from serving.status import Code, RefusalError, failed_precondition, invalid
from serving.tensorflow_c import LoadedModel, Run, Tensor, TensorFlowError
from serving.tensors import FILL_LIMIT_BYTES, TensorError, numbers, strings, write_numbers, write_strings

DEFAULT_SIGNATURE = "serving_default"
METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")
_STRING = int(wire.DataType.DT_STRING)
# A run under a deadline needs a second thread to watch it (0.1 ms); one this short can do without.
_QUICK_S = 0.02
_KEEP_EVERY_S = 0.5
_KEPT_BYTES = 2**20
_KEPT = 32


class Servable:
    """A version in memory, ready to answer from many threads.

    Args:
        name: of the model.
        version: number.
        model: as loaded; closed with this.
        answer_as_content: write ``tensor_content`` instead of typed fields.
        metrics: that runs are counted in.
        check_methods: refuse signatures whose ``method_name`` is not that of the call, as old servers did.
    """

    def __init__(
        self,
        name: str,
        version: int,
        model: LoadedModel,
        answer_as_content: bool = False,
        metrics: Metrics | None = None,
        check_methods: bool = False,
    ) -> None:
        self.check_methods = check_methods
        self._batching: tuple[Batcher, BatchingParameters] | None = None
        self._latest: dict[tuple[str, str], Any] = {}
        self._kept_at = 0.0
        self._input_names: dict[str, dict[str, str]] = {}
        self._metrics = metrics or Metrics()
        self.name = name
        self.version = version
        self._model = model
        self._as_content = answer_as_content
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, ...], Run] = {}
        self._run_s: dict[Run, float] = {}  # how long each run took of late
        self.signatures: Any = model.meta_graph.signature_def
        packed = wire.SignatureDefMap()
        for key, signature in self.signatures.items():
            packed.signature_def[key].CopyFrom(signature)
        self.metadata = wire.GetModelMetadataResponse()
        self.metadata.model_spec.name = name
        self.metadata.model_spec.version.value = version
        self.metadata.metadata["signature_def"].Pack(packed)

    def batch_by(self, batcher: Batcher, parameters: BatchingParameters) -> None:
        """Put requests together from now on."""
        self._batching = (batcher, parameters)

    def keep(self, api: str, request: Any) -> None:
        """Remember a request that was answered, now and then: the next version is warmed up with it."""
        now = time.monotonic()
        if now - self._kept_at < _KEEP_EVERY_S:
            return
        self._kept_at = now
        spec = request.tasks[0].model_spec if api == "MultiInference" else request.model_spec
        key = (api, spec.signature_name)
        if request.ByteSize() <= _KEPT_BYTES and (key in self._latest or len(self._latest) < _KEPT):
            self._latest[key] = request

    def latest_requests(self) -> list[tuple[str, Any]]:
        """One request of each method and signature, (method, request)."""
        return [(api, request) for (api, _), request in list(self._latest.items())]

    def close(self) -> None:
        """Free the memory; no request may be under way."""
        self._model.close()

    def predict(self, request: Any, time_left_s: float | None = None) -> Any:
        """PredictRequest to PredictResponse; RefusalError with the real server's code and text."""
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if key not in self.signatures:
            raise failed_precondition(f'Serving signature key "{key}" not found.')
        signature = self.signatures[key]
        if self.check_methods and signature.method_name not in METHODS:
            raise RefusalError(
                Code.INTERNAL,
                "Expected prediction signature method_name to be one of "
                f"{{{', '.join(METHODS)}}}. Was: {signature.method_name}",
            )
        given = request.inputs
        names = self._names(key, signature)
        if len(given) != len(names) or not all(map(given.__contains__, names)):
            given = _completed(signature, given)
        aliases = _outputs(signature, request.output_filter)
        fill_limit_bytes = FILL_LIMIT_BYTES // max(1, len(names))
        feeds = [_read(alias, given[alias], fill_limit_bytes) for alias in names]
        fetches = [signature.outputs[alias].name for alias in aliases]
        answers = self.run("Predict", list(names.values()), feeds, fetches, time_left_s)
        response = wire.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = key
        for alias, answer in zip(aliases, answers, strict=True):
            self._write(response.outputs[alias], answer)
        return response

    def _names(self, key: str, signature: Any) -> dict[str, str]:
        """Alias to name of a signature's input tensors, in order of alias: looked up once."""
        names = self._input_names.get(key)
        if names is None:
            names = {alias: signature.inputs[alias].name for alias in sorted(signature.inputs)}
            self._input_names[key] = names
        return names

    def note_examples(self, count: int) -> None:
        """Count the examples of a request."""
        self._metrics.examples(self.name, count)

    def run(
        self, api: str, feed_names: list[str], feeds: list[Tensor], fetch_names: list[str], time_left_s: float | None
    ) -> list[Tensor]:
        """Compute tensors by name, for a method of the API.

        RefusalError with TensorFlow's own code and text, or if no time is left.
        """
        compute = functools.partial(self._compute, api, feed_names, fetch_names)
        if self._batching is None or not feeds:  # what takes no input (`describe`) has no rows to put together
            return compute(feeds, time_left_s)
        key = (self.name, self.version, id(self), *feed_names, "", *fetch_names)
        batcher, parameters = self._batching
        return batcher.run(parameters, key, feed_names, feeds, time_left_s, compute)

    def _compute(
        self, api: str, feed_names: list[str], fetch_names: list[str], feeds: list[Tensor], time_left_s: float | None
    ) -> list[Tensor]:
        if time_left_s is not None and time_left_s <= 0:
            raise RefusalError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        key = (*feed_names, "", *fetch_names)
        try:
            prepared = self._runs.get(key)
            if prepared is None:
                prepared = self._model.prepare(feed_names, fetch_names)
                with self._lock:
                    if len(self._runs) > 256:  # as many combinations of outputs as anybody needs
                        self._runs.clear()
                        self._run_s.clear()
                    self._runs[key] = prepared
            recent_s = self._run_s.get(prepared, 1.0)
            watched = time_left_s is not None and recent_s > _QUICK_S
            began = time.monotonic()
            answers = self._model.run(
                prepared, feeds, max(1, int(time_left_s * 1000)) if watched and time_left_s else 0
            )
            took_s = time.monotonic() - began
            self._run_s[prepared] = 0.5 * recent_s + 0.5 * took_s
            self._metrics.runtime(self.name, api, took_s)
        except TensorFlowError as error:
            raise RefusalError(Code(error.code), error.message) from None
        return answers

    def _write(self, proto: Any, tensor: Tensor) -> None:
        if isinstance(tensor.values, list):
            write_strings(proto, tensor.values, tensor.shape)
        else:
            write_numbers(proto, tensor.dtype, tensor.values, self._as_content)


def _completed(signature: Any, given: Any) -> dict[str, Any]:
    """Alias to TensorProto, defaults filled in; RefusalError if they are not those of the signature."""
    wanted, sent = set(signature.inputs), set(given)
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}."
        )
    found = {}
    for alias in sorted(wanted):
        if alias in sent:
            found[alias] = given[alias]
        elif alias in signature.defaults:
            found[alias] = signature.defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and "
                f"no default value provided. Inputs expected to be in the request {_set(sent)}, or default input "
                f"alias set: {','.join(sorted(signature.defaults))}"
            )
    if not sent <= wanted:
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(sent & wanted))}, "
            f"request input: {','.join(sorted(sent))}"
        )
    return found


def _outputs(signature: Any, wanted: Any) -> list[str]:
    """Aliases to answer with: those asked for, else all."""
    seen: list[str] = []
    for alias in wanted:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen or sorted(signature.outputs)


def _read(alias: str, proto: Any, fill_limit_bytes: int) -> Tensor:
    try:
        if proto.dtype == _STRING:
            values, shape = strings(proto, fill_limit_bytes)
            return Tensor(_STRING, shape, values)
        array = numbers(proto, fill_limit_bytes)
        return Tensor(proto.dtype, array.shape, array)
    except TensorError:
        raise invalid(f"tensor parsing error: {alias}") from None


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"
