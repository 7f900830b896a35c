"""How a long piece of work tells people and programs how far it is, what came out and what went wrong."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shared_features.errors import ConfigurationError, SameriverError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        stage: one word, such as ``read``, ``train``, ``export``, ``measure``.
        done: share of the whole, in [0, 1].
        detail: one line for people.
    """

    stage: str
    done: float
    detail: str


Tell = Callable[[Progress], None]


def quiet(_: Progress) -> None:
    """Tell no one."""


def _said(error: OSError) -> ConfigurationError:
    """What the operating system refused, such as room on a disk; the error itself is raised if nobody can mend it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if error.filename is None and not full:
        raise error
    what = "A disk has no room left" if full else f"{error.filename} cannot be used ({error.strerror})"
    return ConfigurationError(f"{what}: mend that, and give the same command again.")


_signals: list[int] = []


def end_on_sigterm() -> None:
    """From now on SIGTERM ends this program with 143, by an exception, so that nothing half-written is left.

    TensorFlow now and then swallows an exception that comes in the midst of it: `run_command` raises it again where
    the work next tells how far it is.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: object) -> None:
    _signals.append(number)
    sys.exit(128 + number)


def run_command(work: Callable[[Tell], dict[str, Any]], show: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    """Run a command's work and print what it has to say.

    For programs: one JSON object a line, ``{"progress": …}`` while it works; the last line is the result, or
    ``{"error": …, "kind": …}`` for an expected error. For people: progress on standard error, then what
    ``show`` makes of the result.

    Returns:
        The exit code: 0, or 2 for an expected error.
    """

    def tell(progress: Progress) -> None:
        if _signals:
            sys.exit(128 + _signals[0])
        if as_json:
            print(json.dumps({"progress": asdict(progress)}), flush=True)
        else:
            print(f"{progress.done:4.0%} {progress.stage}: {progress.detail}", file=sys.stderr, flush=True)

    try:
        result = work(tell)
    except (SameriverError, OSError) as refused:
        error = refused if isinstance(refused, SameriverError) else _said(refused)
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}), flush=True)
        return 2
    print(json.dumps(result) if as_json else show(result), flush=True)
    return 0
