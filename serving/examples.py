"""Classify, Regress and MultiInference: signatures that take ``tf.Example`` messages.

Source: tensorflow_serving/servables/tensorflow/classifier.cc, regressor.cc, multi_inference.cc and util.cc.
"""

from __future__ import annotations

from typing import Any

from serving import wire
from serving.servable import DEFAULT_SIGNATURE, Servable
from serving.status import Code, RefusalError, failed_precondition, invalid
from serving.tensorflow_c import Tensor
from serving.wire import DataType

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_KINDS = {CLASSIFY: "classification", REGRESS: "regression"}
_STRING, _FLOAT = int(DataType.DT_STRING), int(DataType.DT_FLOAT)


def classify(servable: Servable, request: Any, time_left_s: float | None) -> Any:
    """ClassificationRequest to ClassificationResponse; RefusalError with the real server's code and text."""
    spec = request.model_spec
    signature = _signature(servable, spec, CLASSIFY, "classification")
    input_name, outputs = _classification(signature)
    examples = serialized(request.input)
    response = wire.ClassificationResponse()
    tensors = _run(servable, "Classify", examples, input_name, list(outputs.values()), time_left_s)
    _write_classes(response.result, outputs, tensors, len(examples))
    _write_spec(response.model_spec, servable, spec)
    return response


def regress(servable: Servable, request: Any, time_left_s: float | None) -> Any:
    """RegressionRequest to RegressionResponse; RefusalError as above."""
    spec = request.model_spec
    signature = _signature(servable, spec, REGRESS, "regression")
    input_name, output_name = _regression(signature)
    examples = serialized(request.input)
    response = wire.RegressionResponse()
    tensors = _run(servable, "Regress", examples, input_name, [output_name], time_left_s)
    _write_values(response.result, tensors[output_name], len(examples))
    _write_spec(response.model_spec, servable, spec)
    return response


def multi_inference(servable: Servable, request: Any, time_left_s: float | None) -> Any:
    """MultiInferenceRequest to MultiInferenceResponse: several signatures on the same examples in one run."""
    model, input_name = "", ""
    seen: set[str] = set()
    plans: list[tuple[Any, dict[str, str]]] = []
    for task in request.tasks:
        spec = task.model_spec
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if model and model != spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        model = spec.name
        key = spec.signature_name or DEFAULT_SIGNATURE
        if key in seen:
            raise invalid(f"Duplicate evaluation of signature: {key}")
        seen.add(key)
        if key not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {key}")
        signature = servable.signatures[key]
        if servable.check_methods and task.method_name in _KINDS and signature.method_name != task.method_name:
            kind = _KINDS[task.method_name]
            raise invalid(
                f"Expected {kind} signature method_name to be {task.method_name}. Was: {signature.method_name}"
            )
        if task.method_name == CLASSIFY:
            name, outputs = _classification(signature)
        elif task.method_name == REGRESS:
            name, output = _regression(signature)
            outputs = {"outputs": output}
        else:
            raise RefusalError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        if input_name and name != input_name:
            raise invalid("Input tensor must be the same for all Signatures.")
        input_name = name
        plans.append((task, outputs))
    examples = serialized(request.input)
    wanted = sorted({name for _, outputs in plans for name in outputs.values()})
    tensors = _run(servable, "MultiInference", examples, input_name, wanted, time_left_s)
    response = wire.MultiInferenceResponse()
    for task, outputs in plans:
        result = response.results.add()
        if task.method_name == CLASSIFY:
            _write_classes(result.classification_result, outputs, tensors, len(examples))
        else:
            _write_values(result.regression_result, tensors[outputs["outputs"]], len(examples))
        _write_spec(result.model_spec, servable, task.model_spec)
    return response


def serialized(given: Any) -> list[bytes]:
    """Each example as bytes; a context is put before each (protocol buffers merge what is concatenated)."""
    kind = given.WhichOneof("kind")
    chosen = getattr(given, kind) if kind else None
    if chosen is None or not chosen.examples:
        raise invalid("Input is empty.")
    context = chosen.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in chosen.examples]


def _signature(servable: Servable, spec: Any, method: str, kind: str) -> Any:
    key = spec.signature_name or DEFAULT_SIGNATURE
    if key not in servable.signatures:
        raise invalid(f"No signature was found with the name: {key}")
    signature = servable.signatures[key]
    if servable.check_methods and signature.method_name != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")
    return signature


def _classification(signature: Any) -> tuple[str, dict[str, str]]:
    """Name of the input tensor, and alias to name of the outputs."""
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise failed_precondition(f"No classification inputs found in SignatureDef: {signature}")
    outputs = {alias: signature.outputs[alias].name for alias in ("classes", "scores") if alias in signature.outputs}
    if not outputs:
        raise failed_precondition(
            f'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return signature.inputs["inputs"].name, outputs


def _regression(signature: Any) -> tuple[str, str]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise failed_precondition(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise failed_precondition(f"No regression outputs found in SignatureDef: {signature}")
    return signature.inputs["inputs"].name, signature.outputs["outputs"].name


def _run(
    servable: Servable, api: str, examples: list[bytes], input_name: str, names: list[str], time_left_s: float | None
) -> dict[str, Tensor]:
    servable.note_examples(len(examples))
    feed = Tensor(_STRING, (len(examples),), examples)
    return dict(zip(names, servable.run(api, [input_name], [feed], names, time_left_s), strict=True))


def _write_classes(result: Any, outputs: dict[str, str], tensors: dict[str, Tensor], count: int) -> None:
    width = 0
    columns: dict[str, list[Any]] = {}
    for alias, dtype in (("classes", _STRING), ("scores", _FLOAT)):
        if alias not in outputs:
            continue
        tensor = tensors[outputs[alias]]
        if len(tensor.shape) != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(tensor)}")
        if tensor.dtype != dtype:
            raise invalid(f"Expected {alias} Tensor of {DataType(dtype).name}. Got: {DataType(tensor.dtype).name}")
        if tensor.shape[0] != count:
            raise invalid(f"Expected {alias} output batch size of {count}. Got: {tensor.shape[0]}")
        if columns and tensor.shape[1] != width:
            raise invalid(f"Tensors class and score should match in dim_size(1). Got {width} vs. {tensor.shape[1]}")
        width = tensor.shape[1]
        columns[alias] = tensor.values if isinstance(tensor.values, list) else tensor.values.ravel().tolist()
    for row in range(count):
        classes = result.classifications.add()
        for column in range(width):
            one = classes.classes.add()
            if "classes" in columns:
                one.label = columns["classes"][row * width + column].decode("utf-8", "replace")
            if "scores" in columns:
                one.score = columns["scores"][row * width + column]


def _write_values(result: Any, tensor: Tensor, count: int) -> None:
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(tensor)}"
        )
    if tensor.shape[0] != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {tensor.shape[0]}")
    if tensor.dtype != _FLOAT or isinstance(tensor.values, list):
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {DataType(tensor.dtype).name}")
    for value in tensor.values.ravel().tolist():
        result.regressions.add(value=value)


def _write_spec(target: Any, servable: Servable, spec: Any) -> None:
    target.name = spec.name
    target.version.value = servable.version
    target.signature_name = spec.signature_name or DEFAULT_SIGNATURE


def _shape(tensor: Tensor) -> str:
    return "[" + ",".join(map(str, tensor.shape)) + "]"
