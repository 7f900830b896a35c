"""Signatures over tf.Example: Classify, Regress and MultiInference by official stubs and over REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.official_client import Answer, ask
from tests.processes import Started, start
from tests.serving_calls import rest
from tests.serving_models import put


def example(**features: float) -> str:
    found = " ".join(
        f'feature {{ key: "{name}" value {{ float_list {{ value: {value} }} }} }}' for name, value in features.items()
    )
    return f"features {{ {found} }}"


def spec(signature: str = "", name: str = "m") -> str:
    return f'model_spec {{ name: "{name}" signature_name: "{signature}" }}'


def examples(*given: str) -> str:
    return "input { example_list { " + " ".join(f"examples {{ {one} }}" for one in given) + " } }"


def tasks(*signatures: tuple[str, str]) -> str:
    return " ".join(
        f'tasks {{ {spec(signature)} method_name: "tensorflow/serving/{method}" }}' for signature, method in signatures
    )


TWO = examples(example(x=2), example(x=4))
INVALID = "INVALID_ARGUMENT"
ANSWERED: dict[str, tuple[str, str]] = {
    "classify": ("Classify", spec("classify_x_to_y") + TWO),
    "regress": ("Regress", spec("regress_x_to_y") + TWO),
    "regress with context": (
        "Regress",
        spec("regress_x2_to_y3")
        + f"input {{ example_list_with_context {{ examples {{ {example(x=1)} }} context {{ {example(x2=2)} }} }} }}",
    ),
    "multi": ("MultiInference", tasks(("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")) + TWO),
}
REFUSED: dict[str, tuple[str, str, str, str]] = {
    "classify nothing": ("Classify", spec("classify_x_to_y"), INVALID, "Input is empty."),
    "classify without spec": ("Classify", TWO, INVALID, "Missing ModelSpec"),
    "regress an empty list": ("Regress", spec("regress_x_to_y") + examples(), INVALID, "Input is empty."),
    "classify no signature": ("Classify", spec("s") + TWO, INVALID, "No signature was found with the name: s"),
    "classify by another method": (
        "Classify",
        spec("regress_x_to_y") + TWO,
        INVALID,
        (
            "Expected classification signature method_name to be tensorflow/serving/classify. "
            "Was: tensorflow/serving/regress"
        ),
    ),
    "regress by default": (
        "Regress",
        spec() + TWO,
        INVALID,
        ("Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict"),
    ),
    "multi of two models": (
        "MultiInference",
        f"tasks {{ {spec('regress_x_to_y')} method_name: 'tensorflow/serving/regress' }}"
        f"tasks {{ {spec('classify_x_to_y', 'n')} method_name: 'tensorflow/serving/classify' }}" + TWO,
        INVALID,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    "multi twice the same": (
        "MultiInference",
        tasks(("regress_x_to_y", "regress"), ("regress_x_to_y", "regress")) + TWO,
        INVALID,
        "Duplicate evaluation of signature: regress_x_to_y",
    ),
    "multi no signature": (
        "MultiInference",
        tasks(("s", "regress")) + TWO,
        INVALID,
        "Requested signature not found in model graph: s",
    ),
    "multi by predict": (
        "MultiInference",
        tasks(("regress_x_to_y", "predict")) + TWO,
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict",
    ),
    "multi nothing": ("MultiInference", TWO, INVALID, "Missing ModelSpec"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("model")
    put("estimator", folder, 123)
    started = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=m", f"--model_base_path={folder}",
         "--enable_signature_method_name_check"],
        ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield started
    started.kill()


@pytest.fixture(scope="module")
def answers(server: Started) -> dict[str, Answer]:
    calls = ANSWERED | {label: (method, text) for label, (method, text, _, _) in REFUSED.items()}
    return ask(server.line.split()[-1], calls)


@pytest.mark.parametrize("label", list(REFUSED))
def test_refusals_have_the_real_codes_and_words(answers: dict[str, Answer], label: str) -> None:
    _, _, code, text = REFUSED[label]
    assert (answers[label].code, answers[label].details) == (code, text)


def test_classes_have_scores(answers: dict[str, Answer]) -> None:
    response = answers["classify"].response
    assert response["result"] == {"classifications": [{"classes": [{"score": 3.0}]}, {"classes": [{"score": 4.0}]}]}
    assert response["model_spec"] == {"name": "m", "version": "123", "signature_name": "classify_x_to_y"}


def test_regressions_have_values(answers: dict[str, Answer]) -> None:
    assert answers["regress"].response["result"] == {"regressions": [{"value": 3.0}, {"value": 4.0}]}


def test_a_context_is_part_of_every_example(answers: dict[str, Answer]) -> None:
    assert answers["regress with context"].response["result"] == {"regressions": [{"value": 4.0}]}


def test_several_signatures_answer_to_the_same_examples(answers: dict[str, Answer]) -> None:
    first, second = answers["multi"].response["results"]
    assert first["regression_result"] == {"regressions": [{"value": 3.0}, {"value": 4.0}]}
    assert first["model_spec"]["signature_name"] == "regress_x_to_y"
    assert len(second["classification_result"]["classifications"]) == 2


def over_rest(server: Started, method: str, body: Any) -> tuple[int, Any]:
    status, text = rest(server, "POST", f"m:{method}", body)
    return status, json.loads(text)


def test_rest_answers_with_results(server: Started) -> None:
    rows = [{"x": 2.0}, {"x": [4.0]}]
    classify = {"signature_name": "classify_x_to_y", "examples": rows}
    assert over_rest(server, "classify", classify) == (200, {"results": [[["", 3.0]], [["", 4.0]]]})
    regress = {"signature_name": "regress_x_to_y", "examples": rows}
    assert over_rest(server, "regress", regress) == (200, {"results": [3.0, 4.0]})
    context = {"signature_name": "regress_x2_to_y3", "context": {"x2": 2.0}, "examples": [{"x": 1.0}]}
    assert over_rest(server, "regress", context) == (200, {"results": [4.0]})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": [1, "a"]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e300}]}, "Cannot convert JSON value: 1e+300 to float without loss of precision."),
        ({"signature_name": "s", "examples": [{"x": 1.0}]}, "No signature was found with the name: s"),
    ],
)
def test_rest_refusals(server: Started, body: Any, text: str) -> None:
    status, said = over_rest(server, "regress", body)
    assert status == 400
    assert text in said["error"]
