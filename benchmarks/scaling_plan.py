"""What a number of events a day needs: cores, memory, disk, money, and which limit of the design is met first.

Every figure that goes in is a field of `Measured` or `Prices`, with where it comes from; everything else is arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY_S = 86_400.0
GB = 1e9
TIB = 2.0**40


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of this repository's benchmarks on 2 cores: of the app vessels with its two models, unless said.

    What a piece of work costs is in microseconds of one core.
    """

    job_us: float = 15.1  # of a position in a block of 1,000: benchmarks.vessels_day, docs/vessels.md
    models_us: float = 4.3  # both models, the same
    broker_us: float = 2.8  # the same; Google's Pub/Sub in its place costs money, not cores
    flink_us: float = 2e6 / 36_768  # the whole way on Flink: bench cluster, both cores
    single_us: float = 2e6 / 28_444  # the whole way, one event a message: bench stream, both cores
    fold_us: float = 4.5  # of job_us, what a shard does one event after the other: its windows
    piece_us: float = 100.0  # of each piece of a block, whatever its size
    writer_us: float = 2 * 0.83  # of a Flink job's one archive writer: benchmarks.cluster_writer; twice for transport
    state_bytes: float = 210.0  # of a position of the windows' day, all windows: benchmarks.vessels_day
    identity_bytes: float = 44.0  # docs/decisions-streaming.md
    restore_per_s: float = 22e6 / 14.6  # events and identities loaded after a kill, bench stream
    archive_bytes: float = 100.0  # of an event as Parquet, 12 features; an app's own varies
    log_bytes: float = 360.0  # of an event in the log, before it is compacted
    compaction_us: float = 0.9e6 / 167_000  # docs/decisions-streaming.md
    gateway_per_s: float = 1_909.0  # bench serving, 256 clients


@dataclass(frozen=True, slots=True)
class Prices:
    """List prices in US dollars; the pages, and of when they are, are in docs/scaling.md."""

    pubsub_tib: float = 40.0
    storage_gb_month: float = 0.02
    bigquery_write_gb: float = 0.05
    bigquery_gb_month: float = 0.02
    core_hour: float = 0.05  # an assumption: a core with 4 GB of memory, without discounts


@dataclass(frozen=True, slots=True)
class Case:
    """One size of a plan.

    Attributes:
        events_per_day: on average.
        keys: that events belong to.
        peak: the busiest minute, as a multiple of the average.
        block_events: events in a message.
        window_days: the longest window and the lateness: how long an event stays in state.
        horizon_days: how long identities are remembered.
        hot_share: of all events, those of the busiest key.
        jobs: streaming jobs that the events are dealt to, by key.
        event_bytes, prediction_bytes: of one, in a message of so many.
    """

    events_per_day: float
    keys: float
    peak: float = 3.0
    block_events: int = 1_000
    window_days: float = 1.0
    horizon_days: float = 1.0
    hot_share: float = 0.001
    jobs: int = 1
    event_bytes: float = 60.0
    prediction_bytes: float = 40.0


CASES = {
    "22 million": Case(22e6, keys=60_000),
    "1 billion": Case(1e9, keys=2_700_000, jobs=8),
    "100 billion": Case(100e9, keys=270_000_000, jobs=512, block_events=10_000, hot_share=0.0001),
}

BUSY = 0.6
"""Of a core, at the peak: what queueing leaves for short waits, see `benchmarks.scaling`."""

JOB_CORES, JOB_MEMORY_GB, RESTART_S = 2, 64.0, 300.0
ON_FLINK = "on Flink: the archive's one writer"
"""Of a job on Flink the cores and the memory are those of as many workers as it has: this is what it has one of."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the design: how much of it is used at the peak, and what to do when it is met."""

    name: str
    used: float
    remedy: str


def rate(case: Case) -> float:
    """Events a second at the peak."""
    return case.events_per_day / DAY_S * case.peak


def cores(case: Case, each_us: float) -> int:
    """Of what costs so many microseconds an event, so that none is busier than `BUSY` at the peak; two at least."""
    return max(2, math.ceil(rate(case) * each_us / 1e6 / BUSY))


def all_cores(case: Case, measured: Measured, *, singles: bool = False) -> int:
    """Of job, model servers and broker."""
    whole = measured.single_us if singles else measured.job_us + measured.models_us + measured.broker_us
    return cores(case, whole)


def state_gb(case: Case, measured: Measured) -> float:
    """Memory of state and identities, of all jobs."""
    windows = case.events_per_day * case.window_days * measured.state_bytes
    return (windows + case.events_per_day * case.horizon_days * measured.identity_bytes) / GB


def limits(case: Case, measured: Measured) -> list[Limit]:
    """All limits, the first to be met first. Each is per job, of which there are `case.jobs`."""
    peak, jobs = rate(case) / case.jobs, case.jobs
    pieces_s = peak / case.block_events * shards(case, measured) * measured.piece_us / 1e6
    hot = case.hot_share * rate(case) * measured.fold_us / 1e6
    restart_s = case.events_per_day / jobs * case.horizon_days / measured.restore_per_s
    found = [
        Limit("cores of a job", peak * measured.job_us / 1e6 / JOB_CORES, "more jobs, by key"),
        Limit("memory of a job", state_gb(case, measured) / jobs / JOB_MEMORY_GB, "more jobs, shorter windows"),
        Limit("restart of a job", restart_s / RESTART_S, "more jobs, a shorter horizon"),
        Limit("the busiest key's core", hot, "no remedy but another key: one key is folded in one place"),
        Limit("pieces of blocks", pieces_s / JOB_CORES, "larger blocks, fewer shards"),
        Limit("compaction", peak / case.peak * measured.compaction_us / 1e6, "a core for it"),
        Limit(ON_FLINK, peak * measured.writer_us / 1e6, "more jobs, by key"),
        Limit("a stream of Pub/Sub, 10 MB/s", peak * case.event_bytes / 10e6, "--streams"),
        Limit("one gateway, if all came by it", rate(case) / measured.gateway_per_s, "publish to the topic"),
    ]
    return sorted(found, key=lambda limit: -limit.used)


def shards(case: Case, measured: Measured) -> int:
    """Of a keyed stage, of each job: enough that none is busier than `BUSY` with folding, at least 8 on a cluster."""
    busy = rate(case) / case.jobs * measured.fold_us / 1e6
    return max(1 if case.jobs == 1 else 8, math.ceil(busy / BUSY))


def partitions(case: Case) -> tuple[int, int]:
    """Of a backfill of 30 days: of keys (50 million rows of a day each at most), and of days."""
    return max(1, math.ceil(case.events_per_day / 50e6)), 30


def usd_per_million(case: Case, measured: Measured, prices: Prices, *, singles: bool = False) -> dict[str, float]:
    """By what it is paid for; storage for 90 days."""
    event, prediction = (250.0, 400.0) if singles else (case.event_bytes, case.prediction_bytes)
    moved_tib = 1e6 * 2 * (event + prediction) / TIB  # each is published and delivered
    hours = all_cores(case, measured, singles=singles) * 24 / (case.events_per_day / 1e6)
    memory = state_gb(case, measured) / 4.0 * 24 / (case.events_per_day / 1e6)  # cores that come with that memory
    stored_gb = 1e6 * measured.archive_bytes / GB
    found = {
        "Pub/Sub": moved_tib * prices.pubsub_tib,
        "machines": max(hours, memory) * prices.core_hour,
        "archive, 90 days": stored_gb * 3 * prices.storage_gb_month,
        "BigQuery, 90 days": stored_gb * (prices.bigquery_write_gb + 3 * prices.bigquery_gb_month),
    }
    return found | {"all": sum(found.values())}
