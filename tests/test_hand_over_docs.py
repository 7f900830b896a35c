"""The commands of docs/backfill.md, docs/hand-over.md and docs/adding-a-feature.md do what stands beside them."""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import main
from shared_features import load_app
from shared_features.plan import make_plan
from streaming.archive import Archive
from streaming.snapshots import begin_from
from tests import histories, repository
from tests.histories import START_US, block_of, event
from tests.processes import REPOSITORY, Started
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_hand_over import HORIZON_US, archived, assert_same_as_one_run, ids, published

Start = Callable[..., Started]
FIRST_S = dt.datetime(2013, 11, 1, tzinfo=dt.UTC).timestamp() - START_US / 1e6
HOUR_S = 3_600
EVENTS = [
    *(event("sale", FIRST_S + hour * HOUR_S, shop="ab"[hour % 2], till=1, amount=hour / 7) for hour in range(240)),
    *(event("visit", FIRST_S + hour * HOUR_S + 9, shop="ab"[hour % 2], length=hour % 5) for hour in range(0, 240, 3)),
]


def commands(page: str, runs: str = "test_hand_over_docs") -> list[list[str]]:
    """The command lines of the page's blocks that this file runs, or another one."""
    mark = f"<!-- run by tests/{runs}.py -->\n```sh\n"
    text = repository.text(Path("docs", page))
    blocks = [part.partition("```")[0] for part in text.split(mark)[1:]]
    return [shlex.split(line) for block in blocks for line in re.sub(r"\\\n", "", block).splitlines()]


def run(words: list[str], apps: dict[str, str]) -> str:
    """A command in this process, with another app in the place of the page's."""
    assert words[0] == "sameriver"
    done = CliRunner().invoke(main, [apps.get(word, word) for word in words[1:]], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.RecordBatch:
    """Ten days of the shop, in the folder where the pages have their flights."""
    monkeypatch.chdir(tmp_path)
    block = block_of(EVENTS)
    for name in ("flights", "shop"):
        histories.write(tmp_path / "var" / "history" / name, block)
    return block


SHOP = {"flights": str(REPOSITORY / "tests" / "shop"), "./flights-next": "./flights-next"}


@pytest.mark.usefixtures("history")
def test_backfill() -> None:
    first, second, features = commands("backfill.md")
    assert "168 rows added, 0 were there" in run(first, SHOP)
    assert "0 rows added, 168 were there" in run(first, SHOP)
    assert "48 rows added, 72 were there" in run(second, SHOP)
    assert json.loads(run(features, SHOP).splitlines()[-1])["rows"] == {"recorded": 240}
    days = {
        path.parent.name: pq.read_metadata(path).num_rows for path in Path("var/backfill/flights").glob("pub*/*.pa*")
    }
    assert set(days) == {f"publish_date=2013-11-0{day}" for day in range(1, 10)}


def test_hand_over(history: pa.RecordBatch, start_process: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.line.rsplit(" ", 1)[-1])
    subscribe, snapshot = commands("hand-over.md")
    assert "shop-events-sameriver keeps what is published from now on" in run(subscribe, SHOP)
    assert "all that was published before 2013-11-08T12:00:00+00:00" in run(snapshot, SHOP)
    add_a_feature(history)


def add_a_feature(history: pa.RecordBatch) -> None:
    """docs/adding-a-feature.md, on the same broker: the new job begins as if its feature had always been there."""
    shutil.copytree(REPOSITORY / "tests" / "shop", "flights-next", ignore=shutil.ignore_patterns("__pycache__"))
    path = Path("flights-next", "app.py")
    line = '        "count_10s": count(sale.amount, by=by_shop, over="10s"),\n'
    more = '        "sales_7d": count(sale.amount, by=by_shop, over="7d"),\n'
    more += '        "of_kind": count(sale.amount, by=by_kind, over="9h"),\n'
    code = path.read_text().replace(line, line + more)
    path.write_text(code.replace("\napp = App", '\nby_kind = Key("kind", sale.kind)\n\napp = App'))
    new = load_app(str(path.parent))
    block = history.take(pc.sort_indices(history.column("publish_time")))
    old = block.filter(pc.less(block.column("publish_time"), block.column("publish_time")[block.num_rows - 20]))
    serve(app, to_messages(app, old, published(old).tolist()), Path("var/archive/shop"))
    subscribe, export, snapshot = commands("adding-a-feature.md")
    assert "flights-events-next keeps" in run(subscribe, SHOP)
    run(export, SHOP)
    run(snapshot, SHOP)
    cut_us = int(dt.datetime(2013, 11, 8, 12, tzinfo=dt.UTC).timestamp() * 1_000_000)
    opened = Archive(
        Path("var/archive/next"), {"app": new.name, "fingerprint": new.fingerprint, "definitions": new.definitions}
    )
    begin_from(Path("var/archive/next"), Path("var/snapshots/next.state"), make_plan(new), HORIZON_US, lambda _: None)
    opened.close()
    comes = block.filter(pa.array(published(block) >= cut_us - 60_000_000))
    serve(new, to_messages(new, comes, published(comes).tolist()), Path("var/archive/next"))
    before = block.filter(pa.array(published(block) < cut_us))
    found = archived(Path("var/archive/next"))
    assert sorted(ids(found)) == sorted(set(ids(block)) - set(ids(before)))
    assert_same_as_one_run(new, before, found)
    counted: Any = pc.max(found.column("feature.sales_7d")).as_py()
    assert counted == 84  # a sale every other hour
