"""Warm-up: requests that a new version answers before anybody else's, so that nobody waits for first-time work.

Source: tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc. A version without recorded requests is
warmed by the latest requests of the version that it replaces; what these do to it cannot make the load fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from serving import examples, wire
from serving.metrics import Metrics
from serving.records import records
from serving.servable import Servable
from serving.status import Code, RefusalError, invalid

log = logging.getLogger("sameriver.serving")

FILE = Path("assets.extra", "tf_serving_warmup_requests")
RECORDS_LIMIT = 1000


def warm_up(servable: Servable, folder: Path, metrics: Metrics, iterations: int = 1) -> int:
    """Answer the requests recorded with a version; how many there were.

    Args:
        servable: the version.
        folder: of the version.
        metrics: that it is counted in.
        iterations: times that each is answered.

    Raises RefusalError, with the real server's words, if one of them fails or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return 0
    began = time.monotonic()
    count = 0
    status = "OK"
    try:
        for data in records(path):
            try:
                record = wire.PredictionLog.FromString(data)
            except DecodeError:
                raise invalid(f"Failed to parse warmup record {count + 1} from {path}") from None
            for _ in range(iterations):
                _answer(servable, record)
            count += 1
            if count > RECORDS_LIMIT:
                raise invalid(f"Number of warmup records exceeds the maximum ({RECORDS_LIMIT}) at {path}")
    except RefusalError as refusal:
        status = refusal.code.name
        if refusal.code == Code.DATA_LOSS:
            raise RefusalError(
                Code.DATA_LOSS, f"{refusal.text}. Please verify your warmup data is in TFRecord format."
            ) from None
        raise
    finally:
        metrics.warmed(str(folder), status, count, time.monotonic() - began)
    log.info("model %s version %d: %d warm-up requests answered", servable.name, servable.version, count)
    return count


def imitate(servable: Servable, requests: Iterable[tuple[str, Any]]) -> None:
    """Answer requests that another version has had; what a version cannot answer it need not be warmed for."""
    for api, request in requests:
        try:
            _METHODS[api](servable, request)
        except RefusalError as refusal:
            log.debug("warm-up by an earlier request: %s", refusal)


def _answer(servable: Servable, record: Any) -> None:
    kind = record.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _LOGS:
        number = wire.PredictionLog.DESCRIPTOR.fields_by_name[kind].number
        raise RefusalError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    _METHODS[_LOGS[kind]](servable, getattr(record, kind).request)


_METHODS: dict[str, Callable[[Servable, Any], Any]] = {
    "Predict": lambda servable, request: servable.predict(request),
    "Classify": lambda servable, request: examples.classify(servable, request, None),
    "Regress": lambda servable, request: examples.regress(servable, request, None),
    "MultiInference": lambda servable, request: examples.multi_inference(servable, request, None),
}
_LOGS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}
