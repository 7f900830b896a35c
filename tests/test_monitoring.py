"""What a job says of itself: the equation, readiness, the HTTP port, and where each setting came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from click.testing import CliRunner

from cli import main
from commands.logs import JsonLines, TextLines
from commands.status import received_as_ended
from shared_features.errors import ConfigurationError
from shared_features.schema import TIMESTAMP
from streaming.monitoring import ENDS, Monitoring
from streaming.monitoring_access import Address, read_address, write_address
from streaming.monitoring_server import MonitoringServer

COUNTS = {"received": 9, "duplicates": 2, "dead_letters": {"not_finite": 1}, "outcomes": {"predicted": 4, "folded": 2}}


def block() -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "event_time": pa.array([5_000_000, 7_000_000]).view(TIMESTAMP),
            "publish_time": pa.array([1, None], pa.int64()).view(TIMESTAMP),
            "stage.shop.late": [True, None],
        }
    )


@pytest.fixture
def monitoring() -> Monitoring:
    return Monitoring("shop", "f" * 64)


@pytest.fixture
def client(monitoring: Monitoring) -> Iterator[httpx.Client]:
    server = MonitoringServer(monitoring)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
    server.close()


def test_every_event_received_ends_as_one_thing_or_is_in_flight(monitoring: Monitoring) -> None:
    monitoring.took(3, 9)
    assert not received_as_ended(monitoring.status())
    monitoring.committed(COUNTS, [block()])
    status = monitoring.status()
    assert received_as_ended(status)
    assert {end: status[end] for end in ENDS} == {
        "predicted": 4, "recorded": 0, "folded": 2, "prediction_failed": 0, "duplicates": 2, "dead_letters": 1,
    }  # fmt: skip
    assert (status["messages"], status["late"], status["newest_event_time"]) == (3, 1, 7.0)
    assert status["latency_buckets"] == [0] * 13 + [1]


def test_metrics_are_prometheus_text(monitoring: Monitoring, client: httpx.Client) -> None:
    monitoring.took(3, 9)
    monitoring.committed(COUNTS, [block()])
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        "sameriver_messages_total 3.0",
        "sameriver_events_received_total 9.0",
        'sameriver_events_total{end="predicted"} 4.0',
        'sameriver_events_total{end="dead_letters"} 1.0',
        'sameriver_dead_letters_total{reason="not_finite"} 1.0',
        "sameriver_events_in_flight 0.0",
        'sameriver_latency_seconds_bucket{le="60.0"} 0.0',
        'sameriver_latency_seconds_bucket{le="+Inf"} 1.0',
        "sameriver_latency_seconds_count 1.0",
        "sameriver_events_late_total 1.0",
        "sameriver_ready 0.0",
    ):
        assert line in lines, answer.text


def test_ready_means_subscribed_restored_and_matched(monitoring: Monitoring, client: httpx.Client) -> None:
    for part in ("fingerprint_matched", "state_restored", "subscribed"):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()[part]) == (503, False)
        setattr(monitoring.readiness, part, True)
    assert client.get("/readyz").json()["ready"]
    assert client.get("/healthz").json() == {"healthy": True, "failure": None}
    monitoring.readiness.failure = "OSError"
    assert client.get("/readyz").status_code == client.get("/healthz").status_code == 503


def test_the_port_serves_nobody_elses_name_and_takes_no_orders(client: httpx.Client) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        assert client.get("/status", headers={"Host": host}).status_code in (400, 403)
    for host in ("localhost:1", "[::1]:1", "10.0.0.7"):
        assert client.get("/status", headers={"Host": host}).status_code == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/status").status_code == 501
    assert client.get("/other").status_code == 404
    assert client.head("/metrics").text == ""


def test_a_port_that_is_taken_is_named(client: httpx.Client, monitoring: Monitoring) -> None:
    with pytest.raises(ConfigurationError, match="--monitoring-port"):
        MonitoringServer(monitoring, port=client.base_url.port or 0)


def test_where_a_job_answers_is_noted_beside_its_archive(tmp_path: Path) -> None:
    assert read_address(tmp_path) is None
    write_address(tmp_path, "http://127.0.0.1:7")
    assert read_address(tmp_path) == Address("http://127.0.0.1:7")
    (tmp_path / "monitoring.json").write_text('{"url": "file:///etc/passwd"}', "utf-8")
    assert read_address(tmp_path) is None


def test_print_config_says_where_each_value_came_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "planted-secret"
    token.write_text("x")
    monkeypatch.setenv("SAMERIVER_STREAM_HORIZON_S", "60")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    words = ["stream", "--print-config", "--max-messages", "7", "--model-token-file", str(token)]
    result = CliRunner().invoke(main, [*words, "--json"], prog_name="sameriver")
    found = {one["option"]: (one["value"], one["from"]) for one in json.loads(result.stdout)["settings"]}
    wanted: dict[str, tuple[Any, str]] = {
        "--max-messages": (7, "command line"),
        "--horizon": (60, "variable SAMERIVER_STREAM_HORIZON_S"),
        "--emulator": ("127.0.0.1:1", "variable PUBSUB_EMULATOR_HOST"),
        "--max-future": (600, "default"),
        "--model-token-file": ("***", "command line"),
        "--archive": (None, "default"),
    }
    assert {option: found[option] for option in wanted} == wanted
    table = CliRunner().invoke(main, words, prog_name="sameriver").stdout
    assert "planted-secret" not in result.stdout + table
    assert "not set" in table


def test_logs_are_one_line_each_whatever_they_hold() -> None:
    error: Any = None
    try:
        raise ValueError("x")
    except ValueError as raised:
        error = (ValueError, raised, raised.__traceback__)
    record = logging.LogRecord("streaming", logging.WARNING, "", 0, "bad %s", ("a\nINFO fake\x1b[2J",), error)
    line = JsonLines().format(record)
    said = json.loads(line)
    assert "\n" not in line
    assert (said["level"], said["logger"], said["message"]) == ("warning", "streaming", "bad a\nINFO fake\x1b[2J")
    assert "ValueError: x" in said["error"]
    text = TextLines("%(levelname)s: %(message)s").format(record)
    assert text.splitlines()[0] == "WARNING: bad a\\nINFO fake\\x1b[2J"
