"""Run a job module as a process of its own that reports by JSON lines, and raise here what it raises there."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands.group import CommandError
from commands.output import Progress
from commands.processes import code_environment, json_object


def run_job(module: str, arguments: Sequence[str], tell: Progress) -> dict[str, Any]:
    """Run ``python -m <module> <arguments> --json`` to its end.

    It prints ``{"progress": {"done": …, "detail": …}}`` as it goes and its result last, or ``{"error": …,
    "kind": …}`` for an expected error.

    Returns:
        The result.

    Raises:
        SameriverError: as told by the job, of its kind.
        CommandError: the job was killed.
        RuntimeError: the job failed in another way; its standard error was passed on.
    """
    command = [sys.executable, "-P", "-m", module, *arguments, "--json"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=code_environment(),
    )
    result: dict[str, Any] = {}
    done = 0.0
    try:
        with process, _drained(process) as complaints:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    record = json_object(line)
                    if record is None:
                        continue
                    if "progress" in record:
                        done = float(record["progress"].get("done", done))
                        tell(done, str(record["progress"].get("detail", "")))
                    else:
                        result = record
            except BaseException:
                process.terminate()  # before the ends of these blocks, which wait for it
                raise
    finally:
        if process.poll() is None:
            process.terminate()
    if "error" in result:
        raise expected_error(str(result.get("kind")), str(result["error"]))
    if process.returncode < 0:
        why = ", as a machine does that is out of memory" if process.returncode == -signal.SIGKILL else ""
        raise CommandError(
            f"python -m {module} was killed by signal {-process.returncode}{why}: give the same command again"
        )
    if process.returncode != 0 or not result:
        sys.stderr.write("".join(complaints))
        raise RuntimeError(f"python -m {module} ended with exit code {process.returncode}")
    return result


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a file for the block, so that something is done once at a time.

    Raises:
        ConfigurationError: another process holds it; ``what`` says what that does.
    """
    from shared_features.errors import ConfigurationError
    from streaming.locks import take_lock

    held = take_lock(lock)
    if held is None:
        raise ConfigurationError(f"{what} by another process, which holds {lock}: wait until that has ended")
    with held:
        yield


def expected_error(kind: str, text: str) -> Exception:
    """The error of this kind in `shared_features.errors`, or a plain `SameriverError`."""
    from shared_features import errors

    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, errors.SameriverError) and found is not errors.EventError:
        return found(text)
    return errors.SameriverError(text)


class _drained:  # noqa: N801
    """Reads a process's standard error while its standard output is read, so that neither pipe fills up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._stream, self._lines = process.stderr, list[str]()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        self._lines.extend(self._stream)

    def __enter__(self) -> list[str]:
        self._thread.start()
        return self._lines

    def __exit__(self, *_: object) -> None:
        self._thread.join()
