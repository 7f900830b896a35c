"""The command: help, exit codes, and one sentence for everything that a person can mend."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

import click
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner, Result

import cli
from commands.group import GOES_ON, CommandError, Commands
from commands.jobs import run_job
from shared_features.blocks import block_schema
from streaming.archive import Archive, identity, read_commits
from tests import serving_models
from tests.processes import REPOSITORY, Started
from tests.serving_steps import serve, to_messages
from tests.shop.app import app as shop

SHOP = REPOSITORY / "tests" / "shop"
Refused = Callable[..., None]
HEAVY = {"tensorflow", "keras", "apache_beam", "pyarrow", "numba", "pandas", "google.cloud.pubsub_v1", "rich.live"}


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`sameriver` with these arguments, as a process."""
    ours = ("SAMERIVER_", "PUBSUB_", "GOOGLE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", *map(str, arguments)],
        cwd=cwd or REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Run a command in this process."""
    return lambda *arguments, **more: CliRunner().invoke(cli.main, [str(one) for one in arguments], **more)


@pytest.fixture
def refused(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Run a command in this process, in an empty folder: exit code 2, one sentence, with these words in it."""
    for name in ("PUBSUB_EMULATOR_HOST", "PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def check(*arguments: str | int | Path, words: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        shown = invoke(*arguments, env=env)
        *progress, error = shown.stderr.strip().splitlines()
        assert shown.exit_code == 2, shown.output
        assert error.startswith("error: ")
        assert [word for word in words if str(word) not in error] == [], error
        assert all(re.match(r"\w+: +\d+% ", line) for line in progress), shown.output  # told after two seconds
        assert list((tmp_path / "here").iterdir()) == []  # refused before any harm

    return check


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all commands, groups too."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that something listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path where no folder can be made, whoever asks."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


@pytest.mark.parametrize("path", list(commands(cli.main)), ids=" ".join)
def test_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli.main, [*path, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    assert len(shown.output.splitlines()) > 5


def test_help_loads_nothing_heavy() -> None:
    script = f"import cli, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.startswith("sameriver, version ")


def test_a_port_in_use_is_said(refused: Refused, taken_port: int, tmp_path: Path) -> None:
    serving_models.put("flights", tmp_path / "wide_and_deep", 1)
    refused("broker", "--port", taken_port, words=[str(taken_port), "--port"])
    refused("serve", "--models", tmp_path, "--port", taken_port, words=[str(taken_port), "port"])
    refused("up", "--app", SHOP, "--broker-port", taken_port, words=[str(taken_port), "--broker-port"])
    ports = ("--broker-port", 0, "--model-port", taken_port)
    refused("up", "--models", tmp_path, *ports, words=[str(taken_port), "--model-port"])


def test_a_missing_model_is_named_with_the_commands_that_make_one(refused: Refused) -> None:
    words = ["wide_and_deep", "sameriver train --app flights"]
    refused("serve", "--port", 0, words=words)
    refused("up", "--broker-port", 0, "--model-port", 0, words=[*words, "--make"])
    refused("evaluate", words=["wide_and_deep", "sameriver train"])


def test_folders_that_cannot_be_written_are_named(refused: Refused, no_folder: Path) -> None:
    refused("data", "flights", "--out", no_folder, words=[no_folder])


def test_an_option_can_come_from_the_environment(refused: Refused, tmp_path: Path) -> None:
    refused("verify", env={"SAMERIVER_VERIFY_ARCHIVE": str(tmp_path / "named")}, words=[tmp_path / "named"])


def test_a_demo_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "var").touch()
    done = run("demo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: folder var/demo cannot be written")


def test_an_archive_of_other_features_is_refused(refused: Refused, tmp_path: Path) -> None:
    other = {"app": "flights", "fingerprint": "0" * 32, "definitions": {}}
    (tmp_path / "archive.json").write_text(json.dumps(other))
    refused("verify", "--archive", tmp_path, words=["0" * 32, tmp_path])


def test_what_is_not_there_is_named(refused: Refused, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    refused("traindata", "--app", "nowhere", words=["'nowhere'"])
    refused("traindata", "--history", missing, words=[missing])
    refused("verify", "--archive", missing, words=[missing])
    refused("publish", missing, words=[missing])


def test_the_job_of_another_process_names_its_error_too(refused: Refused, tmp_path: Path) -> None:
    refused("train", "--rows", tmp_path / "missing", "--models", tmp_path / "models", words=[tmp_path / "missing"])


def test_events_that_cannot_be_published_are_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "events.txt").write_text("{}")
    (tmp_path / "events.jsonl").write_text('{"event_type": "departed"}')
    refused("publish", tmp_path / "events.txt", words=["events.txt", "--format"])
    refused("publish", tmp_path / "events.jsonl", "--type", "landed", words=["'landed'", "departed, arrived, weather"])
    nobody = ("--emulator", "127.0.0.1:9", "--wait", 0.2)
    refused("publish", tmp_path / "events.jsonl", "--no-check", *nobody, words=["no broker answers"])


def test_a_model_of_other_features_is_refused(start_process: Callable[..., Started], tmp_path: Path) -> None:
    serving_models.put("flights", tmp_path / "models" / "wide_and_deep", 1)
    serve = ["-m", "cli", "serve", "--models", tmp_path / "models", "--port", "0", "--rest-port", "0", "--json"]
    server = start_process(serve, ready='"ready"')
    broker = start_process(["-m", "cli", "broker", "--port", "0", "--in-memory", "--json"], ready='"ready"')
    broker_at, server_at = (json.loads(process.line)["host_port"] for process in (broker, server))
    done = run("stream", "--emulator", broker_at, "--model-server", server_at, "--archive", tmp_path / "archive")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for word in ("differs", "wide_and_deep", "sameriver train"):
        assert word in done.stderr
    with urlopen(f"http://{json.loads(server.line)['rest']}/v1/models/wide_and_deep") as answer:
        assert json.load(answer)["model_version_status"][0]["state"] == "AVAILABLE"
    for process in (server, broker):
        assert process.stop() == 0
        assert json.loads(process.lines[-1]) == {"stopped": True}


def test_a_defect_is_logged_whole_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import json; json.loads('{')")
    done = run("verify", "--app", tmp_path)
    assert done.returncode == 1
    assert "unexpected error" in done.stderr
    assert "JSONDecodeError" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nkey = Kee('a')", ["line 2", "NameError: name 'Kee' is not defined"]),
        ("\n\napp = App((", ["line 3", "SyntaxError: '(' was never closed"]),
    ],
)
def test_an_error_in_the_apps_own_lines_is_told_with_its_line(
    refused: Refused, tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "app.py").write_text(text)
    refused("train", "--app", tmp_path, words=[tmp_path / "app.py", *words])


def test_a_signal_ends_a_command_with_a_sentence_whatever_becomes_of_its_exception() -> None:
    """Beam, for one, turns what a signal raises into an error of its own."""

    @click.command()
    @click.argument("number", type=int)
    def train(number: int) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except BaseException as error:
            raise RuntimeError from error

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    group = Commands(commands={"train": train, "other": train})
    for name, number, said in (
        (
            "train",
            signal.SIGINT,
            "stopped by Ctrl-C: the same command goes on after the last epoch that was finished\n",
        ),
        ("other", signal.SIGTERM, "stopped by SIGTERM\n"),
    ):
        shown = CliRunner().invoke(group, [name, str(int(number))])
        assert (shown.exit_code, shown.output) == (128 + number, said)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert set(GOES_ON) <= set(cli.main.commands)


def test_what_the_operating_system_refuses_is_said_in_a_sentence(no_folder: Path) -> None:
    @click.command()
    @click.argument("way")
    def write(way: str) -> None:
        if way == "full":
            Path("/dev/full").write_text("x")
        no_folder.mkdir()

    group = Commands(commands={"write": write})
    shown = CliRunner().invoke(group, ["write", "full"])
    assert (shown.exit_code, shown.output) == (
        2,
        "error: a disk has no room left: make some, and give the same command again\n",
    )
    shown = CliRunner().invoke(group, ["write", "folder"])
    assert (shown.exit_code, shown.output) == (
        2,
        f"error: {no_folder} cannot be used (Not a directory): wanted a place that can be read and written\n",
    )


def test_a_job_that_was_killed_is_told_as_that() -> None:
    with pytest.raises(CommandError, match="timeit was killed by signal 9, as a machine does that is out of memory"):
        run_job("timeit", ["import os; os.kill(os.getpid(), 9)"], lambda *_: None)


def test_wrong_usage_ends_with_2() -> None:
    shown = CliRunner().invoke(cli.main, ["broker", "--port", "70000"])
    assert shown.exit_code == 2
    assert "70000" in shown.stderr


def test_verify_ends_with_1_and_shows_the_first_difference(invoke: Callable[..., Result], tmp_path: Path) -> None:
    served, changed = tmp_path / "served", tmp_path / "changed"
    rows = [
        {"event_type": "sale", "event_id": f"s{i}", "event_time": i * 1_000_000, "publish_time": i * 1_000_000}
        | {"sale.shop": "a", "sale.amount": float(i)}
        for i in range(1, 6)
    ]
    serve(shop, to_messages(shop, pa.RecordBatch.from_pylist(rows, schema=block_schema(shop.event_types))), served)
    assert invoke("verify", "--app", SHOP, "--archive", served).exit_code == 0

    archive = Archive(changed, identity(served))
    for commit in read_commits(served):
        place = commit.block.schema.get_field_index("feature.sum_10s")
        other = pc.add(commit.block.column(place), 0.5)
        archive.append(commit.block.set_column(place, "feature.sum_10s", other), commit.counts)
    archive.close()
    found = invoke("verify", "--app", SHOP, "--archive", changed)
    assert found.exit_code == 1
    assert "first mismatch: feature 'sum_10s' of event s1" in found.stdout
    found = invoke("verify", "--app", SHOP, "--archive", changed, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout.splitlines()[-1])["mismatches"] == 5
