"""How every command ends: 0 only on success, 2 with one sentence for what can be mended, 1 for a defect.

A signal that a command does not take over itself (see `commands.signals`) ends it with a sentence, too; the exit code
is 128 and the signal's number.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

log = logging.getLogger("sameriver")

STOP_WITH_PARENT = "SAMERIVER_STOP_WITH_PARENT"
"""Set for a child process: its standard input ends when its parent is gone, and then it stops too."""


SWITCH_S = 0.0005
"""How long a thread may keep Python's lock while another waits for it; 5 ms unless said. An event passes from thread to
thread some ten times in job and broker (measured at 100 events/s beside other load: p50 46 ms became 35 ms)."""


GOES_ON = {
    "traindata": "goes on where it was",
    "train": "goes on after the last epoch that was finished",
    "tune": "goes on after the last trial that was finished",
    "evaluate": "begins anew, and the report before is as it was",
    "retrain": "finds what is done and goes on",
}
"""What a command that was stopped does when it is given again."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class CommandError(click.ClickException):
    """A command failed in a way that was foreseen.

    Args:
        message: one sentence.
        exit_code: of the command; click has it as a constant of the class.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence to standard error."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Commands(click.Group):
    """A group of commands that tells expected errors in one sentence and logs the others whole."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add it, with a variable for each option: ``SAMERIVER_STREAM_APP`` for ``--app`` of ``stream``."""
        super().add_command(cmd, name)
        _name_variables(cmd, f"SAMERIVER_{name or cmd.name}")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; expected errors exit 2, unexpected ones 1."""
        with _unwinding() as told:
            try:
                return self._invoked(ctx)
            except BaseException:  # Beam wraps what a signal raises into errors of its own
                if not told:
                    raise
                again = GOES_ON.get(str(ctx.invoked_subcommand))
                what = "Ctrl-C" if told[0] == signal.SIGINT else signal.Signals(told[0]).name
                click.echo(f"stopped by {what}" + (f": the same command {again}" if again else ""), err=True)
                ctx.exit(128 + told[0])

    def _invoked(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # Whoever read our output has enough, as `head` has. Python would complain when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)
        except Exception as error:
            from shared_features.errors import SameriverError  # numba and Arrow come with it

            if isinstance(error, SameriverError):
                click.echo(f"error: {one_line(error)}", err=True)
                ctx.exit(2)
            if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
                log.debug("an error of the operating system", exc_info=True)
                click.echo(f"error: {no_access(error)}", err=True)
                ctx.exit(2)
            log.exception("unexpected error in `sameriver %s`; this is a defect", ctx.invoked_subcommand)
            ctx.exit(1)


def _name_variables(command: click.Command, prefix: str) -> None:
    """Name the variables of a command's options by the options; click by itself names them by Python's parameters."""
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            _name_variables(sub, f"{prefix}_{name}")
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            longest = max(option.opts, key=len).lstrip("-")
            option.envvar = f"{prefix}_{longest}".replace("-", "_").upper()


def one_line(error: BaseException) -> str:
    """The error's text on one line."""
    return " ".join(str(error).split())


def no_access(error: OSError) -> str:
    """What the operating system refused, as a sentence."""
    if error.errno in NO_ROOM:
        return f"{error.filename or 'a disk'} has no room left: make some, and give the same command again"
    return f"{error.filename} cannot be used ({error.strerror}): wanted a place that can be read and written"


def take_short_turns() -> None:
    """Make threads take turns in Python often enough for one event's way through a process."""
    sys.setswitchinterval(SWITCH_S)


@contextmanager
def _unwinding() -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the block by an exception, so that what it started is stopped and tidied up.

    Yields:
        The signals that have come.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def end(number: int, _frame: object) -> None:
        told.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as behind `nohup`
    for number in taken:
        signal.signal(number, end)
    try:
        yield told
    finally:
        for number in taken:
            signal.signal(number, before[number])


def stop_with_parent() -> None:
    """In a child process (see `STOP_WITH_PARENT`): behave as on SIGTERM once the parent is gone."""
    if os.environ.pop(STOP_WITH_PARENT, None) is None:
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
