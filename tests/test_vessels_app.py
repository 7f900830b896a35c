"""The vessels' app: missing values, the published columns and their score, reactions, areas, effort."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.vessels.areas import MOST_EDGES, read_areas
from apps.vessels.effort import LONGEST_GAP_US, half_us, on_grid
from apps.vessels.published import WINDOWS_S, published_model
from shared_features import App, compute, load_app
from shared_features.compute import compute_block, to_block
from shared_features.errors import ConfigurationError
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from streaming.results import Answer, with_results

START_US = 1_718_409_600_000_000
ROOT = Path(__file__).parent.parent
app = load_app("vessels")

Row = tuple[float, int, float | None, float | None, float | None, float | None]
"""Seconds, vessel, latitude, longitude, speed, course."""


def events(rows: Sequence[Row]) -> pa.Table:
    """Positions in the order of their arrival."""
    seconds, vessel, latitude, longitude, speed, course = (list(column) for column in zip(*rows, strict=True))
    times = pa.array([START_US + round(one * 1e6) for one in seconds]).cast(pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "event_type": ["position"] * len(rows),
            "event_id": [str(number) for number in range(len(rows))],
            "event_time": times,
            "publish_time": times,
            "position.vessel": pa.array(vessel, pa.int64()),
            "position.latitude": pa.array(latitude, pa.float64()),
            "position.longitude": pa.array(longitude, pa.float64()),
            "position.speed": pa.array(speed, pa.float64()),
            "position.course": pa.array(course, pa.float64()),
        }
    )


def test_what_ais_calls_not_available_is_missing() -> None:
    found = compute(app, events([(0, 1, 10.0, 20.0, 8.0, 90.0), (600, 1, 91.0, 181.0, 102.3, 360.0)])).to_pylist()
    for name in ("speed", "moved_m", "implied_knots", "turn", "sun"):
        assert found[1][name] is None, name
    # The windows hold the first position only: the second has neither speed nor course.
    assert found[1]["measure_speedavg_1800"] == pytest.approx(1 - 8 / 17, abs=1e-12)
    assert found[1]["gap_s"] == 600.0


def by_definition(rows: Sequence[Row], number: int) -> list[float]:
    """The eighteen columns of one position, read slowly from their definition."""
    at, vessel = rows[number][:2]
    columns = []
    for window_s in WINDOWS_S:
        seen = [row for row in rows[: number + 1] if row[1] == vessel and at - window_s <= row[0] <= at]
        known = [(row[4], row[5]) for row in seen if row[4] is not None and row[5] is not None]
        slow = [1 - min(1.0, speed / 17) for speed, _ in known]
        waves = [[wave(math.radians(course)) / math.sqrt(2) for _, course in known] for wave in (math.cos, math.sin)]
        spread = math.sqrt(sum(np.var(one) for one in waves))
        columns += [float(np.mean(slow)), float(np.std(slow)), spread]
    return columns


def a_track(seed: int = 1) -> list[Row]:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 90_000, 120))
    speeds, courses = np.round(random.uniform(0, 22, 120), 1), np.round(random.uniform(0, 359.9, 120), 1)
    track: list[Row] = []
    for number, at in enumerate(times.tolist()):
        known = bool(random.random() > 0.1) or number < 4
        speed, course = (float(speeds[number]), float(courses[number])) if known else (None, None)
        track.append((float(at), number % 2, 10.0, 20.0, speed, course))
    return track


def test_the_published_columns_are_those_of_the_definition() -> None:
    rows = a_track()
    found = compute(app, events(rows))
    names = [f"measure_{what}_{w}" for w in WINDOWS_S for what in ("speedavg", "speedstddev", "coursestddev")]
    columns = np.stack([found[name].to_numpy(zero_copy_only=False) for name in names], axis=1)
    place = {one: row for row, one in enumerate(found["event_id"].to_pylist())}
    for number, row in enumerate(rows):
        if row[4] is not None:
            np.testing.assert_allclose(columns[place[str(number)]], by_definition(rows, number), atol=1e-10)


@pytest.mark.tensorflow
def test_the_published_score_is_within_a_billionth_of_its_definition(tmp_path: Path) -> None:
    from shared_features.fingerprint import canonical
    from training.export import SavedModel
    from training.polynomial_logistic import PolynomialLogisticOptions, write_polynomial_logistic
    from training.rows import Feature, TrainingRows

    numbers = tuple(Feature(name, "number") for name in app.features)
    made = TrainingRows(tmp_path, app.name, app.fingerprint, canonical(app.definitions), numbers, {}, {})
    (model,) = (one for one in app.models if one.name == "gfw_logistic")
    options = PolynomialLogisticOptions.from_mapping(json.loads(json.dumps(model.options)), made.numbers)
    write_polynomial_logistic(options, made, tmp_path / "model")
    served = SavedModel(tmp_path / "model")
    assert served.fingerprint == app.fingerprint
    rows = a_track(2)
    found = compute(app, events(rows))
    scores = dict(zip(found["event_id"].to_pylist(), served.probabilities(found).tolist(), strict=True))
    read = json.loads((ROOT / "apps/vessels/gfw_logistic.json").read_text())["args"]
    for number, row in enumerate(rows):
        if row[4] is not None:
            columns = np.array(by_definition(rows, number))
            powers = np.concatenate([columns**power for power in range(1, read["order"] + 1)])
            logit = read["intercept"][0] + float(np.dot(read["coef"][0], powers))
            assert abs(scores[str(number)] - 1 / (1 + math.exp(-logit))) < 1e-9
    assert np.ptp(list(scores.values())) > 0.1


def test_a_given_model_must_fit_its_columns() -> None:
    from training.polynomial_logistic import PolynomialLogisticOptions

    options = {**published_model(["speed"]), "order": 2}
    with pytest.raises(ConfigurationError, match="takes an intercept and 2 coefficients"):
        PolynomialLogisticOptions.from_mapping(options, ["speed"])
    with pytest.raises(ConfigurationError, match=r"must be features that are numbers, but \['speed'\]"):
        PolynomialLogisticOptions.from_mapping(options, ["turn"])
    with pytest.raises(ConfigurationError, match="takes the options columns, order"):
        PolynomialLogisticOptions.from_mapping({"columns": ["speed"]}, ["speed"])
    with pytest.raises(ConfigurationError, match="must be 1 to 16, but is 0"):
        PolynomialLogisticOptions.from_mapping({**options, "order": 0}, ["speed"])


def fired(rows: Sequence[Row], probabilities: Sequence[float]) -> dict[str, str]:
    """For each reaction ``x`` where it fires, by position, when the first model says so."""
    block = compute_block(make_plan(app), to_block(app, events(rows)))
    answer = Answer({"probability": np.array(probabilities)}, {}, 1)
    whole = with_results(app, block, {model.name: answer for model in app.models}, reaction_stages(app))
    return {
        one.name: "".join("x" if fires else "." for fires in whole.column(f"reaction.{one.name}").to_pylist())
        for one in app.reactions
    }


def test_reactions() -> None:
    # Hours 0 1 2 3 4 5, then 12: fishing from 1 to 4, in the example area from 2 to 3, a leap at 5, silence until 12.
    area = [(30.0, -1.0), (55.9, 1.5), (56.0, 2.4), (56.0, 2.5), (55.9, 1.5), (20.0, 1.0), (20.0, 1.0)]
    hours = (0, 1, 2, 3, 4, 5, 12)
    rows: list[Row] = [(h * 3600.0, 1, *place, 3.0, 90.0) for h, place in zip(hours, area, strict=True)]
    found = fired(rows, [0.1, 0.9, 0.9, 0.5, 0.2, 0.9, 0.9])
    assert found == {
        "fishing": ".x..xx.",
        "protected_area": "..x....",
        "implausible_position": ".x...x.",  # 1,600 and 2,200 nautical miles in an hour
        "gap": "......x",
    }


def test_a_missing_position_starts_no_alert() -> None:
    rows: list[Row] = [(0.0, 1, 56.0, 3.5, 3.0, 90.0), (60.0, 1, 91.0, 181.0, 3.0, 90.0)]
    assert fired(rows, [0.1, 0.9])["protected_area"] == ".."


# -- areas --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSONDecodeError"),
        ('{"type": "Point"}', "KeyError"),
        ('{"features": [{"geometry": {"type": "Point", "coordinates": [0, 0]}}]}', "feature 1 is a Point"),
        (
            '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1]]]}}]}',
            "area 1.* not closed",
        ),
        (
            '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[9, 0], [-179, 0], [9, 1], [9, 0]]]}}]}',
            "crosses the antimeridian",
        ),
    ],
)
def test_areas_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "areas.geojson"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_areas(path)


def test_areas_with_too_many_edges(tmp_path: Path) -> None:
    ring = [[math.cos(n), math.sin(n)] for n in range(MOST_EDGES + 1)]
    shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps({"features": [{"geometry": shape}]}))
    with pytest.raises(ConfigurationError, match="100,001 edges, wanted at most 100,000"):
        read_areas(path)


def test_other_areas_need_no_other_model(tmp_path: Path) -> None:
    same = App(
        app.name,
        event_types=list(app.event_types.values()),
        predict_on=app.predict_on,
        features=app.features,
        lateness="6h",
    )
    assert same.fingerprint == app.fingerprint


# -- effort -------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=40))
def test_a_position_stands_for_half_the_time_to_its_neighbours(given_rows: list[tuple[int, int]]) -> None:
    hour_us = 3_600_000_000
    keys, times = [one for one, _ in given_rows], [at * hour_us for _, at in given_rows]
    table = pa.table({"key": pa.array(keys, pa.int64()), "time_us": pa.array(times, pa.int64())})
    found = half_us(table)
    for key in set(keys):
        mine = sorted(at for one, at in zip(keys, times, strict=True) if one == key)
        gaps = [b - a for a, b in pairwise(mine) if b - a <= LONGEST_GAP_US]
        assert sum(found[[one == key for one in keys]].tolist()) == 2 * sum(gaps)


def test_hours_on_a_grid() -> None:
    table = pa.table({"latitude": [0.5, 0.6, -0.5, None], "longitude": [10.1, 10.9, 10.5, 3.0]})
    found: dict[str, Any] = on_grid(table, np.array([1.0, 2.0, 0.5, 9.0]), 1.0).to_pydict()
    assert found == {"latitude": [-0.5, 0.5], "longitude": [10.5, 10.5], "hours": [0.5, 3.0]}
