"""One real `sameriver demo --quick --json`, from nothing, for all tests of a run that look at what it leaves."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import processes


@dataclass(frozen=True)
class QuickDemo:
    """What the demo printed and left.

    Attributes:
        folder: where it ran; it holds ``var``.
        lines: standard output and standard error.
        result: the last line.
        exit_code: of the process.
    """

    folder: Path
    lines: list[str]
    result: dict[str, Any]
    exit_code: int


@functools.cache
def quick_demo() -> QuickDemo:
    """Run it in a new folder, gone when the tests are done."""
    folder = Path(tempfile.mkdtemp(prefix="sameriver-demo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command: list[str | Path] = ["-m", "cli", "demo", "--quick", "--json", "--picture", folder / "demo.svg"]
    process = processes.start(command, cwd=folder, env={"PUBSUB_EMULATOR_HOST": None})
    try:
        code = process.wait(500)
    finally:
        process.kill()
    return QuickDemo(folder, process.lines, json.loads(process.lines[-1]) if code in (0, 1) else {}, code)
