"""Settings of a job on Flink, and the runner's options that they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from shared_features.errors import ConfigurationError
from streaming.job import JobSettings
from streaming.key_groups import KEY_GROUPS, MAX_SHARDS

SERVER_TIMEOUT_S = 60
BUNDLE_MS = 100
"""A bundle costs milliseconds in each step: with 30 ms, 255 events a second on 2 cores waited 2.7 times as long."""


@dataclass(frozen=True, slots=True)
class FlinkSettings:
    """Where and how a job runs on Flink.

    Attributes:
        job_endpoint: ``host:port`` of the Beam job server.
        rest: ``host:port`` of the job manager's REST API.
        worker_pool: ``host:port`` of a Beam worker pool, as each task manager reaches it.
        parallelism: workers of each step.
        shards: of each keyed stage; state is dealt out to workers by shard, so it is the most that parallelism can be.
        checkpoint_ms: between two checkpoints.
        hold: send results when a checkpoint holds them, not at once.
        start_from: a savepoint or checkpoint; None takes the newest that the archive's folder knows of.
        start_s: how long to wait until the job runs.
    """

    job_endpoint: str = "localhost:8099"
    rest: str = "localhost:8081"
    worker_pool: str = "localhost:50000"
    parallelism: int = 2
    shards: int = 4
    checkpoint_ms: int = 2_000
    hold: bool = False
    start_from: str | None = None
    start_s: float = 180.0


class _FlinkOptions(PipelineOptions):
    """The runner's own options, which Beam's Python half would otherwise take for slips until the job server says."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        for name in ("checkpointing_interval", "min_pause_between_checkpoints"):
            parser.add_argument(f"--{name}", type=int)
        parser.add_argument("--max_bundle_time_mills", type=int)
        parser.add_argument("--savepoint_path")
        for name in ("finish_bundle_before_checkpointing", "allow_non_restored_state"):
            parser.add_argument(f"--{name}", action="store_true", default=None)
        for name in ("externalized_checkpoints_enabled", "retain_externalized_checkpoints_on_cancellation"):
            parser.add_argument(f"--{name}", action="store_true", default=None)


def flink_options(name: str, flink: FlinkSettings, start_from: str | None) -> PipelineOptions:
    """Options of the portable runner.

    Bundles end before a checkpoint, so that none is split by it; elements are never in a checkpoint between steps.
    Checkpoints have a pause between them, which `streaming.covered` relies on.
    """
    options = [
        f"--job_endpoint={flink.job_endpoint}",
        f"--job_server_timeout={SERVER_TIMEOUT_S}",
        f"--job_name={name}",
        "--environment_type=EXTERNAL",
        f"--environment_config={flink.worker_pool}",
        "--streaming",
        f"--parallelism={flink.parallelism}",
        f"--max_parallelism={KEY_GROUPS}",
        "--sdk_worker_parallelism=1",
        f"--checkpointing_interval={flink.checkpoint_ms}",
        f"--min_pause_between_checkpoints={flink.checkpoint_ms // 2}",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
        "--finish_bundle_before_checkpointing",
        f"--max_bundle_time_mills={BUNDLE_MS}",
    ]
    if start_from is not None:
        options += [f"--savepoint_path={start_from}", "--allow_non_restored_state"]
    return _FlinkOptions(options)


def check(settings: JobSettings, flink: FlinkSettings) -> None:
    """Raise ConfigurationError where settings do not fit a job on Flink."""
    if not 1 <= flink.parallelism <= flink.shards <= MAX_SHARDS:
        raise ConfigurationError(
            f"--parallelism {flink.parallelism} and --shards {flink.shards} do not fit: wanted as many shards as "
            f"workers or more, and {MAX_SHARDS} at most"
        )
    for option, value in {"--snapshot": settings.snapshot, "--traces": settings.traces}.items():
        if value is not None:
            raise ConfigurationError(f"{option} is for a job in one process, wanted none with --runner flink")
