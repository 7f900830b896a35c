"""The plan of docs/scaling.md, worked for three sizes, and a simulation of its queues.

python -m benchmarks.scaling                prints the plan, which limit is met first, and the queues
python -m benchmarks.scaling --markdown     the tables of docs/scaling.md
python -m benchmarks.scaling --json         everything as one JSON object
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.scaling_plan import (
    BUSY,
    CASES,
    DAY_S,
    GB,
    JOB_CORES,
    ON_FLINK,
    Case,
    Measured,
    Prices,
    all_cores,
    cores,
    limits,
    partitions,
    rate,
    shards,
    state_gb,
    usd_per_million,
)

LOADS = (0.3, 0.6, 0.8, 0.9, 0.95)


def waits_s(arrivals_s: npt.NDArray[np.float64], service_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How long each waits for one server, first come first served: Lindley's recursion.

    Args:
        arrivals_s: times, ascending.
        service_s: of each.

    >>> waits_s(np.array([0.0, 1.0, 2.0]), np.array([1.5, 1.0, 1.0])).tolist()
    [0.0, 0.5, 0.5]
    """
    steps = service_s[:-1] - np.diff(arrivals_s)
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    found: npt.NDArray[np.float64] = walk - np.minimum.accumulate(walk)
    return found


def queue(load: float, service_s: float, number: int, random: np.random.Generator) -> dict[str, float]:
    """Blocks that come at random to one shard and all take the same time, beside Pollaczek and Khinchine's mean."""
    arrivals = np.cumsum(random.exponential(service_s / load, number))
    found = waits_s(arrivals, np.full(number, service_s))
    return {
        "load": load,
        "mean_ms": float(found.mean() * 1e3),
        "formula_ms": load * service_s / (2 * (1 - load)) * 1e3,
        "p99_ms": float(np.quantile(found, 0.99) * 1e3),
    }


def hot_shard(case: Case, measured: Measured, seconds: float, random: np.random.Generator) -> dict[str, float]:
    """Events of one job in blocks, dealt to its shards by key: the mean wait at the busiest shard and at the others.

    A piece of a block takes its fixed time and that of its events; the busiest key's events all go to the first shard.
    """
    number = shards(case, measured)
    per_s = rate(case) / case.jobs
    blocks = max(2_000, min(200_000, int(per_s / case.block_events * seconds)))
    arrivals = np.cumsum(random.exponential(case.block_events / per_s, blocks))
    hot = min(0.9, case.hot_share * case.jobs)  # of the job that has the key
    rest = (case.block_events * (1 - hot)) / number
    means = (rest + case.block_events * hot, rest)
    first, other = (measured.piece_us + measured.fold_us * random.poisson(mean, blocks).astype(float) for mean in means)
    busy, idle = waits_s(arrivals, first / 1e6), waits_s(arrivals, other / 1e6)
    return {
        "shards": float(number),
        "load_of_the_busiest": float(first.sum() / 1e6 / arrivals[-1]),
        "busiest_p99_ms": float(np.quantile(busy, 0.99) * 1e3),
        "others_p99_ms": float(np.quantile(idle, 0.99) * 1e3),
    }


def breaking_point(case: Case, measured: Measured) -> tuple[float, str]:
    """How many times the events a day can grow, nothing else changed, and which limit is met then.

    The gateway is left out, since nothing has to come by it, and Flink, which has a row of its own.
    """
    first = next(limit for limit in limits(case, measured) if "gateway" not in limit.name and limit.name != ON_FLINK)
    return 1 / first.used, first.name


def plan(number: int = 200_000, seed: int = 1) -> dict[str, Any]:
    """Everything, as plain JSON values."""
    measured, prices, random = Measured(), Prices(), np.random.default_rng(seed)
    parts = {"job": measured.job_us, "models": measured.models_us, "broker": measured.broker_us}
    service_s = (measured.piece_us + measured.fold_us * 1_000) / 1e6
    return {
        "cases": {
            name: {
                "average_per_s": case.events_per_day / DAY_S,
                "peak_per_s": rate(case),
                "jobs": case.jobs,
                "shards_of_a_job": shards(case, measured),
                "cores": all_cores(case, measured),
                "cores_of": {part: rate(case) * us / 1e6 / BUSY for part, us in parts.items()},
                "cores_singles": all_cores(case, measured, singles=True),
                "cores_flink": cores(case, measured.flink_us),
                "state_gb": state_gb(case, measured),
                "archive_gb_day": case.events_per_day * measured.archive_bytes / GB,
                "backfill_partitions": partitions(case),
                "usd_per_million": usd_per_million(case, measured, prices),
                "usd_per_million_singles": usd_per_million(case, measured, prices, singles=True),
                "limits": {limit.name: limit.used for limit in limits(case, measured)},
                "remedies": {limit.name: limit.remedy for limit in limits(case, measured)},
                "busiest_key_most": min(1.0, BUSY * 1e6 / measured.fold_us / rate(case)),
                "room": breaking_point(case, measured),
                "one_job": breaking_point(replace(case, jobs=1), measured),
                "one_writer": BUSY * 1e6 / measured.writer_us / rate(case),
                "queues": hot_shard(case, measured, 120.0, random),
            }
            for name, case in CASES.items()
        },
        "queue": [queue(load, service_s, number, random) for load in LOADS],
        "service_ms": service_s * 1e3,
        "busy": BUSY,
        "job_cores": JOB_CORES,
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    cases = found["cases"]
    head = f"| a day | {' | '.join(cases)} |\n| --- |{' ---: |' * len(cases)}\n"

    def row(title: str, key: str, form: str = ",.0f", unit: str = "") -> str:
        return f"| {title} | " + " | ".join(f"{case[key]:{form}}{unit}" for case in cases.values()) + " |\n"

    def money(key: str, part: str) -> str:
        return f"| {part} | " + " | ".join(f"${case[key][part]:.4f}" for case in cases.values()) + " |\n"

    lines = [
        head,
        row("events/s, average", "average_per_s"),
        row("events/s, peak (3 times)", "peak_per_s"),
        row("jobs, by key", "jobs"),
        row("shards of a stage, each job", "shards_of_a_job"),
        row("cores in all, blocks", "cores"),
        "| of them job / model servers / broker | "
        + " | ".join("{job:.2g} / {models:.2g} / {broker:.2g}".format(**case["cores_of"]) for case in cases.values())
        + " |\n",
        row("cores in all, as one job on Flink", "cores_flink"),
        row("cores in all, one event a message", "cores_singles"),
        row("state and identities", "state_gb", ",.1f", " GB"),
        row("archive", "archive_gb_day", ",.1f", " GB/day"),
        "| backfill of 30 days: keys × days | "
        + " | ".join("{} × {}".format(*case["backfill_partitions"]) for case in cases.values())
        + " |\n",
        row("the busiest key may have", "busiest_key_most", ".0%", " of all events"),
        "| could grow, until | "
        + " | ".join(f"{case['room'][0]:.1f} times: {case['room'][1]}" for case in cases.values())
        + " |\n",
        "| as one job | "
        + " | ".join(f"{case['one_job'][0]:.2g} times: {case['one_job'][1]}" for case in cases.values())
        + " |\n",
        "| as one job on Flink | "
        + " | ".join(f"{case['one_writer']:.3g} times: the archive's one writer" for case in cases.values())
        + " |\n",
        "\n",
        head.replace("| a day |", "| US dollars per million events, blocks |"),
        *(money("usd_per_million", part) for part in next(iter(cases.values()))["usd_per_million"]),
        "| all, one event a message | "
        + " | ".join(f"${case['usd_per_million_singles']['all']:.4f}" for case in cases.values())
        + " |\n",
        "\n",
        head.replace("| a day |", "| used of each limit at the peak |"),
        *(
            f"| {name} | " + " | ".join(f"{case['limits'][name]:.1%}" for case in cases.values()) + " |\n"
            for name in next(iter(cases.values()))["limits"]
        ),
        "\n| load of a shard | mean wait, simulated | by the formula | p99 |\n| ---: | ---: | ---: | ---: |\n",
        *(
            f"| {one['load']:.0%} | {one['mean_ms']:.1f} ms | {one['formula_ms']:.1f} ms | {one['p99_ms']:.0f} ms |\n"
            for one in found["queue"]
        ),
    ]
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The scaling plan, and a simulation of its queues.")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/scaling.md")
    given = parser.parse_args()
    found = plan()
    if given.json:
        print(json.dumps(found))
    elif given.markdown:
        print(markdown(found), end="")
    else:
        print(markdown(found))
        for name, case in found["cases"].items():
            queues = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in case["queues"].items())
            print(f"{name} a day: {queues}")
            first = case["room"][1]
            print(f"  first limit: {first}, {case['limits'][first]:.0%} used at the peak; {case['remedies'][first]}")


if __name__ == "__main__":
    main()
