"""`sameriver up`, `publish` and `tail`: real processes, an app with a rule for a model, events in and answers out."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import main
from tests.processes import REPOSITORY, Started

SHOP = str(REPOSITORY / "tests" / "shop")
Start = Callable[..., Started]
STRANGE = "\x1b[2Js3"
SALES = [
    {"event_type": "sale", "event_id": event_id, "sold_at": 1_700_000_000_000_000, "shop": "a\a", "amount": amount}
    for event_id, amount in (("s0", 1.0), ("s1", 2.5), ("s2", None), (STRANGE, 9.0))
]


class Up:
    """A running `sameriver up`, and what points other processes at it."""

    def __init__(self, process: Started) -> None:
        self.process = process
        self.ready: dict[str, Any] = json.loads(process.line)
        self.environment = {"PUBSUB_EMULATOR_HOST": self.ready["pubsub_emulator_host"]}


@pytest.fixture
def start_up(start_process: Start, tmp_path: Path) -> Callable[..., Up]:
    """Start `sameriver up` for the shop on free ports, in a folder of its own."""

    def start(*arguments: str) -> Up:
        command = ["-m", "cli", "up", "--app", SHOP, "--broker-port", "0", "--gateway-port", "0", "--json", *arguments]
        return Up(start_process(command, ready='"ready"', cwd=tmp_path))

    return start


@pytest.fixture
def tail(start_process: Start) -> Callable[..., Started]:
    """Start `sameriver tail --json` and wait until it is subscribed."""

    def start(up: Up, what: str, *arguments: str) -> Started:
        command = ["-m", "cli", "tail", what, "--app", SHOP, "--json", *arguments]
        return start_process(command, ready="tailing", env=up.environment)

    return start


def publish(up: Up, *arguments: str | Path) -> Result:
    """`sameriver publish`, in this process: to start one takes a second of a processor."""
    command = ["publish", *map(str, arguments), "--app", SHOP]
    return CliRunner().invoke(main, command, env=up.environment, catch_exceptions=False)


def records(process: Started) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.lines if line.startswith("{")]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_events_in_answers_out_over_a_restart_until_a_child_dies(
    start_up: Callable[..., Up], tail: Callable[..., Started], start_process: Start, tmp_path: Path
) -> None:
    """Two runs on one archive: the second one drops what the first one knew. A start costs seconds, so all in one."""
    up = start_up()
    assert up.ready["topics"]["predictions"] == "shop-predictions"
    assert up.ready["gateway"].startswith("http://127.0.0.1:")
    predictions, praise = tail(up, "predictions", "--max", "3"), tail(up, "reactions", "--max", "2")
    letters, table = tail(up, "deadletters", "--max", "3"), start_table(up, start_process)
    check_that_bad_rows_are_not_sent(up, tmp_path)
    check_what_came(predictions, praise, letters, table)
    check_that_no_subscription_is_left(up, tail)
    assert up.process.stop(signal.SIGINT) == 0
    last = records(up.process)[-1]
    assert (last["stopped"], last["totals"]["received"]) == (True, 6)
    _gone(up)

    up = start_up()
    waiting = tail(up, "predictions", "--max", "1")
    events = write(tmp_path / "more.jsonl", [*SALES, {**SALES[3], "event_id": "s4"}])
    assert publish(up, events).exit_code == 0
    assert waiting.wait() == 0
    assert [record["event_id"] for record in records(waiting)] == ["s4"]
    os.kill(up.ready["process_ids"]["broker"], signal.SIGKILL)
    assert up.process.wait() == 1
    (told,) = [line for line in up.process.lines if line.startswith("error: ")]
    assert told.startswith("error: the broker was killed by signal 9")
    _gone(up)


def start_table(up: Up, start_process: Start) -> Started:
    """A tail for people."""
    return start_process(["-m", "cli", "tail", "--app", SHOP, "--max", "3"], ready="tailing", env=up.environment)


def check_that_bad_rows_are_not_sent(up: Up, tmp_path: Path) -> None:
    """Six rows, two of them bad: these are named, and sent only when that is asked for."""
    bad = ["no JSON", {"event_type": "sale", "event_id": "x", "sold_at": 1, "amount": "2"}]
    events = write(tmp_path / "events.jsonl", [*SALES, *bad])
    checked = publish(up, events, "--json")
    assert checked.exit_code == 2
    (result,) = map(json.loads, checked.stdout.splitlines())
    assert (result["published"], result["refused"]) == (4, 2)
    assert [(row["line"], row["reason"]) for row in result["bad_rows"]] == [(5, "malformed_json"), (6, "wrong_type")]
    said = checked.stderr.splitlines()
    assert [line for line in said if line.startswith("error: ")] == [said[-1]]
    assert any(f"{events}:5: malformed_json" in line for line in said)

    again = write(tmp_path / "bad.jsonl", bad)
    unchecked = publish(up, again, "--no-check")
    assert unchecked.exit_code == 0
    assert unchecked.output.splitlines()[-1] == "2 events published to shop-events"


def check_what_came(predictions: Started, praise: Started, letters: Started, table: Started) -> None:
    assert [process.wait() for process in (predictions, praise, letters, table)] == [0, 0, 0, 0]
    found = {record["event_id"]: record["outputs"]["probability"] for record in records(predictions)}
    assert found == {"s0": 0.0, "s1": 1.0, STRANGE: 1.0}
    assert [record["payload"]["amount"] for record in records(praise)] == [2.5, 9.0]
    reasons = sorted(record["reason"] for record in records(letters))
    assert reasons == ["malformed_json", "prediction_failed", "wrong_type"]  # a rule gives null for a null amount
    heading, first = table.lines[-4], table.lines[-3]
    assert heading.split("  ")[0] == "event time (UTC)"
    assert "s0" in first
    assert "probability 0.000" in first
    assert "big_sale/0" in first
    assert all(letter.isprintable() for line in table.lines for letter in line)


def check_that_no_subscription_is_left(up: Up, tail: Callable[..., Started]) -> None:
    from google.cloud import pubsub_v1

    interrupted = tail(up, "reactions")
    assert interrupted.stop(signal.SIGTERM) == 0
    assert tail(up, "predictions", "--timeout", "0.2").wait() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", up.ready["pubsub_emulator_host"])
        with pubsub_v1.SubscriberClient() as client:
            names = list(client.list_subscriptions(project=f"projects/{up.ready['project']}"))
    kept = ["shop-dead-letters-gateway", "shop-dead-letters-sameriver", "shop-events-sameriver"]
    kept += ["shop-predictions-gateway", "shop-reaction-praise-gateway"]
    assert sorted(subscription.name.rpartition("/")[2] for subscription in names) == kept


def test_no_child_outlives_a_parent_that_is_killed(start_up: Callable[..., Up]) -> None:
    up = start_up()
    os.kill(up.process.process.pid, signal.SIGKILL)
    _gone(up)


def test_it_ends_well_when_it_is_stopped_while_starting(start_process: Start, tmp_path: Path) -> None:
    command = ["-m", "cli", "--log-level", "debug", "up", "--app", SHOP, "--broker-port", "0", "--gateway-port", "0"]
    process = start_process(command, cwd=tmp_path)
    log = tmp_path / "var" / "log" / "shop" / "broker.log"
    _until(log.exists)
    assert process.stop(signal.SIGINT) == 0


def _gone(up: Up) -> None:
    """All children have ended, within the deadline."""
    import psutil

    left = [psutil.Process(pid) for pid in up.ready["process_ids"].values() if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=120)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def _until(condition: Callable[[], bool]) -> None:
    from commands.processes import wait_until

    assert wait_until(condition, 60)


@pytest.fixture(autouse=True)
def _no_settings_of_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUBSUB_EMULATOR_HOST", "PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
