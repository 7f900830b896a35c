"""The gRPC services of TensorFlow Serving, over `serving.models`."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import examples, wire
from serving.access import Token
from serving.background import in_background
from serving.config import settings_of
from serving.metrics import Metrics
from serving.models import Models
from serving.request_log import RequestLog
from serving.servable import Servable
from serving.status import Code, RefusalError, invalid

log = logging.getLogger("sameriver.serving")

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
Method = Callable[[Any, "float | None"], Any]


class Services:
    """The methods, each from (request, seconds left) to response or RefusalError.

    Args:
        models: what is served.
        metrics: that requests are counted in.
        request_log: takes a sample of requests where a model's settings ask for it.
        may_reload: whether HandleReloadConfigRequest is answered.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics | None = None,
        request_log: RequestLog | None = None,
        may_reload: bool = True,
    ) -> None:
        self._models = models
        self.metrics = metrics or Metrics()
        self._request_log = request_log
        self._may_reload = may_reload

    def infer(self, api: str, request: Any, time_left_s: float | None, entrypoint: str = "GRPC") -> Any:
        """PredictionService's Predict, Classify, Regress and MultiInference, counted."""
        began = time.monotonic()
        tasks = request.tasks if api == "MultiInference" else [request]
        model = tasks[0].model_spec.name if tasks else ""
        status = "INTERNAL"
        try:
            if not tasks or not tasks[0].HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            with self._models.use(tasks[0].model_spec) as servable:
                response = _INFERENCE[api](servable, request, time_left_s)
                servable.keep(api, request)
            status = "OK"
        except RefusalError as refusal:
            status = refusal.code.name
            raise
        finally:
            self.metrics.request(model, api, entrypoint, status, time.monotonic() - began)
        if self._request_log is not None:
            settings = self._models.logging(model)
            if settings is not None:
                self._request_log.note(settings, api, model, request, response)
        return response

    def inputs(self, spec: Any, signature: str) -> Any:
        """Name to TensorInfo of a signature's inputs; empty if there is no such signature."""
        with self._models.use(spec) as servable:
            return servable.signatures[signature].inputs if signature in servable.signatures else {}

    def get_model_metadata(self, request: Any, time_left_s: float | None) -> Any:  # noqa: ARG002
        """PredictionService.GetModelMetadata; the only field there is, is ``signature_def``."""
        _need_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        with self._models.use(request.model_spec) as servable:
            return servable.metadata

    def get_model_status(self, request: Any, time_left_s: float | None) -> Any:  # noqa: ARG002
        """ModelService.GetModelStatus."""
        _need_spec(request)
        spec = request.model_spec
        version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
        response = wire.GetModelStatusResponse()
        for one in self._models.states(spec.name, version):
            entry = response.model_version_status.add(version=one.version, state=one.state)
            entry.status.error_code = one.code
            entry.status.error_message = one.message
        return response

    def handle_reload_config_request(self, request: Any, time_left_s: float | None) -> Any:
        """ModelService.HandleReloadConfigRequest: the status is in the response and in the call.

        A call whose time is up ends; what it asked for goes on. Only config files may say where requests are logged.
        """
        if not self._may_reload:
            raise RefusalError(
                Code.PERMISSION_DENIED,
                "HandleReloadConfigRequest is not served to other machines without a token or client certificates",
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        for model in request.config.model_config_list.config:
            if model.HasField("logging_config"):
                log.warning("model %s: logging_config is taken from config files only, not from a request", model.name)
                model.ClearField("logging_config")
        settings = settings_of(request.config, self._models.names())
        before = self.metrics.totals()
        try:
            in_background(lambda: self._models.replace(settings), "reload", time_left_s)
        except TimeoutError:
            raise RefusalError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") from None
        response = wire.ReloadConfigResponse()
        response.status.SetInParent()
        after = self.metrics.totals()
        for name in request.metric_names:
            if name in after:
                response.metric.add(name=name, int64_value_increase=after[name] - before.get(name, 0))
        return response


_INFERENCE: dict[str, Callable[[Servable, Any, float | None], Any]] = {
    "Predict": Servable.predict,
    "Classify": examples.classify,
    "Regress": examples.regress,
    "MultiInference": examples.multi_inference,
}


def _need_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def handlers(services: Services, token: Token | None = None) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """What a gRPC server is given to answer TensorFlow Serving's clients; all of them if there is no token to show."""
    methods: dict[str, tuple[Method, Any]] = {
        wire.PREDICT: (functools.partial(services.infer, "Predict"), wire.PredictRequest),
        wire.CLASSIFY: (functools.partial(services.infer, "Classify"), wire.ClassificationRequest),
        wire.REGRESS: (functools.partial(services.infer, "Regress"), wire.RegressionRequest),
        wire.MULTI_INFERENCE: (functools.partial(services.infer, "MultiInference"), wire.MultiInferenceRequest),
        wire.GET_MODEL_METADATA: (services.get_model_metadata, wire.GetModelMetadataRequest),
        wire.GET_MODEL_STATUS: (services.get_model_status, wire.GetModelStatusRequest),
        wire.RELOAD_CONFIG: (services.handle_reload_config_request, wire.ReloadConfigRequest),
    }
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, (method, request_class) in methods.items():
        _, service, name = path.split("/")
        by_service.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(
            _answering(method, request_class, token), None, lambda response: response.SerializeToString()
        )
    return [grpc.method_handlers_generic_handler(service, found) for service, found in by_service.items()]


def _answering(method: Method, request_class: Any, token: Token | None) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(encoded: bytes, context: grpc.ServicerContext) -> Any:
        try:
            if token is not None:
                token.check_metadata(context.invocation_metadata())
            time_left_s = context.time_remaining()
            if time_left_s is not None and time_left_s <= 0:  # it waited for a thread for too long
                raise RefusalError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
            return method(request_class.FromString(encoded), time_left_s)
        except DecodeError:
            code, text = Code.INTERNAL, "Failed to parse the request"
        except RefusalError as refusal:
            code, text = refusal.code, refusal.text
        except Exception:
            log.exception("a request failed")
            code, text = Code.INTERNAL, "Internal error; the server's log has it whole"
        return context.abort(_GRPC_CODES[int(code)], text)  # raises

    return answer
