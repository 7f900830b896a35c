"""What is deployed says the same as the code: images pinned, nothing open to other machines, nobody root."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import repository
from tests.repository import ROOT

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(repository.text(Path("docker-compose.yml")))["services"]
DOCKERFILE = repository.text(Path("deploy/Dockerfile"))


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.search(r":\d+\.\d+\.\d+(-\w+)?$", service["image"])


def test_the_model_server_has_the_version_that_the_models_are_made_with() -> None:
    (version,) = re.findall(r"^tensorflow==([\d.]+)", repository.text(Path("requirements.lock")), re.MULTILINE)
    assert SERVICES["model-server"]["image"] == f"tensorflow/serving:{version}"


def test_the_job_gives_up_what_it_does_not_need() -> None:
    job = SERVICES["job"]
    assert job["read_only"] is True
    assert job["cap_drop"] == ["ALL"]
    assert job["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in job


def test_the_job_is_pointed_at_the_other_services() -> None:
    environment = SERVICES["job"]["environment"]
    assert environment["PUBSUB_EMULATOR_HOST"].split(":")[0] in SERVICES
    words = shlex.split(SERVICES["job"]["command"])
    assert words[words.index("--model-server") + 1].split(":")[0] in SERVICES


@pytest.mark.skipif(not (ROOT / "cli.py").exists(), reason="the command does not exist yet")
def test_the_job_is_started_as_the_command_wants_it() -> None:
    cli = __import__("cli")
    name, *words = shlex.split(SERVICES["job"]["command"])
    cli.main.commands[name].make_context(name, words)  # raises UsageError where they do not fit


def test_the_image_runs_as_nobody_in_particular_and_installs_what_is_locked() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    assert len(stages) == 3  # the comment, the build, what is run
    assert re.search(r"^USER [1-9]\d*$", stages[-1], re.MULTILINE)
    assert "requirements.lock" in DOCKERFILE
    assert "pip install" not in re.sub(r"--no-index", "", stages[-1])


def test_the_image_is_built_from_files_that_are_there_and_not_ignored() -> None:
    ignored = [line.rstrip("/") for line in repository.text(Path(".dockerignore")).splitlines() if line]
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists()
            assert source.split("/")[0] not in ignored
    needed = {*repository.PACKAGES, "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "cli.py", "deploy"}
    assert needed.isdisjoint(ignored)
