"""Golden state files: what each version of the encoding wrote, and the answers that must come after it.

``python -m tests.readings.saved`` writes the files of the present version into ``tests/state_files``; the files of a
version are written once, by the code of that version, and never again.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

import shared_features as sf
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import ENCODING_VERSION, StageState
from tests.readings.events import SECOND, by_sensor, by_station, make_app, make_block, note, reading

FOLDER = Path(__file__).parent.parent / "state_files"

OLD_FEATURES: dict[str, Any] = {
    "colours": sf.count(reading.colour, by=by_station, over="60s"),
    "colours_high": sf.count(reading.colour, by=by_station, over="20s", where=reading.level > 0.0),
    "steps_sum": sf.sum(reading.steps, by=by_station, over="20s"),
    "level_sum": sf.sum(reading.level, by=by_station, over="60s"),
    "level_mean": sf.mean(reading.level, by=by_station, over="20s", closed="both"),
    "level_variance": sf.variance(reading.level, by=by_station, over="60s"),
    "level_std": sf.std(reading.level, by=by_station, over="60s", sample=True, include_self=False),
    "level_min": sf.min(reading.level, by=by_station, over="60s"),
    "level_max": sf.max(reading.level, by=by_station, over="20s", include_self=False),
    "steps_first": sf.first(reading.steps, by=by_station, over="20s"),
    "steps_last": sf.last(reading.steps, by=by_station, over="60s", include_self=False),
    "steps_lag": sf.lag(reading.steps, 2, by=by_station, over="60s"),
    "open_share": sf.mean(reading.open, by=by_station, over="60s"),
    "note_age": sf.seconds_since_last(note.weight, by=by_station, over="60s"),
    "note_weight": sf.last(note.weight, by=by_station, over="60s"),
    "planned_in": sf.last(reading.planned, by=by_sensor, over="60s", include_self=False) - reading.at,
    "sensor_mean": sf.mean(reading.level, by=by_sensor, over="60s", scale=1e-3),
    "sensor_steps": sf.max(reading.steps, by=by_sensor, over="20s"),
}
"""Every aggregate, type of value and kind of window that version 1 knew."""

OLD_APP = make_app(OLD_FEATURES, lateness="30s")


def events(rows: int) -> list[dict[str, Any]]:
    """A made-up run of events: two a second, some late, some at the same time, with nulls."""
    chance = random.Random(20260101)
    made: list[dict[str, Any]] = []
    for i in range(rows):
        t = i * SECOND // 2
        t -= chance.choice([0, 0, 0, 0, 0, 0, 0, 1, 5 * SECOND, 29 * SECOND, 40 * SECOND])
        row: dict[str, Any] = {"id": f"e{i}", "t": t if chance.random() < 0.8 or not made else made[-1]["t"]}
        row |= {"station": chance.choice(["kiel", "kiel", "köln", None]), "sensor": chance.choice([1, -7, None])}
        if chance.random() < 0.2:
            row |= {"type": "note", "weight": chance.choice([None, 0.5, chance.uniform(0, 9)])}
        else:
            row |= {
                "level": chance.choice([None, -0.0, 1e8 + 1, 0.1, chance.uniform(-5, 5), chance.gauss(0, 1e4)]),
                "steps": chance.choice([None, 0, 2**61, -(2**61), chance.randrange(-9, 9)]),
                "open": chance.choice([True, False, None]),
                "colour": chance.choice(["red", "blue", None]),
                "planned": chance.choice([None, 1_700_000_000 * SECOND + t + chance.randrange(10**9)]),
            }
        made.append(row)
    return made


def fold(states: list[StageState], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The features of each row, floats as hexadecimal text; the states move on."""
    block: pa.RecordBatch = make_block(rows)
    for state in states:
        block = step(state, block)
    plan = make_plan(OLD_APP)
    names = [f"feature.{name}" for name in OLD_FEATURES]
    found = finish(plan, block).select(names).to_pylist()
    return [{name[8:]: v.hex() if isinstance(v, float) else v for name, v in row.items()} for row in found]


def write() -> None:
    """Write the files of the present version of the encoding."""
    rows = events(200)
    folded, later = rows[:130], rows[130:]
    states = [StageState(stage, epoch=3, shard=5) for stage in make_plan(OLD_APP).stages]
    fold(states, folded)
    FOLDER.mkdir(exist_ok=True)
    for state in states:
        (FOLDER / f"v{ENCODING_VERSION}_{state.stage.name}.bin").write_bytes(state.save())
    positions = {state.stage.name: state.position for state in states}
    parts = {"positions": [positions], "folded": folded, "later": later, "wanted": fold(states, later)}
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]"
        for name, part in parts.items()
    ]
    (FOLDER / f"v{ENCODING_VERSION}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
