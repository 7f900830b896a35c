"""The canary's script with the port of a follower: one that agrees, one that differs, one that is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from streaming.monitoring_server import MonitoringServer
from tests import deployed, repository
from tests.repository import ROOT

WORKFLOW = Path(".github/workflows/deliver.yml")
MODEL = Path(".github/workflows/model.yml")
# The words of deploy/canary/run for a follower at $URL; what would be done to a cluster is noted in $DONE.
DRIVER = """#!/bin/sh
probe() { exec "$PYTHON" "$ROOT/deploy/healthcheck.py" "$URL/$1" 2>/dev/null; }
case $1 in
    healthy) probe healthz ;;
    ready) probe readyz ;;
    answers) exec "$PYTHON" -c "import socket; socket.create_connection(('127.0.0.1', ${URL##*:}))" 2>/dev/null ;;
    *) echo "$1 $2" >> "$DONE" ;;
esac
"""


@pytest.fixture
def follow() -> Iterator[Callable[[str | None], str]]:
    """The port of a follower that has caught up and found what differs, or nothing; where it listens."""
    servers = []

    def start(mismatch: str | None) -> str:
        servers.append(MonitoringServer(deployed.following(mismatch)))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def begin(url: str, folder: Path, watch_s: int, catch_up_s: int = 300) -> subprocess.Popen[str]:
    """Start the script; ``done`` in the folder notes what it had done."""
    driver, done = folder / "driver", folder / "done"
    driver.write_text(DRIVER)
    driver.chmod(0o755)
    done.touch()
    settings = {"URL": url, "DONE": str(done), "ROOT": str(ROOT), "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    settings |= {"CANARY_DRIVER": str(driver), "CANARY_POLL_SECONDS": "0.4"}
    settings |= {"CANARY_SECONDS": f"{watch_s}", "CANARY_CATCH_UP_SECONDS": f"{catch_up_s}"}
    command = [str(ROOT / "deploy/canary/run"), "image:2"]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(run: subprocess.Popen[str], folder: Path) -> tuple[int, str, list[str]]:
    """The script's exit code, what it said from now on, and what it had done."""
    said, _ = run.communicate(timeout=120)
    return run.returncode, said, (folder / "done").read_text().split("\n")[:-1]


def canary(url: str, folder: Path, catch_up_s: int = 300) -> tuple[int, str, list[str]]:
    return ended(begin(url, folder, 1, catch_up_s), folder)


def test_a_canary_that_agrees_becomes_the_job(follow: Callable[[str | None], str], tmp_path: Path) -> None:
    code, said, done = canary(follow(None), tmp_path)
    assert (code, done) == (0, ["begin image:2", "promote image:2"]), said
    assert "image:2 serves, and nothing differs" in said


def test_a_canary_that_differs_is_put_back(follow: Callable[[str | None], str], tmp_path: Path) -> None:
    code, said, done = canary(follow("sum_10s of sale s3: 2.5 was served, 3.0 is right"), tmp_path)
    assert (code, done) == (1, ["begin image:2", "roll-back image:2"]), said
    assert "the canary differs from what was served: putting the old image back" in said


def test_a_canary_that_does_not_answer_is_put_back(tmp_path: Path) -> None:
    code, said, done = canary("http://127.0.0.1:9", tmp_path, catch_up_s=1)
    assert (code, done) == (1, ["begin image:2", "roll-back image:2"]), said
    assert "the canary has not caught up within 1 s" in said


def test_a_canary_whose_run_is_cancelled_is_put_back(follow: Callable[[str | None], str], tmp_path: Path) -> None:
    run = begin(follow(None), tmp_path, 3600)
    assert run.stdout is not None
    assert [run.stdout.readline().split("  ")[1] for _ in range(2)] == [
        "image:2 follows the running job\n",
        "the canary has caught up; watching it for 3600 s\n",
    ]
    run.terminate()
    code, said, done = ended(run, tmp_path)
    assert (code, done) == (1, ["begin image:2", "roll-back image:2"]), said
    assert "interrupted: putting the old image back" in said


def test_the_workflow_is_one_and_runs_what_is_there() -> None:
    command = [str(deployed.python_of_tools()), "-m", "check_jsonschema"]
    for schema, path in (
        ("vendor.github-workflows", WORKFLOW),
        ("vendor.github-workflows", MODEL),
        ("vendor.compose-spec", Path("docker-compose.yml")),
    ):
        checked = [*command, "--builtin-schema", schema, str(ROOT / path)]
        done = subprocess.run(checked, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout
    jobs = yaml.safe_load(repository.text(WORKFLOW))["jobs"]
    assert [jobs[name].get("needs") for name in ("check", "image", "canary")] == [None, "check", "image"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in runs
    assert (ROOT / ".ci" / "run").is_file()
    assert 'deploy/canary/run "$IMAGE"' in runs
    for name in ("run", "kubernetes"):
        script = ROOT / "deploy" / "canary" / name
        assert script.stat().st_mode & 0o111
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
