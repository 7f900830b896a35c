"""The gateway before real topics, jobs and models: every language, restarts, and a model promoted underneath."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serving import wire
from serving.tensors import numbers, write_numbers, write_strings
from tests import repository
from tests.processes import REPOSITORY, Started, start, wait_until
from tests.promotion_models import CARRIERS, DELAY

APPS = REPOSITORY / "tests" / "promotion"
RAW = b'{"event_id": "UA1", "carrier": "UA", "delay": 12.5}'
PROGRAMS = {"curl": "curl", "js": "node", "go": "go", "java": "java"}


class Stack:
    """A running `sameriver up` and its gateway."""

    def __init__(self, process: Started, folder: Path) -> None:
        self.process, self.folder = process, folder
        self.ready: dict[str, Any] = json.loads(process.line)
        self.url = f"{self.ready['gateway']}/v1/apps/departures/events"
        self.environment = {"PUBSUB_EMULATOR_HOST": self.ready["pubsub_emulator_host"]}

    def post(self, body: bytes, url: str = "") -> httpx.Response:
        return httpx.post(url or self.url, content=body, timeout=120, params={"wait_s": 60})


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """The Go program, compiled beside everything else: with a cold cache that is half a minute of one core."""
    folder = tmp_path_factory.mktemp("go")
    (folder / "post_event.go").write_text(program("go"))
    building = None
    if shutil.which("go"):
        command = ["go", "build", "-gcflags=all=-N -l", "-o", str(folder / "post_event"), "post_event.go"]
        building = start(command, cwd=folder, env={"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": None})

    def built() -> Path:
        assert building is not None
        assert building.wait() == 0, building.tail()
        return folder / "post_event"

    yield built
    if building is not None:
        building.kill()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both versions, and what each answered in the process that made it."""
    folder = tmp_path_factory.mktemp("promoted")
    exporter = start(["-m", "tests.promotion_models", folder], env={"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert exporter.wait() == 0, exporter.tail()
    return folder


def answers(models: Path, version: int) -> dict[str, float]:
    found: dict[str, float] = json.loads((models / "answers.json").read_text())[str(version)]
    return found


def up(models: Path, name: str, version: int, folder: Path) -> Iterator[Stack]:
    home = folder / "models" / "chance"
    home.mkdir(parents=True)
    shutil.copytree(models / "chance" / str(version), home / str(version))
    ports = ["--broker-port", "0", "--model-port", "0", "--gateway-port", "0"]
    command = [
        "-m",
        "cli",
        "up",
        "--app",
        str(APPS / name),
        "--models",
        str(home.parent),
        *ports,
        "--in-memory",
        "--with-features",
        "--json",
    ]
    process = start(command, ready='"ready"', cwd=folder)
    try:
        yield Stack(process, folder)
        assert process.stop() == 0, process.tail()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def before(go_program: object, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from up(models, "before", 1, tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module")
def after(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from up(models, "after", 2, tmp_path_factory.mktemp("after"))


# Every language


def program(language: str) -> str:
    """The program in README."""
    found = re.findall(rf"^```{language}\n(.*?)^```", repository.text(Path("README.md")), re.M | re.S)
    return str(next(one for one in found if "12.5" in one))


@pytest.mark.parametrize("language", PROGRAMS)
def test_it_is_called_from_any_language(
    language: str, before: Stack, models: Path, tmp_path: Path, go_program: Callable[[], Path]
) -> None:
    if shutil.which(PROGRAMS[language]) is None:
        pytest.skip(f"{PROGRAMS[language]} is not installed")
    url = f"{before.url}?wait_s=60"
    if language == "curl":
        command = ["curl", "-s", "-w", "%{stderr}%{http_code}", url, "-d", RAW.decode().replace("UA1", "curl-1")]
    elif language == "js":
        (tmp_path / "post_event.mjs").write_text(program(language))
        command = ["node", "post_event.mjs", url]
    elif language == "java":
        (tmp_path / "PostEvent.java").write_text(program(language))
        command = ["java", "PostEvent.java", url]
    else:
        command = [str(go_program()), url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    status, text = (done.stderr, done.stdout) if language == "curl" else done.stdout.split(" ", 1)
    answer = json.loads(text)
    assert (status, answer["status"]) == ("200", "predicted")
    assert answer["event_id"] == f"{'node' if language == 'js' else language}-1"
    assert answer["outputs"]["probability"] == pytest.approx(answers(models, 1)["UA"], rel=1e-5)
    assert [reaction["reaction"] for reaction in answer["reactions"]] == ["warn"]


# Restarts


def test_a_gateway_that_comes_back_knows_what_came_before_and_meanwhile(before: Stack, start_process: Any) -> None:
    def second(*more: str) -> tuple[Started, str]:
        command = ["-m", "cli", "gateway", "--app", str(APPS / "before"), "--name", "second", "--port", "0", "--json"]
        process = start_process([*command, *more], ready='"ready"', env=before.environment)
        return process, json.loads(process.line)["url"]

    process, url = second()
    there = before.post(RAW.replace(b"UA1", b"first"), f"{url}/v1/apps/departures/events").json()
    here = before.post(RAW.replace(b"UA1", b"other")).json()  # of the first gateway: the second hears of it, too
    known = [there["ask_again"], here["ask_again"], f"/v1/predictions/{here['prediction_id']}"]
    wait_until(
        lambda: all(httpx.get(url + place, timeout=120).status_code == 200 for place in known), what="both know both"
    )

    waiting: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: waiting.append(before.post(RAW.replace(b"UA1", b"last"), f"{url}/v1/apps/departures/events"))
    )
    thread.start()
    wait_until(
        lambda: httpx.get(f"{url}/readyz", timeout=120).json()["in_flight"] or waiting, what="a request under way"
    )
    assert process.stop(signal.SIGTERM) == 0
    thread.join(120)
    assert waiting[0].status_code == 200  # what was under way was answered

    meanwhile = before.post(RAW.replace(b"UA1", b"meanwhile")).json()
    process, url = second("--forget-subscriptions")
    known += [meanwhile["ask_again"], waiting[0].json()["ask_again"]]
    wait_until(
        lambda: all(httpx.get(url + place, timeout=120).status_code == 200 for place in known), what="all of it again"
    )
    again = before.post(RAW.replace(b"UA1", b"other"), f"{url}/v1/apps/departures/events").json()
    assert again["prediction_id"] == here["prediction_id"]
    unknown = httpx.get(f"{url}/v1/predictions/{'0' * 32}", timeout=120)
    assert (unknown.status_code, "unknown here" in unknown.json()["error"]) == (404, True)
    assert process.stop(signal.SIGTERM) == 0
    assert subscriptions(before) == [f"departures-{topic}-gateway" for topic in ("dead-letters", "predictions")] + [
        "departures-reaction-warn-gateway"
    ]


def subscriptions(stack: Stack) -> list[str]:
    """Names of the gateways' subscriptions."""
    from google.pubsub_v1 import types

    with grpc.insecure_channel(stack.ready["pubsub_emulator_host"]) as channel:
        listing = channel.unary_unary("/google.pubsub.v1.Subscriber/ListSubscriptions", None, None)
        request = types.ListSubscriptionsRequest.pb()(project=f"projects/{stack.ready['project']}")
        answer = types.ListSubscriptionsResponse.pb().FromString(listing(request.SerializeToString(), timeout=120))
    names = [one.name.rpartition("/")[2] for one in answer.subscriptions]
    return sorted(name for name in names if not name.endswith("-sameriver"))


# A model promoted underneath


def test_the_same_raw_event_is_answered_before_and_after_two_more_features(
    before: Stack, after: Stack, models: Path
) -> None:
    for stack, version in ((before, 1), (after, 2)):
        answer = stack.post(RAW)
        assert answer.status_code == 200
        body = answer.json()
        assert (body["status"], body["model_version"], body["reactions_complete"]) == ("predicted", version, True)
        assert body["outputs"]["probability"] == pytest.approx(answers(models, version)["UA"], rel=1e-5)
        assert len(body["reactions"]) == (version == 1)  # the later app warns from the second flight on
    second = after.post(RAW.replace(b"UA1", b"UA2")).json()
    assert second["features"] == {"carrier": "UA", "delay": 12.5, "delay_mean_1h": 12.5, "flights_1h": 2}
    assert len(second["reactions"]) == 1


def test_two_versions_side_by_side_answer_each_as_in_its_own_training(models: Path, start_process: Any) -> None:
    """UA is number 2 to the one and number 4 to the other: neither knows, nor is told, of the other's numbers."""
    config = models / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "chance" base_path: "{models / "chance"}" '
        "model_version_policy { specific { versions: 1 versions: 2 } } "
        'version_labels { key: "before" value: 1 } version_labels { key: "after" value: 2 } } }'
    )
    server = start_process(
        ["-m", "serving.server", "--port=0", f"--model_config_file={config}"], ready="listening on 127.0.0.1:"
    )
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        predict = channel.unary_unary(wire.PREDICT, None, wire.PredictResponse.FromString)
        for label, version in (("before", 1), ("after", 2), ("before", 1)):
            request = wire.PredictRequest()
            request.model_spec.name = "chance"
            request.model_spec.version_label = label
            write_strings(request.inputs["carrier"], [carrier.encode() for carrier in CARRIERS], (len(CARRIERS),))
            given = {"delay": DELAY} if version == 1 else {"delay": DELAY, "delay_mean_1h": DELAY, "flights_1h": 1.0}
            for name, value in given.items():
                write_numbers(request.inputs[name], 1, np.full(len(CARRIERS), value, np.float32))
            response = predict(request.SerializeToString(), timeout=120)
            assert response.model_spec.version.value == version
            found = dict(zip(CARRIERS, numbers(response.outputs["probability"]).tolist(), strict=True))
            assert found == pytest.approx(answers(models, version), rel=1e-5)
    assert answers(models, 1)["UA"] != pytest.approx(answers(models, 2)["UA"], rel=1e-3)
