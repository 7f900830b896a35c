"""What every test may ask for: real processes that always end, free ports, fixed property-test settings."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import processes
from tests.processes import Started

if TYPE_CHECKING:
    from pathlib import Path

    from apps.flights.history import HistorySummary
    from batch.bigquery import Endpoints
    from tests.faults.jobs import Jobs

# A run must not depend on the machine's speed: no deadline per example.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("new" if processes.NEW_DRAWS else "same")


LONGEST_FIRST = (
    "test_demo.py",
    "test_new.py",
    "test_flink.py",
    "test_training_model.py",
    "test_up.py",
    "test_streaming.py",
    "test_gateway_live.py",
    "test_serving_lifecycle.py",
    "test_promotion.py",
    "test_training_commands.py",
    "test_traindata.py",
    "test_batch_pipeline.py",
    "test_project.py",
    "test_archive_export.py",
    "test_environment.py",
    "test_fault_job.py",
    "test_broker_process.py",
    "test_fault_model.py",
    "test_serving_memory.py",
    "test_backfill.py",
    "test_client_servers.py",
    "test_skew.py",
    "test_cli.py",
    "test_training_sequences.py",
    "test_batch_runner.py",
    "test_kernel_aggregates.py",
    "test_flights_files.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """The run's folder: made by the process that starts the others."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="sameriver-test-run-")
        os.environ[processes.RUN_FOLDER] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, the longest before the others, so that all workers end together."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns a free TCP port on loopback, a new one each call."""
    return processes.free_port


@contextmanager
def _starter() -> Iterator[Callable[..., Started]]:
    running: list[Started] = []

    def start(*args: Any, **kwargs: Any) -> Started:
        started = processes.start(*args, **kwargs)
        running.append(started)
        return started

    try:
        yield start
    finally:
        for started in reversed(running):
            started.kill()


@pytest.fixture
def start_process() -> Iterator[Callable[..., Started]]:
    """`processes.start`, with everything it started killed at the end of the test, newest first."""
    with _starter() as start:
        yield start


@pytest.fixture(scope="session")
def start_session_process() -> Iterator[Callable[..., Started]]:
    """As `start_process`, for servers that all tests of the run share."""
    with _starter() as start:
        yield start


@pytest.fixture(scope="session")
def warm_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Starts streaming jobs of the fault tests' app that need not compile first, for all tests of the run."""
    from tests.faults.jobs import APP, Jobs

    jobs = Jobs(tmp_path_factory.mktemp("jobs"), APP)
    yield jobs
    jobs.close()


@pytest.fixture(scope="session")
def bigquery_endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """A BigQuery emulator that the whole run shares: load into a dataset of your own."""
    from tests.bigquery_server import bigquery_server  # 1 s of imports, for those who ask only

    with bigquery_server(tmp_path_factory.mktemp("bigquery")) as endpoints:
        yield endpoints


@pytest.fixture(scope="session")
def storage_address() -> Iterator[str]:
    """A Google Cloud Storage emulator that the whole run shares: use a folder of your own in its bucket."""
    from tests.storage_server import storage_server

    with storage_server() as address:
        yield address


@pytest.fixture(scope="session")
def written() -> tuple[Path, HistorySummary]:
    """The whole history of flights: its folder and its summary."""
    from apps.flights.history import write_history

    folder = processes.once_a_run("flights", write_history)
    return folder, write_history(folder)
