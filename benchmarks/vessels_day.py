"""A simulated day of ships through the live job of the app vessels, both models serving; all of it verified afterwards.

    python -m benchmarks.vessels_day --models var/models/vessels --vessels 60000

Positions go in blocks of 1,000 in the order of publication, late ones and second copies as the world has them;
deduplication on, the archive durable before anything is acknowledged. Broker, model server, job, publisher and
receiver share the machine; the world is simulated, and the blocks are made, before the clock starts.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from apps.vessels.history import write_history
from batch.verify import verify
from benchmarks.stream_load import BROKER, JOB, SERVE, Process, Receiver, job_status
from serving.client import ModelClient
from shared_features import App, load_app
from shared_features.blocks import flatten, from_ipc
from streaming.event_blocks import block_message
from streaming.job import create_topics, predictor
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, create_subscription

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
        wanted, messages = _messages(app, folder / "history")
        receiver = _Predictions(endpoint, "bench-predictions")
        stack.callback(receiver.close)
        publisher = Publisher(endpoint)
        stack.callback(publisher.close)
        begin = time.monotonic()
        for at in range(0, len(messages), MESSAGES_A_CALL):
            publisher.publish(f"{app.name}-events", messages[at : at + MESSAGES_A_CALL])
        receiver.wait_for(len(wanted) * len(app.models))
        seconds = time.monotonic() - begin
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
            "lost": sum(len(np.setdiff1d(wanted, receiver.of(model.name))) for model in app.models),
        }
        job.stop()
        if check:
            clients = {one.name: stack.enter_context(ModelClient(host_port, one.name)) for one in app.models}
            predict = {one: predictor(client) for one, client in clients.items()}
            report = verify(app, folder / "archive", predict=predict)
            found |= {"mismatches": report.mismatches, "predictions_checked": report.predictions}
    return found


def _messages(app: App, history: Path) -> tuple[np.ndarray[Any, Any], list[OutgoingMessage]]:
    """A history in blocks, in the order of publication; the identities in it, each once."""
    position, identities = app.event_types["position"], []
    messages: list[OutgoingMessage] = []
    for path in sorted(history.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(BLOCK):
            (block,) = flatten(pa.Table.from_batches([batch])).combine_chunks().to_batches()
            identities.append(_numbers(block))
            messages.append(block_message(position, block))
    return np.unique(np.concatenate(identities)), messages


def _numbers(block: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """The simulated positions' identities: numbers of up to 18 digits."""
    found: np.ndarray[Any, Any] = block.column("event_id").cast(pa.int64()).to_numpy()
    return found


class _Predictions(Receiver):
    """Counts predictions, and keeps by model which events they are of."""

    def __init__(self, endpoint: Endpoint, subscription: str) -> None:
        self._found: dict[str, list[np.ndarray[Any, Any]]] = {}
        super().__init__(endpoint, subscription)

    def _note(self, messages: Sequence[Message], now: float) -> int:  # noqa: ARG002
        count = self.count()
        for message in messages:
            found = _numbers(from_ipc(message.data))
            self._found.setdefault(message.attributes["model"], []).append(found)
            count += len(found)
        return count

    def of(self, model: str) -> np.ndarray[Any, Any]:
        """The identities of the events that a model's predictions are of."""
        return np.concatenate(self._found.get(model) or [np.zeros(0, np.int64)])


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
