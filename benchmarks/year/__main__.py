"""Live a year of flights week by week: predict, watch, retrain when an alarm stands; then draw it.

    python -m benchmarks.year --work var/year --plot docs/year.png

Kernel, archive, monitor and its alarms are those of a live job, `sameriver retrain` is run as a command, and the
triggers are asked with the year's clock. Only topic and model server are left out: the exported model is called in
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.monitor import Monitor
from batch.views import ViewFollower
from benchmarks.year import world
from benchmarks.year.plot import plot
from commands.retrain_triggers import FILE, Triggers
from serving.promotion import read_promotion
from shared_features import load_app
from shared_features.compute import to_block
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from shared_features.state import StageState
from streaming.archive import Archive
from streaming.results import Answer, asked_rows, feature_block, with_results
from training.export import SavedModel, versions
from training.sketches import read_reference

START = datetime(2013, 1, 1, tzinfo=UTC)
LIVE = datetime(2013, 3, 26, tzinfo=UTC)
WEEK_US = 7 * 86_400_000_000
RECENT, AGAIN = "21d", timedelta(days=14)
CHUNK_ROWS = 4_000


class Year:
    """What lives through the year.

    Args:
        work: folder of history, archive, models and reports; what lies there is not read.

    Attributes:
        monitor: of what is served. alone: of what the first version would say, left alone.
        retrainings: when, why, and what came of each.
    """

    def __init__(self, work: Path) -> None:
        self.app = load_app(str(Path(__file__).parent))
        self.work, self.model = work, self.app.models[0].name
        self.home = work / "models" / self.model
        self._plan = make_plan(self.app)
        self._states = [StageState(stage) for stage in self._plan.stages]
        self._stages = reaction_stages(self.app)
        app = self.app
        identity = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
        self._archive = Archive(work / "archive", identity)
        self._loaded: dict[int, SavedModel] = {}
        self.monitor = Monitor(
            app, lambda name, version: read_reference(work / "models" / name / str(version)), WEEK_US
        )
        self.alone = Monitor(app, lambda *_: None, WEEK_US)
        self._follower = ViewFollower(self.monitor, work / "archive", app)
        self.retrainings: list[dict[str, Any]] = []
        self.triggers = Triggers(
            self.model,
            work / "monitor" / "alarms.parquet",
            work / "reports" / self.model / FILE,
            kinds=("quality",),
            again=AGAIN,
        )

    def live(self, until: datetime, events: pa.Table) -> None:
        """A piece of the year; at its end somebody looks whether a retraining is called for."""
        folder = self.work / "history"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(events, folder / f"{until:%Y-%m-%d}.parquet")
        whole = to_block(self.app, events)
        for begin in range(0, whole.num_rows, CHUNK_ROWS):
            block = whole.slice(begin, CHUNK_ROWS)
            for state in self._states:
                block = step(state, block)
            if versions(self.home):
                self._serve(finish(self._plan, block))
        if not versions(self.home):
            if until >= LIVE:
                self._retrain(until, ["the first time"])
            return
        for _ in self._follower.catch_up():
            pass
        self.monitor.write(self.work / "monitor")
        reasons = self.triggers.due(until)
        if reasons:
            self._retrain(until, reasons)

    def _serve(self, block: pa.RecordBatch) -> None:
        promotion = read_promotion(self.home)
        champion = versions(self.home)[-1] if promotion is None else promotion.champion
        served = self._predicted(block, champion)
        self._archive.mark_published(self._archive.append(served, {"received": block.num_rows}))
        self.alone.fold(served if champion == 1 else self._predicted(block, 1))

    def _predicted(self, block: pa.RecordBatch, version: int) -> pa.RecordBatch:
        model = self._loaded.get(version) or SavedModel(self.home / str(version))
        self._loaded[version] = model
        features = feature_block(self.app, block, asked_rows(self.app, block))
        said = model.probabilities(features).astype(np.float64)
        return with_results(self.app, block, {self.model: Answer({"probability": said}, {}, version)}, self._stages)

    def _retrain(self, now: datetime, reasons: list[str]) -> None:
        standing = self.triggers.standing()
        command = [sys.executable, "-m", "cli", "retrain", "--app", self.app.spec, "--json"]
        for option, folder in (("history", "history"), ("rows", "rows"), ("models", "models"), ("reports", "reports")):
            command += [f"--{option}", str(self.work / folder)]
        if self.retrainings:
            command += ["--recent", RECENT]  # what was before the change teaches little
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise click.ClickException(done.stderr.splitlines()[-1])
        found = json.loads(done.stdout.splitlines()[-1])
        self.triggers.answer(standing, now)
        seconds = sum(one["seconds"] for one in found["steps"])
        told = {"at": now.isoformat(), "why": reasons, "version": found["version"], "promoted": found["promoted"]}
        self.retrainings.append({**told, "champion": found["champion"], "seconds": round(seconds)})
        click.echo(f"{now:%Y-%m-%d} retrained ({'; '.join(reasons)}): {self.retrainings[-1]}", err=True)


def summary(year: Year) -> dict[str, Any]:
    """AUC before the change, after it, and once the alarm was answered; when which alarm went on, and what was done."""
    switches = year.monitor.table().to_pylist()
    change_us = int(world.CHANGE.timestamp() * 1e6)
    ended = [one["judged_at"] for one in switches if not one["on"] and one["judged_at"] > world.CHANGE]
    answers = [datetime.fromisoformat(one["at"]) for one in year.retrainings if one["promoted"]]
    mended = max((one for one in answers if ended and world.CHANGE < one < ended[0]), default=None)
    bounds = {"before the change": (0, change_us), "after the change": (change_us, 2**62)}
    if mended is not None:
        bounds["after the retraining that ended the alarm"] = (int(mended.timestamp() * 1e6), 2**62)
    served, alone = (list(one.quality.rows()) for one in (year.monitor, year.alone))
    aucs = {
        name: {"served": _auc(served, *ends), "version 1 alone": _auc(alone, *ends)} for name, ends in bounds.items()
    }
    alarms = [
        {"alarm": row["alarm"], "of": row["of"], "on": row["on"], "judged_at": row["judged_at"].isoformat()}
        for row in switches
    ]
    return {"change": world.CHANGE.isoformat(), "auc": aucs, "alarms": alarms, "retrainings": year.retrainings}


def _auc(rows: Sequence[Mapping[str, Any]], since_us: int, until_us: int) -> float | None:
    """Mean AUC of the weeks that lie in between, each by its number of labels."""
    weeks = [row for row in rows if since_us <= row["window"] <= until_us - WEEK_US and row["auc"] is not None]
    labelled = sum(row["labelled"] for row in weeks)
    return round(sum(row["auc"] * row["labelled"] for row in weeks) / labelled, 4) if labelled else None


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("var/year"), help="Folder, new or empty.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="PNG to draw.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), default="2014-01-01", help="End earlier.")
def main(work: Path, picture: Path | None, until: datetime) -> None:
    """Live the year, and print what came of it as JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if work.exists() and any(work.iterdir()):
        raise click.UsageError(f"{work} is not empty: name a new folder with --work")
    began, year = time.monotonic(), Year(work)
    table = world.events(work / "real")
    for end, events in world.weeks(table, START):
        if end - timedelta(days=7) < until.replace(tzinfo=UTC) and events.num_rows:
            year.live(end, events)
    found = summary(year) | {"seconds": round(time.monotonic() - began)}
    if picture is not None:
        plot(picture, year.monitor, year.alone, year.retrainings, world.CHANGE)
    click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
