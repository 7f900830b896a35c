"""Classify and Regress over REST: JSON objects to ``tf.Example`` messages, results to JSON.

Source: tensorflow_serving/util/json_tensor.cc. The key of the answer is ``results``, whatever the documentation says.
"""

from __future__ import annotations

import math
from typing import Any

from serving.json_parse import double
from serving.json_text import PrettyWriter, decimal, shown
from serving.rest_json import from_base64, is_base64, signature_name, type_name
from serving.status import invalid

_FLOAT_LIMIT = 3.4028234663852886e38


def fill_examples(document: dict[str, Any], request: Any) -> None:
    """Fill the input of a ClassificationRequest or RegressionRequest."""
    request.model_spec.signature_name = signature_name(document)
    with_context = "context" in document
    if with_context:
        _fill(document["context"], request.input.example_list_with_context.context)
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {shown(document)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {shown(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {shown(document)} 'examples' value is an empty array")
    target = request.input.example_list_with_context if with_context else request.input.example_list
    for one in examples:
        _fill(one, target.examples.add())


def _fill(value: Any, example: Any) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example.SetInParent()
    for name, content in value.items():
        feature = example.features.feature[name]
        for one in content if isinstance(content, list) else [content]:
            _add(one, name, feature)


def _add(value: Any, name: str, feature: Any) -> None:
    if isinstance(value, bool):
        _list(feature, "int64_list", name).append(int(value))
    elif isinstance(value, str):
        _list(feature, "bytes_list", name).append(value.encode("utf-8", "surrogatepass"))
    elif is_base64(value):
        _list(feature, "bytes_list", name).append(from_base64(value))
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        values = _list(feature, "int64_list", name)
        if value >= 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        values.append(value)
    elif isinstance(value, int | float):
        values = _list(feature, "float_list", name)
        value = double(value)
        if math.isfinite(value) and abs(value) > _FLOAT_LIMIT:
            raise invalid(f"Cannot convert JSON value: {shown(value)} to float without loss of precision.")
        values.append(value)
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _list(feature: Any, kind: str, name: str) -> Any:
    """The feature's values, if they are of this kind or there are none yet."""
    found = feature.WhichOneof("kind")
    if found not in (None, kind):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {found.removesuffix('_list')}")
    return getattr(feature, kind).value


def classifications(result: Any) -> str:
    """The body of an answer to classify."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    writer = PrettyWriter()
    writer.start("{")
    writer.string("results")
    writer.start("[")
    for one in result.classifications:
        writer.single_line_arrays = True
        writer.start("[")
        for found in one.classes:
            writer.start("[")
            writer.string(found.label)
            writer.raw(decimal(found.score, single=True))
            writer.end("]")
        writer.end("]")
        writer.single_line_arrays = False
    writer.end("]")
    writer.end("}")
    return writer.text()


def regressions(result: Any) -> str:
    """The body of an answer to regress."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    writer = PrettyWriter()
    writer.start("{")
    writer.string("results")
    writer.single_line_arrays = True
    writer.start("[")
    for one in result.regressions:
        writer.raw(decimal(one.value, single=True))
    writer.end("]")
    writer.end("}")
    return writer.text()
