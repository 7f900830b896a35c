"""A job travels to a worker as a description: JSON, read back into the same settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from serving.client_access import ClientAccess
from shared_features.app import load_app
from shared_features.errors import ConfigurationError
from streaming.job import JobSettings
from streaming.job_description import describe_job, read_description
from streaming.topics import Endpoint
from tests.processes import REPOSITORY


def test_a_job_travels_as_a_description() -> None:
    access = ClientAccess(authority=Path("/a"), tls=True)
    settings = JobSettings(Endpoint("p", "h:1"), Path("/archive"), "m:2", access, horizon_s=7, schemas=Path("/s"))
    shop = load_app(str(REPOSITORY / "tests" / "shop"))
    again, same = read_description(describe_job(shop, settings))
    assert (again.fingerprint, same) == (shop.fingerprint, settings)
    plain = JobSettings(Endpoint(), Path("/archive"))
    assert asdict(read_description(describe_job(shop, plain))[1]) == asdict(plain)


def test_a_worker_with_another_app_is_refused() -> None:
    shop = load_app(str(REPOSITORY / "tests" / "shop"))
    description = describe_job(shop, JobSettings(Endpoint(), Path("/archive")))
    with pytest.raises(ConfigurationError, match=r"has fingerprint .* wanted 0"):
        read_description(description.replace(shop.fingerprint.encode(), b"0"))
    with pytest.raises(ConfigurationError, match="version 2, wanted 1"):
        read_description(description.replace(b'"version":1', b'"version":2'))
