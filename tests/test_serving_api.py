"""Official tensorflow-serving-api stubs get the answers, codes and words that TensorFlow Serving gives."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.official_client import Answer, ask
from tests.processes import Started, start
from tests.serving_models import DEFINITIONS, FINGERPRINT, put

HALF = 'model_spec { name: "half" }'
X = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 3 } } float_val: [1, 2, 5] } }'
FLIGHTS = 'model_spec { name: "flights" }'
DELAY = 'inputs { key: "delay" value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: [0, 100] } }'
CARRIER = 'inputs { key: "carrier" value { dtype: DT_STRING tensor_shape { dim { size: 2 } } string_val: "UA" } }'
NOT_FOUND, INVALID, PRECONDITION = "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"


def x_of(tensor: str) -> str:
    return HALF + f' inputs {{ key: "x" value {{ {tensor} }} }}'


def shaped(*sizes: int) -> str:
    return "dtype: DT_FLOAT tensor_shape { " + " ".join(f"dim {{ size: {size} }}" for size in sizes) + " }"


ANSWERED: dict[str, tuple[str, str]] = {
    "predict": ("Predict", HALF + X),
    "predict as content": (
        "Predict",
        HALF + ' inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } }'
        ' tensor_content: "\\000\\000\\200?" } }',
    ),
    "predict scalar": ("Predict", x_of("dtype: DT_FLOAT tensor_shape { } float_val: 1")),
    "predict nothing": ("Predict", x_of(shaped(0))),
    "predict filled": ("Predict", x_of(shaped(2, 2) + " float_val: 2")),
    "predict version 1": ("Predict", 'model_spec { name: "half" version { value: 1 } }' + X),
    "predict by label": ("Predict", 'model_spec { name: "half" version_label: "stable" }' + X),
    "predict named signature": ("Predict", 'model_spec { name: "half" signature_name: "serving_default" }' + X),
    "flights": ("Predict", FLIGHTS + DELAY + CARRIER),
    "flights filtered": ("Predict", FLIGHTS + DELAY + CARRIER + ' output_filter: ["pair", "copy"]'),
    "describe": ("Predict", 'model_spec { name: "flights" signature_name: "describe" }'),
    "long strings": (
        "Predict",
        FLIGHTS + 'inputs { key: "delay" value { dtype: DT_FLOAT tensor_shape { dim { size: 4 } } } }'
        'inputs { key: "carrier" value { dtype: DT_STRING tensor_shape { dim { size: 4 } } string_val: '
        f'["{"a" * 22}", "{"b" * 23}", "", "{"c" * 5000}"] }} }} output_filter: "copy"',
    ),
    "metadata": ("GetModelMetadata", HALF + ' metadata_field: "signature_def"'),
    "status": ("GetModelStatus", HALF),
    "status of one": ("GetModelStatus", 'model_spec { name: "half" version { value: 1 } }'),
}

# label: (method, request, code, text)
REFUSED: dict[str, tuple[str, str, str, str]] = {
    "no spec": ("Predict", X, INVALID, "Missing ModelSpec"),
    "no name": ("Predict", "model_spec { }" + X, INVALID, "ModelSpec has no name specified."),
    "no model": ("Predict", 'model_spec { name: "m" }' + X, NOT_FOUND, "Servable not found for request: Latest(m)"),
    "no version": (
        "Predict",
        'model_spec { name: "half" version { value: 7 } }' + X,
        NOT_FOUND,
        "Servable not found for request: Specific(half, 7)",
    ),
    "no label": (
        "Predict",
        'model_spec { name: "half" version_label: "L" }' + X,
        INVALID,
        "Unrecognized servable version label: L",
    ),
    "no signature": (
        "Predict",
        'model_spec { name: "half" signature_name: "s" }' + X,
        PRECONDITION,
        'Serving signature key "s" not found.',
    ),
    "strange method": (
        "Predict",
        'model_spec { name: "estimator" signature_name: "odd_method" }' + X,
        "INTERNAL",
        (
            "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
            "tensorflow/serving/classify, tensorflow/serving/regress}. Was: somebody/elses"
        ),
    ),
    "no input": (
        "Predict",
        HALF,
        INVALID,
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
    ),
    "one input too many": (
        "Predict",
        HALF + X + X.replace('"x"', '"w"'),
        INVALID,
        "input size does not match signature: 2!=1 len({w,x}) != len({x}). Sent extra: {w}. Missing but required: {}.",
    ),
    "another input": (
        "Predict",
        HALF + X.replace('"x"', '"k"'),
        INVALID,
        (
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value "
            "provided. Inputs expected to be in the request {k}, or default input alias set: "
        ),
    ),
    "no output": (
        "Predict",
        HALF + X + ' output_filter: "z"',
        INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    ),
    "output twice": ("Predict", HALF + X + ' output_filter: ["y", "y"]', INVALID, "duplicate output tensor alias: y"),
    "wrong type": (
        "Predict",
        x_of('dtype: DT_STRING tensor_shape { dim { size: 1 } } string_val: "a"'),
        INVALID,
        "Expects arg[0] to be float but string is provided",
    ),
    **{
        f"impossible tensor {number}": ("Predict", x_of(tensor), INVALID, "tensor parsing error: x")
        for number, tensor in enumerate(
            [
                "",
                "dtype: DT_FLOAT tensor_shape { unknown_rank: true }",
                shaped(-1) + " float_val: 1",
                shaped(1 << 62, 4) + " float_val: 1",
                shaped(10**12) + " float_val: 1",
                shaped(2) + ' tensor_content: "abc"',
                "dtype: DT_RESOURCE tensor_shape { } resource_handle_val { }",
                "dtype: DT_VARIANT tensor_shape { }",
                'dtype: DT_STRING tensor_shape { dim { size: 1000000000000 } } string_val: "a"',
            ]
        )
    },
    "metadata of nothing": ("GetModelMetadata", 'metadata_field: "signature_def"', INVALID, "Missing ModelSpec"),
    "metadata without field": (
        "GetModelMetadata",
        HALF,
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    "metadata of another field": (
        "GetModelMetadata",
        HALF + ' metadata_field: "f"',
        INVALID,
        "Metadata field f is not supported",
    ),
    "status of nothing": ("GetModelStatus", "", INVALID, "Missing ModelSpec"),
    "status of no model": (
        "GetModelStatus",
        'model_spec { name: "m" }',
        NOT_FOUND,
        "Could not find any versions of model m",
    ),
    "status of no version": (
        "GetModelStatus",
        'model_spec { name: "half" version { value: 7 } }',
        NOT_FOUND,
        "Could not find version 7 of model half",
    ),
    "reload of nothing": (
        "HandleReloadConfigRequest",
        "",
        INVALID,
        (
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        ),
    ),
    "reload of a model twice": (
        "HandleReloadConfigRequest",
        'config { model_config_list { config { name: "m" base_path: "/p" } config { name: "m" base_path: "/p" } } }',
        INVALID,
        "Illegal to list model m multiple times in config list",
    ),
    "reload of a relative path": (
        "HandleReloadConfigRequest",
        'config { model_config_list { config { name: "m" base_path: "p" } } }',
        INVALID,
        "Expected model m to have an absolute path or URI; got base_path()=p",
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("models")
    put("half_plus_two", folder / "half", 1)
    put("half_plus_three", folder / "half", "00000002")
    put("flights", folder / "flights", 1)
    put("estimator", folder / "estimator", 123)
    config = folder / "models.config"
    config.write_text(
        "# several models\nmodel_config_list {"
        f' config {{ name: "half" base_path: "{folder}/half" model_platform: "tensorflow"'
        ' model_version_policy { all { } } version_labels { key: "stable" value: 1 } }'
        f' config {{ name: "flights" base_path: "{folder}/flights" }}'
        f' config {{ name: "estimator" base_path: "{folder}/estimator" }} }}'
    )
    started = start(
        ["-m", "serving.server", "--port=0", f"--model_config_file={config}", "--enable_signature_method_name_check"],
        ready="listening on 127.0.0.1:",
    )
    yield started
    started.kill()


@pytest.fixture(scope="module")
def answers(server: Started) -> dict[str, Answer]:
    calls = ANSWERED | {label: (method, text) for label, (method, text, _, _) in REFUSED.items()}
    return ask(server.line.split()[-1], calls)


@pytest.fixture
def answered(answers: dict[str, Answer]) -> Callable[[str], dict[str, Any]]:
    def look_up(label: str) -> dict[str, Any]:
        answer = answers[label]
        assert answer.code == "OK", answer
        return answer.response

    return look_up


@pytest.mark.parametrize("label", list(REFUSED))
def test_refusals_have_the_real_codes_and_words(answers: dict[str, Answer], label: str) -> None:
    _, _, code, text = REFUSED[label]
    assert (answers[label].code, answers[label].details) == (code, text)


@pytest.mark.parametrize(
    ("label", "version", "shape", "values"),
    [
        ("predict", "2", [3], [3.5, 4.0, 5.5]),
        ("predict as content", "2", [1], [3.5]),
        ("predict scalar", "2", [], [3.5]),
        ("predict nothing", "2", [0], []),
        ("predict filled", "2", [2, 2], [4.0, 4.0, 4.0, 4.0]),
        ("predict version 1", "1", [3], [2.5, 3.0, 4.5]),
        ("predict by label", "1", [3], [2.5, 3.0, 4.5]),
        ("predict named signature", "2", [3], [3.5, 4.0, 5.5]),
    ],
)
def test_predict_answers_in_typed_fields_and_says_who_answered(
    answered: Callable[[str], Any], label: str, version: str, shape: list[int], values: list[float]
) -> None:
    response = answered(label)
    assert response["model_spec"] == {"name": "half", "version": version, "signature_name": "serving_default"}
    y = response["outputs"]["y"]
    assert y["dtype"] == "DT_FLOAT"
    assert [int(dim.get("size", 0)) for dim in y["tensor_shape"].get("dim", [])] == shape
    assert y.get("float_val", []) == values
    assert "tensor_content" not in y


def test_strings_go_in_and_out(answered: Callable[[str], Any]) -> None:
    outputs = answered("flights")["outputs"]
    assert sorted(outputs) == ["copy", "pair", "probability"]
    assert outputs["probability"]["float_val"] == pytest.approx([0.1, 0.2])
    assert [base64.b64decode(text) for text in outputs["copy"]["string_val"]] == [b"UA!", b"UA!"]
    assert outputs["pair"]["float_val"] == [0.0, 1.0, 100.0, 101.0]


def test_strings_of_every_length_survive(answered: Callable[[str], Any]) -> None:
    """TensorFlow keeps up to 22 characters in place, and points to longer ones."""
    copies = [base64.b64decode(text) for text in answered("long strings")["outputs"]["copy"]["string_val"]]
    assert copies == [b"a" * 22 + b"!", b"b" * 23 + b"!", b"!", b"c" * 5000 + b"!"]


def test_only_the_outputs_asked_for_are_computed(answered: Callable[[str], Any]) -> None:
    assert sorted(answered("flights filtered")["outputs"]) == ["copy", "pair"]


def test_a_signature_without_inputs_answers(answered: Callable[[str], Any]) -> None:
    response = answered("describe")
    assert response["model_spec"]["signature_name"] == "describe"
    said = {name: base64.b64decode(one["string_val"][0]).decode() for name, one in response["outputs"].items()}
    assert said == {"fingerprint": FINGERPRINT, "definitions": DEFINITIONS}


def test_metadata_has_every_signature(answered: Callable[[str], Any]) -> None:
    response = answered("metadata")
    assert response["model_spec"] == {"name": "half", "version": "2"}
    packed = response["metadata"]["signature_def"]
    assert packed["@type"] == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    assert sorted(packed["signature_def"]) == ["__saved_model_init_op", "serving_default"]
    default = packed["signature_def"]["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert default["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1"}]}


def test_status_lists_versions_highest_first(answered: Callable[[str], Any]) -> None:
    versions = answered("status")["model_version_status"]
    assert [(one["version"], one["state"]) for one in versions] == [("2", "AVAILABLE"), ("1", "AVAILABLE")]
    assert all(one["status"] == {} for one in versions)
    assert [one["version"] for one in answered("status of one")["model_version_status"]] == ["1"]
