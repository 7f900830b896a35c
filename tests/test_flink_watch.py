"""What watches a job on Flink: what it takes the job manager's answers for, what it notes, what it refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared_features.errors import ConfigurationError
from streaming.flink import is_lost
from streaming.flink_known import KnownJob
from streaming.flink_rest import FlinkRest, UnknownJobError, UnreachableError, reach
from tests.repository import ROOT

CAUSES = (
    "a.InitializationException: no\n\tat X.main(X.java:1)\nCaused by: b.FileNotFoundException: no chk-1.\n\t... 4 more"
)
STEP = f"{CAUSES}\nTraceback (most recent call last):\nshared_features.errors.HistoryError: another job's archive"


def running(state: str, *tasks: str) -> tuple[int, object]:
    return 200, {"state": state, "vertices": [{"status": task} for task in tasks]}


ANSWERS = {
    "/v1/jobs/running": running("RUNNING", "RUNNING"),
    "/v1/jobs/starting": running("RUNNING", "RUNNING", "INITIALIZING"),
    "/v1/jobs/failed": running("FAILED"),
    "/v1/jobs/cancelled": running("CANCELED"),
    "/v1/jobs/elected": (503, {"errors": ["Service temporarily unavailable due to an ongoing leader election."]}),
    "/v1/jobs/failed/exceptions": (200, {"exceptionHistory": {"entries": [{"stacktrace": CAUSES}]}}),
    "/v1/jobs/starting/exceptions": (200, {"exceptionHistory": {"entries": [{"stacktrace": STEP}]}}),
    "/v1/jobs/running/exceptions": (200, {"exceptionHistory": {"entries": []}}),
}


class Answers(BaseHTTPRequestHandler):
    """As Flink's REST API answers."""

    def do_GET(self) -> None:
        status, body = ANSWERS.get(self.path, (404, {"errors": [f"Not found: {self.path}"]}))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def rest() -> Iterator[FlinkRest]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield FlinkRest(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_only_a_job_manager_that_answers_can_have_lost_a_job(rest: FlinkRest) -> None:
    lost = {job: is_lost(rest, job) for job in ("running", "starting", "elected", "failed", "forgotten")}
    assert lost == {"running": False, "starting": False, "elected": False, "failed": True, "forgotten": True}
    with pytest.raises(ConfigurationError, match=r"job cancelled was ended on Flink by somebody else \(CANCELED\)"):
        is_lost(rest, "cancelled")
    with pytest.raises(UnknownJobError, match="refused /jobs/forgotten: 404 Not found"):
        rest.state("forgotten")
    with pytest.raises(UnreachableError, match="503 Service temporarily unavailable") as told:
        rest.state("elected")
    assert not isinstance(told.value, UnknownJobError)
    nobody = FlinkRest("127.0.0.1:9")
    assert is_lost(nobody, "running") is False
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9 did not answer .* or give --flink-rest"):
        reach(nobody.address)


def test_a_failure_is_told_by_its_innermost_cause_or_the_steps_own_words(rest: FlinkRest) -> None:
    told = {job: rest.failure(job) for job in ("failed", "starting", "running")}
    assert told == {
        "failed": "b.FileNotFoundException: no chk-1",
        "starting": "shared_features.errors.HistoryError: another job's archive",
        "running": "",
    }


def test_notes_say_where_a_job_goes_on_from(tmp_path: Path) -> None:
    """A savepoint that ended it, else the newest checkpoint, else what it began with."""
    known = KnownJob(tmp_path / "archive")
    assert known.newest(4) is None
    known.began("first", 4, "file:///old/savepoint")
    assert known.newest(4) == "file:///old/savepoint"
    for number in (9, 10):
        (tmp_path / f"checkpoints/chk-{number}").mkdir(parents=True)
        (tmp_path / f"checkpoints/chk-{number}/_metadata").touch()
    (tmp_path / "checkpoints/chk-11").mkdir()  # not complete
    known.note(checkpoints=str(tmp_path / "checkpoints"))
    assert known.newest(4) == (tmp_path / "checkpoints/chk-10").as_uri()
    known.note(savepoint="file:///new/savepoint")
    assert known.newest(4) == "file:///new/savepoint"
    with pytest.raises(ConfigurationError, match="has 4 shards, wanted 8: state is cut by shard"):
        known.newest(8)
    with pytest.raises(ConfigurationError, match="is watched by another `sameriver stream --runner flink`"):
        KnownJob(tmp_path / "archive")
    known.close()
    again = KnownJob(tmp_path / "archive")
    again.began("second", 4, known.newest(4))
    assert again.newest(4) == "file:///new/savepoint"
    again.close()


def test_a_cluster_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    def said(*options: str) -> str:
        command = [sys.executable, "-m", "deploy.flink.cluster", "--folder", str(tmp_path / "cluster"), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert said("--any-ports", "--task-managers=0") == "--task-managers must be 1 or more, got 0\n"
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8081))
            taken.listen()
        except OSError:
            pass  # taken already, by whomever
        assert " is taken: end what listens there, or give --any-ports\n" in said()
