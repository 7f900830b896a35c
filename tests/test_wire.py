"""The messages are the official ones to the last byte, and cost next to nothing to load."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving import wire
from serving.request import RequestEncoder, Signature, SignatureMismatchError
from serving.tensors import TensorError, numbers, strings, varint, write_numbers, write_strings
from serving.wire import DataType, PredictRequest, TensorProto
from tests.processes import REPOSITORY


def run(code_or_module: list[str]) -> str:
    """Output of a Python process of its own."""
    done = subprocess.run(
        [sys.executable, *code_or_module], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def official() -> Any:
    return json.loads(run(["-m", "tests.official_messages"]).splitlines()[-1])


def test_every_message_is_written_and_read_as_the_official_one(official: Any) -> None:
    assert official["differences"] == []
    assert official["messages"] > 70
    assert official["fields"] > 200
    assert official["compared"] == official["messages"] * 2 * 40


def test_service_paths_and_type_urls_are_the_official_ones(official: Any) -> None:
    assert {wire.PREDICT, wire.GET_MODEL_METADATA, wire.GET_MODEL_STATUS} <= set(official["methods"])
    assert official["type_url"] == "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def test_importing_the_client_is_quick_small_and_without_tensorflow() -> None:
    code = (
        "import time, sys, json; began = time.process_time(); import serving.client; "
        "took, modules = time.process_time() - began, sorted(sys.modules); import psutil; "
        "print(json.dumps([took, psutil.Process().memory_info().rss / 2**20, modules]))"
    )
    runs = [json.loads(run(["-c", code])) for _ in range(3)]  # the first may find cold caches
    assert min(took for took, _, _ in runs) < 0.5
    assert max(megabytes for _, megabytes, _ in runs) < 60
    heavy = {"tensorflow", "tensorflow_serving", "keras", "pyarrow", "shared_features", "apache_beam"}
    assert heavy.isdisjoint(runs[0][2])


NUMERIC = ["FLOAT", "DOUBLE", "INT32", "INT64", "UINT8", "INT8", "INT16", "UINT16", "UINT32", "UINT64"]
NUMERIC += ["BOOL", "HALF", "COMPLEX64", "COMPLEX128"]


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("as_content", [False, True])
def test_numbers_survive_the_message(name: str, as_content: bool) -> None:
    from serving.tensors import ELEMENT_TYPES

    dtype = int(DataType[f"DT_{name}"])
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(ELEMENT_TYPES[dtype].storage)
    proto = TensorProto()
    write_numbers(proto, dtype, array, as_content)
    back = numbers(TensorProto.FromString(proto.SerializeToString()))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_strings_survive_the_message() -> None:
    proto = TensorProto()
    write_strings(proto, [b"", b"JFK", "Zürich".encode(), b"\0"], (2, 2))
    assert strings(proto) == ([b"", b"JFK", "Zürich".encode(), b"\0"], (2, 2))


def tensor(dtype: str, shape: list[int], **values: Any) -> Any:
    proto = TensorProto(dtype=DataType[f"DT_{dtype}"].value, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("proto", "wanted"),
    [
        (tensor("FLOAT", [3], float_val=[1, 2]), [1, 2, 2]),  # the last value fills the rest
        (tensor("FLOAT", [3]), [0, 0, 0]),
        (tensor("FLOAT", [1], float_val=[1, 2]), [1]),
        (tensor("FLOAT", [], float_val=[7]), 7),
        (tensor("FLOAT", [0, 5]), np.zeros((0, 5))),
        (tensor("UINT8", [2], int_val=[255, 256]), [255, 0]),
        (tensor("HALF", [1], half_val=[0x3C00]), [1.0]),
    ],
)
def test_typed_fields_are_read_by_tensorflows_rules(proto: Any, wanted: Any) -> None:
    np.testing.assert_array_equal(numbers(proto), wanted)


def test_strings_are_filled_and_split_by_tensorflows_rules() -> None:
    assert strings(tensor("STRING", [3], string_val=[b"a"]))[0] == [b"a"] * 3
    assert strings(tensor("STRING", [2], tensor_content=b"\x01\x02abc"))[0] == [b"a", b"bc"]


@pytest.mark.parametrize(
    "proto",
    [
        tensor("FLOAT", [-1], float_val=[1]),
        tensor("FLOAT", [2**62, 4], float_val=[1]),
        tensor("FLOAT", [2**62, 0]),
        tensor("FLOAT", [10**12], float_val=[1]),  # 4 TB from one value
        tensor("FLOAT", [10**9]),
        tensor("FLOAT", [1] * 300),
        tensor("FLOAT", [2], tensor_content=b"123"),
        tensor("RESOURCE", [1]),
        tensor("VARIANT", [1]),
        tensor("FLOAT_REF", [1]),
        TensorProto(),
        TensorProto(dtype=1, tensor_shape=wire.TensorShapeProto(unknown_rank=True)),
    ],
)
def test_impossible_tensors_are_refused_before_memory_is_taken(proto: Any) -> None:
    with pytest.raises(TensorError):
        numbers(proto)


@pytest.mark.parametrize(
    "proto",
    [
        tensor("STRING", [10**9], string_val=[b"x"]),
        tensor("STRING", [10**9], tensor_content=b"\x01x"),
        tensor("STRING", [2], tensor_content=b"\x01\xff"),
        tensor("STRING", [2], tensor_content=b"\x01\x02abcd"),
        tensor("STRING", [1], tensor_content=b"\xff\xff\xff\xff\xff\xff\x01"),
    ],
)
def test_impossible_strings_are_refused_before_memory_is_taken(proto: Any) -> None:
    with pytest.raises(TensorError):
        strings(proto)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**63])
def test_varint(number: int) -> None:
    proto = TensorProto(uint64_val=[number])
    assert proto.SerializeToString().endswith(varint(number))


SIGNATURE = Signature(
    {"x": "DT_FLOAT", "wide": "DT_DOUBLE", "flag": "DT_FLOAT", "origin": "DT_STRING", "column": "DT_FLOAT"},
    {"probability": "DT_FLOAT", "label": "DT_STRING"},
    input_shapes={"column": (None, 1)},
)


def block(rows: int) -> pa.RecordBatch:
    """Rows with every kind of feature; each third value is null."""
    values: list[Any] = [None if i % 3 == 2 else i for i in range(rows)]
    return pa.record_batch(
        {
            "x": pa.array(values, pa.int64()),
            "wide": pa.array([None if v is None else v / 7 for v in values], pa.float64()),
            "flag": pa.array([None if v is None else v % 2 == 0 for v in values], pa.bool_()),
            "origin": pa.array([None if v is None else "é" * 70 + str(v % 5) for v in values], pa.string()),
            "column": pa.array([float(i) for i in range(rows)]),
            "unasked": pa.array(["x"] * rows),
        }
    )


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 200])
def test_a_block_becomes_the_request_that_the_message_classes_would_write(rows: int) -> None:
    data = block(rows)
    request = PredictRequest.FromString(RequestEncoder("m", SIGNATURE).encode(data))
    wanted = PredictRequest(output_filter=["probability"])
    wanted.model_spec.name = "m"
    for name in ("x", "wide", "flag", "column"):
        kind, storage = (2, np.float64) if name == "wide" else (1, np.float32)
        values = [np.nan if value is None else float(value) for value in data.column(name).to_pylist()]
        array = np.array(values).astype(storage)
        write_numbers(wanted.inputs[name], kind, array.reshape(-1, 1) if name == "column" else array, as_content=True)
    texts = [(value or "").encode() for value in data.column("origin").to_pylist()]
    write_strings(wanted.inputs["origin"], texts, (rows,))
    assert request.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def test_slices_and_dictionary_columns_are_encoded_as_what_they_stand_for() -> None:
    encoder = RequestEncoder("m", SIGNATURE)
    whole = block(50)
    origin = whole.schema.get_field_index("origin")
    coded = whole.set_column(origin, "origin", whole.column("origin").dictionary_encode())
    assert encoder.encode(coded) == encoder.encode(whole)
    copied = pa.Table.from_batches([whole.slice(20, 17)]).take(list(range(17))).to_batches()[0]
    assert encoder.encode(whole.slice(20, 17)) == encoder.encode(copied)


def test_a_value_does_not_depend_on_its_neighbours() -> None:
    """int64 beyond 2**53 rounds the same whether or not another row is null."""
    encoder = RequestEncoder("m", Signature({"x": "DT_FLOAT"}, {"y": "DT_FLOAT"}))
    odd = 2**62 + 2**38 + 1
    alone, beside = pa.array([odd, 1]), pa.array([odd, None], pa.int64())
    first = [
        numbers(PredictRequest.FromString(encoder.encode(pa.record_batch({"x": column}))).inputs["x"])[0]
        for column in (alone, beside)
    ]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (Signature({"absent": "DT_FLOAT"}, {"y": "DT_FLOAT"}), "'absent'"),
        (Signature({"origin": "DT_FLOAT"}, {"y": "DT_FLOAT"}), "'origin'.*string"),
        (Signature({"x": "DT_STRING"}, {"y": "DT_FLOAT"}), "'x'.*int64"),
        (Signature({"x": "DT_RESOURCE"}, {"y": "DT_FLOAT"}), "DT_RESOURCE"),
        (Signature({"x": "DT_FLOAT"}, {"y": "DT_STRING"}), "numeric output"),
        (Signature({"x": "DT_FLOAT"}, {"y": "DT_FLOAT"}, input_shapes={"x": (None, 3)}), "'x'.*shape"),
    ],
)
def test_what_cannot_be_encoded_is_named(signature: Signature, text: str) -> None:
    with pytest.raises(SignatureMismatchError, match=text):
        RequestEncoder("m", signature).encode(block(3))


def test_rows_without_a_value_for_an_integer_input_are_named() -> None:
    signature = Signature({"x": "DT_INT32", "n": "DT_INT64", "b": "DT_BOOL"}, {"y": "DT_FLOAT"})
    encoder = RequestEncoder("m", signature)
    data = pa.record_batch(
        {
            "x": pa.array([1.0, 2.5, 3e9, 4.0, float("nan"), 5.0]),
            "n": pa.array([2**62 + 1, 1, 1, None, 1, 1], pa.int64()),
            "b": pa.array([True, True, True, True, True, None]),
        }
    )
    unusable = encoder.unusable(data)
    assert sorted(unusable) == [1, 2, 3, 4, 5]
    assert "2.5" in unusable[1]
    assert "'n' is null" in unusable[3]
    request = PredictRequest.FromString(encoder.encode(data.slice(0, 1)))
    assert numbers(request.inputs["n"]).tolist() == [2**62 + 1]
