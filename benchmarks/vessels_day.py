"""A simulated day of ships through the live job of the app vessels, both models serving; all of it verified afterwards.

    python -m benchmarks.vessels_day --models var/models/vessels --vessels 60000

Positions go in blocks of 1,000 in the order of publication, late ones and second copies as the world has them;
deduplication on, the archive durable before anything is acknowledged. Broker, model server, job, load generator and
receiver share the machine.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apps.vessels.history import write_history
from batch.verify import verify
from benchmarks.stream_load import BROKER, JOB, SERVE, Process, Receiver, job_status
from serving.client import ModelClient
from shared_features import load_app
from shared_features.blocks import flatten
from streaming.event_blocks import block_message
from streaming.job import create_topics, predictor
from streaming.topics import Endpoint, OutgoingMessage, Publisher, create_subscription

BLOCK, MESSAGES_A_CALL = 1_000, 200


def measure(models: Path, vessels: int, hours: float, *, check: bool = True) -> dict[str, Any]:
    """Publish a world and wait for all predictions of both models.

    Returns:
        Positions, each one's rate, seconds, the job's memory and state in MB, what is missing, and what `verify` found.
    """
    app = load_app("vessels")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_history(folder / "history", vessels=vessels, hours=hours, rated=0.0)
        broker = Process([*BROKER, "--data", str(folder / "broker")], '"ready"')
        stack.callback(broker.kill)
        endpoint = Endpoint("bench", json.loads(broker.line)["host_port"])
        create_topics(app, endpoint)
        create_subscription(endpoint, "bench-predictions", f"{app.name}-predictions")
        server = Process([*SERVE, "--app", "vessels", "--models", str(models), "--json"], '"ready"')
        stack.callback(server.kill)
        host_port = str(json.loads(server.line)["host_port"])
        where = ["--emulator", str(endpoint.host_port), "--project", "bench", "--archive", str(folder / "archive")]
        job = Process([*JOB, "--app", "vessels", *where, "--model-server", host_port, "--json"], '"ready"')
        stack.callback(job.kill)
        receiver = Receiver(endpoint, "bench-predictions")
        stack.callback(receiver.close)
        publisher = Publisher(endpoint)
        stack.callback(publisher.close)
        wanted, sent = _publish(app, folder / "history", publisher)
        receiver.wait_for(len(wanted))
        seconds = time.monotonic() - sent
        status = job_status(json.loads(job.line)["monitoring"])
        found: dict[str, Any] = {
            "simulated": True,
            "vessels": vessels,
            "hours": hours,
            "events": len(wanted),
            "seconds": round(seconds, 1),
            "events_per_s": round(len(wanted) / seconds),
            "job_rss_mb": round(psutil.Process(job.pid).memory_info().rss / 1e6),
            "state_mb": round(status["state_bytes"] / 1e6),
            "lost": len(wanted - receiver.seen()),
        }
        job.stop()
        if check:
            clients = {one.name: stack.enter_context(ModelClient(host_port, one.name)) for one in app.models}
            predict = {one: predictor(client) for one, client in clients.items()}
            report = verify(app, folder / "archive", predict=predict)
            found |= {"mismatches": report.mismatches, "predictions_checked": report.predictions}
    return found


def _publish(app: Any, history: Path, publisher: Publisher) -> tuple[set[str], float]:
    """Send a history in blocks; the identities sent, and when the first went."""
    position, wanted, begin = app.event_types["position"], set[str](), 0.0
    for path in sorted(history.glob("*.parquet")):
        messages: list[OutgoingMessage] = []
        for batch in pq.ParquetFile(path).iter_batches(BLOCK * 100):
            block = flatten(pa.Table.from_batches([batch])).combine_chunks().to_batches()[0]
            wanted.update(pc.unique(block.column("event_id")).to_pylist())
            messages += [block_message(position, block.slice(at, BLOCK)) for at in range(0, block.num_rows, BLOCK)]
        begin = begin or time.monotonic()
        for at in range(0, len(messages), MESSAGES_A_CALL):
            publisher.publish(f"{app.name}-events", messages[at : at + MESSAGES_A_CALL])
    return wanted, begin


@click.command()
@click.option("--models", type=click.Path(path_type=Path), default=Path("var/models/vessels"), show_default=True)
@click.option("--vessels", default=60_000, show_default=True)
@click.option("--hours", default=24.0, show_default=True)
@click.option("--verify/--no-verify", "check", default=True)
def main(models: Path, vessels: int, hours: float, check: bool) -> None:
    """Print the figures, the last line as JSON."""
    found = measure(models, vessels, hours, check=check)
    for name, value in found.items():
        click.echo(f"{name:20} {value if isinstance(value, bool) else f'{value:,}':>14}")
    click.echo(f"{os.cpu_count()} cores for broker, models, job, load and receiver together")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
