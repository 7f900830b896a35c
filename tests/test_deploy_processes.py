"""Compose's services as processes: the same commands and settings, on loopback and free ports, without containers.

They take 20 s of processor time, so they are soak tests; `make test` looks at each command and setting without them.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serving.vertex import EVERYWHERE
from streaming.broker.server import Broker
from tests import deployed, repository
from tests.deployed import SERVICES
from tests.processes import REPOSITORY, Started, free_port, wait_until
from tests.serving_models import put

SHOP = str(REPOSITORY / "tests" / "shop")
SALE = {"event_type": "sale", "event_id": "s0", "sold_at": 1_700_000_000_000_000, "shop": "a", "amount": 3.0}
Start = Callable[..., Started]


class Composed:
    """The services of docker-compose.yml, each as a process of this machine.

    What differs from the file: names of hosts become 127.0.0.1 and their ports free ones, ``/secrets`` and the home
    folder are in `folder`, and the app is the tests' shop, whose model is a rule.
    """

    def __init__(self, start: Start, folder: Path) -> None:
        self._start, self._folder = start, folder
        self.addresses: dict[str, str] = {}
        subprocess.run([sys.executable, REPOSITORY / "deploy" / "token.py", folder / "token"], check=True)
        self.token = (folder / "token").read_text().strip()

    def here(self, text: str) -> str:
        """A setting as it is on this machine."""

        def place(found: re.Match[str]) -> str:
            where = found.group(0)
            return self.addresses.setdefault(where, f"127.0.0.1:{free_port()}")

        text = re.sub(rf"\b(?:{'|'.join(SERVICES)}):\d+", place, text)
        return text.replace("/secrets", str(self._folder)).replace(EVERYWHERE, "127.0.0.1")

    def port(self, service: str, port: int) -> str:
        """``host:port`` on this machine of a service's port."""
        return self.here(f"{service}:{port}")

    def environment(self, name: str) -> dict[str, str | None]:
        """Of a service."""
        own_port = self.port(name, 9100).partition(":")[2]
        given = SERVICES[name].get("environment", {}).items()
        return {variable: self.here(value).replace("9100", own_port) for variable, value in given}

    def begin(self, name: str, ready: str | None, *more: str) -> Started:
        """Start a service of ours."""
        words = shlex.split(self.here(SERVICES[name]["command"]))
        words[words.index("flights")] = SHOP
        command = ["-m", "cli", *words, *more]
        return self._start(command, ready=ready, env=self.environment(name), cwd=self._folder)

    def healthy(self, name: str, port: int) -> None:
        """Wait until the service's own health check, the program of the image, says so."""
        check = SERVICES[name]["healthcheck"]["test"]
        url = re.sub(r"127\.0\.0\.1:\d+", self.port(name, port), check[-1])
        command = [sys.executable, str(REPOSITORY / "deploy" / Path(check[2]).name), url]
        assert subprocess.run(command, timeout=120).returncode == 0

    def metrics(self, name: str) -> set[str]:
        """The series that Prometheus would find, asking as its settings say."""
        (job,) = [one for one in scrape_configs() if one["job_name"] == name]
        (target,) = job["static_configs"][0]["targets"]
        headers = {}
        if "authorization" in job:
            assert httpx.get(f"http://{self.here(target)}/metrics", timeout=120).status_code == 401
            token = Path(self.here(job["authorization"]["credentials_file"])).read_text().strip()
            headers["Authorization"] = f"Bearer {token}"
        answer = httpx.get(f"http://{self.here(target)}{job.get('metrics_path', '/metrics')}", headers=headers)
        assert answer.status_code == 200
        return deployed.series(answer.text)


def scrape_configs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(repository.text(deployed.PROMETHEUS))["scrape_configs"]
    return found


@pytest.fixture
def composed(start_process: Start, tmp_path: Path) -> Iterator[Composed]:
    """The services, with our broker in the emulator's place."""
    found = Composed(start_process, tmp_path)
    broker = Broker(int(found.port("pubsub", 8085).partition(":")[2]), None)
    broker.start()
    yield found
    broker.stop()


def ask(composed: Composed) -> None:
    """One event by the gateway, with its prediction."""
    url = f"http://{composed.port('gateway', 8600)}/v1/apps/shop/events?wait_s=60"
    assert httpx.post(url, json=SALE, timeout=120).status_code == 401
    answer = httpx.post(url, json=SALE, headers={"Authorization": f"Bearer {composed.token}"}, timeout=120)
    assert (answer.status_code, answer.json()["outputs"]) == (200, {"probability": 1.0})


@pytest.mark.soak
def test_the_job_runs_with_the_command_of_compose(composed: Composed) -> None:
    job = composed.begin("job", "streaming shop")
    composed.healthy("job", 9100)
    of_events = {"sameriver_dead_letters_total", "sameriver_predictions_total", "sameriver_prediction_mean"}
    assert deployed.exported()["job"] - composed.metrics("job") <= of_events
    assert job.stop() == 0


@pytest.mark.soak
def test_all_of_compose(composed: Composed, bigquery_endpoints: Any, start_process: Start, tmp_path: Path) -> None:
    """With a model server, verification and export beside them: every target that Prometheus has answers."""
    composed.addresses["bigquery:9050"] = bigquery_endpoints.rest.removeprefix("http://")
    composed.addresses["bigquery:9060"] = bigquery_endpoints.grpc
    put("half_plus_two", tmp_path / "models", 1)
    server = SERVICES["model-server"]
    files = {volume.split(":")[1]: REPOSITORY / volume.split(":")[0] for volume in server["volumes"][1:]}
    flags = [re.sub(r"=(/\S+)", lambda found: f"={files[found.group(1)]}", flag) for flag in server["command"].split()]
    ports = [composed.port("model-server", number).partition(":")[2] for number in (8500, 8501)]
    # the image's own entry point adds these four
    own = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    own += ["--model_name=wide_and_deep", f"--model_base_path={tmp_path / 'models'}"]
    start_process(["-m", "serving.server", *own, *flags], ready="listening on")
    assert (
        "AVAILABLE"
        in httpx.get(f"http://{composed.port('model-server', 8501)}/v1/models/wide_and_deep", timeout=120).text
    )

    composed.begin("job", "streaming shop")
    composed.begin("gateway", "gateway of shop", "--port", composed.port("gateway", 8600).partition(":")[2])
    verify = composed.begin("verify", "following")
    export = composed.begin("export", None, "--every", "0.5", "--json")
    ask(composed)
    for name, port in (("job", 9100), ("gateway", 8600), ("verify", 9100)):
        composed.healthy(name, port)
    exported = deployed.exported()
    for job in scrape_configs():
        found = composed.metrics(job["job_name"])
        assert exported[job["job_name"]] - found <= {"sameriver_dead_letters_total"}, job["job_name"]
    status = f"http://{composed.port('verify', 9100)}/status"
    headers = {"Authorization": f"Bearer {composed.token}"}
    wait_until(lambda: httpx.get(status, headers=headers, timeout=120).json()["events"] == 1, what="verification")
    assert httpx.get(status, headers=headers, timeout=120).json()["feature_mismatches"] == 0
    assert verify.stop() == 0
    query = {"query": "SELECT COUNT(*) FROM river.predictions", "useLegacySql": False}
    ask_bigquery = partial(httpx.post, f"{bigquery_endpoints.rest}/bigquery/v2/projects/sameriver/queries", json=query)
    wait_until(lambda: '"v":"1"' in ask_bigquery().text.replace(" ", ""), what="export")
    assert export.stop() == 0
    assert json.loads(export.lines[-1])["written"]["rows"] == 1
