"""The REST API: TensorFlow Serving's paths, bodies, codes and words, and what it will not swallow."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import json_bulk as bulk
from serving import rest_json
from serving.json_text import decimal, decimals
from tests.processes import Started, start
from tests.serving_models import DEFINITIONS, put


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        return str(self.json["error"])


class Rest:
    def __init__(self, address: str) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def predict(self, model: str, body: str | dict[str, Any]) -> Reply:
        text = body if isinstance(body, str) else json.dumps(body)
        return self.ask("POST", f"/v1/models/{model}:predict", text.encode())


def served(folder: Any, *flags: str) -> Started:
    listed = ""
    for name in ("half_plus_two", "flights", "whole", "two_inputs"):
        put(name, folder / name, 1)
        listed += f'config {{ name: "{name}" base_path: "{folder / name}" version_labels {{ key: "a b" value: 1 }} }} '
    (folder / "models.config").write_text(f"model_config_list {{ {listed} }}")
    config = f"--model_config_file={folder / 'models.config'}"
    return start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", config, *flags], ready="listening on 127.0.0.1:"
    )


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    server = served(tmp_path_factory.mktemp("models"))
    yield Rest(server.wait_for_line("REST API on").split()[-1])
    server.kill()


def test_rows_in_rows_out_to_the_last_space(rest: Rest) -> None:
    reply = rest.predict("half_plus_two", '{"instances": [1.0, 2.0, 5.0]}')
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.text == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_columns_in_columns_out(rest: Rest) -> None:
    assert rest.predict("half_plus_two", {"inputs": [1.0, 2.0]}).json == {"outputs": [2.5, 3.0]}
    assert rest.predict("half_plus_two", {"inputs": {"x": [[1], [2]]}}).json == {"outputs": [[2.5], [3.0]]}


def test_several_inputs_and_outputs_are_named(rest: Rest) -> None:
    rows = [{"delay": 1.5, "carrier": "UA"}, {"delay": 0, "carrier": {"b64": "QUE="}}]
    row = {"copy": "UA!", "pair": [1.5, 2.5], "probability": 0.101500005}
    assert rest.predict("flights", {"instances": rows}).json["predictions"][0] == row
    columns = {"delay": [1.5, 0], "carrier": ["UA", "AA"]}
    outputs = rest.predict("flights", {"inputs": columns}).json["outputs"]
    assert outputs["copy"] == ["UA!", "AA!"]
    assert outputs["pair"] == [[1.5, 2.5], [0.0, 1.0]]


def test_a_version_or_a_label_may_be_named_and_is_decoded_late(rest: Rest) -> None:
    for where in ("/versions/1", "/labels/a%20b"):
        assert rest.predict(f"half_plus_two{where}", {"instances": [1]}).json == {"predictions": [2.5]}
    assert rest.predict("%68alf_plus_two", {"instances": [1]}).status == 200
    for path in ("..%2f..%2fetc", "a%2Fb", "..", "%00"):
        reply = rest.predict(path, {"instances": [1]})
        assert reply.status == 404
        assert reply.error.startswith("Servable not found for request: Latest(")


STRANGE_NAMES = [
    *(
        "..",
        "../..",
        "..\\..",
        "....//",
        "/etc/passwd",
        "\\\\host\\share",
        "C:\\x",
        "~root",
        ".",
        " ",
        "\0",
        "a\0b",
        "\r\nX: y",
    ),
    *("half_plus_two/", "half_plus_two\0", "half_plus_two/../flights", "./half_plus_two", "HALF_PLUS_TWO", "*", "?"),
    *(
        "\u2025/",
        "\uff0e\uff0e/",
        "\u202e",
        "\u0000\u0301",
        "${x}",
        "$(id)",
        "`id`",
        "{}",
        "%s%n",
        "x" * 4096,
        "../" * 900,
    ),
]


def test_names_are_looked_up_and_nothing_else(rest: Rest) -> None:
    """Each once encoded and once more: what is decoded twice finds its way past a check."""
    for name in STRANGE_NAMES:
        once = urllib.parse.quote(name, safe="")
        for encoded in (once, urllib.parse.quote(once, safe="")):
            reply = rest.predict(encoded, {"instances": [1]})
            assert (reply.status, reply.error) == (
                404, f"Servable not found for request: Latest({urllib.parse.unquote(encoded)})",
            )  # fmt: skip
            assert rest.get(f"/v1/models/{encoded}").status == 404
            label = rest.get(f"/v1/models/half_plus_two/labels/{encoded}/metadata")
            assert label.error == f"Unrecognized servable version label: {urllib.parse.unquote(encoded)}"


def test_nan_and_infinity_are_bare_words_and_the_rest_of_the_body_is_not_read(rest: Rest) -> None:
    reply = rest.predict("half_plus_two", '{"instances": [NaN, Infinity, -Infinity]} and so on')
    assert reply.text == '{\n    "predictions": [NaN, Infinity, -Infinity\n    ]\n}'


def test_status(rest: Rest) -> None:
    one = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/flights", "/v1/models/flights/versions/1", "/V1/MODELS/flights"):
        assert rest.get(path).json == {"model_version_status": [one]}


def test_metadata(rest: Rest) -> None:
    said = rest.get("/v1/models/flights/metadata").json
    assert said["model_spec"] == {"name": "flights", "signature_name": "", "version": "1"}
    signatures = said["metadata"]["signature_def"]["signature_def"]
    assert sorted(signatures) == ["__saved_model_init_op", "describe", "serving_default"]
    assert signatures["serving_default"]["defaults"] == {}
    assert signatures["serving_default"]["inputs"]["delay"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_delay:0",
    }
    assert DEFINITIONS not in json.dumps(said)


NOT_A_FLOAT = 'JSON Value: "x" Type: String is not of expected type: float'
REFUSED: list[tuple[str, Any, int, str]] = [
    ("half_plus_two", "", 400, "JSON Parse error: The document is empty"),
    ("half_plus_two", "[1]", 400, "JSON Value: [\n    1\n] Is not object"),
    *(
        ("half_plus_two", body, 400, f"JSON Parse error: {text}")
        for body, text in {
            " \n": "The document is empty. at offset: 2",
            "instances = [1, 2]": "Invalid value. at offset: 0",
            "{": "Missing a name for object member. at offset: 1",
            '{"instances" [1]}': "Missing a colon after a name of object member. at offset: 13",
            '{"instances": [1]': "Missing a comma or } after an object member. at offset: 17",
            ' {"é": [1 2]}': "Missing a comma or ] after an array element. at offset: 11",
            '{"instances': "Missing a closing quotation mark in string.",
            '{"\\x": 1}': "Invalid escape character in string.",
            '{"\\u00zz": 1}': "Incorrect hex digit after \\u escape in string.",
            '{"a\nb": 1}': "Invalid encoding in string.",
            '{"instances": [1.]}': "Miss fraction part in number.",
            '{"instances": [1e]}': "Miss exponent in number.",
            '{"instances": [1e400]}': "Number too big to be stored in double.",
        }.items()
    ),
    ("half_plus_two", '{"instances": [%s]}' % ("9" * 400), 400, "Number too big to be stored in double."),
    ("half_plus_two", {"inputs": "a\x1f"}, 400, 'JSON Value: "a\\u001F" Type: String is not'),
    ("whole", {"inputs": 0.123456789012}, 400, "JSON Value: 0.123456791 Type: Number"),
    ("half_plus_two", '{"instances": {"a": [1.5, true, null, NaN, {}, []]}}', 400, (
        'JSON Value: {\n    "instances": {\n        "a": [\n            1.5,\n            true,\n            null,\n'
        '            NaN,\n            {},\n            []\n        ]\n    }\n} Excepting \'instances\'')),
    ("half_plus_two", {}, 400, "Missing 'inputs' or 'instances' key"),
    ("half_plus_two", {"instances": [1], "inputs": [1]}, 400, "expecting only one of 'inputs' or 'instances' keys"),
    ("half_plus_two", {"instances": []}, 400, "No values in 'instances' array"),
    ("half_plus_two", {"instances": 1}, 400, "Excepting 'instances' to be an list/array"),
    ("half_plus_two", {"signature_name": 1, "instances": [1]}, 400, "'signature_name' key must be a string value."),
    ("half_plus_two", {"signature_name": "s", "instances": [1]}, 400, "Failed to get input map for signature: s"),
    ("flights", {"signature_name": "describe", "instances": [1]}, 400, "input map for signature: describe"),
    ("half_plus_two", {"instances": ["x"]}, 400, (f"Failed to process element: 0 of 'instances' list. Error: "
     f"INVALID_ARGUMENT: {NOT_A_FLOAT}")),
    ("half_plus_two", {"inputs": "x"}, 400, NOT_A_FLOAT),
    ("half_plus_two", {"inputs": [True]}, 400, "JSON Value: true Type: True is not of expected type: float"),
    ("half_plus_two", {"inputs": [None]}, 400, "Type: Null is not of expected type: float"),
    ("half_plus_two", {"inputs": [16777217]}, 400,
     "Cannot convert JSON value: 16777217 to float without loss of precision."),
    ("half_plus_two", {"inputs": [1e300]}, 400, "Cannot convert JSON value: 1e+300 to float without loss"),
    ("half_plus_two", {"inputs": [[1], [1, 2]]}, 400, ("Encountered list at unexpected size: 2 at level: 1 expected "
     "size: 1")),
    ("half_plus_two", {"inputs": [1, [2]]}, 400, "Encountered list at unexpected level: 1 expected < 1"),
    ("half_plus_two", {"inputs": [[1], 2]}, 400, "found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ("half_plus_two", {"instances": [[1], [1, 2]]}, 400, "Expecting tensor size: 1 but got: 2"),
    ("half_plus_two", {"instances": [[[1], [2]], [[1, 2]]]}, 400, "Expecting shape [2,1] but got: [1,2]"),
    ("half_plus_two", {"instances": [1, {"x": 1}]}, 400, "Expecting value/list but got object at item 1"),
    ("two_inputs", {"instances": [{"x": 1, "w": 1}, 1]}, 400, "Expecting object but got list at item 1"),
    ("two_inputs", {"instances": [{"x": 1}]}, 400, "keys must be equal to: w,x"),
    ("two_inputs", {"instances": [{"x": 1, "w": 1, "v": 1}]}, 400, "does not have named input: v"),
    ("two_inputs", {"instances": [1]}, 400, "instances is a plain list, but expecting list of objects"),
    ("two_inputs", {"inputs": [1]}, 400, "inputs is a plain value/list, but expecting an object"),
    ("two_inputs", {"inputs": {"x": [1]}}, 400, "Missing named input: w in 'inputs' object."),
    ("flights", {"inputs": {"delay": [1], "carrier": [{"b64": "*"}]}}, 400, "Unable to base64 decode"),
    ("flights", {"inputs": {"delay": [1], "carrier": [{"b65": ""}]}}, 400, "not formatted correctly for base64 data"),
    ("whole", {"instances": [1.0]}, 400, "JSON Value: 1.0 Type: Number is not of expected type: int64"),
    ("whole", {"instances": [2**63]}, 400, "is not of expected type: int64"),
    ("absent", {"instances": [1]}, 404, "Servable not found for request: Latest(absent)"),
    ("whole/versions/7", {"instances": [1]}, 404, "Servable not found for request: Specific(whole, 7)"),
    ("whole/labels/L", {"instances": [1]}, 400, "Unrecognized servable version label: L"),
    ("whole/versions/99999999999999999999", {}, 400, "Failed to convert version: 99999999999999999999 to numeric."),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "status", "text"), REFUSED)
def test_refusals_have_the_real_codes_and_words(rest: Rest, model: str, body: Any, status: int, text: str) -> None:
    reply = rest.predict(model, body)
    assert text in reply.error
    assert reply.status == status


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/models/m", 404, "Could not find any versions of model m"),
        ("GET", "/v1/models/whole/versions/7", 404, "Could not find version 7 of model whole"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("POST", "/v1/models/whole", 400, "Malformed request: POST /v1/models/whole"),
        ("PUT", "/v1/models/whole", 400, "Malformed request: PUT /v1/models/whole"),
        ("DELETE", "/v1/models/whole:predict", 400, "Malformed request: DELETE /v1/models/whole:predict"),
        ("GET", "/v1/models/whole:predict", 400, "Malformed request: GET /v1/models/whole:predict"),
        ("OPTIONS", "/v1/models/whole:predict", 400, "Malformed request: OPTIONS"),
    ],
)
def test_other_requests_are_refused_as_the_real_server_does(
    rest: Rest, method: str, path: str, status: int, text: str
) -> None:
    reply = rest.ask(method, path)
    assert text in reply.error
    assert reply.status == status


def test_other_paths_are_not_found(rest: Rest) -> None:
    assert rest.get("/").status == 404
    assert rest.get("/v2/models/whole").status == 404


def test_a_page_of_another_name_is_refused(rest: Rest) -> None:
    """DNS rebinding: the browser connects here, but says whom it believes to talk to."""
    for host in ("evil.example", "127.0.0.1.evil.example:80", ""):
        assert rest.ask("POST", "/v1/models/whole:predict", '{"instances": [1]}', Host=host).status == 403
    assert rest.ask("GET", "/v1/models/whole", Host="localhost:1").status == 200
    assert "access-control-allow-origin" not in rest.ask("GET", "/v1/models/whole", Origin="http://x").headers


def test_browsers_are_let_in_on_request(tmp_path: Any) -> None:
    server = served(tmp_path, "--rest_api_enable_cors_support")
    try:
        rest = Rest(server.wait_for_line("REST API on").split()[-1])
        reply = rest.ask("OPTIONS", "/v1/models/whole:predict", Origin="http://a.example")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert reply.headers["access-control-allow-methods"] == "POST, GET"
    finally:
        server.kill()


def raw(rest: Rest, request: bytes) -> bytes:
    """The first line of the answer to bytes that no client library would send."""
    with socket.create_connection((rest.host, rest.port), timeout=120) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


def test_who_waits_for_leave_to_send_the_body_gets_it(rest: Rest) -> None:
    head = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    assert b"100 Continue" in raw(rest, head + b"Content-Length: 18\r\n\r\n")


def test_bodies_in_pieces_and_compressed_are_read(rest: Rest) -> None:
    head = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n"
    chunked = head + b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"instances": [1\r\n2\r\n]}\r\n0\r\n\r\n'
    assert b"200" in raw(rest, chunked)
    body = gzip.compress(b'{"instances": [1]}')
    assert rest.ask("POST", "/v1/models/half_plus_two:predict", body, Content_Encoding="gzip").status == 200


def test_bodies_that_are_too_much_are_not_taken_in(rest: Rest) -> None:
    head = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 413 " in raw(rest, head + b"Content-Length: 99999999999\r\n\r\n")
    assert b" 413 " in raw(rest, head + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFF\r\n")
    assert b" 400 " in raw(rest, head + b"Content-Length: -1\r\n\r\n")
    bomb = gzip.compress(b" " * 100_000_000, 1)
    path = "/v1/models/half_plus_two:predict"
    assert rest.ask("POST", path, bomb, Content_Encoding="gzip").status == 413
    assert rest.ask("POST", path, b"junk", Content_Encoding="gzip").status == 400
    for depth in (100, 500_000):
        nested = '{"instances": ' + "[" * depth + "]" * depth + "}"
        assert "Nested deeper" in rest.predict("half_plus_two", nested).error
    digits = '{"instances": [' + "9" * 10_000 + "]}"
    assert rest.predict("half_plus_two", digits).status == 400
    assert rest.predict("half_plus_two", {"instances": [1]}).status == 200


@pytest.mark.parametrize("single", [True, False])
def test_every_float_written_gives_itself_back(single: bool) -> None:
    randomness = np.random.default_rng(1)
    bits = randomness.integers(0, 2**32 if single else 2**63, 3000, np.uint64)
    values = bits.astype(np.uint32).view(np.float32) if single else bits.view(np.float64)
    for value in values[np.isfinite(values)].tolist():
        text = decimal(value, single)
        back = float(np.float32(text)) if single else float(text)
        assert back == value
        assert "." in text or "e" in text
    assert [decimal(v, single) for v in (math.nan, math.inf, -math.inf)] == ["NaN", "Infinity", "-Infinity"]


VALUES = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.text(max_size=3), st.none(), st.just({"b64": "aGk="})
)
ROWS = st.one_of(
    *(st.lists(one, max_size=4) for one in (VALUES, st.floats(width=32), st.integers(-9, 9), st.text(max_size=3))),
    st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=3),
    st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3), max_leaves=8),
)


@given(value=ROWS, dtype=st.sampled_from(sorted({*bulk.DECIMALS, *bulk.INTEGERS, 7, 10})))
def test_many_values_at_once_are_taken_as_one_by_one(value: Any, dtype: int) -> None:
    found = bulk.elements(value, dtype)
    if found is not None:
        shape, flat = rest_json._dense(value, dtype)
        assert (found[0], repr(found[1])) == (shape, repr(flat))


@given(rows=st.lists(st.fixed_dictionaries({"x": ROWS}, optional={"w": VALUES}), min_size=1, max_size=4))
def test_many_rows_at_once_are_taken_as_one_by_one(rows: list[Any]) -> None:
    for names in ("x", "w"), ("x",):
        inputs = {name: SimpleNamespace(dtype=1) for name in names}
        found = bulk.columns(rows, {name: one.dtype for name, one in inputs.items()})
        if found is not None:
            assert repr(sorted(found.items())) == repr(sorted(rest_json._checked_rows(rows, inputs).items()))


@given(st.lists(st.floats(width=32)), st.booleans())
def test_many_numbers_are_written_as_one_by_one(values: list[float], single: bool) -> None:
    assert decimals(values, single) == [decimal(value, single) for value in values]
