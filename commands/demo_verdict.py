"""The demo's last word: every figure, where it comes from, and whether all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from commands.demo_tally import Tally
from commands.replay import WARM
from streaming.archive import read_counts
from training.metrics import rank_auc


def summary(
    tally: Tally, archive: Path, totals: dict[str, Any], report: dict[str, Any], *, auc: float, seconds: float
) -> dict[str, Any]:
    """The figures by name, ready for JSON.

    Args:
        tally: what was sent and what the subscriber got.
        archive: the job's; its commit records say what was a duplicate, and how many events ended otherwise.
        totals: the job's own counters, kept apart under ``job``.
        report: of `batch.verify`.
        auc: of the model on its test split.
        seconds: of the whole demo.
    """
    latency, outage = tally.latency(), tally.outage()
    rows = tally.measured_rows()
    labels, probabilities = tally.outcome[rows], tally.probability[rows]
    mixed = len(rows) > 0 and labels.min() != labels.max()
    right = float(((probabilities >= 0.5) == (labels == 1)).mean()) if len(rows) else None
    return {
        "events": tally.published(),
        "to_predict": tally.to_predict(),
        "predictions": tally.predictions(),
        "reactions": tally.reactions,
        "dead_letters": sum(tally.dead_letters.values()),
        "duplicates": sum(counts.get("duplicates", 0) for counts in read_counts(archive)),
        "sent_twice": int(tally.replay.again.sum()),
        "warm_up_events": tally.published(WARM),
        "late": int((tally.replay.late & (tally.sent_ns >= 0)).sum()),
        "lost": lost(tally, archive),
        "not_acknowledged": tally.failed,
        "received_again": tally.repeated,
        "restarts": 0 if outage is None else 1,
        "in_flight_at_kill": 0 if outage is None else outage[1],
        "outage_s": None if outage is None else round(outage[0], 2),
        "events_per_s": round(tally.burst_events_per_s(), 1),
        "p50_ms": round(latency.p50_ms, 2),
        "p99_ms": round(latency.p99_ms, 2),
        "auc": round(auc, 5),
        "auc_live": round(rank_auc(labels, probabilities), 5) if mixed else None,
        "accuracy_live": None if right is None else round(right, 4),
        "outcomes_known": len(rows),
        "mismatches": report["mismatches"],
        "training_mismatches": report["training_mismatches"],
        "verify": report,
        "job": totals,
        "seconds": round(seconds, 1),
    }


def ended(archive: Path) -> int:
    """Distinct events that are in the archive or were dead-lettered, in all lives of the job."""
    return sum(
        sum(counts.get("outcomes", {}).values()) + sum(counts.get("dead_letters", {}).values())
        for counts in read_counts(archive)
    )


def lost(tally: Tally, archive: Path) -> int:
    """Events that gave no prediction, or of any kind that no archive has, whichever are more."""
    return max(tally.lost(), tally.distinct() - ended(archive))


def verdict(result: dict[str, Any]) -> RenderableType:
    """The summary for people."""
    good = not (result["lost"] or result["mismatches"] or result["training_mismatches"])
    report = result["verify"]
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")

    def line(name: str, value: str, note: str = "") -> None:
        table.add_row(name, value, note)

    line("events published", f"{result['events']:,}", f"{result['late']:,} late and {result['sent_twice']:,} twice")
    line("predictions", f"{result['predictions']:,}", f"of {result['to_predict']:,}: {result['lost']:,} lost")
    line("duplicates dropped", f"{result['duplicates']:,}", "counted in the archive's commits")
    line("dead letters", f"{result['dead_letters']:,}", "counted by an official subscriber")
    line("throughput", f"{result['events_per_s']:,.0f}/s", "burst: first publish to last prediction received")
    line("latency p50", f"{result['p50_ms']:.1f} ms", "publish call to prediction received, at 255 events/s")
    line("latency p99", f"{result['p99_ms']:.1f} ms")
    line("restarts", f"{result['restarts']:,}", _restarted(result))
    line("AUC", f"{result['auc']:.4f}", f"test split; in this replay {_shown(result['auc_live'])}")
    line(
        "mismatches",
        f"{result['mismatches']:,}",
        f"in {report['features']:,} features, {report['predictions']:,} predictions, and reactions",
    )
    line(
        "training mismatches",
        f"{result['training_mismatches']:,}",
        f"in {report['training_compared']:,} rows; {_late(report):,} differ because events were made late",
    )
    if drawn := result.get("map"):
        figures = ", ".join(f"{value:,.0f} {name}" for name, value in drawn.items() if name != "picture")
        line("map", "", f"{drawn['picture']}: {figures}")
    line("took", f"{result['seconds']:.0f} s")
    word = "What was served is what was trained on, to the last bit." if good else "Something is wrong; see above."
    return Group(table, Text(word, "bold green" if good else "bold red"))


def _restarted(result: dict[str, Any]) -> str:
    if result["outage_s"] is None:
        return ""
    return (
        f"kill -9, {result['in_flight_at_kill']:,} events in flight; predictions again after {result['outage_s']:.1f} s"
    )


def _late(report: dict[str, Any]) -> int:
    if "training_differences_late" in report:
        return int(report["training_differences_late"])
    return int(report.get("training_causes", {}).get("late_arrival", 0))


def _shown(auc: float | None) -> str:
    return "unknown" if auc is None else f"{auc:.4f}"
