"""The commands of docs/backfill.md, docs/hand-over.md and docs/adding-a-feature.md do what stands beside them."""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import main
from shared_features import load_app
from shared_features.compute import to_block
from streaming.topics import Endpoint, OutgoingMessage, Publisher
from tests import histories, repository
from tests.faults.jobs import Jobs
from tests.histories import START_US, block_of, event
from tests.processes import REPOSITORY, Started, wait_until
from tests.serving_steps import to_messages
from tests.test_hand_over import archived, assert_same_as_one_run, counted, ids
from tests.test_verify import sales

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


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten days of the shop, in the folder where the pages have their flights."""
    monkeypatch.chdir(tmp_path)
    block = block_of(EVENTS)
    for name in ("flights", "shop"):
        histories.write(tmp_path / "var" / "history" / name, block)


SHOP = {"flights": str(REPOSITORY / "tests" / "shop")}


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


def test_hand_over(start_process: Start, warm_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.line.rsplit(" ", 1)[-1])
    subscribe, snapshot = commands("hand-over.md")
    assert "shop-events-sameriver keeps what is published from now on" in run(subscribe, SHOP)
    assert "all that was published before 2013-11-08T12:00:00+00:00" in run(snapshot, SHOP)
    add_a_feature(Endpoint("sameriver", broker.line.rsplit(" ", 1)[-1]), warm_jobs)


OLD = """
busy = Reaction("busy", when=prediction() > 0.5, until=prediction() < 0.5, announce="both", by=by_shop)
app = App"""


def add_a_feature(endpoint: Endpoint, jobs: Jobs) -> None:
    """docs/adding-a-feature.md: old and new job side by side on one topic, then the switch; both are verified."""
    for name in ("flights", "flights-next"):
        shutil.copytree(REPOSITORY / "tests" / "shop", name, ignore=shutil.ignore_patterns("__pycache__"))
    path = Path("flights", "app.py")
    code = path.read_text().replace("\napp = App", OLD).replace("reactions=[", "reactions=[busy, ")
    path.write_text(code)
    line = '        "count_10s": count(sale.amount, by=by_shop, over="10s"),\n'
    more = '        "of_kind": count(sale.amount, by=by_kind, over="9h"),\n'
    more += '        "sum_5s": sum(sale.amount, by=by_shop, over="5s"),\n'
    code = code.replace(line, line + more).replace("\nbusy", '\nby_kind = Key("kind", sale.kind)\nbusy')
    Path("flights-next", "app.py").write_text(code)
    new = load_app("flights-next")
    subscribe, export, snapshot, stream, *verify = commands("adding-a-feature.md")
    apps = {"flights": "./flights", "./flights-next": "./flights-next"}
    messages = [OutgoingMessage(one.data, one.attributes) for one in to_messages(new, sales(200))]
    publisher = Publisher(endpoint)

    def publish(begin: int, end: int, *archives: str) -> None:
        publisher.publish("shop-events", messages[begin:end])
        wait_until(lambda: all(held(archive) >= end for archive in archives), what=f"{archives} have {end} events")

    def held(archive: str) -> int:  # with those in the snapshot
        return counted(Path("var/archive", archive)) + (100 if archive == "flights-next" else 0)

    before = jobs.start(started(["stream", "--app", "flights", "--archive", "var/archive/shop"], endpoint))
    before.wait_ready()
    publish(0, 60, "shop")
    assert "flights-events-next keeps" in run(subscribe, apps)
    publish(60, 100, "shop")
    run(export, apps)
    cut = pc.max(archived(Path("var/archive/shop")).column("publish_time")).as_py()
    told = run(snapshot, apps | {"2013-11-08T12:00:00": cut.replace(tzinfo=None).isoformat()})
    assert re.findall(r"(\w+) .*taken over", told) == ["shop", "till"]
    after = jobs.start(started(stream[1:], endpoint))
    after.wait_ready()
    publish(100, 160, "shop", "flights-next")
    assert before.drain()["outcomes"]["predicted"] == 120
    publish(160, 200, "flights-next")
    assert after.drain()["duplicates"] >= 40  # of those that the snapshot holds, what the new subscription had kept
    publisher.close()
    for words in verify:
        assert re.search(r"^mismatches +0$", run(words, apps), re.MULTILINE)
    found = archived(Path("var/archive/flights-next"))
    assert sorted(ids(found)) == [f"e{number}" for number in range(100, 200)]
    theirs = archived(Path("var/archive/shop"))
    events = theirs.select([name for name in theirs.schema.names if name.startswith(("event_", "sale.", "visit."))])
    assert_same_as_one_run(new, to_block(new, events.slice(0, 100)), found)
    for name in ("event_id", "reaction.busy", "started.busy"):
        assert theirs.slice(100).column(name).equals(found.slice(0, 60).column(name)), name


def started(words: list[str], endpoint: Endpoint) -> list[str]:
    """A command for a process elsewhere: its folders' whole names, no model server, the test's broker."""
    at = words.index("--model-server") if "--model-server" in words else len(words)
    own = [str(Path(word).resolve()) if "/" in word or Path(word).exists() else word for word in words[:at]]
    return [*own, "--emulator", endpoint.host_port or "", "--project", endpoint.project, "--json"]
