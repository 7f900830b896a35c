"""What a `batch.monitor.Monitor` says on its port: the figures of the windows judged last, as Prometheus gauges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batch.monitor import Monitor
from batch.views import ViewFollower
from shared_features.kpis import QUALITY


class MonitorMonitoring:
    """Tells of a monitor; what it tells is made by `update`, so that questions need not wait for a fold.

    Args:
        monitor, follower: that folds it.
    """

    def __init__(self, monitor: Monitor, follower: ViewFollower) -> None:
        self._monitor, self._follower = monitor, follower
        self._told: list[Metric] = []
        self._status: dict[str, Any] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Told(self))
        self.update(caught_up=False)

    def update(self, *, caught_up: bool) -> None:
        """Take the figures as they are now; from the thread that folds."""
        self._told = list(_families(self._monitor, self._follower, caught_up))
        self._status = {
            "app": self._monitor.app.name,
            "fingerprint": self._monitor.app.fingerprint,
            "rows": self._follower.rows,
            "commit": self._follower.revision,
            "alarms": [f"{row['alarm']} {row['of']}".strip() for row in self._monitor.standing()],
            "ready": caught_up,
            "subscribed": True,
            "state_restored": caught_up,
            "fingerprint_matched": True,
            "failure": None,
        }

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def status(self) -> dict[str, Any]:
        """Ready once it has caught up with the job."""
        return self._status

    @property
    def told(self) -> list[Metric]:
        """Families of metrics as of the last update."""
        return self._told


class _Told(Collector):
    def __init__(self, of: MonitorMonitoring) -> None:
        self._of = of

    def collect(self) -> Iterable[Metric]:
        return self._of.told


def _families(monitor: Monitor, follower: ViewFollower, caught_up: bool) -> Iterable[Metric]:
    whose = ["model", "version"]
    window = GaugeMetricFamily(
        "sameriver_judged_window_seconds", "Begin of the window judged last", labels=["of", *whose]
    )
    quality = GaugeMetricFamily("sameriver_quality", "Of predictions with a label", labels=["metric", *whose])
    labelled = GaugeMetricFamily("sameriver_labelled_share", "Of predictions that have a label", labels=whose)
    kpi = GaugeMetricFamily("sameriver_kpi", "Mean of a KPI", labels=["kpi", *whose])
    psi = GaugeMetricFamily(
        "sameriver_drift_psi", "Population stability index, less chance", labels=["feature", *whose]
    )
    ks = GaugeMetricFamily(
        "sameriver_drift_ks", "Kolmogorov and Smirnov's distance, less chance", labels=["feature", *whose]
    )
    for (kind, model), served in monitor.judged.items():
        of = [model, str(served.version)]
        window.add_metric([kind, *of], served.window_us / 1e6)
        if kind == "quality":
            row = monitor.quality.row(served)
            labelled.add_metric(of, row["labelled"] / max(1, row["predictions"]))
            _add(quality, of, {name: row[name] for name in QUALITY})
            _add(kpi, of, {one.name: row[f"kpi.{one.name}"] for one in monitor.app.kpis})
            continue
        drifts = monitor.drifts.of(served)
        _add(psi, of, {one.feature: None if one.psi is None else max(0.0, one.psi - one.chance) for one in drifts})
        _add(ks, of, {one.feature: None if one.ks is None else max(0.0, one.ks - one.ks_chance) for one in drifts})
    yield from (window, quality, labelled, kpi, psi, ks)
    alarms = GaugeMetricFamily("sameriver_alarm", "1 while an alarm is on", labels=["alarm", "model", "of"])
    for (words, model, name), on in monitor.alarms().items():
        alarms.add_metric([words, model, name], float(on))
    yield alarms
    late = CounterMetricFamily("sameriver_monitor_too_late", "Rows that came too late to be joined", labels=["of"])
    for what, count in monitor.quality.too_late.items():
        late.add_metric([what], count)
    yield late
    yield CounterMetricFamily("sameriver_monitor_rows", "Archived rows folded", value=follower.rows)
    yield GaugeMetricFamily("sameriver_monitor_caught_up", "1 if all commits seen so far are folded", value=caught_up)


def _add(family: GaugeMetricFamily, of: list[str], values: dict[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None:
            family.add_metric([name, *of], value)
