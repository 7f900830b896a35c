"""A light client of TensorFlow Serving's API: a block of features in, columns of predictions out.

Works the same against `serving.server` and the real TensorFlow Serving. Imports no TensorFlow (under 0.5 s and
60 MB), keeps several calls in flight with a deadline on each, asks several servers in turn, and waits for servers
that are away::

    with ModelClient("127.0.0.1:8500", "flights") as model:
        model.describe().fingerprint
        future = model.predict(block)       # one Predict call for all rows
        future.result().outputs["probability"]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import numpy.typing as npt

from serving import wire
from serving.backends import Backend, Backends
from serving.client_access import ClientAccess
from serving.prediction import Description, Job, Prediction, read_outputs
from serving.request import RequestEncoder, Signature, SignatureMismatchError
from serving.retry import RETRIED, ROWS_MAY_CAUSE, TOO_LARGE, pause_s
from serving.timers import Timers

if TYPE_CHECKING:
    import pyarrow as pa

    from serving.model_error import ModelError

__all__ = ["ClientAccess", "Description", "ModelClient", "Prediction", "Signature"]

DEFAULT_SIGNATURE = "serving_default"
DESCRIBE_SIGNATURE = "describe"


class ModelClient:
    """Calls one model on one server or several; safe to share between threads.

    Args:
        target: ``host:port`` of the server's gRPC API; several, separated by commas, are asked in turn.
        model: model name; the latest version answers, or the one of `label` or number `version`, if given.
        deadline_s: of each call; a call that takes longer counts as failed and is repeated.
        in_flight: calls under way at once; `predict` waits while there are this many.
        signature_name: of the signature that `predict` calls.
        credentials: for TLS, ready made.
        access: certificates and a token, by file; None speaks plaintext and shows no token.

    Calls that end UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED or ABORTED (or that a stopping server hands
    back) are repeated, at once on another server or else after jittered exponential pauses, until one answers or
    `close` is called: nothing is ever given up by itself. A block is answered by one version. Not guaranteed: that a
    row is computed once only.
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        deadline_s: float = 10.0,
        in_flight: int = 4,
        signature_name: str = DEFAULT_SIGNATURE,
        credentials: grpc.ChannelCredentials | None = None,
        access: ClientAccess | None = None,
        label: str = "",
        version: int = 0,
    ) -> None:
        self.target = target
        self.model = model
        self._spec = wire.model_spec(model, label, version)
        self._deadline_s = deadline_s
        self._signature_name = signature_name
        self._slots = threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._encoder: RequestEncoder | None = None
        self._jobs: dict[Job, Any] = {}  # and the call under way, if any
        self._closed = threading.Event()
        self._timers = Timers(f"model {model}")
        self._backends = Backends(target, access=access, credentials=credentials)

    def __enter__(self) -> ModelClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def metadata(self, backend: Backend | None = None) -> Signature:
        """Inputs and outputs as a server states them now, this one if one is given. Waits for a server that is away.

        Raises ModelError if there is no such model or signature, or if the client is closed meanwhile.
        """
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"], model_spec=self._spec)
        response = wire.GetModelMetadataResponse.FromString(
            self._call("GetModelMetadata", request.SerializeToString(), backend)
        )
        signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
        if self._signature_name not in signatures:
            raise _model_error(
                f"Model {self.model!r} has no signature {self._signature_name!r}, it has "
                f"{', '.join(sorted(signatures)) or 'none'}: export it again, or name another signature.",
                "FAILED_PRECONDITION",
            )
        version = response.model_spec.version.value
        return Signature.from_proto(signatures[self._signature_name], version)

    def describe(self) -> Description:
        """Fingerprint and definitions of the features that the model was trained on. Waits like `metadata`.

        Raises ModelError if the model does not tell (it was not exported by Sameriver), or if it differs between the
        servers that answer now.
        """
        request = wire.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = DESCRIBE_SIGNATURE
        data = request.SerializeToString()
        found = self._description(self._call("Predict", data))
        for backend in self._backends.all if len(self._backends) > 1 else ():
            try:
                answer = backend.predict(data, timeout=self._deadline_s, metadata=self._backends.access.metadata())
            except grpc.RpcError as error:
                if error.code().name in RETRIED:
                    continue  # not there yet
                raise self._refusal("Predict", error.code().name, error.details() or "", backend) from None
            other = self._description(answer)
            if other.fingerprint != found.fingerprint:
                raise _model_error(
                    f"Model {self.model!r} at {backend.target} (version {other.model_version}) was trained on other "
                    f"features than elsewhere (version {found.model_version}): serve one model everywhere."
                )
        return found

    def _description(self, data: bytes) -> Description:
        try:
            return Description.from_answer(data)
        except ValueError as error:
            raise _model_error(
                f"Model {self.model!r} answers its signature 'describe' without a fingerprint and definitions "
                f"({error}): export it with sameriver train."
            ) from error

    def predict(self, block: pa.RecordBatch) -> Future[Prediction]:
        """Ask about all rows of a block; columns are named by the model's inputs, others are ignored.

        Blocks while `in_flight` calls are under way, and the first time until the server has stated its
        signature. The future fails with ModelError only for what no row causes: no such model, a column that the
        model needs and the block lacks, the client closed. Its callbacks run on a thread of the connection: they
        must not wait for other calls.
        """
        with self._lock:
            encoder = self._encoder
        if encoder is None:
            encoder = self._renew_encoder()
        self._slots.acquire()
        job = Job(block, np.arange(block.num_rows), block.num_rows)
        job.future.set_running_or_notify_cancel()
        with self._lock:
            self._jobs[job] = None
        try:
            self._ensure_open()
            self._begin(job, encoder)
        except BaseException as error:
            self._fail(job, error)
        return job.future

    def close(self) -> None:
        """End every call under way (their futures fail with ModelError) and let go of the connection."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            under_way = dict(self._jobs)
        for call in under_way.values():
            if call is not None:
                call.cancel()
        self._timers.close()
        for job in under_way:
            self._fail(job, self._closed_error())
        self._backends.close()

    # One block: begin -> send -> answered -> (next piece | finished)

    def _begin(self, job: Job, encoder: RequestEncoder) -> None:
        """(Re)start a job with all rows that the model can take, on one server: others may have another version."""
        job.backend = self._backends.choose()
        job.answers.clear()
        job.versions.clear()
        unusable = encoder.unusable(job.block)
        if unusable:
            job.unusable.update({int(job.rows[row]): reason for row, reason in unusable.items()})
            usable = np.setdiff1d(np.arange(len(job.rows)), np.fromiter(unusable, np.int64))
            job.block = job.block.take(_arrow_indices(usable))
            job.rows = job.rows[usable]
        job.refused = dict(job.unusable)
        job.pieces = [(0, len(job.rows))] if len(job.rows) else []
        self._next(job, encoder)

    def _next(self, job: Job, encoder: RequestEncoder) -> None:
        if not job.pieces:
            self._finish(job, encoder)
            return
        start, stop = job.pieces.pop()
        job.attempts = 0
        request = encoder.encode(job.block.slice(start, stop - start))
        job.request = (start, stop, encoder, request)
        self._send(job)

    def _send(self, job: Job) -> None:
        assert job.request is not None
        assert job.backend is not None
        backend = job.backend
        metadata = self._backends.access.metadata()
        with self._lock:
            if job not in self._jobs:
                return
            call = backend.predict.future(job.request[3], timeout=self._deadline_s, metadata=metadata)
            self._jobs[job] = call
        call.add_done_callback(lambda done: self._guarded(job, lambda: self._answered(job, backend, done)))

    def _answered(self, job: Job, backend: Backend, call: Any) -> None:
        assert job.request is not None
        start, stop, encoder, _ = job.request
        code = call.code().name
        if code == "OK":
            self._backends.answered(backend)
            try:
                outputs, version = read_outputs(call.result(), stop - start, encoder.outputs)
            except ValueError as error:
                raise _model_error(f"Model {self.model!r} {error}") from error
            job.answers.append((start, stop, outputs))
            job.versions.add(version)
            if len(job.versions) > 1:  # the version changed between two pieces: one block, one version
                job.restarts += 1
                self._later(job, pause_s(job.restarts), lambda: self._begin(job, encoder))
            else:
                self._next(job, encoder)
            return
        details = call.details() or ""
        if code in RETRIED and not (code == "RESOURCE_EXHAUSTED" and TOO_LARGE in details):
            self._retry(job, backend, code, details)
            return
        self._backends.answered(backend)
        if code in ROWS_MAY_CAUSE or code == "RESOURCE_EXHAUSTED":
            self._later(job, 0.0, lambda: self._refused(job, code, details))
        else:
            raise self._refusal("Predict", code, details, backend)

    def _retry(self, job: Job, backend: Backend, code: str, details: str) -> None:
        """Ask again."""
        if not self._closed.is_set():
            self._backends.failed(backend, code, details)
        job.attempts += 1
        job.backend = self._backends.choose()
        # Another server at once; once all were asked, after a pause.
        at_once = job.attempts % len(self._backends) and self._backends.others_answer(backend)
        self._later(job, 0.0 if at_once else pause_s(job.attempts), lambda: self._send(job))

    def _refused(self, job: Job, code: str, details: str) -> None:
        """Split the piece in two; a single row that is refused is the bad one."""
        assert job.request is not None
        start, stop, encoder, _ = job.request
        if not job.checked_signature:
            # A newer version with other inputs refuses every row; then it is the request that is old.
            job.checked_signature = True
            renewed = self._renew_encoder(job.backend)
            if renewed.signature.inputs != encoder.signature.inputs:
                self._begin(job, renewed)
                return
        if stop - start == 1:
            job.refused[int(job.rows[start])] = f"the model refuses the row ({code}): {details}"
        else:
            middle = (start + stop) // 2
            job.pieces += [(middle, stop), (start, middle)]
        self._next(job, encoder)

    def _finish(self, job: Job, encoder: RequestEncoder) -> None:
        outputs = {name: np.full(job.total, np.nan) for name in encoder.outputs}
        for start, stop, values in job.answers:
            rows = job.rows[start:stop]
            for name, column in values.items():
                if outputs[name].shape[1:] != column.shape[1:]:
                    outputs[name] = np.full((job.total, *column.shape[1:]), np.nan)
                outputs[name][rows] = column
                finite = np.isfinite(column)
                if not finite.all():
                    bad = ~finite if finite.ndim == 1 else ~finite.all(axis=1)
                    for row, value in zip(rows[bad].tolist(), column[bad].tolist(), strict=True):
                        job.refused.setdefault(row, f"output {name!r} is {value}, which is not finite")
        for row in job.refused:
            for column in outputs.values():
                column[row] = np.nan
        version = next(iter(job.versions), encoder.signature.model_version)
        if self._forget(job):
            job.future.set_result(Prediction(outputs, dict(sorted(job.refused.items())), version))

    # Bookkeeping

    def _later(self, job: Job, delay_s: float, action: Callable[[], None]) -> None:
        self._timers.after(delay_s, lambda: self._guarded(job, action))

    def _guarded(self, job: Job, action: Callable[[], None]) -> None:
        """Run a step of a job on a thread of ours or gRPC's: whatever it raises belongs to the job's future."""
        try:
            action()
        except BaseException as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        if isinstance(error, SignatureMismatchError):
            error = _model_error(
                f"Model {self.model!r} cannot be called with these features: {error}; train and serve a model of "
                f"this app, or run the app that the model belongs to.",
                "FAILED_PRECONDITION",
            )
        if self._forget(job):
            job.future.set_exception(error)

    def _forget(self, job: Job) -> bool:
        with self._lock:
            known = job in self._jobs
            self._jobs.pop(job, None)
        if known:
            self._slots.release()
        return known

    def _renew_encoder(self, backend: Backend | None = None) -> RequestEncoder:
        try:
            encoder = RequestEncoder(self._spec, self.metadata(backend))
        except SignatureMismatchError as error:
            raise _model_error(
                f"Model {self.model!r} cannot be called with a block: {error}; export it with one input of shape "
                f"[rows] a feature.",
                "FAILED_PRECONDITION",
            ) from error
        with self._lock:
            known = self._encoder
            if known is None or (known.signature.inputs, known.outputs) != (encoder.signature.inputs, encoder.outputs):
                self._encoder = encoder
            else:
                encoder = known  # with what it has cached
        return encoder

    def _call(self, what: str, request: bytes, backend: Backend | None = None) -> bytes:
        """One call, repeated while the servers are away."""
        attempt = 0
        while True:
            self._ensure_open()
            asked = backend or self._backends.choose()
            method = asked.predict if what == "Predict" else asked.metadata
            try:
                answer: bytes = method(request, timeout=self._deadline_s, metadata=self._backends.access.metadata())
            except grpc.RpcError as error:
                code, details = error.code().name, error.details() or ""
                if code not in RETRIED:
                    raise self._refusal(what, code, details, asked) from None
                self._backends.failed(asked, code, details)
                backend = None
                attempt += 1
                if not self._backends.others_answer(asked):
                    self._closed.wait(pause_s(attempt))
            else:
                self._backends.answered(asked)
                return answer

    def _refusal(self, what: str, code: str, details: str, backend: Backend) -> ModelError:
        if self._closed.is_set():
            return self._closed_error()
        return _model_error(
            f"Model server {backend.target} refuses {what} for model {self.model!r} ({code}): {details}; check the "
            f"model's name and that it is the model of this app.",
            code,
        )

    def _closed_error(self) -> ModelError:
        return _model_error(f"The client of model {self.model!r} at {self.target} was closed before the answer.")

    def _ensure_open(self) -> None:
        if self._closed.is_set():
            raise self._closed_error()


def _model_error(message: str, code: str = "") -> ModelError:
    from serving.model_error import ModelError  # loads the feature library, which a light client need not

    return ModelError(message, code)


def _arrow_indices(rows: npt.NDArray[np.int64]) -> Any:
    import pyarrow as pa  # whoever passes a block has it already

    return pa.array(rows)
