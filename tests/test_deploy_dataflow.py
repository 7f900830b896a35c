"""The Flex Template: its parameters are the command's options, and its image is made of what the job runs on."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import pytest

from commands.stream import stream
from tests.repository import ROOT

FOLDER = ROOT / "deploy" / "dataflow"
METADATA = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))
PARAMETERS: dict[str, dict[str, Any]] = {one["name"]: one for one in METADATA["parameters"]}
LAUNCHER = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=us-central1",
    "--job_name=shop",
    "--temp_location=gs://my-bucket/temp",
    "--sdk_container_image=us-docker.pkg.dev/my-project/images/sameriver-dataflow:1",
]
TABLE = "bq://my-project.river.archive"

ACCEPTED = {
    "app": ["flights", "/srv/apps/parcels"],
    "archive_table": [TABLE, "bq://example.com:my-project.river.t", "gs://my-bucket/archive"],
    "model_server": ["", "model-server:8500", "a:8500,b:8500", "dns:///models.example:8500"],
    "subscription": ["", "shop-events-sameriver"],
    "shards": ["", "1", "32", "4096"],
    "horizon": ["", "604800"],
}
REFUSED = {
    "app": ["", "../etc", "flights; true", "/srv/$(true)"],
    "archive_table": [
        "",
        "my-project.river.archive",
        "bq://my-project.river",
        "http://my-bucket/archive",
        f"{TABLE}\n",
    ],
    "model_server": ["http://a:8500", "a", "a:8500,"],
    "subscription": ["projects/p/subscriptions/s", "a"],
    "shards": ["0", "4097", "-1", "1.5"],
    "horizon": ["0", "week"],
}


def matches(name: str, value: str) -> bool:
    return all(re.fullmatch(regex, value) for regex in PARAMETERS[name]["regexes"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_an_option_that_is_validated(name: str) -> None:
    options = {option for parameter in stream.params for option in parameter.opts}
    assert f"--{name.replace('_', '-')}" in options
    said = PARAMETERS[name]
    assert said["label"]
    assert said["helpText"]
    assert said["regexes"]
    assert matches(name, "") is bool(said.get("isOptional")), "what may be left out comes as an empty text"
    for regex in said["regexes"]:
        assert regex.startswith("^")
        assert regex.endswith("$")


@pytest.mark.parametrize("name", ACCEPTED)
def test_values_are_told_apart(name: str) -> None:
    assert [value for value in ACCEPTED[name] if not matches(name, value)] == []
    assert [value for value in REFUSED[name] if matches(name, value)] == []


def test_the_launchers_command_line_is_one_that_the_command_takes() -> None:
    arguments = runpy.run_path(str(FOLDER / "main.py"))["arguments"]
    command = arguments([*LAUNCHER, "--app=shop", f"--archive_table={TABLE}", "--shards=64", "--id_label="])
    assert command[:2] == ["stream", "--runner=dataflow"]
    assert not any(one.startswith("--id-label") for one in command)
    given = stream.make_context("stream", command[1:]).params
    wanted = {"runner": "dataflow", "project": "my-project", "app_name": "shop", "archive_table": TABLE, "shards": 64}
    assert {name: given[name] for name in wanted} == wanted
    assert given["beam_options"] == tuple(one for one in LAUNCHER if not one.startswith("--project"))


def test_the_image_has_the_locked_beam_and_the_jobs_own_packages() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    locked = re.search(r"^apache-beam(?:\[\w+\])?==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert f"apache/beam_python3.11_sdk:{locked[1]} " in text
    assert "FROM python:3.11" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert "python311-template-launcher-base" in text
    assert "pip install" not in text, "packages come with the job's image, by the lock"
    for name in re.findall(r"deploy/dataflow/([\w.]+)", text):
        assert (FOLDER / name).exists()
