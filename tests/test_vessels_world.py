"""The simulated world of vessels: its statistics against published figures (docs/vessels.md has the sources)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from apps.vessels.history import POSITION, RATED, write_history
from apps.vessels.world.fleet import FLEET, KINDS, World
from apps.vessels.world.gears import GEARS, TRADES, fish, trade
from apps.vessels.world.places import PORTS, between, distance_km, route
from apps.vessels.world.reception import NO_SPEED, Reports, is_fishing, transmit_interval_s
from apps.vessels.world.tracks import (
    DRIFT,
    ENCIRCLE,
    FISHING,
    HAUL,
    JIG,
    PORT,
    PURSE,
    SEARCH,
    SET,
    TOW,
    TRANSIT,
    Segments,
)
from shared_features.blocks import flatten
from shared_features.errors import ConfigurationError
from shared_features.validate import validate_block

DAY_S = 86_400.0
WORLD = World(vessels=2_000, hours=24, seed=3)


@pytest.fixture(scope="module")
def reports() -> Reports:
    return Reports.concatenate([chunk for _, chunk in WORLD.reports(WORLD.fleet())])


def segments(gear: str, hours: float = 48) -> Segments:
    return fish(gear, 150, hours * 3600, np.random.default_rng(7)).segments()


def stretches_h(found: Segments, *activities: int) -> np.ndarray:
    """Hours of each unbroken stretch of some activities that neither begins nor ends with the simulation."""
    chosen = np.isin(found.activity, activities)
    same = np.append(False, (found.vessel[1:] == found.vessel[:-1]) & (chosen[1:] == chosen[:-1]))
    number = np.cumsum(~same)
    lengths = np.bincount(number, found.seconds) / 3600
    kept = [one for one in np.unique(number[chosen]) if found.begin_s[number == one].min() > 0]
    ends = np.zeros(number.max() + 1)
    np.maximum.at(ends, number, found.begin_s + found.seconds)
    whole: np.ndarray = lengths[[one for one in kept if ends[one] < found.begin_s.max()]]
    return whole


def typical_knots(found: Segments, activity: int) -> float:
    return float(np.median(found.knots[found.activity == activity]))


def test_trawlers_tow_for_hours_at_three_and_a_half_knots() -> None:
    found = segments("trawler")
    towing = found.knots[found.activity == TOW]
    assert 3.2 <= typical_knots(found, TOW) <= 3.8
    assert np.mean((towing >= 2.5) & (towing <= 5.5)) > 0.9
    assert 3.0 <= float(np.median(stretches_h(found, TOW))) <= 5.0
    assert 7.0 <= typical_knots(found, TRANSIT) <= 11.0


def test_longliners_set_fast_and_straight_and_haul_slowly_for_longer() -> None:
    found = segments("drifting_longliner", 96)
    setting, hauling = stretches_h(found, SET), stretches_h(found, HAUL)
    assert 4.5 <= float(np.median(setting)) <= 6.0
    assert 10.0 <= float(np.median(hauling)) <= 12.0
    assert 7.5 <= typical_knots(found, SET) <= 9.5
    assert 3.2 <= typical_knots(found, HAUL) <= 4.8
    turns = np.abs((np.diff(found.course) + 180) % 360 - 180)
    same = (found.vessel[1:] == found.vessel[:-1]) & (found.activity[1:] == found.activity[:-1])
    setting_turns, hauling_turns = (turns[same & (found.activity[1:] == kind)] for kind in (SET, HAUL))
    assert np.median(setting_turns) < 0.5 * np.median(hauling_turns)


def test_seiners_encircle_in_minutes_and_purse_for_hours() -> None:
    found = segments("purse_seiner")
    assert 6 <= 60 * float(np.median(stretches_h(found, ENCIRCLE))) <= 11
    assert 1.5 <= float(np.median(stretches_h(found, PURSE))) <= 3.5
    assert 10.5 <= typical_knots(found, SEARCH) <= 13.5
    assert typical_knots(found, DRIFT) < 1.5


def test_jiggers_fish_by_night() -> None:
    found = segments("squid_jigger")
    jigging = found.activity == JIG
    hour = ((found.begin_s + found.seconds / 2) / 3600 + found.longitude / 15) % 24
    assert np.mean((hour[jigging] > 18) | (hour[jigging] < 5.5)) > 0.98
    assert typical_knots(found, JIG) < 1.5


@pytest.mark.parametrize("kind", sorted(TRADES))
def test_merchants_steam_along_great_circles(kind: str) -> None:
    found = trade(kind, 150, DAY_S, np.random.default_rng(7)).segments()
    assert abs(typical_knots(found, TRANSIT) - TRADES[kind].knots) < 1.5
    assert not FISHING[found.activity].any()
    # A segment's length is what its speed and time make, and each begins where the one before ended.
    ends = found.latitude + found.north * found.seconds, found.longitude + found.east * found.seconds
    length_km = distance_km(found.latitude, found.longitude, *ends)
    np.testing.assert_allclose(length_km, found.knots * 1.852 * found.seconds / 3600, rtol=0.02, atol=0.02)
    on = found.vessel[1:] == found.vessel[:-1]
    jump_km = distance_km(ends[0][:-1], ends[1][:-1], found.latitude[1:], found.longitude[1:])[on]
    assert jump_km.max() < 0.05


def test_routes_lead_along_the_lanes() -> None:
    way = (PORTS["Rotterdam"], *route("Rotterdam", "Singapore"))
    places = np.array(way).T
    length_km = distance_km(*places[:, :-1], *places[:, 1:]).sum()
    assert 14_500 < length_km < 17_000  # by Suez; 8,300 nautical miles in distance tables
    middle = between(np.array(0.5), *(np.array(one) for one in (52.0, 4.0, 40.0, -73.0)))
    assert middle[0] > 50  # a great circle goes north of the parallels


def test_a_day_has_as_many_positions_as_the_world_s(reports: Reports) -> None:
    """22 million a day of 60,000 vessels are 367 of each."""
    assert 340 <= len(reports) / WORLD.vessels <= 395
    fleet = WORLD.fleet()
    shares = np.bincount(fleet.kind, minlength=len(KINDS)) / WORLD.vessels
    np.testing.assert_allclose(shares, list(FLEET.values()), atol=0.01)
    assert len(np.unique(fleet.mmsi)) == WORLD.vessels


def test_speeds_as_received_are_those_of_the_gears(reports: Reports) -> None:
    """Of what is heard, not of the tracks below it: errors, thinning and reception leave the profiles as they are."""
    kind, fishing = np.array(KINDS)[WORLD.fleet().kind[reports.vessel]], is_fishing(reports)
    known = (reports.speed < NO_SPEED) & ~reports.again
    knots = {
        (gear, busy): reports.speed[known & (kind == gear) & (fishing == busy) & (reports.activity != PORT)] / 10
        for gear in KINDS
        for busy in (True, False)
    }
    towing = knots["trawler", True]
    assert 3.2 <= np.median(towing) <= 3.8
    assert np.mean((towing >= 2.5) & (towing <= 5.5)) > 0.88
    assert np.median(knots["trawler", False]) > 7  # two peaks, as published profiles have them
    assert np.median(knots["drifting_longliner", True]) < 5.5  # hauling takes longer than setting
    assert np.mean(knots["drifting_longliner", True] > 6.5) > 0.2  # which is fast
    assert np.median(knots["purse_seiner", False]) > 9
    assert np.median(knots["squid_jigger", True]) < 1.5
    for merchant, trade_of in TRADES.items():
        assert abs(np.median(knots[merchant, False]) - trade_of.knots) < 1.5
        assert not len(knots[merchant, True])


def test_the_fleet_fishes_more_than_the_real_one() -> None:
    """As the guide says: 13 hours a day, where 70,000 vessels were seen to fish 40 million hours in 2016, 1.6 a day."""
    hours = {}
    for gear in GEARS:
        found = segments(gear, 24)
        ends = np.minimum(found.begin_s + found.seconds, DAY_S)
        hours[gear] = float(((ends - np.maximum(found.begin_s, 0)) * FISHING[found.activity]).sum() / 3600 / 150)
    mean = sum(FLEET[gear] * hours[gear] for gear in GEARS) / sum(FLEET[gear] for gear in GEARS)
    assert 12 < mean < 14


def test_a_feed_has_gaps_errors_second_copies_and_late_positions(reports: Reports) -> None:
    assert 0.6 < reports.satellite.mean() < 0.9
    assert 0.008 < reports.again.mean() < 0.012
    assert 0.002 < np.mean(reports.speed == NO_SPEED) < 0.006
    delay_s = reports.delay_ms / 1000
    assert np.quantile(delay_s[~reports.satellite & ~reports.again], 0.99) < 6
    assert 0.05 < np.mean(delay_s > 3600) < 0.25
    assert delay_s.max() < 4 * 3600 + 700
    order = np.lexsort((reports.time_s, reports.vessel))
    gap_s = np.diff(reports.time_s[order])[np.diff(reports.vessel[order]) == 0]
    assert np.any(gap_s > 6 * 3600)


def test_nobody_reports_more_often_than_a_transponder_sends(reports: Reports) -> None:
    fleet = WORLD.fleet()
    rows = np.flatnonzero(~reports.again & (reports.speed < NO_SPEED))
    rows = rows[np.lexsort((reports.time_s[rows], reports.vessel[rows]))]
    one, next_one = rows[:-1], rows[1:]
    same = (reports.vessel[one] == reports.vessel[next_one]) & (reports.activity[one] == reports.activity[next_one])
    gap_s = (reports.time_s[next_one] - reports.time_s[one])[same]
    class_b, slow = fleet.class_b[reports.vessel[one]][same], reports.speed[one][same]
    assert gap_s.min() >= 1
    assert np.mean(gap_s[class_b & (slow > 30)] >= 30) > 0.995
    moored = ~class_b & (reports.activity[one][same] == 0)
    assert np.mean(gap_s[moored] >= 180) > 0.995
    assert transmit_interval_s(np.array([10.0]), False, np.array([True]), False)[0] == pytest.approx(10 / 3)


def test_the_truth_has_fishing_only_of_fishing_vessels(reports: Reports) -> None:
    kind = WORLD.fleet().kind[reports.vessel]
    assert not is_fishing(reports)[kind >= KINDS.index("cargo")].any()
    assert 0.4 < is_fishing(reports)[kind < KINDS.index("cargo")].mean() < 0.8


def test_the_same_settings_give_the_same_world_on_any_number_of_threads() -> None:
    world = World(vessels=50, hours=3, seed=5)
    one, other = (next(iter(world.reports(world.fleet(), threads)))[1] for threads in (1, 2))
    different = next(iter(dataclasses.replace(world, seed=6).reports(world.fleet())))[1]
    for field in dataclasses.fields(Reports):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name))
    assert len(different) != len(one) or not np.array_equal(different.latitude, one.latitude)


def test_a_history_has_events_that_a_job_accepts(tmp_path: Path) -> None:
    summary = write_history(tmp_path, vessels=40, hours=12)
    assert summary.simulated
    assert write_history(tmp_path, vessels=40, hours=12).reused
    table = pq.read_table(tmp_path)
    assert table["event_type"].value_counts().to_pylist() == [
        {"values": "position", "counts": summary.events["position"]},
        {"values": "rated", "counts": summary.events["rated"]},
    ] or set(summary.events) == set(pc.unique(table["event_type"]).to_pylist())
    assert table["publish_time"].to_pylist() == sorted(table["publish_time"].to_pylist())
    for block in flatten(table).combine_chunks().to_batches():
        checked = validate_block(block, {"position": POSITION, "rated": RATED})
        assert not checked.rejected
    rated = table.filter(pc.equal(table["event_type"], "rated"))["rated"].combine_chunks()
    assert pc.all(pc.is_in(rated.field("position_id"), table["event_id"].combine_chunks())).as_py()
    with pytest.raises(ConfigurationError, match="wanted 1 to 900,000 vessels"):
        write_history(tmp_path, vessels=0)
