"""Flink's REST API, as far as a job needs it: state, checkpoints, savepoints."""

from __future__ import annotations

import json
import socket
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from shared_features.errors import ConfigurationError, SameriverError

CALL_S = 30.0
CONNECT_S = 5.0
SAVEPOINT_S = 300.0
POLL_S = 0.2


class UnreachableError(SameriverError):
    """Flink's job manager does not answer, or not with what was asked for."""


class UnknownJobError(UnreachableError):
    """The job manager answers, and knows no job of this id."""


class FlinkRest:
    """A job manager.

    Args:
        address: ``host:port``.

    Raises (each method):
        UnreachableError: it does not answer, or refuses.
        UnknownJobError: it does not know the job.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def job_named(self, name: str) -> str | None:
        """The id of the job of this name."""
        jobs = self._ask("/jobs/overview")["jobs"]
        return next((job["jid"] for job in jobs if job["name"] == name), None)

    def state(self, job: str) -> str:
        """RUNNING, RESTARTING, FAILED, …; CREATED also while some task has not begun."""
        found = self._ask(f"/jobs/{job}")
        tasks = [vertex["status"] for vertex in found["vertices"]]
        waiting = found["state"] == "RUNNING" and any(task != "RUNNING" for task in tasks)
        return "CREATED" if waiting else str(found["state"])

    def slots(self) -> tuple[int, int]:
        """How many slots there are, and how many of them no job has."""
        found = self._ask("/overview")
        return int(found["slots-total"]), int(found["slots-available"])

    def checkpoints(self, job: str) -> dict[str, Any]:
        """What Flink says of the job's checkpoints: counts, sizes, the latest."""
        return self._ask(f"/jobs/{job}/checkpoints")

    def failure(self, job: str) -> str:
        """Why the job last failed: what a step said, else the innermost cause; empty if it has not."""
        entries = self._ask(f"/jobs/{job}/exceptions").get("exceptionHistory", {}).get("entries", [])
        return _cause(str(entries[0]["stacktrace"])) if entries else ""

    def cancel(self, job: str) -> None:
        """End the job, without a savepoint."""
        self._ask(f"/jobs/{job}?mode=cancel", None, "PATCH")

    def stop_with_savepoint(self, job: str, folder: str) -> str:
        """Write a savepoint with which the job ends; where it is.

        Args:
            folder: as the job manager and the task managers reach it; a path or URI.
        """
        body = {"target-directory": folder, "cancel-job": True}
        request = self._ask(f"/jobs/{job}/savepoints", body, "POST")["request-id"]
        until = time.monotonic() + SAVEPOINT_S
        while time.monotonic() < until:
            found = self._ask(f"/jobs/{job}/savepoints/{request}")
            if found["status"]["id"] == "COMPLETED":
                if "location" not in found["operation"]:
                    cause = str(found["operation"].get("failure-cause", {}).get("stack-trace", "")).partition("\n")[0]
                    raise UnreachableError(f"Flink could not write a savepoint to {folder}: {cause}")
                return str(found["operation"]["location"])
            time.sleep(POLL_S)
        raise UnreachableError(f"Flink did not write a savepoint to {folder} within {SAVEPOINT_S:g} s")

    def _ask(self, path: str, body: Any = None, method: str = "GET") -> dict[str, Any]:
        data = None if body is None else json.dumps(body)
        connection = HTTPConnection(self.address, timeout=CALL_S)
        try:
            connection.request(method, f"/v1{path}", data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
        except (OSError, ValueError, HTTPException) as error:
            raise UnreachableError(f"Flink's job manager at {self.address} did not answer {path}: {error}") from None
        finally:
            connection.close()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            why = " ".join(str(one).partition("\n")[0] for one in found.get("errors", ()))
            unknown = answer.status == HTTPStatus.NOT_FOUND and path.startswith("/jobs/")
            kind = UnknownJobError if unknown else UnreachableError
            raise kind(f"Flink's job manager at {self.address} refused {path}: {answer.status} {why}")
        return found


def _cause(trace: str) -> str:
    """The line of Java's trace that says most: the last of Python's errors in it, else the last cause.

    >>> _cause("JobInitializationException: no\\nCaused by: FileNotFoundException: no chk-1\\n\\tat X.main(X.java:1)")
    'FileNotFoundException: no chk-1'
    """
    lines = [line.strip() for line in trace.splitlines()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    python = [line for line in lines if "Error: " in line and not line.startswith(("at ", "Caused by: "))]
    return (python or causes or lines or [""])[-1 if python or causes else 0][:500].rstrip(".")


def reach(address: str) -> FlinkRest:
    """The job manager at ``host:port``.

    Raises:
        ConfigurationError: it does not answer.
    """
    rest = FlinkRest(address)
    try:
        rest.slots()
    except UnreachableError as error:
        raise ConfigurationError(f"{error}: start a cluster as docs/flink.md says, or give --flink-rest") from None
    return rest


def connect(job_endpoint: str) -> None:
    """Raise ConfigurationError unless something listens at the job server's ``host:port``."""
    host, _, port = job_endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError):
        raise ConfigurationError(
            f"job server {job_endpoint!r} does not answer: wanted host:port of a Beam job server for Flink; start one "
            "as docs/flink.md says"
        ) from None


def local_path(uri: str) -> str:
    """The path of a ``file:`` URI, anything else as it is."""
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri
