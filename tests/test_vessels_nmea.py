"""AIS sentences as events: positions of both classes, static data, several sentences, tag blocks, bad lines."""

from __future__ import annotations

import functools
import operator
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyais import encode_dict

import cli
from apps.vessels.readers import nmea
from commands.event_files import EventFile, check_rows
from shared_features import load_app
from shared_features.decode import Decoder
from shared_features.errors import ConfigurationError

RECEIVED_S = 1_718_450_000  # 2024-06-15 11:13:20
KNOWN = b"!AIVDM,1,1,,B,15M67FC000G?ufbE`FepT@3n00Sa,0*5C"
"""A sentence that many descriptions of AIS have as an example, with what it says below."""


def tagged(sentence: bytes, received_s: int = RECEIVED_S) -> bytes:
    fields = b"s:station,c:%d" % received_s
    checksum = 0
    for byte in fields:
        checksum ^= byte
    return b"\\%b*%02X\\%b\n" % (fields, checksum, sentence)


def sentences(**values: Any) -> list[bytes]:
    return [tagged(one.encode()) for one in encode_dict(values)]


def test_a_known_sentence() -> None:
    ((number, event),) = nmea([tagged(KNOWN, 1_426_032_001)])
    assert number == 1
    assert event == {
        "event_type": "position",
        "event_id": "366053209" + f"{1_426_031_999 - 1_577_836_800:09d}",
        "reported_at": 1_426_031_999_000_000,  # second 59 of the minute before
        "vessel": 366053209,
        "latitude": 37.802118,
        "longitude": -122.341618,
        "speed": 0.0,
        "course": 219.3,
        "ship_type": None,
        "transponder": "A",
    }


def test_without_a_tag_block_it_is_now() -> None:
    ((_, event),) = nmea([KNOWN])
    assert isinstance(event, dict)
    assert -6 <= time.time() - event["reported_at"] / 1e6 <= 61


@pytest.mark.parametrize(("kind", "transponder"), [(1, "A"), (2, "A"), (3, "A"), (18, "B"), (19, "B")])
def test_positions_of_both_classes(kind: int, transponder: str) -> None:
    lines = sentences(type=kind, mmsi=636_000_001, lat=-12.5, lon=179.25, speed=4.1, course=271.5, second=20)
    ((number, event),) = nmea(lines)
    assert number == len(lines) == 1
    assert isinstance(event, dict)
    assert (event["latitude"], event["longitude"], event["speed"], event["course"]) == (-12.5, 179.25, 4.1, 271.5)
    assert event["transponder"] == transponder
    assert event["reported_at"] == RECEIVED_S * 1_000_000


def test_static_data_say_the_kind_of_ship_from_then_on() -> None:
    position = sentences(type=18, mmsi=1, lat=1, lon=2, speed=3, course=4, second=60)
    class_a = sentences(type=5, mmsi=1, shipname="A", destination="B", ship_type=70)
    class_b = sentences(type=24, mmsi=1, partno=1, ship_type=30)
    assert len(class_a) == 2
    found = [event for _, event in nmea([*position, *class_a, *position, *class_b, *position])]
    assert [event["ship_type"] for event in found if isinstance(event, dict)] == [None, 70, 30]


def test_not_available_is_missing_to_the_job() -> None:
    app = load_app("vessels")
    ((_, event),) = nmea(sentences(type=18, mmsi=1, lat=91, lon=181, speed=102.3, course=360, second=60))
    assert isinstance(event, dict)
    assert (event["latitude"], event["longitude"], event["speed"], event["course"]) == (91.0, 181.0, 102.3, 360.0)
    assert {field: rule.definition["null"] for field, rule in app.predict_on.clean.items()} == {
        "latitude": [91.0],
        "longitude": [181.0],
        "speed": [102.3],
        "course": [360.0],
        "ship_type": [0],
    }


def payload_of(payload: bytes, parts: bytes = b"1,1,") -> bytes:
    """A sentence around a payload, its checksum right."""
    body = b"AIVDM,%b,B,%b,0" % (parts, payload)
    return b"!%b*%02X" % (body, functools.reduce(operator.xor, body))


def test_lines_that_cannot_be_used_are_told_with_their_number(tmp_path: Path) -> None:
    path, app = tmp_path / "harbour.nmea", load_app("vessels")
    static = sentences(type=5, mmsi=1, shipname="A", destination="B", ship_type=70)
    lines = {
        1: b"# notes", 2: tagged(KNOWN), 3: b"hello", 4: b"",
        5: KNOWN.replace(b"*5C", b"*5D"), 6: tagged(KNOWN).replace(b"c:1", b"c:2"),
        7: payload_of(b"15M67"), 8: static[1], 9: static[0], 10: tagged(KNOWN), 11: static[0], 12: static[1],
        13: static[0],
    }  # fmt: skip
    path.write_bytes(b"\n".join(line.strip() for line in lines.values()))
    rows = list(EventFile(app, str(path)).rows(sys.stdin.buffer))
    good, bad = check_rows(Decoder(app.event_types), rows, RECEIVED_S * 1_000_000)
    assert [row.number for row in good] == [2, 10]
    assert {one.reason for one in bad} == {"malformed_json"}
    assert bad[0].detail == "The line is nothing that format nmea takes (no AIS sentence): b'hello'."
    assert [(one.number, one.detail.split("(")[1].split(")")[0]) for one in bad] == [
        (3, "no AIS sentence"),
        (5, "wrong checksum"),
        (6, "wrong checksum of the tag block"),
        (7, "its message cannot be decoded"),
        (8, "part 2 of 2 without those before it"),
        (9, "part 1 of 2 without those behind it"),  # 11 begins the same message again
        (13, "part 1 of 2 without those behind it"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="empty has no Parquet files"):
        list(EventFile(app, str(tmp_path / "empty")).rows(sys.stdin.buffer))
    with pytest.raises(ConfigurationError, match="'flights' reads no format 'nmea'"):
        EventFile(load_app("flights"), str(path), file_format="nmea")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 20))
def test_whatever_a_message_holds_it_is_an_event_or_told(noise: bytes, keep: int) -> None:
    armour = b"0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVW`abcdefghijklmnopqrstuvw"
    payload = KNOWN.split(b",")[5][:keep] + bytes(armour[byte % 64] for byte in noise)
    for _, event in nmea([payload_of(payload), payload_of(noise)]):
        assert isinstance(event, dict) or event[1]


def test_the_command_takes_them_or_says_where_to_start(tmp_path: Path) -> None:
    path = tmp_path / "harbour.txt"
    path.write_bytes(tagged(KNOWN))
    command = ["publish", "--app", "vessels", "--nmea", str(path), "--emulator", "127.0.0.1:9", "--wait", "0.1"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2, done.output
    assert "no broker answers" in done.output
