"""The guide to training: its commands run; data is checked; a recipe is known again."""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from batch.history_check import accept_history, check_history, count_history
from batch.rows import row_schema
from commands.retrain import Retraining
from shared_features import App, EventType, Gate, load_app
from shared_features.errors import HistoryError
from tests import histories, repository, training_rows
from tests.histories import event
from training.export import write_summary
from training.recipe import find_recipe, recipe, rows_digest
from training.rows import open_rows

sale = EventType("sale", repository.ROOT / "tests" / "shop" / "schemas" / "sale.avsc", time="sold_at")
app = App("shop", event_types=[sale], predict_on=sale, features={"amount": sale.amount})

GUIDE = repository.text(Path("docs/training.md"))
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


FEWER = {
    "train": [],
    "tune": ["--trials", "2", "--workers", "1"],
    "evaluate": ["--resamples", "10", "--importance-rows", "50"],
    "promote": [],
    "rollback": [],
}
"""Options that make a command short, after those of the guide. `retrain` starts processes: see tests/test_demo.py."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_of_the_guide_can_be_given(words: list[str]) -> None:
    """They are parsed whole, with types and choices."""
    assert words[0] == "sameriver"
    command = cli.main.commands[words[1]]
    context = command.make_context(words[1], words[2:])
    assert context.params["app_name"] == "flights"


@pytest.mark.tensorflow
def test_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with their own jobs, on 400 rows and trees that learn fast; jobs run in this process."""
    flights = load_app("flights")
    options = {"iterations": 5, "min_leaf_rows": 5, "baseline": "departure_delay"}
    flights.models[0].options = {"kind": "boosted_trees", **options}
    flights.models[0].space = {"leaves": [4, 8], "learning_rate": {"low": 0.1, "high": 0.5, "log": True}}
    flights.gates = [Gate("auc", not_worse_by=0.5)]
    monkeypatch.setattr("commands.options.load", lambda _: flights)
    for module in ("training", "tune", "evaluate"):
        monkeypatch.setattr(f"commands.{module}.run_job", here)
    monkeypatch.chdir(tmp_path)
    rows = Path("var", "training", "flights")
    schema = row_schema(flights, labelled=True)
    for number, split in enumerate(("train", "validate", "test")):
        (rows / split).mkdir(parents=True)
        pq.write_table(flight_rows(schema, 400, number), rows / split / "2013-01.parquet")
    monkeypatch.setattr("batch.traindata.made_from", lambda *_: SimpleNamespace(fits=True))
    ran = [["sameriver", "train", "--app", "flights", "--seed", "9"]]  # a champion, for the guide's candidates
    ran += [words for words in COMMANDS if words[1] in FEWER]
    for words in ran:
        done = CliRunner().invoke(cli.main, [*words[1:], *FEWER[words[1]]])
        assert done.exit_code == 0, (words, done.output, done.exception)
    home = Path("var", "models", "flights", "wide_and_deep")
    assert len([path for path in home.iterdir() if path.name.isdecimal()]) >= 4
    assert Path("var", "tuning", "flights", "wide_and_deep", "tuning.html").is_file()
    page = Path("var", "reports", "flights", "evaluation.html").read_text("utf-8")
    assert "<h2>KPIs</h2>" in page
    assert "<td>rebooked_in_vain</td>" in page
    assert (rows / "_statistics.npz").is_file()


def here(module: str, arguments: Sequence[str], tell: Any) -> dict[str, Any]:
    """As `commands.jobs.run_job`, in this process: TensorFlow is loaded once."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = importlib.import_module(module).main([*arguments, "--json"])
    *_, result = map(json.loads, said.getvalue().splitlines())
    assert code == 0, result
    found: dict[str, Any] = result
    return found


RETRAINED = """
from shared_features import App, EventType, Gate, Key, Label, Model, count

sale = EventType("sale", "SCHEMAS/sale.avsc", time="sold_at")
visit = EventType("visit", "SCHEMAS/visit.avsc", time="entered_at")
by_shop = Key("shop", sale.shop, visit.shop)
app = App(
    name="shop",
    event_types=[sale, visit],
    predict_on=sale,
    features={"amount": sale.amount, "sales": count(sale.amount, by=by_shop, over="9s")},
    label=Label(visit.length >= 3, join=("shop", "shop"), within="4s"),
    models=[Model("boosted_trees", iterations=9, min_leaf_rows=5)],
    gates=[Gate("auc", at_least=0.7)],
)
"""


@pytest.mark.tensorflow
def test_a_retraining_ends_with_what_the_gates_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a history on, by the real steps: made, found again, on trial, rolled back, refused; in this process."""
    random = np.random.default_rng(4)
    amounts = random.integers(0, 9, 600)
    lengths = np.where(random.random(600) < 0.8, amounts, random.integers(0, 9, 600))
    sales = [event("sale", 5 * at, shop="a", amount=float(one)) for at, one in enumerate(amounts)]
    visits = [event("visit", 5 * at + 2, shop="a", length=float(one)) for at, one in enumerate(lengths)]
    histories.write(tmp_path / "history", histories.block_of([*sales, *visits]), files=2)
    file = tmp_path / "app.py"
    file.write_text(RETRAINED.replace("SCHEMAS", str(repository.ROOT / "tests" / "shop" / "schemas")))
    monkeypatch.chdir(tmp_path)
    for module in ("training", "evaluate"):
        monkeypatch.setattr(f"commands.{module}.run_job", here)
    monkeypatch.setattr(Retraining, "_run", lambda _, __, arguments: said(*arguments)[1])

    def said(command: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        with redirect_stdout(io.StringIO()) as lines:
            code = cli.main([command, *arguments, "--json"], standalone_mode=False)
        return code or 0, json.loads(lines.getvalue().splitlines()[-1])

    def retrained(*arguments: str) -> tuple[int, dict[str, str], int | None]:
        code, told = said("retrain", "--app", str(file), "--history", "history", *arguments)
        return code, {step["step"]: step["outcome"] for step in told["steps"]}, told["champion"]

    made = dict.fromkeys(("data", "traindata", "train", "evaluate", "gate", "promote"), "done")
    assert retrained() == (0, {**made, "champion": "found"}, 1)
    found = dict.fromkeys(("data", "traindata", "champion", "train", "promote"), "found")
    assert retrained() == (0, found, 1)
    again = {**found, **dict.fromkeys(("train", "evaluate", "gate", "promote"), "done")}
    assert retrained("--seed", "2", "--stage", "canary") == (0, again, 1)
    assert said("rollback", "--app", str(file))[1]["promotion"]["champion"] == 1
    refused = {**found, "evaluate": "found", "gate": "done", "promote": "refused"}
    assert retrained("--seed", "2", "--stage", "canary") == (1, refused, 1)
    (tmp_path / "var" / "reports" / "shop" / "boosted_trees" / "2" / "retrain.json").write_text("{")
    assert retrained("--seed", "2")[1]["evaluate"] == "done"  # what is damaged is done again
    file.write_text(file.read_text().replace("0.7", "0.9999"))
    code, steps, champion = retrained("--seed", "3")
    assert (code, steps["gate"], "promote" in steps, champion) == (1, "refused", False, 1)


def flight_rows(schema: pa.Schema, count: int, seed: int) -> pa.Table:
    """Random flights in the columns that training rows have; those that left late arrive late."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for field in schema:
        if pa.types.is_string(field.type):
            columns[field.name] = pa.array([f"{field.name}-{number}" for number in random.integers(0, 9, count)])
        elif pa.types.is_timestamp(field.type):
            columns[field.name] = pa.array(np.arange(count) * 1_000_000 + seed * 10**12).cast(field.type)
        else:
            columns[field.name] = pa.array(random.integers(-9, 60, count)).cast(field.type)
    columns["label"] = pa.array(np.asarray(columns["departure_delay"]) + random.integers(0, 20, count) > 30)
    return pa.table(columns).cast(schema)


def test_the_guide_names_every_command_of_training() -> None:
    assert {words[1] for words in COMMANDS} == {"train", "tune", "evaluate", "promote", "rollback", "retrain"}


def history(folder: Path, sales: list[tuple[str, str | None, float | None]]) -> Path:
    """Sales as (time, shop, amount), in the columns that a history has."""
    folder.mkdir()
    times = (
        pa.array([f"2024-01-01T{time}" for time, _, _ in sales])
        .cast(pa.timestamp("us"))
        .cast(pa.timestamp("us", "UTC"))
    )
    fields = {
        "shop": pa.array([shop for _, shop, _ in sales], pa.string()),
        "amount": pa.array([amount for _, _, amount in sales], pa.float64()),
        "till": pa.nulls(len(sales), pa.int64()),
        "units": pa.nulls(len(sales), pa.int64()),
        "paid": pa.nulls(len(sales), pa.bool_()),
        "kind": pa.nulls(len(sales), pa.string()),
    }
    struct = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    ids = pa.array([f"s{number}" for number in range(len(sales))])
    kinds = pa.array(["sale"] * len(sales))
    table = {"event_type": kinds, "event_id": ids, "event_time": times, "publish_time": times, "sale": struct}
    pq.write_table(pa.table(table), folder / "sales.parquet")
    return folder


def test_a_history_is_counted_and_remembered(tmp_path: Path) -> None:
    there = history(tmp_path / "one", [("10:00:00", "a", 1.0), ("11:00:00", None, 2.0), ("12:00:00", "b", 3.0)])
    found, known = accept_history(app, there, tmp_path / "reports" / "data.json")
    assert not known
    assert found["types"]["sale"]["events"] == 3
    assert found["types"]["sale"]["last"].startswith("2024-01-01T12:00")
    assert found["types"]["sale"]["nulls"]["sale.shop"] == pytest.approx(1 / 3)
    assert accept_history(app, there, tmp_path / "reports" / "data.json") == (json.loads(json.dumps(found)), True)

    worse = history(tmp_path / "two", [("09:00:00", None, 1.0), ("10:00:00", None, 2.0)])
    with pytest.raises(
        HistoryError, match=r"newest event of type 'sale' is of 2024-01-01T10:00:00.*sale.shop is null in 100%"
    ):
        accept_history(app, worse, tmp_path / "reports" / "data.json")
    assert not accept_history(app, worse, tmp_path / "reports" / "data.json", anyway=True)[1]
    assert count_history(app, worse)["types"]["sale"]["events"] == 2

    (tmp_path / "reports" / "data.json").write_text('{"types": ')
    with pytest.raises(HistoryError, match=r"data.json is damaged .*: remove it"):
        accept_history(app, worse, tmp_path / "reports" / "data.json")


def test_what_is_wrong_with_a_history() -> None:
    def counted(**changed: Any) -> dict[str, Any]:
        one = {"events": 100, "nulls": {"sale.shop": 0.1}, "first": "2024-01-01", "last": "2024-02-01"}
        return {"types": {"sale": one | changed}}

    assert check_history(counted(), None) == []
    assert check_history(counted(events=50, nulls={"sale.shop": 0.29}), counted()) == []
    assert check_history(counted(events=0), counted()) == ["there is no event of type 'sale'"]
    assert check_history(counted(events=49), counted()) == ["events of type 'sale' are 49, and were 100 before"]
    assert "was of 2024-02-01" in check_history(counted(last="2024-01-31"), counted())[0]


def test_a_recipe_is_that_of_rows_options_seed_and_libraries(tmp_path: Path) -> None:
    few = training_rows.table(60, 1)
    splits = dict.fromkeys(("train", "validate", "test"), few)
    one, same = (open_rows(training_rows.write(tmp_path / name, splits, shards=2)) for name in ("one", "same"))
    other = open_rows(training_rows.write(tmp_path / "other", {**splits, "train": few.slice(1)}, shards=2))
    assert rows_digest(one) == rows_digest(same) != rows_digest(other)

    def made(rows: Any = one, seed: int = 1, **options: Any) -> str:
        return recipe(rows, "deep", options, {"keras": "3"}, seed=seed, quick=False)

    assert made() == made(rows=same)
    assert len({made(), made(rows=other), made(seed=2), made(units=[4])}) == 4
    for version, summary in ((1, {"recipe": made()}), (2, {"recipe": made()}), (3, {})):
        (tmp_path / "deep" / str(version)).mkdir(parents=True)
        write_summary(tmp_path / "deep" / str(version), summary)
    assert find_recipe(tmp_path / "deep", made()) == tmp_path / "deep" / "2"
    assert find_recipe(tmp_path / "deep", made(seed=2)) is None
