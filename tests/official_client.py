"""Calls a model server with the official tensorflow-serving-api stubs, in a process of its own.

`ask` hands over requests in protocol-buffer text format and gives back what the stubs saw.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.processes import REPOSITORY

METHODS = {
    "Predict": ("PredictRequest", "Prediction"),
    "Classify": ("ClassificationRequest", "Prediction"),
    "Regress": ("RegressionRequest", "Prediction"),
    "MultiInference": ("MultiInferenceRequest", "Prediction"),
    "GetModelMetadata": ("GetModelMetadataRequest", "Prediction"),
    "GetModelStatus": ("GetModelStatusRequest", "Model"),
    "HandleReloadConfigRequest": ("ReloadConfigRequest", "Model"),
}


@dataclass(frozen=True)
class Answer:
    """Status code name, details, and the response as JSON (names as in the proto files)."""

    code: str
    details: str
    response: dict[str, Any]


def ask(target: str, requests: dict[str, tuple[str, str]]) -> dict[str, Answer]:
    """Make calls one after the other.

    Args:
        target: ``host:port``.
        requests: label to (method, request in text format).
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.official_client", target],
        input=json.dumps(requests),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {label: Answer(*answer) for label, answer in json.loads(done.stdout.splitlines()[-1]).items()}


def main(target: str) -> None:
    import grpc
    from google.protobuf import json_format, symbol_database, text_format
    from tensorflow_serving.apis import (
        inference_pb2,  # noqa: F401 - registers messages
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    requests = json.load(sys.stdin)
    answers: dict[str, Any] = {}
    with grpc.insecure_channel(target) as channel:
        stubs = {
            "Prediction": prediction_service_pb2_grpc.PredictionServiceStub(channel),
            "Model": model_service_pb2_grpc.ModelServiceStub(channel),
        }
        for label, (method, text) in requests.items():
            name, service = METHODS[method]
            request = text_format.Parse(text, symbol_database.Default().GetSymbol(f"tensorflow.serving.{name}")())
            try:
                response = getattr(stubs[service], method)(request, timeout=120)
                answers[label] = ["OK", "", json_format.MessageToDict(response, preserving_proto_field_name=True)]
            except grpc.RpcError as error:
                answers[label] = [error.code().name, error.details(), {}]
    print()
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
