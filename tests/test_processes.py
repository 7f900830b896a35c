"""The process runner that other tests stand on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Started, wait_until

SERVER = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
print("noise", file=sys.stderr)
print(f"child {child.pid}")
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), child.wait(), print("bye"), os._exit(7)))
print("listening on 127.0.0.1:5")
threading.Event().wait()
"""


def test_ready_line_and_graceful_stop(start_process: Callable[..., Started]) -> None:
    server = start_process(["-c", SERVER], ready="listening on")
    assert server.line == "listening on 127.0.0.1:5"
    assert "noise" in server.lines
    assert server.stop() == 7
    assert server.lines[-1] == "bye"


def test_kill_takes_the_children_too(start_process: Callable[..., Started]) -> None:
    server = start_process(["-c", SERVER], ready="listening on")
    child = int(server.wait_for_line("child").split()[1])
    server.kill()
    assert server.process.returncode == -signal.SIGKILL
    # an orphan is reaped by init in its own time; gone or a zombie are both "not running"
    wait_until(lambda: not _running(child), 10, "child ended")


def test_a_process_that_ends_early_says_why(start_process: Callable[..., Started]) -> None:
    with pytest.raises(AssertionError, match=r"ended before it printed 'ready'(.|\n)*no such luck"):
        start_process(["-c", "raise SystemExit('no such luck')"], ready="ready")


def test_a_process_that_stays_silent_is_killed(start_process: Callable[..., Started]) -> None:
    with pytest.raises(AssertionError, match="did not print 'ready' within"):
        start_process(["-c", "import threading; threading.Event().wait()"], ready="ready", timeout_s=0.5)


def test_environment_is_added_and_removed(
    start_process: Callable[..., Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAMERIVER_TEST_GONE", "1")
    shown = start_process(
        [
            "-c",
            "import os; print(sorted(k for k in os.environ if k.startswith('SAMERIVER_TEST')), os.getcwd())",
        ],
        env={"SAMERIVER_TEST_NEW": "1", "SAMERIVER_TEST_GONE": None},
        cwd=tmp_path,
    )
    assert shown.wait() == 0
    assert shown.lines == [f"['SAMERIVER_TEST_NEW'] {os.path.realpath(tmp_path)}"]


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
