"""Run a batch pipeline: on Beam's in-process runner unless options name another, errors as one sentence."""

from __future__ import annotations

import copyreg
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult

from shared_features import errors
from shared_features.app import App

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and the step at work."""

_EXPECTED = re.compile(r"^(?:shared_features\.errors\.)?(\w+Error): (.+?)(?: \[while running .*\])?$", re.MULTILINE)

_FULL = re.compile(r"\[errno 28\]|\d+ requested and \d+ written", re.IGNORECASE)  # the second is NumPy's


def run(build: Callable[[beam.Pipeline], None], options: Sequence[str] = ()) -> None:
    """Build a pipeline and run it to its end.

    Args:
        options: Beam's command-line options, such as ``--runner=FlinkRunner``. Without a runner among them,
            FnApiRunner: what ``DirectRunner`` stands for differs between versions of Beam and pipelines.

    Raises:
        SameriverError: as raised in a step, whatever process it ran in.
        ConfigurationError: the options choose a way of running that damages elements, or a disk is full.
    """
    _refuse_flushing_by_time(options)
    # Options are given in full: Beam would otherwise read this process's own command line.
    settings = PipelineOptions(list(options))
    named = any(option.partition("=")[0] == "--runner" for option in options)
    pipeline = beam.Pipeline(options=settings) if named else beam.Pipeline(FnApiRunner(), options=settings)
    _here.append(here := not options)
    try:
        build(pipeline)
        with _workers_find_our_packages():
            result = pipeline.run()
            if result is not None:
                _wait(result)
    except Exception as error:
        raise _expected(error) from error
    finally:
        _here.remove(here)


def _wait(result: PipelineResult) -> None:
    """Until the job has ended. One that this process may not wait for any more is cancelled where it runs.

    Beam's job server for Flink takes that for a batch job, and lets Flink go on with it (2.62.0).
    """
    try:
        result.wait_until_finish()
    except BaseException:
        with suppress(Exception):  # it may have ended by itself
            result.cancel()
        raise


_here: list[bool] = []
"""Of each pipeline that runs: whether its steps are in this process. Its workers' threads write steps again."""

_apps: WeakValueDictionary[int, App] = WeakValueDictionary()


def _app_of(number: int) -> App:
    return _apps[number]


def _reduced(app: App) -> Any:
    """What Beam writes of an app: to steps in this process a number. It writes each step several times, with bz2."""
    if not _here or not all(_here):
        return object.__reduce_ex__(app, 2)
    _apps[id(app)] = app
    return _app_of, (id(app),)


copyreg.pickle(App, _reduced)


@contextmanager
def _workers_find_our_packages() -> Iterator[None]:
    """Worker processes import our packages, not folders of the same names where they happen to run."""
    code = str(Path(__file__).resolve().parent.parent)
    path = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _refuse_flushing_by_time(options: Sequence[str]) -> None:
    """Beam 2.77 with these options flushes its buffers from a second thread, also in the midst of an element.

    Elements are written part by part, and a coder that gives up the GIL in between (Arrow's does) lets the
    flushing thread in: the reader then takes the rest of an element for another. See
    ``TimeBasedBufferingClosableOutputStream`` in ``apache_beam/runners/worker/data_plane.py``.
    """
    for option in options:
        if option == "--direct_running_mode=multi_threading" or "data_buffer_time_limit_ms" in option:
            raise errors.ConfigurationError(
                f"Beam's option {option} flushes half-written elements: leave it out, or use "
                "--direct_running_mode=multi_processing"
            )


def _expected(error: BaseException) -> BaseException:
    """The error as the step raised it: runners keep its text, but not its type."""
    if isinstance(error, errors.SameriverError):
        kind, text = type(error), str(error)
        return kind(re.sub(r" \[while running .*\]$", "", text, flags=re.DOTALL))
    for name, text in _EXPECTED.findall(str(error)):
        found = getattr(errors, name, None)
        if isinstance(found, type) and issubclass(found, errors.SameriverError) and found is not errors.EventError:
            return found(text)
    if _FULL.search(str(error)):
        return errors.ConfigurationError("a disk is full: free space, or name a folder elsewhere for what is written")
    return error


class _Tally:
    """Rows done of rows expected, told to whoever watches."""

    def __init__(self, watch: Progress, total: int) -> None:
        self._watch, self._total, self._done = watch, max(1, total), 0
        self._lock = threading.Lock()

    def add(self, rows: int, step: str) -> None:
        with self._lock:
            self._done += rows
            share = min(0.99, self._done / self._total)
        self._watch(share, step)


_tallies: dict[str, _Tally] = {}


@contextmanager
def watched(watch: Progress | None, total: int) -> Iterator[str]:
    """A token by which steps in this process report rows (`report`); elsewhere they report to nobody.

    Args:
        total: rows over all steps; an estimate.
    """
    token = secrets.token_hex(8)
    if watch is not None:
        _tallies[token] = _Tally(watch, total)
    try:
        yield token
    finally:
        _tallies.pop(token, None)


def report(token: str, rows: int, step: str) -> None:
    """Count ``rows`` as done by ``step``."""
    tally = _tallies.get(token)
    if tally is not None:
        tally.add(rows, step)
