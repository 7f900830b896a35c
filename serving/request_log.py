"""Request logging: a sample of the requests and answers as PredictionLog records in TFRecord files.

Source: tensorflow_serving/core/request_logger.cc and config/logging_config.proto. A file can be put into a version
as its warm-up requests. Logging never delays an answer: what the disk cannot take is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from serving import wire
from serving.metrics import Metrics
from serving.records import framed

log = logging.getLogger("sameriver.serving")

FILE_LIMIT_BYTES = 64 * 2**20
QUEUE_LIMIT = 256
RECORD_LIMIT_BYTES = 2**20
_LOGS = {
    "Predict": "predict_log",
    "Classify": "classify_log",
    "Regress": "regress_log",
    "MultiInference": "multi_inference_log",
}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged of a model.

    Attributes:
        prefix: of the files' names: ``<prefix>.<process>.<number>.tfrecord``.
        sampling_rate: share of the requests, 0 to 1.
    """

    prefix: str
    sampling_rate: float


class RequestLog:
    """Writes the sample in a thread of its own.

    Args:
        metrics: that records are counted in.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting: queue.Queue[tuple[str, str, bytes] | None] = queue.Queue(QUEUE_LIMIT)
        self._due: dict[str, float] = {}
        self._files: dict[str, tuple[IO[bytes], int]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def note(self, settings: LogSettings, api: str, model: str, request: Any, response: Any) -> None:
        """Log this one if its turn has come."""
        with self._lock:
            # One in so many, evenly: a sample without chance, so that tests and people can count.
            due = self._due.get(model, 0.0) + min(1.0, settings.sampling_rate)
            self._due[model] = due - 1 if due >= 1 else due
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="request log", daemon=True)
                self._thread.start()
        if due < 1:
            return
        if request.ByteSize() > RECORD_LIMIT_BYTES:
            self._metrics.request_log_count.add(model, "RESOURCE_EXHAUSTED")
            return
        record = wire.PredictionLog()
        entry = getattr(record, _LOGS[api])
        entry.request.CopyFrom(request)
        entry.response.CopyFrom(response)
        spec = response.results[0].model_spec if api == "MultiInference" else response.model_spec
        record.log_metadata.model_spec.CopyFrom(spec)
        record.log_metadata.sampling_config.sampling_rate = settings.sampling_rate
        record.log_metadata.timestamp_secs = int(time.time())
        try:
            self._waiting.put_nowait((settings.prefix, model, record.SerializeToString()))
        except queue.Full:
            self._metrics.request_log_count.add(model, "RESOURCE_EXHAUSTED")

    def stop(self) -> None:
        """Write what waits and close the files."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def _write(self) -> None:
        while (found := self._waiting.get()) is not None:
            prefix, model, data = found
            try:
                self._append(prefix, data)
                self._metrics.request_log_count.add(model, "OK")
            except OSError as error:
                self._metrics.request_log_count.add(model, "UNAVAILABLE")
                log.error("requests of model %s cannot be logged to %s (%s)", model, prefix, error.strerror)
        for file, _ in self._files.values():
            file.close()

    def _append(self, prefix: str, data: bytes) -> None:
        file, number = self._files.get(prefix, (None, -1))
        if file is None or file.tell() > FILE_LIMIT_BYTES:
            if file is not None:
                file.close()
            file, number = _created(prefix, number + 1)
            self._files[prefix] = (file, number)
        file.write(framed(data))
        if self._waiting.empty():
            file.flush()


def _created(prefix: str, number: int) -> tuple[IO[bytes], int]:
    while True:
        path = Path(f"{prefix}.{os.getpid()}.{number:05}.tfrecord")
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # requests may be personal
            return os.fdopen(handle, "wb"), number
        number += 1
