"""What a job on Flink says of itself: counts of its archive's commits, and Flink's own of checkpoints and restarts.

The workers' processes come and go with each restart; what is counted there is lost or counted twice. The archive has
each event once. So `sameriver stream` reads its commits as they come: what is on its way is not counted yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shared_features.app import App
from streaming.archive_log import Commit
from streaming.flink_rest import FlinkRest, UnreachableError
from streaming.following import follow_commits
from streaming.monitoring import Monitoring


class FlinkMonitoring(Monitoring):
    """Counts of one job on Flink since this began to look.

    Args:
        app: the app.
        archive: its folder, which need not be there yet.
        commits: how many it has by now; they are not counted.
        rest: of Flink's job manager.
    """

    def __init__(self, app: App, archive: Path, commits: int, rest: FlinkRest) -> None:
        super().__init__(app.name, app.fingerprint)
        self._archive, self._before, self._rest = archive, commits, rest
        self._following: Iterator[Commit | None] | None = None
        self._flink = {"completed": 0, "failed": 0, "restored": 0}
        self._latest = {"state_size": 0, "end_to_end_duration": 0}

    def look(self, job: str) -> bool:
        """Count the commits that have come; ask Flink about the job of this id, and whether all of it runs."""
        if self._following is None and (self._archive / "archive.json").exists():
            self._following = follow_commits(self._archive, self._before - 1)
        for commit in self._following or ():
            if commit is None:
                break
            self.took(0, commit.counts["received"])
            self.committed(
                commit.counts, [commit.block] if commit.block.num_rows else [], commit.counts["committed_at_us"]
            )
        try:
            runs = self._rest.state(job) == "RUNNING"
            found = self._rest.checkpoints(job)
            self._flink = {name: int(found["counts"][name]) for name in self._flink}
            latest = found["latest"]["completed"] or self._latest
            self._latest = {name: int(latest[name]) for name in self._latest}
        except UnreachableError:
            runs = False
        self.readiness.subscribed = self.readiness.state_restored = runs
        return runs

    def status(self) -> dict[str, Any]:
        """All but what only the workers know."""
        status = super().status()
        return {name: value for name, value in status.items() if name not in ("messages", "recovered_rows")}

    def parts(self) -> dict[str, Any]:
        """Nothing of memory, which is the workers'; what has been received here has ended."""
        return {"in_flight": 0, "checkpoint_bytes": self._latest["state_size"], "restarts": self._flink["restored"]}

    def further(self) -> Iterable[Metric]:
        """Families of Flink's checkpoints."""
        ends = CounterMetricFamily("sameriver_flink_checkpoints", "Checkpoints by how they ended", labels=["end"])
        for end in ("completed", "failed"):
            ends.add_metric([end], self._flink[end])
        yield ends
        text = "Starts from a checkpoint, that of the job included"
        yield CounterMetricFamily("sameriver_flink_restores", text, value=self._flink["restored"])
        size, took = self._latest["state_size"], self._latest["end_to_end_duration"] / 1000
        yield GaugeMetricFamily("sameriver_flink_checkpoint_bytes", "Size of the newest checkpoint", value=size)
        yield GaugeMetricFamily("sameriver_flink_checkpoint_seconds", "How long it took", value=took)
