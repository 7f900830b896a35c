"""Recorded answers of the REST API, to the last space: tests/serving_golden.json, one case a key.

Written after the real server's documentation and source, not from our own answers: read it beside these when it has
to change. The model is the classic half plus two: several signatures over tf.Example.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import start
from tests.serving_models import put

CASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("serving_golden.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[http.client.HTTPConnection]:
    folder = tmp_path_factory.mktemp("golden")
    put("estimator", folder, "00000123")
    server = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=half_plus_two",
         f"--model_base_path={folder}"], ready="listening on 127.0.0.1:",
    )  # fmt: skip
    made = http.client.HTTPConnection(server.wait_for_line("REST API on").split()[-1], timeout=120)
    yield made
    made.close()
    server.kill()


@pytest.mark.parametrize("name", list(CASES))
def test_answers_are_the_recorded_ones(connection: http.client.HTTPConnection, name: str) -> None:
    case = CASES[name]
    connection.request(case["method"], case["path"], json.dumps(case["body"]) if "body" in case else None)
    reply = connection.getresponse()
    text = reply.read().decode()
    assert text.split("\n") == case["answer"]
    assert (reply.status, reply.headers["Content-Type"]) == (case["status"], "application/json")
