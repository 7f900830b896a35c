"""`sameriver profile`: counts that can be checked by hand, placeholders found, an HTML file that loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch import bigquery
from batch.bigquery import Endpoints
from batch.profile import FieldProfile, profile
from batch.profile_html import to_html
from cli import main
from shared_features.errors import HistoryError
from tests.bigquery_server import PROJECT, environment

EVIL = "<script>alert(1)</script>"


def positions() -> pa.Table:
    """Two types of events: 400 positions whose speed is 102.3 where it is unknown, and 100 calls."""
    count = 400
    speeds = [102.3 if i % 20 == 0 else float(i % 13) for i in range(count)]
    position = [
        {"speed": None if i % 8 == 7 else speed, "name": [" tea", "N/A", EVIL, "jam"][i % 4], "fast": i % 4 == 0}
        for i, speed in enumerate(speeds)
    ]
    rows: list[dict[str, Any]] = [
        {"event_type": "position", "event_id": f"p{i}", "position": one} for i, one in enumerate(position)
    ]
    rows += [{"event_type": "call", "event_id": f"c{i}", "position": None} for i in range(100)]
    kind = pa.struct([("speed", pa.float64()), ("name", pa.string()), ("fast", pa.bool_())])
    return pa.Table.from_pylist(
        rows, schema=pa.schema([("event_type", pa.string()), ("event_id", pa.string()), ("position", kind)])
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("positions")
    pq.write_table(positions().slice(0, 300), folder / "a.parquet")
    pq.write_table(positions().slice(300), folder / "b.parquet")
    return folder


def fields(uri: str | Path) -> dict[str, FieldProfile]:
    return {one.field: one for one in profile(str(uri)).fields}


def test_a_field_is_counted_on_the_rows_of_its_event_type(table: Path) -> None:
    found = fields(table)
    assert list(found) == ["event_type", "event_id", "position.speed", "position.name", "position.fast"]
    assert (found["event_type"].rows, found["event_type"].top) == (500, [("position", 400), ("call", 100)])
    speed = found["position.speed"]
    assert (speed.of, speed.rows, speed.nulls) == ("position", 400, 50)
    kept = sorted(
        one["speed"] for one in positions().column("position").to_pylist() if one and one["speed"] is not None
    )
    assert (speed.low, speed.high) == (0.0, 102.3)
    assert speed.mean == pytest.approx(sum(kept) / len(kept))
    assert speed.quantiles["0.5"] == kept[(len(kept) + 1) // 2 - 1]
    assert speed.suspects == [102.3]
    assert speed.outliers == kept.count(102.3) > 10
    assert speed.histogram is not None
    assert sum(speed.histogram[1]) + speed.outliers == len(kept)
    assert found["position.fast"].mean == 0.25
    name = found["position.name"]
    assert (name.distinct, name.spaces, name.suspects) == (4, 100, ["N/A"])


def test_odd_tables(tmp_path: Path) -> None:
    odd = pa.table(
        {
            "nothing": pa.nulls(30, pa.float64()),
            "same": [7] * 30,
            "wild": [float("nan"), float("inf"), *map(float, range(28))],
            "list": [[1, 2]] * 30,
            'quote"d; DROP': ["x"] * 30,
        }
    )
    pq.write_table(odd, tmp_path / "odd.parquet")
    found = fields(tmp_path / "odd.parquet")
    assert (found["nothing"].nulls, found["nothing"].low) == (30, None)
    assert (found["same"].fences, found["same"].outliers, found["same"].distinct) == (None, 0, 1)
    assert (found["wild"].not_finite, found["wild"].high) == (2, 27.0)
    assert found["list"].nulls == 0
    assert found['quote"d; DROP'].top == [("x", 30)]
    pq.write_table(odd.slice(0, 0), tmp_path / "empty.parquet")
    assert profile(str(tmp_path / "empty.parquet")).rows == 0
    for uri in (str(tmp_path / "nowhere"), "s3://somewhere"):
        with pytest.raises(HistoryError, match="there is no table at"):
            profile(uri)


class _Links(HTMLParser):
    """Everything that a browser would load, and every element."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_loads_nothing_and_runs_nothing(table: Path) -> None:
    page = to_html(profile(str(table)))
    links = _Links()
    links.feed(page)
    assert links.loads == []
    assert not links.tags & {"script", "link", "img", "iframe", "object"}
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "looks like a placeholder: 102.3" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_command_tells_people_and_machines(table: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["profile", str(table), "--html", str(tmp_path / "p.html")])
    assert said.exit_code == 0, said.output
    assert "position.speed: 102.3 looks like a placeholder (see Clean)" in said.output
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    told = json.loads(CliRunner().invoke(main, ["profile", str(table), "--json"]).stdout)
    assert (told["rows"], told["fields"][2]["suspects"]) == (500, [102.3])
    refused = CliRunner().invoke(main, ["profile", str(table), "--html", str(tmp_path)])
    assert refused.exit_code == 2


def test_a_table_of_bigquery(bigquery_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    bigquery.load_table(f"bq://{PROJECT}.profiles.positions", positions())
    theirs, ours = fields(f"bq://{PROJECT}.profiles.positions"), fields(table)
    assert theirs.keys() == ours.keys()
    assert theirs["position.speed"].histogram == ours["position.speed"].histogram
    assert theirs["position.name"].top == ours["position.name"].top
