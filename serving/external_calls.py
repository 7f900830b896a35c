"""One call to an external model: some texts in, numbers out, over TF Serving's gRPC API or JSON over HTTP.

    grpc://127.0.0.1:8500              a TensorFlow Serving API; grpcs:// with TLS
    http://127.0.0.1:8501              its REST API: POST /v1/models/<model>/versions/<version>:predict; or https://
    https://host/score                 any other service: POST {"instances": […]} there, answered by
                                       {"predictions": […], "model_version": <version>}

A call is made once; `serving.external` decides what to do about one that fails.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import grpc
import numpy as np

from serving import channels, wire
from serving.client_access import ClientAccess
from serving.prediction import read_outputs
from serving.request import Signature
from serving.retry import ROWS_MAY_CAUSE
from shared_features.errors import ConfigurationError
from shared_features.external import External

MAX_ANSWER_BYTES = 16 << 20
MAX_DETAIL = 200
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PORTS = {"grpc": 8500, "grpcs": 8500, "http": 80, "https": 443}
_SETUP = frozenset({"NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "FAILED_PRECONDITION"})

Answers = dict[str, np.ndarray]
"""By output of the model float64, shape [texts] or [texts, places]."""


class TextsRefusedError(Exception):
    """The model refuses the texts of a call; one of them may be at fault."""


class NoAnswerError(Exception):
    """A call came to nothing.

    Attributes:
        is_setup: whether it is the request that the service does not serve: no such model, version or right.
        by_text: whether a text may be the cause: the service had it, and stalled, failed or went away.
        pause_s: how long the service asks to be left alone.
    """

    def __init__(self, detail: str, *, is_setup: bool = False, by_text: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(detail)
        self.is_setup, self.by_text, self.pause_s = is_setup, by_text, pause_s


class Transport(Protocol):
    """The way to one external model."""

    def call(self, texts: Sequence[bytes]) -> Answers:
        """One call. Raises TextsRefusedError or NoAnswerError."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def transport(external: External, address: str, token_file: Path | None = None) -> Transport:
    """The way to a model.

    Args:
        external: the model.
        address: see above.
        token_file: holds a token to show; read again for each call.

    Raises:
        ConfigurationError: the address is none, or would send texts over a network without TLS.
    """
    parts = urlsplit(address)
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        port = None
    if (
        parts.scheme not in _PORTS
        or port is None
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise ConfigurationError(
            f"{external} has the address {address!r}, wanted grpc://HOST:PORT, grpcs://…, http://HOST:PORT or https://…"
        )
    if parts.scheme in ("grpc", "http") and parts.hostname not in _LOOPBACK:
        raise ConfigurationError(
            f"{external} has the address {address!r} on another machine: texts go there with TLS only, "
            f"{parts.scheme}s://"
        )
    access = ClientAccess(token_file=token_file, tls=parts.scheme.endswith("s"))
    if parts.scheme.startswith("grpc"):
        return _Grpc(external, f"{parts.hostname}:{port}", access)
    return _Http(external, parts, port, access)


class _Grpc:
    def __init__(self, external: External, target: str, access: ClientAccess) -> None:
        self._external, self._access = external, access
        self._spec = wire.model_spec(external.model, "", external.version)
        self._channel = channels.acquire(target, None, access)
        self._predict = self._channel.unary_unary(wire.PREDICT, None, None)
        self._metadata = self._channel.unary_unary(wire.GET_MODEL_METADATA, None, None)
        self._input = ""

    def call(self, texts: Sequence[bytes]) -> Answers:
        try:
            if not self._input:
                self._input = self._find_input()
            request = wire.PredictRequest(model_spec=self._spec)
            tensor = request.inputs[self._input]
            tensor.dtype = wire.DataType.DT_STRING
            tensor.tensor_shape.dim.add(size=len(texts))
            tensor.string_val.extend(texts)
            names = list(dict.fromkeys(name for name, _ in self._external.outputs.values()))
            request.output_filter.extend(names)
            answer = self._send(self._predict, request)
        except grpc.RpcError as error:
            code, detail = error.code().name, _short(error.details() or "")
            if code in ROWS_MAY_CAUSE and code not in ("INTERNAL", "UNKNOWN"):
                raise TextsRefusedError(f"{code}: {detail}") from None
            raise NoAnswerError(
                f"{code}: {detail}", is_setup=code in _SETUP, by_text=code not in _SETUP | {"RESOURCE_EXHAUSTED"}
            ) from None
        try:
            found, version = read_outputs(answer, len(texts), names)
        except ValueError as error:
            raise NoAnswerError(_short(str(error)), by_text=True) from None
        _check_version(self._external, version)
        return found

    def close(self) -> None:
        channels.release(self._channel)

    def _send(self, method: Any, request: Any) -> bytes:
        timeout_s, shown = self._external.timeout_s, self._access.metadata()
        answer: bytes = method(request.SerializeToString(), timeout=timeout_s, metadata=shown)
        return answer

    def _find_input(self) -> str:
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"], model_spec=self._spec)
        told = wire.GetModelMetadataResponse.FromString(self._send(self._metadata, request))
        signatures = wire.SignatureDefMap.FromString(told.metadata["signature_def"].value).signature_def
        signature = Signature.from_proto(signatures["serving_default"], 0)
        if list(signature.inputs.values()) != ["DT_STRING"]:
            raise NoAnswerError(f"it takes {signature.inputs}, wanted one input of strings", is_setup=True)
        missing = {name for name, _ in self._external.outputs.values()} - set(signature.outputs)
        if missing:
            raise NoAnswerError(f"it has outputs {sorted(signature.outputs)}, not {sorted(missing)}", is_setup=True)
        return next(iter(signature.inputs))


class _Http:
    def __init__(self, external: External, parts: SplitResult, port: int, access: ClientAccess) -> None:
        self._external, self._access = external, access
        self._host, self._port = parts.hostname or "", port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        named = parts.path.strip("/")
        self._path = f"/{named}" if named else f"/v1/models/{external.model}/versions/{external.version}:predict"
        self._must_name_version = bool(named)

    def call(self, texts: Sequence[bytes]) -> Answers:
        if self._external.is_base64:
            instances: list[Any] = [{"b64": base64.b64encode(text).decode("ascii")} for text in texts]
        else:
            instances = [text.decode() for text in texts]
        status, headers, data = self._post(json.dumps({"instances": instances}).encode())
        if status in (400, 413, 422):
            raise TextsRefusedError(f"{status}: {_short(data.decode(errors='replace'))}")
        if status != 200:
            asked = headers.get("Retry-After", "")
            pause_s = float(asked) if asked.isdecimal() and len(asked) < 5 else 0.0
            detail = f"HTTP status {status}: {_short(data.decode(errors='replace'))}"
            is_setup = status in (401, 403, 404, 405) or 300 <= status < 400  # redirects lead nowhere that was named
            raise NoAnswerError(detail, is_setup=is_setup, by_text=status in (500, 502, 504), pause_s=pause_s)
        try:
            answer = json.loads(data)
            predictions = answer["predictions"]
            version = answer.get("model_version", answer.get("modelVersionId"))
            found = {name: _column(predictions, name, len(texts)) for name, _ in self._external.outputs.values()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            detail = f"its answer is not the JSON that was wanted ({_short(repr(error))})"
            raise NoAnswerError(detail, by_text=True) from None
        if self._must_name_version or version is not None:
            _check_version(self._external, version)
        return found

    def close(self) -> None:
        """Each call has a connection of its own."""

    def _post(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        timeout_s = self._external.timeout_s
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        )
        is_sent = False
        try:
            connection.connect()
            is_sent = True
            headers = {"Content-Type": "application/json", **dict(self._access.metadata())}
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(_short(str(error) or type(error).__name__), by_text=is_sent) from None
        finally:
            connection.close()
        if len(data) > MAX_ANSWER_BYTES:
            raise NoAnswerError(f"its answer is larger than {MAX_ANSWER_BYTES} bytes", by_text=True)
        return answer.status, answer.headers, data


def _column(predictions: Any, name: str, rows: int) -> np.ndarray:
    """One output of all predictions: TF Serving names outputs only where there are several."""
    values = [one[name] if isinstance(one, dict) else one for one in predictions]
    column = np.array(values, np.float64)
    if column.shape[:1] != (rows,) or column.ndim > 2:
        raise ValueError(f"output {name!r} has shape {column.shape} for {rows} texts")
    return column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column


def _check_version(external: External, got: object) -> None:
    if str(got) != str(external.version):
        raise NoAnswerError(f"version {_short(str(got))} answers, wanted {external.version}", is_setup=True)


def _short(text: str) -> str:
    """What a service said, as it may stand in a sentence: short, on one line, nothing that a terminal obeys."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * MAX_DETAIL])
    return " ".join(line.split())[:MAX_DETAIL].rstrip(".")
