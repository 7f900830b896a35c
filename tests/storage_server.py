"""A Google Cloud Storage peer on this machine: gcp-storage-emulator, in the BigQuery emulator's environment."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests import processes
from tests.bigquery_server import ENVIRONMENT

BUCKET = "lake"


@contextmanager
def storage_server() -> Iterator[str]:
    """Start an emulator that keeps all in memory and has the bucket `BUCKET`; yields its address."""
    program = ENVIRONMENT / "bin" / "gcp-storage-emulator"
    if not program.exists():
        raise AssertionError(f"{program} is missing: run `make bigquery`, which installs the emulators")
    port = processes.free_port()
    address = f"http://127.0.0.1:{port}"
    server = processes.start(
        [program, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", BUCKET, "-q"],
        env={"PYTHONPATH": None},
    )
    try:
        processes.wait_until(lambda: _answers(port), what="the storage emulator")
        yield address
    finally:
        server.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5):
            return True
    except OSError:
        return False
