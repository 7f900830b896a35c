"""The map of the vessels' demo: what it answers, and how it looks in a browser."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from apps.vessels.history import write_history
from commands.demo_map import ALERTS_SHOWN, DemoMap
from commands.demo_tally import Tally
from commands.replay import BURST, Replay
from shared_features import load_app
from shared_features.compute import to_block
from shared_features.errors import ConfigurationError

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DemoMap, Tally]]:
    """A map of 40 vessels after six hours: those with an even MMSI fish; there is one alert."""
    folder = tmp_path_factory.mktemp("world")
    write_history(folder, vessels=40, hours=6, rated=0)
    app = load_app("vessels")
    block = to_block(app, pq.read_table(folder))
    block = block.filter(pc.less(block.column("event_time"), pc.max(block.column("event_time"))))
    rows = block.num_rows
    never = np.zeros(rows, np.bool_)
    tally = Tally(app, Replay(block, np.full(rows, BURST, np.int8), never, never))
    found = DemoMap.of(app)
    assert found is not None
    found.follow(tally)
    ids, vessels = block.column("event_id").to_pylist(), block.column("position.vessel").to_pylist()
    tally.got([(one, f"p-{one}", 0.9 if vessel % 2 == 0 else 0.1, 1) for one, vessel in zip(ids, vessels, strict=True)])
    tally.reacted([("r", "protected_area", ids[-1], None), ("r", "protected_area", ids[-1], None)])
    tally.reacted([(f"s{number}", "fishing", ids[-2], False) for number in range(ALERTS_SHOWN + 5)])
    yield found, tally
    found.stop()


def ask(shown: DemoMap, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(shown.url.removeprefix("http://").rstrip("/"), timeout=120)
    connection.request("GET", f"/{path}")
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def get(shown: DemoMap, path: str) -> Any:
    status, _, body = ask(shown, path)
    assert status == 200
    return json.loads(body)


def test_the_state_has_each_vessel_once_at_its_latest_place(shown: tuple[DemoMap, Tally]) -> None:
    page, tally = shown
    state = get(page, "state")
    block = tally.replay.block
    known = block.filter(
        pc.and_(pc.is_valid(block.column("position.latitude")), pc.is_valid(block.column("position.longitude")))
    )
    table = pa.table({"vessel": known.column("position.vessel"), "at": known.column("event_time")})
    latest = {row["vessel"]: row["at_max"] for row in table.group_by("vessel").aggregate([("at", "max")]).to_pylist()}
    assert sorted(one[0] for one in state["vessels"]) == sorted(latest)
    rows = {(row["position.vessel"], row["event_time"]): row for row in known.to_pylist()}
    for vessel, latitude, longitude, probability in state["vessels"]:
        row = rows[vessel, latest[vessel]]
        assert (latitude, longitude) == (round(row["position.latitude"], 4), round(row["position.longitude"], 4))
        assert probability == (0.9 if vessel % 2 == 0 else 0.1)
    *many, ended, alert = state["alerts"]
    assert len(many) == ALERTS_SHOWN - 1  # frequent ones do not push out the rare
    assert (ended["reaction"], ended["started"]) == ("fishing", False)
    assert (alert["reaction"], alert["started"]) == ("protected_area", None)
    assert alert["vessel"] == block.column("position.vessel")[-1].as_py()


def test_shapes_are_the_examples_and_files_stay_in_the_page_s_folder(shown: tuple[DemoMap, Tally]) -> None:
    page, _ = shown
    names = [feature["properties"]["name"] for feature in get(page, "shapes")["features"]]
    assert all(name.startswith("Example: ") for name in names)
    for path in ("../app.py", "nothing", "vendor/../../app.py", "%2e%2e/app.py"):
        assert ask(page, path)[0] == 404


def test_the_page_names_no_other_server_and_says_that_it_is_simulated(shown: tuple[DemoMap, Tally]) -> None:
    page, _ = shown
    folder = page._module.PAGE
    for name in ("index.html", "map.js", "map.css"):
        text = (folder / name).read_text()
        assert "://" not in text, name
    assert "SIMULATED" in (folder / "index.html").read_text()
    assert "default-src 'self'" in ask(page, "")[1]["Content-Security-Policy"]


def test_a_port_that_is_taken_is_told(shown: tuple[DemoMap, Tally]) -> None:
    page, _ = shown
    port = int(page.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port} .*give another --map-port"):
        DemoMap.of(load_app("vessels"), port)


def test_the_picture_of_the_effort(shown: tuple[DemoMap, Tally], tmp_path: Path) -> None:
    page, _ = shown
    told = page.picture(tmp_path / "effort.png")
    assert (tmp_path / "effort.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert 20 < told["hours"] < 240
    assert told["cells"] > 5


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine; Debian's package chromium is one")
def test_a_browser_draws_every_vessel(shown: tuple[DemoMap, Tally], tmp_path: Path) -> None:
    page, _ = shown
    picture = tmp_path / "page.png"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,700", f"--screenshot={picture}"]
    command += ["--virtual-time-budget=4000", "--dump-dom", page.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    vessels = len(get(page, "state")["vessels"])
    assert f'data-vessels="{vessels}"' in done.stdout
    assert all(said in done.stdout for said in ("protected area (example)", "fishing ends", "Natural Earth"))
    assert "CONSOLE" not in done.stderr, done.stderr
    assert picture.stat().st_size > 20_000
