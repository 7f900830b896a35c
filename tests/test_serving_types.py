"""Every type in answers, and every way in which a signature may not hold what it promises: by REST and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving import wire
from serving.servable import _completed
from serving.status import Code, RefusalError
from serving.tensors import numbers, write_numbers
from tests.official_client import Answer
from tests.processes import Started, start
from tests.serving_calls import ask, rest
from tests.serving_models import put


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("types")
    listed = ""
    for name in ("types", "misfits"):
        put(name, folder / name, 1)
        listed += f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }} '
    (folder / "models.config").write_text(f"model_config_list {{ {listed} }}")
    started = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", f"--model_config_file={folder / 'models.config'}"],
        ready="listening on 127.0.0.1:",
    )
    yield started
    started.kill()


@pytest.fixture(scope="module")
def channel(server: Started) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.line.split()[-1]) as made:
        yield made


ONE_OF_EVERY_TYPE = """{
    "predictions": [
        {
            "bool": true,
            "double": 2.5,
            "half": 2.5,
            "int16": 2,
            "int32": 2,
            "int64": 2,
            "int8": 2,
            "some_bytes": [{
                    "b64": "/wA="
                }],
            "text": "\\"\\\\/\\n\\u001F\u00e9",
            "uint32": 2,
            "uint64": 2,
            "uint8": 2
        }
    ]
}"""


def test_every_type_is_written_to_the_last_space(server: Started) -> None:
    assert rest(server, "POST", "types:predict", {"instances": [2.5]}) == (200, ONE_OF_EVERY_TYPE)


def test_base64_answers_in_rows_and_columns(server: Started) -> None:
    status, text = rest(server, "POST", "types:predict", {"signature_name": "bytes_only", "instances": [1.0, 2.0]})
    assert (status, json.loads(text)) == (200, {"predictions": [{"b64": "aGk="}, {"b64": "aGk="}]})
    status, text = rest(server, "POST", "types:predict", {"signature_name": "bytes_only", "inputs": [1.0]})
    assert (status, json.loads(text)) == (200, {"outputs": [{"b64": "aGk="}]})


@pytest.mark.parametrize(
    ("signature", "given", "status", "text"),
    [
        ("complex", {"instances": [1]}, 400, "Failed to write JSON value for tensor type: complex64"),
        ("scalar", {"instances": [1]}, 400, "Tensor name: s has no shape information "),
        ("unequal", {"instances": [1]}, 400, "Tensor name: b has inconsistent batch size: 2 expecting: 1"),
        ("takes_half", {"inputs": [1.5]}, 501, "Conversion of JSON Value: 1.5 to type: half"),
        ("takes_half", {"instances": [1.5]}, 400, "Error: UNIMPLEMENTED: Conversion of JSON Value: 1.5 to type: half"),
    ],
)
def test_what_json_cannot_say(server: Started, signature: str, given: Any, status: int, text: str) -> None:
    found, said = rest(server, "POST", "types:predict", {"signature_name": signature, **given})
    error = json.loads(said)["error"]
    assert found == status
    assert text in error


def test_a_scalar_is_no_row_but_a_column(server: Started) -> None:
    status, text = rest(server, "POST", "types:predict", {"signature_name": "scalar", "inputs": [1, 2]})
    assert (status, text) == (200, '{\n    "outputs": 3.0\n}')


def test_grpc_writes_the_typed_field_of_every_type(channel: grpc.Channel) -> None:
    x = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: [1, 2.5] } }'
    answer = ask(channel, "Predict", 'model_spec { name: "types" }' + x)
    outputs = answer.response["outputs"]
    fields = {name: next(key for key in one if key.endswith("_val")) for name, one in outputs.items()}
    assert fields == {
        "bool": "bool_val", "double": "double_val", "half": "half_val", "int8": "int_val", "int16": "int_val",
        "int32": "int_val", "int64": "int64_val", "uint8": "int_val", "uint32": "uint32_val", "uint64": "uint64_val",
        "text": "string_val", "some_bytes": "string_val",
    }  # fmt: skip
    assert outputs["half"]["half_val"] == [0x3C00, 0x4100]
    assert outputs["double"]["double_val"] == [1.0, 2.5]
    assert "tensor_content" not in json.dumps(outputs)


def classify(signature: str, method: str = "Classify") -> tuple[str, str]:
    feature = 'feature { key: "x" value { float_list { value: 1 } } }'
    given = f"input {{ example_list {{ examples {{ features {{ {feature} }} }} }} }}"
    return method, f'model_spec {{ name: "misfits" signature_name: "{signature}" }} {given}'


INVALID = "INVALID_ARGUMENT"
PRECONDITION = "FAILED_PRECONDITION"
TO_SHAPE = "Expected Tensor shape: [batch_size num_classes] but got [1]"
REGRESS_SHAPE = "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]"


@pytest.mark.parametrize(
    ("signature", "method", "code", "text"),
    [
        ("flat_scores", "Classify", INVALID, TO_SHAPE),
        ("whole_scores", "Classify", INVALID, "Expected scores Tensor of DT_FLOAT. Got: DT_INT64"),
        ("number_classes", "Classify", INVALID, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("more_scores", "Classify", INVALID, "Expected scores output batch size of 1. Got: 2"),
        ("uneven", "Classify", INVALID, "Tensors class and score should match in dim_size(1). Got 2 vs. 3"),
        ("two_inputs", "Classify", INVALID, "Expected one input Tensor."),
        ("no_inputs_alias", "Classify", PRECONDITION, "No classification inputs found in SignatureDef: "),
        ("three_outputs", "Classify", INVALID, "Expected one or two output Tensors, found 3"),
        ("no_scores_alias", "Classify", PRECONDITION,
         'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: '),
        ("regress_wide", "Regress", INVALID, REGRESS_SHAPE),
        ("regress_more", "Regress", INVALID, "Input batch size did not match output batch size: 1 vs. 2"),
        ("regress_whole", "Regress", INVALID, "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
        ("regress_two_outputs", "Regress", INVALID, "Expected one output Tensor."),
        ("regress_no_outputs_alias", "Regress", PRECONDITION, "No regression outputs found in SignatureDef: "),
        ("regress_no_inputs_alias", "Regress", PRECONDITION, "No regression inputs found in SignatureDef: "),
    ],
)  # fmt: skip
def test_signatures_that_do_not_hold_together(
    channel: grpc.Channel, signature: str, method: str, code: str, text: str
) -> None:
    answer = ask(channel, *classify(signature, method))
    assert (answer.code, answer.details[: len(text)]) == (code, text)


def test_labels_come_with_scores_or_without(channel: grpc.Channel) -> None:
    def classes(answer: Answer) -> Any:
        return answer.response["result"]["classifications"][0]["classes"]

    assert classes(ask(channel, *classify("good"))) == [{"label": "label", "score": 1.0}] * 2
    assert classes(ask(channel, *classify("labels_only"))) == [{"label": "label"}] * 2


def several(*tasks: tuple[str, str, str]) -> tuple[str, str]:
    text = " ".join(
        f'tasks {{ model_spec {{ name: "{name}" signature_name: "{key}" }} method_name: "tensorflow/serving/{how}" }}'
        for name, key, how in tasks
    )
    return "MultiInference", text + classify("")[1].partition("}")[2]


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([("misfits", "good", "classify"), ("misfits", "other_input", "classify")],
         "Input tensor must be the same for all Signatures."),
        ([("misfits", "good", "classify"), ("", "regress", "regress")], "Found ModelSpec with an empty model name."),
        ([("misfits", "regress_wide", "regress")], REGRESS_SHAPE),
    ],
)  # fmt: skip
def test_several_signatures_that_do_not_go_together(
    channel: grpc.Channel, tasks: list[tuple[str, str, str]], text: str
) -> None:
    answer = ask(channel, *several(*tasks))
    assert (answer.code, answer.details) == (INVALID, text)


def test_classes_and_values_in_one_run(channel: grpc.Channel) -> None:
    answer = ask(channel, *several(("misfits", "good", "classify"), ("misfits", "regress", "regress")))
    first, second = answer.response["results"]
    assert first["classification_result"]["classifications"][0]["classes"][0] == {"label": "label", "score": 1.0}
    assert second["regression_result"] == {"regressions": [{"value": 1.0}]}


def test_inputs_may_have_defaults() -> None:
    signature = wire.SignatureDefMap().signature_def["s"]
    signature.inputs["x"].name = "x:0"
    signature.inputs["k"].name = "k:0"
    write_numbers(signature.defaults["k"], 1, np.array([7], np.float32))

    def completed(*names: str) -> dict[str, Any]:
        request = wire.PredictRequest()
        for name in names:
            write_numbers(request.inputs[name], 1, np.array([1], np.float32))
        return {name: numbers(proto).tolist() for name, proto in _completed(signature, request.inputs).items()}

    assert completed("x") == {"x": [1.0], "k": [7.0]}
    assert completed("x", "k") == {"x": [1.0], "k": [1.0]}
    no_value = "not found in request and no default value provided. Inputs expected to be in the request {z}"
    sizes = "input size does not match signature: 3!=2 len({x,y,z}) != len({k,x})"
    for names, text in {
        ("x", "z"): "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ("z",): f"Signature input alias: x(feed name: x:0) {no_value}, or default input alias set: k",
        ("x", "y", "z"): f"{sizes}. Sent extra: {{y,z}}. Missing but required: {{k}}.",
    }.items():
        with pytest.raises(RefusalError) as caught:
            completed(*names)
        assert (caught.value.code, caught.value.text) == (Code.INVALID_ARGUMENT, text)
