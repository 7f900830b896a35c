"""A real BigQuery wire peer on this machine: bqemulator, in an environment and a process of its own.

`make test` makes the environment, ``.venv-bigquery``, from ``tests/requirements-bqemulator.lock``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch.bigquery import Endpoints
from tests import processes

ENVIRONMENT = processes.REPOSITORY / ".venv-bigquery"
PROJECT = "sameriver"


@contextmanager
def bigquery_server(folder: Path) -> Iterator[Endpoints]:
    """Start an empty emulator that keeps its files in `folder`; yields where it listens."""
    program = ENVIRONMENT / "bin" / "bqemulator"
    if not program.exists():
        raise AssertionError(f"{program} is missing: run `make bigquery`, which installs the emulator")
    server = processes.start(
        [program, "start", "--rest-port", "0", "--grpc-port", "0", "--log-format", "json", "--project", PROJECT],
        ready='"grpc.listen"',
        env={
            # DuckDB looks for extensions below HOME and would fetch what is missing from the network.
            "HOME": str(_home_with_spatial_extension(folder)),
            "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false",
            "BQEMU_LOG_LEVEL": "info",
            "BQEMU_UPLOAD_STAGING_DIR": str(folder / "uploads"),
            "PYTHONPATH": None,
        },
        cwd=folder,
    )
    try:
        rest = json.loads(server.wait_for_line('"rest.listen"'))["port"]
        grpc = json.loads(server.line)["port"]
        yield Endpoints(rest=f"http://127.0.0.1:{rest}", grpc=f"127.0.0.1:{grpc}")
    finally:
        server.kill()


def environment(endpoints: Endpoints) -> dict[str, str]:
    """The variables that point another process at the emulator."""
    assert endpoints.rest is not None
    assert endpoints.grpc is not None
    return {"BIGQUERY_EMULATOR_HOST": endpoints.rest, "BIGQUERY_STORAGE_GRPC_ENDPOINT": endpoints.grpc}


def _home_with_spatial_extension(folder: Path) -> Path:
    """A home folder in which DuckDB finds the spatial extension that a Python package brought."""
    (found,) = ENVIRONMENT.glob(
        "lib/python3.*/site-packages/duckdb_extension_spatial/extensions/v*/spatial.duckdb_extension"
    )
    machine = "arm64" if os.uname().machine in {"aarch64", "arm64"} else "amd64"
    system = "osx" if os.uname().sysname == "Darwin" else "linux"
    place = folder / "home" / ".duckdb" / "extensions" / found.parent.name / f"{system}_{machine}"
    place.mkdir(parents=True)
    (place / found.name).symlink_to(found)
    return folder / "home"
