"""How good the vessels' models are, by kind of vessel, on vessels that none of them has seen. All of it is simulated.

    python -m benchmarks.vessel_models --models var/models/vessels --vessels 1500

Another seed gives another fleet: its positions of the second day, each rated by the simulator. Beside the app's models
stands the published score with the course deviation read in another way (see docs/vessels.md).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apps.vessels.history import write_history
from apps.vessels.published import WINDOWS_S
from apps.vessels.world.fleet import KINDS
from apps.vessels.world.gears import GEARS
from shared_features import compute, load_app

SEED = 20_260_000
HOURS = 48.0
OTHER = "gfw_logistic, deviation not halved"


def evaluate(models: Path, vessels: int, seed: int = SEED) -> dict[str, Any]:
    """AUC and average precision of each model for each gear, and how often it takes merchants for fishing.

    Args:
        models: folder of the app's models; the latest version of each is judged.
        vessels: size of the fleet.
        seed: of the world; not one that a model was trained on.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    from training.export import SavedModel, latest_version

    app = load_app("vessels")
    with tempfile.TemporaryDirectory() as folder:
        write_history(folder, vessels=vessels, hours=HOURS, seed=seed, rated=1.0)
        events = pq.read_table(folder)
    rated = events.filter(pc.equal(events["event_type"], "rated"))["rated"].combine_chunks().flatten()
    truth = pa.table(rated, names=["position_id", "fishing", "gear"])
    positions = events.filter(pc.equal(events["event_type"], "position"))
    _, firsts = np.unique(positions["event_id"].to_numpy(), return_index=True)
    features = compute(app, positions.take(pa.array(np.sort(firsts))))
    begin = pc.min(features["event_time"]).as_py()
    second_day = pc.greater_equal(pc.subtract(features["event_time"], begin).cast(pa.int64()), 24 * 3_600_000_000)
    rows = features.filter(second_day).join(truth, "event_id", "position_id", "inner").combine_chunks()
    scores = {name: SavedModel(latest_version(models, name)).probabilities(rows) for name in _served(app)}
    scores[OTHER] = SavedModel(latest_version(models, "gfw_logistic")).probabilities(_not_halved(rows))
    fishing, gear = np.asarray(rows["fishing"]), np.asarray(rows["gear"])
    found: dict[str, Any] = {"simulated": True, "seed": seed, "vessels": vessels, "rows": len(fishing), "models": {}}
    for name, score in scores.items():
        report = {}
        for kind in [*GEARS, "all"]:
            of = np.isin(gear, list(GEARS)) if kind == "all" else gear == kind
            report[kind] = {
                "positions": int(of.sum()),
                "fishing": round(float(fishing[of].mean()), 4),
                "auc": round(float(roc_auc_score(fishing[of], score[of])), 4),
                "average_precision": round(float(average_precision_score(fishing[of], score[of])), 4),
                "recall_at_half": round(float((score[of & fishing] >= 0.5).mean()), 4),
            }
        for kind in KINDS:
            if kind not in GEARS:
                report[kind] = {"taken_for_fishing": round(float((score[gear == kind] >= 0.5).mean()), 4)}
        found["models"][name] = report
    return found


def _served(app: Any) -> list[str]:
    return [model.name for model in app.models]


def _not_halved(rows: pa.Table) -> pa.Table:
    """The columns as if the definition divided the variances, not the sine and the cosine, by the root of two."""
    for window_s in WINDOWS_S:
        name = f"measure_coursestddev_{window_s}"
        other = pc.multiply(rows[name], 2**0.25)
        rows = rows.set_column(rows.schema.get_field_index(name), name, other)
    return rows


@click.command()
@click.option("--models", type=click.Path(path_type=Path), default=Path("var/models/vessels"), show_default=True)
@click.option("--vessels", default=1_500, show_default=True)
@click.option("--seed", default=SEED, show_default=True)
def main(models: Path, vessels: int, seed: int) -> None:
    """Print a table and, as the last line, JSON."""
    found = evaluate(models, vessels, seed)
    click.echo(f"SIMULATED: {found['rows']:,} positions of {vessels:,} vessels of another fleet")
    for name, report in found["models"].items():
        click.echo(name)
        for kind, figures in report.items():
            click.echo(f"  {kind:20}" + "  ".join(f"{what} {value:,}" for what, value in figures.items()))
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
