"""Golden state files: what each version of the encoding wrote, and the answers that must come after it.

``python -m tests.readings.saved`` writes the files of the present version into ``tests/state_files``; the files of a
version are written once, by the code of that version, and never again.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

import shared_features as sf
from shared_features.kernel import finish, step
from shared_features.plan import Plan, make_plan
from shared_features.state import ENCODING_VERSION, StageState
from tests.readings.events import SECOND, by_sensor, by_station, make_app, make_block, note, reading
from tests.readings.kernel_rows import exactly

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
by_place = sf.Key("place", (reading.station, reading.sensor))

MORE_FEATURES: dict[str, Any] = OLD_FEATURES | {
    "colour_last": sf.last(reading.colour, by=by_station, over="60s", include_self=False),
    "colour_most": sf.most_frequent(reading.colour, by=by_station, over="20s"),
    "colour_distinct": sf.distinct_count(reading.colour, by=by_station, over="10 events"),
    "level_distinct": sf.distinct_count(reading.level, by=by_station, over="60s"),
    "level_slope": sf.slope(reading.level, by=by_station, over="60s"),
    "level_decayed": sf.decayed_sum(reading.level, "7s", by=by_station, over="60s"),
    "steps_decayed": sf.decayed_mean(reading.steps, "7s", by=by_station, over="20s", where=reading.open),
    "last_three": sf.mean(reading.level, by=by_station, over="3 events"),
    "last_max": sf.max(reading.level, by=by_station, over="5 events", include_self=False),
    "place_levels": sf.last_values(reading.level, 3, by=by_place, over="10 events"),
    "place_colour": sf.first(reading.colour, by=by_place, over="2 events"),
    "place_rate": sf.rate(reading.steps, by=by_place, over="60s"),
}

FEATURES: dict[int, dict[str, Any]] = {
    1: OLD_FEATURES,
    2: MORE_FEATURES,
    3: MORE_FEATURES
    | {
        "open_last": sf.last(reading.open, by=by_station, over="20s", where=reading.level > 0.0),
        "planned_first": sf.first(reading.planned, by=by_station, over="60s", include_self=False) - reading.at,
        "steps_age": sf.seconds_since_last(reading.steps, by=by_sensor, over="60s", include_self=False),
        "steps_std": sf.std(reading.steps, by=by_sensor, over="60s"),
    },
}
"""What the files of each version answer: every aggregate, type of value, key and kind of window that it knew."""


@cache
def plan_of(version: int) -> Plan:
    """The plan of the app whose states the files of a version hold."""
    return make_plan(make_app(FEATURES[version], lateness="30s"))


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


def fold(version: int, states: list[StageState], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The features of each row, floats as hexadecimal text; the states move on."""
    block: pa.RecordBatch = make_block(rows)
    for state in states:
        block = step(state, block)
    names = [f"feature.{name}" for name in FEATURES[version]]
    found = finish(plan_of(version), block).select(names).to_pylist()
    return [{name.removeprefix("feature."): exactly(value) for name, value in row.items()} for row in found]


def write() -> None:
    """Write the files of the present version of the encoding."""
    rows = events(200)
    folded, later = rows[:130], rows[130:]
    states = [StageState(stage, epoch=3, shard=5) for stage in plan_of(ENCODING_VERSION).stages]
    fold(ENCODING_VERSION, states, folded)
    FOLDER.mkdir(exist_ok=True)
    for state in states:
        (FOLDER / f"v{ENCODING_VERSION}_{state.stage.name}.bin").write_bytes(state.save())
    positions = {state.stage.name: state.position for state in states}
    parts = {
        "positions": [positions],
        "folded": folded,
        "later": later,
        "wanted": fold(ENCODING_VERSION, states, later),
    }
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]"
        for name, part in parts.items()
    ]
    (FOLDER / f"v{ENCODING_VERSION}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
