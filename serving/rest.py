"""TensorFlow Serving's REST API: predict, status and metadata over HTTP.

Source: tensorflow_serving/model_servers/http_rest_api_handler.cc and http_rest_api_util.cc. Names and labels are
decoded after the path has matched, and are only ever looked up, never made into file paths.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from serving import wire
from serving.access import Token
from serving.http import Answer
from serving.json_parse import parse
from serving.rest_answers import error_body, predictions
from serving.rest_examples import classifications, fill_examples, regressions
from serving.rest_json import fill_inputs, signature_name
from serving.rpc import Services
from serving.servable import DEFAULT_SIGNATURE
from serving.status import Code, RefusalError, invalid

_WHERE = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_CALL = re.compile(rf"(?i)/v1/models/([^/:]+){_WHERE}:(classify|regress|predict)", re.ASCII)
_STATE = re.compile(rf"(?i)/v1/models(?:/([^/:]+))?{_WHERE}(?:/(metadata))?", re.ASCII)
_HTTP = {
    Code.OK: 200, Code.CANCELLED: 499, Code.UNKNOWN: 500, Code.INVALID_ARGUMENT: 400, Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404, Code.ALREADY_EXISTS: 409, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400, Code.ABORTED: 409, Code.OUT_OF_RANGE: 400, Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500, Code.UNAVAILABLE: 503, Code.DATA_LOSS: 500, Code.UNAUTHENTICATED: 401,
}  # fmt: skip


class Rest:
    """The handler of an `serving.http.HttpServer`.

    Args:
        services: what gRPC answers from, too.
        timeout_s: of one request, then 504.
        cors: answer browsers' preflight requests and let any page read.
        metrics_path: of the metrics in Prometheus' format; None serves none.
        token: that every request must show; None asks for none.
    """

    def __init__(
        self,
        services: Services,
        timeout_s: float = 30.0,
        cors: bool = False,
        metrics_path: str | None = None,
        token: Token | None = None,
    ) -> None:
        self._token = token
        self._metrics_path = metrics_path
        self._services = services
        self._timeout_s = timeout_s
        self._cors = {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "POST, GET",
            "Access-Control-Allow-Headers": "Content-Type, Authorization",
        } if cors else {}  # fmt: skip

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request."""
        if self._token is not None and method != "OPTIONS":  # browsers ask for leave without a token
            try:
                self._token.check_headers(headers)
            except RefusalError as refusal:
                return Answer(401, error_body(refusal.text).encode(), headers={"WWW-Authenticate": "Bearer"})
        if path == self._metrics_path:
            return Answer(200, self._services.metrics.page().encode(), "text/plain")
        if not path.lower().startswith("/v1/"):
            return Answer(404)
        if method == "OPTIONS" and self._cors:
            if headers.get("Origin", "").startswith(("http://", "https://")):
                return Answer(200, headers=self._cors)
            return Answer(400)
        try:
            text = self._answer(method, path, body)
            return Answer(200, text.encode(), headers=self._cors)
        except RefusalError as refusal:
            return Answer(_HTTP[refusal.code], error_body(refusal.text).encode(), headers=self._cors)

    def _answer(self, method: str, path: str, body: bytes) -> str:
        pattern = {"POST": _CALL, "GET": _STATE}.get(method)
        match = pattern.fullmatch(path) if pattern else None
        if match is None:
            raise invalid(f"Malformed request: {method} {path}")
        name, version, label, what = match.groups()
        spec = wire.ModelSpec(name=_decoded(name) if name else "")
        if version:
            if int(version) >= 2**63:
                raise invalid(f"Failed to convert version: {version} to numeric.")
            spec.version.value = int(version)
        elif label:
            spec.version_label = _decoded(label)
        if method == "POST":
            return self._predict(spec, body) if what == "predict" else self._on_examples(what, spec, body)
        if not name:
            raise invalid("Missing model name in request.")
        return self._metadata(spec) if what else self._status(spec)

    def _predict(self, spec: Any, body: bytes) -> str:
        document = parse(body)
        request = wire.PredictRequest(model_spec=spec)
        request.model_spec.signature_name = signature_name(document)
        inputs = self._services.inputs(request.model_spec, request.model_spec.signature_name or DEFAULT_SIGNATURE)
        if not inputs:
            wanted = request.model_spec.signature_name or "DEFAULT"
            raise invalid(f"Failed to get input map for signature: {wanted}")
        in_rows = fill_inputs(document, inputs, request)
        response = self._services.infer("Predict", request, self._timeout_s, "REST")
        return predictions(response.outputs, in_rows)

    def _on_examples(self, what: str, spec: Any, body: bytes) -> str:
        document = parse(body)
        if what == "classify":
            request = wire.ClassificationRequest(model_spec=spec)
            fill_examples(document, request)
            return classifications(self._services.infer("Classify", request, self._timeout_s, "REST").result)
        if what == "regress":
            request = wire.RegressionRequest(model_spec=spec)
            fill_examples(document, request)
            return regressions(self._services.infer("Regress", request, self._timeout_s, "REST").result)
        raise invalid(f"Malformed request: POST {what}")

    def _status(self, spec: Any) -> str:
        response = self._services.get_model_status(wire.GetModelStatusRequest(model_spec=spec), None)
        return _json(response)

    def _metadata(self, spec: Any) -> str:
        request = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._services.get_model_metadata(request, None)
        signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return (
            f'{{\n"model_spec":{_json(response.model_spec)},\n'
            f'"metadata": {{"signature_def": {_json(signatures)}}}\n}}\n'
        )


def _decoded(text: str) -> str:
    return urllib.parse.unquote(text, errors="replace")


def _json(message: Any) -> str:
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    return text + "\n"  # as protocol buffers' own printer ends a message
