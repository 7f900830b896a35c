"""TensorFlow Serving's messages and service paths, without TensorFlow.

Importing ``tensorflow_serving.apis`` loads all of TensorFlow (5 to 11 s, over 600 MB). Here the same messages are
compiled from `serving.wire_schema` into a descriptor pool of their own: they carry the official full names (so
``Any`` type URLs and JSON agree) and cannot clash with the official modules in a process that loads both.

    >>> request = PredictRequest()
    >>> request.model_spec.name = "flights"
    >>> request.inputs["x"].dtype = DataType.DT_FLOAT
    >>> PredictRequest.FromString(request.SerializeToString()).inputs["x"].dtype
    1
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from serving import wire_schema

_File = descriptor_pb2.FileDescriptorProto
_Message = descriptor_pb2.DescriptorProto
_Enum = descriptor_pb2.EnumDescriptorProto
_Field = descriptor_pb2.FieldDescriptorProto

_SCALARS = {
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "int32": _Field.TYPE_INT32,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
}
_TOKEN = re.compile(r"map<\s*\w+\s*,\s*[\w.]+\s*>|[\w.]+|[{}=;]")
_MAP = re.compile(r"map<\s*(\w+)\s*,\s*([\w.]+)\s*>")


class _Compiler:
    """Reads the subset of protocol-buffer syntax that `serving.wire_schema` is written in.

    Type names are left relative: the pool resolves them, enums and messages alike, by the scoping rules of the
    language.
    """

    def __init__(self, text: str) -> None:
        self._tokens: Iterator[str] = iter(_TOKEN.findall(text))

    def file(self, name: str, package: str, dependencies: list[str]) -> Any:
        file = _File(name=name, package=package, syntax="proto3", dependency=dependencies)
        for word in self._tokens:
            if word == "message":
                self._message(file.message_type.add())
            else:
                self._enum(file.enum_type.add())
        return file

    def _enum(self, enum: Any) -> None:
        enum.name = next(self._tokens)
        self._expect("{")
        while (name := next(self._tokens)) != "}":
            self._expect("=")
            enum.value.add(name=name, number=int(next(self._tokens)))
            self._expect(";")

    def _message(self, message: Any) -> None:
        message.name = next(self._tokens)
        self._expect("{")
        presence: list[Any] = []
        while (word := next(self._tokens)) != "}":
            if word == "message":
                self._message(message.nested_type.add())
            elif word == "enum":
                self._enum(message.enum_type.add())
            elif word == "oneof":
                message.oneof_decl.add(name=next(self._tokens))
                self._expect("{")
                while (word := next(self._tokens)) != "}":
                    self._field(message, word).oneof_index = len(message.oneof_decl) - 1
            elif word == "optional":
                field = self._field(message, next(self._tokens))
                field.proto3_optional = True
                presence.append(field)
            else:
                self._field(message, word)
        for field in presence:  # the synthetic oneofs of explicit presence come after the written ones
            message.oneof_decl.add(name=f"_{field.name}")
            field.oneof_index = len(message.oneof_decl) - 1

    def _field(self, message: Any, word: str) -> Any:
        field = message.field.add(label=_Field.LABEL_OPTIONAL)
        mapped = _MAP.match(word)
        if word == "repeated" or mapped:
            field.label = _Field.LABEL_REPEATED
        type_name = next(self._tokens) if word == "repeated" else word
        field.name = next(self._tokens)
        self._expect("=")
        field.number = int(next(self._tokens))
        self._expect(";")
        if mapped:
            camel = "".join(part.capitalize() for part in field.name.split("_"))
            entry = message.nested_type.add(name=f"{camel}Entry")
            entry.options.map_entry = True
            for number, (name, entry_type) in enumerate(zip(("key", "value"), mapped.groups(), strict=True), 1):
                item = entry.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
                self._set_type(item, entry_type)
            field.type_name = entry.name
            field.type = _Field.TYPE_MESSAGE
        else:
            self._set_type(field, type_name)
        return field

    @staticmethod
    def _set_type(field: Any, type_name: str) -> None:
        if type_name in _SCALARS:
            field.type = _SCALARS[type_name]
        else:
            field.type_name = type_name  # message or enum: the pool finds out

    def _expect(self, token: str) -> None:
        got = next(self._tokens)
        if got != token:
            raise SyntaxError(f"wire schema: wanted {token!r}, got {got!r}")


def _build_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    known = []
    for module in (any_pb2, wrappers_pb2):
        file = _File()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
        known.append(file.name)
    pool.Add(_Compiler(wire_schema.TENSORFLOW).file("sameriver/tensorflow.proto", "tensorflow", []))
    pool.Add(_Compiler(wire_schema.ERROR_CODES).file("sameriver/error_codes.proto", "tensorflow.error", []))
    pool.Add(_Compiler(wire_schema.SCANNED).file("sameriver/scanned.proto", "sameriver.scanned", []))
    pool.Add(_Compiler(wire_schema.HEALTH).file("sameriver/health.proto", "grpc.health.v1", []))
    pool.Add(_Compiler(wire_schema.MONITORING).file("sameriver/monitoring.proto", "tensorflow.serving", known))
    own = ["sameriver/tensorflow.proto", "sameriver/error_codes.proto"]
    pool.Add(_Compiler(wire_schema.SERVING).file("sameriver/serving.proto", "tensorflow.serving", known + own))
    return pool


POOL = _build_pool()


def message_class(full_name: str) -> Any:
    """The class of a message by its full name, for example ``tensorflow.serving.PredictRequest``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def _enum(full_name: str) -> Any:
    descriptor = POOL.FindEnumTypeByName(full_name)
    return IntEnum(descriptor.name, {value.name: value.number for value in descriptor.values})


DataType = _enum("tensorflow.DataType")
State = _enum("tensorflow.serving.ModelVersionStatus.State")

TensorProto = message_class("tensorflow.TensorProto")
TensorShapeProto = message_class("tensorflow.TensorShapeProto")
TensorInfo = message_class("tensorflow.TensorInfo")
SignatureDef = message_class("tensorflow.SignatureDef")
MetaGraphDef = message_class("tensorflow.MetaGraphDef")
SavedModel = message_class("tensorflow.SavedModel")
Example = message_class("tensorflow.Example")
ScannedModel = message_class("sameriver.scanned.SavedModel")
ConfigProto = message_class("tensorflow.ConfigProto")
RunOptions = message_class("tensorflow.RunOptions")

ModelSpec = message_class("tensorflow.serving.ModelSpec")
PredictRequest = message_class("tensorflow.serving.PredictRequest")
PredictResponse = message_class("tensorflow.serving.PredictResponse")
ClassificationRequest = message_class("tensorflow.serving.ClassificationRequest")
ClassificationResponse = message_class("tensorflow.serving.ClassificationResponse")
RegressionRequest = message_class("tensorflow.serving.RegressionRequest")
RegressionResponse = message_class("tensorflow.serving.RegressionResponse")
MultiInferenceRequest = message_class("tensorflow.serving.MultiInferenceRequest")
MultiInferenceResponse = message_class("tensorflow.serving.MultiInferenceResponse")
SignatureDefMap = message_class("tensorflow.serving.SignatureDefMap")
GetModelMetadataRequest = message_class("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = message_class("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = message_class("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = message_class("tensorflow.serving.GetModelStatusResponse")
StatusProto = message_class("tensorflow.serving.StatusProto")
ModelServerConfig = message_class("tensorflow.serving.ModelServerConfig")
ReloadConfigRequest = message_class("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = message_class("tensorflow.serving.ReloadConfigResponse")
MonitoringConfig = message_class("tensorflow.serving.MonitoringConfig")
BatchingParameters = message_class("tensorflow.serving.BatchingParameters")
SSLConfig = message_class("tensorflow.serving.SSLConfig")
HealthCheckRequest = message_class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message_class("grpc.health.v1.HealthCheckResponse")
PredictionLog = message_class("tensorflow.serving.PredictionLog")

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
PREDICT = f"/{PREDICTION_SERVICE}/Predict"
CLASSIFY = f"/{PREDICTION_SERVICE}/Classify"
REGRESS = f"/{PREDICTION_SERVICE}/Regress"
MULTI_INFERENCE = f"/{PREDICTION_SERVICE}/MultiInference"
GET_MODEL_METADATA = f"/{PREDICTION_SERVICE}/GetModelMetadata"
GET_MODEL_STATUS = f"/{MODEL_SERVICE}/GetModelStatus"
RELOAD_CONFIG = f"/{MODEL_SERVICE}/HandleReloadConfigRequest"


def model_spec(name: str, label: str = "", version: int = 0) -> Any:
    """A ModelSpec: the version with a label, or of a number above 0, or the latest one."""
    spec = ModelSpec(name=name)
    if label:
        spec.version_label = label
    elif version:
        spec.version.value = version
    return spec
