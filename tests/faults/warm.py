"""Streaming jobs that start at once: forked from a process that has compiled the kernel.

    python -m tests.faults.warm tests/faults/app.py

What a job does is imported and compiled when it starts, for seconds of processor time. A test that kills twenty of
them would do little else. This process imports the job and compiles, opens no connection and starts no thread, and
forks a child for each line on its standard input, ``{"arguments": ["stream", …], "log": "file", "limits": {…}}``. The
child is a real process: it has its own memory, its own files, and dies of its own SIGKILL. Said here: ``{"pid": 7}``
and, as it ends, ``{"ended": 7, "code": -9}``.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
from typing import Any, NoReturn

from batch import skew, verify  # noqa: F401 - this and the job are imported here once, not in every child
from cli import main as cli
from shared_features import load_app
from shared_features.compute import warm_up
from shared_features.plan import make_plan
from streaming import job  # noqa: F401


def say(record: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def child(order: dict[str, Any]) -> NoReturn:
    """The command, in a process and session of its own; never returns."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name, most in order["limits"].items():
            resource.setrlimit(getattr(resource, name), (most, most))
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        cli(order["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(*apps: str) -> None:
    """Compile for the apps, then fork as told until standard input ends; what still runs is killed then."""
    for app in apps:
        warm_up(make_plan(load_app(app)))
    gc.freeze()
    running: set[int] = set()
    say({"ready": True})
    waiting = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            running.discard(pid)
            say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})
        if not readable:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            break
        *lines, waiting = (waiting + read).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                child(order)
            running.add(pid)
            say({"pid": pid})
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
