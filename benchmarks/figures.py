"""Every figure that README quotes: the demo from nothing, the evaluation of the model it made, the benchmarks.

python benchmarks/figures.py                   prints all tables, about 20 minutes on 2 cores
python benchmarks/figures.py kernel serving    only these
python benchmarks/figures.py --write           also puts them into README.md, each between its two marks
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
END = "<!-- measured: end -->"

Row = tuple[str, str, str]
"""What is measured, the figure, and what is wanted ("" where nothing is)."""


STREAM_EVENTS = 22_000_000
"""A day of the world's ships."""


def begin(part: str) -> str:
    """The mark before a part's table."""
    return f"<!-- measured: {part} -->"


def run(folder: Path, *command: str) -> dict[str, Any]:
    """Run a `sameriver` command in ``folder``; the JSON object in its last line."""
    print("$ sameriver", *command, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *command, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def demo(folder: Path) -> list[Row]:
    """`sameriver demo` in an empty folder."""
    found = run(folder, "demo")
    verify = found["verify"]
    return [
        (
            "latency at 255 events/s, p50 / p99, one event per message",
            f"{found['p50_ms']:.0f} / {found['p99_ms']:.0f} ms",
            "",
        ),
        ("throughput, burst of single-event messages", f"{found['events_per_s']:,.0f} events/s", ""),
        (
            "kill -9 of the job in mid-replay: predictions again after",
            f"{found['outage_s']:.0f} s, {found['in_flight_at_kill']} in flight",
            "",
        ),
        ("events lost", f"{found['lost']} of {found['events']:,}", "0"),
        ("features that differ from batch", f"{found['mismatches']} of {verify['features']:,}", "0"),
        (
            "rows that differ from training, but for late events",
            f"{found['training_mismatches']} of {verify['training_compared']:,}",
            "0",
        ),
        ("from nothing to the end of the demo", f"{found['seconds']:.0f} s", "≤ 240 s"),
    ]


def evaluate(folder: Path) -> list[Row]:
    """`sameriver evaluate`, on the model that the demo made in ``folder``."""
    report = run(folder, "evaluate")
    models = {model["name"]: model for model in report["models"]}
    ours = models["wide_and_deep"]
    gain = next(d for d in report["differences"] if d["against"] == "departure_delay alone")
    interval = f"+{gain['auc']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})"
    boosted = models["HistGradientBoosting"]["auc"]
    return [
        ("AUC, November and December: wide & deep", f"{ours['auc']:.4f}", f"≥ {boosted - 0.005:.4f}"),
        ("AUC of the departure delay alone", f"{models['departure_delay alone']['auc']:.4f}", ""),
        ("what the model gains on it, 95 % interval", interval, "without 0"),
        ("AUC of scikit-learn's HistGradientBoosting, same features", f"{boosted:.4f}", ""),
        ("calibration error of wide & deep, 20 bins", f"{ours['calibration_error']:.4f}", ""),
    ]


def kernel(folder: Path) -> list[Row]:
    """`sameriver bench kernel`."""
    found = run(folder, "bench", "kernel")
    rows = f"{found['rows'] / 1e6:.0f} million positions"
    polars, duckdb = found["rows_per_s_polars"], found["rows_per_s_duckdb"]
    memory = " / ".join(f"{found[f'peak_rss_mb{who}'] / 1e3:.1f}" for who in ("", "_polars", "_duckdb"))
    return [
        (f"{rows}, 12 features: kernel", f"{found['rows_per_s'] / 1e6:.2f} million/s", ""),
        ("the same: Polars / DuckDB", f"{polars / 1e6:.2f} / {duckdb / 1e6:.2f} million/s", ""),
        ("times as fast as Polars", f"{found['ratio_polars']:.1f}", "≥ 3"),
        ("times as fast as DuckDB", f"{found['ratio_duckdb']:.1f}", "≥ 10"),
        ("peak memory: kernel / Polars / DuckDB", f"{memory} GB", "≤ 3 GB"),
        ("features of one event, a day of state", f"{found['us_per_event_live']:.0f} µs", "≤ 150 µs"),
        ("in blocks of 1,000", f"{found['rows_per_s_blocks_of_1000'] / 1e6:.2f} million/s", "≥ 1 million/s"),
        ("ten times the rows take", f"{found['growth_ratio']:.1f} times as long", "≤ 11"),
        ("with a tenth of all rows in one key", f"{found['hot_key_ratio']:.2f} times as long", "≤ 2"),
        ("with 10 % of rows up to an hour late", f"{found['late_ratio']:.2f} times as long", "≤ 2"),
    ]


def serving(folder: Path) -> list[Row]:
    """`sameriver bench serving`."""
    found = run(folder, "bench", "serving")
    single, batched = found["clients_64_per_s"], found["clients_64_batched_per_s"]
    qps = found["gateway_qps"]
    start = f"{found['start_s']:.1f} / {found['tensorflow_import_s']:.1f} s"
    return [
        ("blocks of 1,024 rows over gRPC, share of in process", f"{found['ratio_in_process']:.2f}", "≥ 0.75"),
        ("one row over gRPC, p50 above in process", f"{found['p50_extra_ms']:.1f} ms", "≤ 2 ms"),
        ("one row over REST, p99", f"{found['rest_p99_ms']:.1f} ms", "≤ 10 ms"),
        ("64 clients of one row: without / with batching", f"{single:,.0f} / {batched:,.0f} requests/s", ""),
        ("what batching gains", f"{found['batching_gain']:.1f} times", "≥ 3"),
        ("p99 while a version is loaded", f"{found['reload_p99_ratio']:.1f} times the normal", "≤ 3"),
        ("start to first answer / Python's import of TensorFlow", start, "≤ 15 s"),
        (
            "gateway, event to prediction at 255/s, p50 / p99",
            f"{found['gateway_p50_ms']:.0f} / {found['gateway_p99_ms']:.0f} ms",
            "p99 ≤ 60 ms",
        ),
        (
            "gateway, requests/s of 1 / 64 / 256 clients",
            " / ".join(f"{qps[clients]:,.0f}" for clients in ("1", "64", "256")),
            "",
        ),
    ]


def stream(folder: Path) -> list[Row]:
    """`sameriver bench stream`."""
    found = run(folder, "bench", "stream", "--events", str(STREAM_EVENTS))
    return [
        ("events sent in blocks of 1,000", f"{STREAM_EVENTS:,}", "22,000,000"),
        ("events/s, blocks of 1,000 events", f"{found['events_per_s']:,.0f}", "≥ 100,000"),
        ("events/s, one event per message", f"{found['events_per_s_single']:,.0f}", "≥ 20,000"),
        ("share of the null loop's rate", f"{found['ratio_null_loop']:.2f}", "≥ 0.5"),
        ("times the rate of features per element", f"{found['ratio_per_element']:,.0f}", ""),
        (
            "publish to prediction at 255 events/s, p50 / p99",
            f"{found['live_p50_ms']:.0f} / {found['live_p99_ms']:.0f} ms",
            "≤ 10 / ≤ 50 ms",
        ),
        (
            "publish to prediction at 694 events/s, p50 / p99",
            f"{found['busy_p50_ms']:.0f} / {found['busy_p99_ms']:.0f} ms",
            "≤ 10 / ≤ 50 ms",
        ),
        ("after these, kill -9 to the first new prediction", f"{found['restart_s']:.0f} s", "≤ 30 s"),
        ("the job's memory beside its state grows by", f"{found['rss_slope_mb_per_min']:.0f} MB/min", "≤ 1"),
        ("lost / features that differ", f"{found['lost']} / {found['mismatches']}", "0 / 0"),
    ]


def backfill(folder: Path) -> list[Row]:
    """`sameriver bench backfill`."""
    found = run(folder, "bench", "backfill")
    differ = "0" if found["results_agree"] else "some"
    return [
        (
            f"{found['rows'] / 1e6:.0f} million positions, 12 features, Parquet to Parquet",
            f"{found['rows_per_s'] / 1e6:.2f} million/s",
            "",
        ),
        ("time / (kernel + reading + writing by themselves)", f"{found['ratio_kernel_plus_io']:.2f}", "≤ 1.5"),
        ("peak memory", f"{found['peak_rss_mb'] / 1e3:.1f} GB", "≤ 3 GB"),
        ("twice the rows take", f"{found['growth_ratio']:.2f} times as long", "≤ 2.2"),
        ("`verify`, rows a minute, no model", f"{found['verify_rows_per_min'] / 1e6:.0f} million", "≥ 1 million"),
        ("rows that differ / that a second run adds", f"{differ} / {found['rows_added_again']}", "0 / 0"),
    ]


PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "demo": demo,
    "evaluate": evaluate,
    "kernel": kernel,
    "serving": serving,
    "stream": stream,
    "backfill": backfill,
}


def table(part: str, rows: list[Row]) -> str:
    """A part's figures as README shows them."""
    command = part if part in ("demo", "evaluate") else f"bench {part}"
    lines = [f"| `sameriver {command}` | measured | wanted |", "| --- | ---: | ---: |"]
    return "\n".join(lines + [f"| {what} | {figure} | {wanted} |" for what, figure, wanted in rows])


def _write(part: str, measured: str) -> None:
    marks = f"{re.escape(begin(part))}.*?{re.escape(END)}"
    new = f"{begin(part)}\n{measured}\n{END}"
    text, replaced = re.subn(marks, lambda _: new, README.read_text("utf-8"), flags=re.DOTALL)
    if replaced != 1:
        raise ValueError(
            f"README.md has {replaced} places for the figures of {part}, wanted one: {begin(part)} … {END}"
        )
    README.write_text(text, "utf-8")


def main() -> None:
    """Measure, print, and write if asked to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; evaluate wants demo before it")
    arguments.add_argument("--write", action="store_true", help="put the tables into README.md")
    options = arguments.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        arguments.error(f"no such part: {', '.join(sorted(unknown))}; wanted some of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="sameriver-figures-") as folder:
        for part in options.parts or PARTS:
            measured = table(part, PARTS[part](Path(folder)))
            print(measured, end="\n\n", flush=True)
            if options.write:
                _write(part, measured)


if __name__ == "__main__":
    main()
