"""The year in one picture: AUC week by week, what drifted, when alarms stood, when it was retrained."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from batch.drifts import PREDICTION
from batch.monitor import Monitor

HALF = timedelta(days=3.5)  # a week is drawn at its middle


def plot(path: Path, served: Monitor, alone: Monitor, retrainings: Sequence[dict[str, Any]], change: datetime) -> None:
    """Draw it.

    Args:
        path: of the PNG.
        served: what predicted.
        alone: what the first version would have said all year.
        retrainings: ``at``, ``version`` and ``promoted`` of each.
        change: when the world changed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(11, 6.5), sharex=True, height_ratios=[3, 2])
    for monitor, name, color in ((alone, "version 1, left alone", "#b0b0b0"), (served, "what predicts", "#1f5fa8")):
        rows = [row for row in monitor.quality.rows() if row["auc"] is not None and row["labelled"] >= 200]
        upper.plot(_weeks(rows), [row["auc"] for row in rows], "o-", color=color, label=name, markersize=3)
    upper.set_ylabel("live AUC, by week")
    drifts = list(served.drifts.rows())
    watched = [PREDICTION, *(name for alarm in served.app.alarms for name in alarm.of if name != PREDICTION)]
    for name in dict.fromkeys(watched):
        rows = [row for row in drifts if row["feature"] == name and row["ks"] is not None]
        lower.plot(
            _weeks(rows), [max(0.0, row["ks"] - row["ks_chance"]) for row in rows], "o-", label=name, markersize=3
        )
    lower.set_ylabel("KS to training, by week")
    for number, (words, begin, end) in enumerate(_standing(served)):
        label = f"alarm: {words}" if words not in [one[0] for one in _standing(served)[:number]] else None
        axis, color = (upper, "#d62728") if words.startswith("auc") else (lower, "#ff7f0e")
        axis.axvspan(begin, end, color=color, alpha=0.15, label=label, linewidth=0)
    for axis in (upper, lower):
        axis.axvline(change, color="black", linestyle="--", label="the causes of delays change")
        for number, one in enumerate(retrainings):
            style = "-" if one["promoted"] else ":"
            at = datetime.fromisoformat(one["at"])
            axis.axvline(at, color="#2ca02c", linestyle=style, label="retrained" if number == 0 else None)
        axis.legend(loc="lower left" if axis is upper else "upper left", fontsize=7)
        axis.grid(alpha=0.3)
    upper.set_title("A simulated year of flights: the alarm, the retraining, the recovery")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _weeks(rows: Sequence[Any]) -> list[datetime]:
    return [datetime.fromtimestamp(row["window"] / 1e6, UTC) + HALF for row in rows]


def _standing(monitor: Monitor) -> list[tuple[str, datetime, datetime]]:
    """(alarm, from, to) of each time that one stood."""
    found, since = [], dict[tuple[str, str], datetime]()
    for row in monitor.table().to_pylist():
        name = (row["alarm"], row["of"])
        if row["on"]:
            since[name] = row["judged_at"]
        else:
            found.append((f"{row['alarm']} {row['of']}".strip(), since.pop(name), row["judged_at"]))
    end = datetime.fromtimestamp((monitor.newest_us or 0) / 1e6, UTC)
    return found + [(f"{alarm} {of}".strip(), begin, end) for (alarm, of), begin in since.items()]
