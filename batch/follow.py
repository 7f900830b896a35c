"""Verify beside a live job: new commits are compared as they come, and the first difference is told at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from batch.replay import CHUNK_ROWS, numbered
from batch.verify import Predict, Promotions, Verifier, VerifyReport
from shared_features.app import App
from shared_features.errors import ConfigurationError
from shared_features.plan import make_plan
from streaming import archive as archives
from streaming.deduplication import Deduplicator
from streaming.following import follow_commits
from streaming.locks import take_lock
from streaming.routes import EachVersion
from streaming.saved_state import is_worth_it, keep_state, load_state, write_state
from streaming.snapshots import Begin

POLL_S = 0.5
"""How often the archive is looked at while nothing comes."""

FOLDER = "verify"
"""Where a follower remembers, in the archive, how far it is."""

log = logging.getLogger(__name__)


class Follower:
    """A `Verifier` that takes an archive's commits as they come, and goes on where one before it was.

    What it remembers for that, in the archive's folder ``verify``, is its own state as of a commit and its report: it
    takes nothing from the job but its files. It is written now and then, and by `close`.

    Args:
        app, archive, predict, promotions: as for `batch.verify.verify`.
        anew: begin with the archive's first commit, whatever is remembered.

    Attributes:
        commits: compared so far.
        caught_up: whether all that was there at the last look has been compared.
        resumed_after: the commit after which it went on; -1 if it began with the first one.

    Raises:
        ConfigurationError: another one follows this archive.
        FingerprintError, HistoryError: as for `batch.verify.verify`.
    """

    def __init__(
        self,
        app: App,
        archive: Path,
        *,
        predict: Mapping[str, Predict | EachVersion] | None = None,
        promotions: Promotions | None = None,
        anew: bool = False,
    ) -> None:
        archives.identity(archive)
        self._plan, self._archive, self._lock = make_plan(app), archive, _alone(archive / FOLDER)
        saved = None if anew else load_state(archive, self._plan, Deduplicator(0), FOLDER)
        begin = None if saved is None else Begin(saved.states, saved.stages)
        self._verifier = Verifier(app, archive, predict=predict, promotions=promotions, remember=False, begin=begin)
        self.app, self.commits, self.caught_up, self.compared_s = app, 0, False, 0.0
        if saved is not None:
            self._verifier.report = VerifyReport(**saved.notes["report"])
            self._verifier.replay.positions = {(name, shard): at for name, shard, at in saved.notes["positions"]}
            self.commits = saved.commit + 1
        self.resumed_after = self.commits - 1
        self._commits = follow_commits(archive, self.resumed_after)
        self._saved_rows = self.report.events
        self._counts: Mapping[str, Any] = {}

    @property
    def report(self) -> VerifyReport:
        """What was compared so far, also before this one began."""
        return self._verifier.report

    def run(self, stop: threading.Event, *, until_mismatch: bool, told: Callable[[str], None]) -> None:
        """Compare until ``stop`` is set, or up to the first difference.

        Args:
            told: called once, with the first difference in full.
        """
        said = False
        while not stop.is_set():
            if not said and self.report.first_mismatch is not None:
                told(self.report.first_mismatch)
                said = True
            if said and until_mismatch:
                return
            if not self.step():
                stop.wait(POLL_S)

    def step(self) -> bool:
        """Compare what has come, at most a chunk; False if nothing had."""
        held: list[pa.RecordBatch] = []
        commits = rows = 0
        while rows < CHUNK_ROWS and (commit := next(self._commits)) is not None:
            commits += 1
            self._counts = commit.counts
            if commit.block.num_rows:
                held.append(commit.block)
                rows += commit.block.num_rows
        if held:
            self._verifier.take(numbered(held, self.report.events))
        self.commits += commits
        self.caught_up = rows < CHUNK_ROWS
        if commits:
            self.compared_s = time.time()
        if is_worth_it(self.report.events - self._saved_rows, self._verifier.replay.states):
            self._save()
        return commits > 0

    def _save(self) -> None:
        replay = self._verifier.replay
        positions = [[*which, position] for which, position in replay.positions.items()]
        notes = {"report": asdict(self.report), "positions": positions}
        self._saved_rows = self.report.events
        try:
            commit = self.commits - 1
            file = write_state(
                self._archive / FOLDER,
                self._plan,
                replay.states,
                replay.stages,
                Deduplicator(0),
                commit,
                self._counts,
                notes,
            )
            keep_state(file, commit)
        except OSError as error:
            log.warning("what was verified is not remembered (%s): next time it begins further back", error)

    def close(self) -> None:
        """Remember where it is, and let another one follow."""
        if self._lock is None:
            return
        if self.report.events > self._saved_rows:
            self._save()
        self._lock.close()


def _alone(folder: Path) -> IO[str] | None:
    """The lock of who follows the archive; None where nothing can be written."""
    try:
        folder.mkdir(exist_ok=True)
        lock = take_lock(folder / "lock")
    except OSError as error:
        log.warning("where it is will not be remembered: %s cannot be written (%s)", folder, error.strerror)
        return None
    if lock is None:
        raise ConfigurationError(f"archive {folder.parent} is being followed already: stop that one")
    return lock


class FollowMonitoring:
    """What a `Follower` says on its port, as a job does on its own: unhealthy from the first difference on."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(follower))

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def status(self) -> dict[str, Any]:
        """The report so far; ready once it has caught up with the job."""
        follower = self._follower
        return {
            **follower.report.as_dict(),
            "app": follower.app.name,
            "fingerprint": follower.app.fingerprint,
            "commits": follower.commits,
            "ready": follower.caught_up,
            "subscribed": True,
            "state_restored": follower.caught_up,
            "fingerprint_matched": True,
            "failure": None if follower.report.first_mismatch is None else "mismatch",  # probes tell no values
        }


class _Families(Collector):
    """The report as families of metrics."""

    def __init__(self, of: Follower) -> None:
        self._of = of

    def collect(self) -> Iterable[Metric]:
        follower, report = self._of, self._of.report
        labels = {"app": follower.app.name, "fingerprint": follower.app.fingerprint}
        yield InfoMetricFamily("sameriver_verify", "What is compared", value=labels)
        mismatches = CounterMetricFamily("sameriver_verify_mismatches", "Values that differ", labels=["of"])
        mismatches.add_metric(["features"], report.feature_mismatches)
        mismatches.add_metric(["predictions"], report.prediction_mismatches)
        mismatches.add_metric(["reactions"], report.reaction_mismatches)
        mismatches.add_metric(["routes"], report.route_mismatches)
        yield mismatches
        for name, text, value in (
            ("commits", "Commits compared", follower.commits),
            ("events", "Events folded again", report.events),
            ("features", "Features compared", report.features),
            ("predictions", "Predictions of events compared", report.predictions),
            ("predictions_unchecked", "Predictions that nobody could be asked for again", report.predictions_unchecked),
            ("routes", "Predictions whose promotion says which version had to answer", report.routes),
            ("routes_aside", "Predictions of which no promotion says that", report.routes_aside),
        ):
            yield CounterMetricFamily(f"sameriver_verify_{name}", text, value=value)
        yield GaugeMetricFamily(
            "sameriver_verify_caught_up", "1 if all commits seen so far are compared", value=float(follower.caught_up)
        )
        yield GaugeMetricFamily(
            "sameriver_verify_last_commit_time_seconds", "When a commit was last compared", value=follower.compared_s
        )
