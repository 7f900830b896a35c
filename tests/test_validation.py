"""`sameriver validate`: drift that can be reckoned by hand, refused events, every kind of source."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.drift import Drift, FieldDrift, Limits, population_stability_index
from batch.traindata import MANIFEST
from batch.validation import validate_messages, validate_table
from cli import main
from shared_features import compute
from shared_features.lists import spread
from streaming.archive import compact_archive
from streaming.naming import topics_of
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, create_topic
from tests import repository
from tests.histories import write
from tests.processes import Started
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_verify import sales
from training.sketches import sketch_of
from training.statistics import NumberAccumulator, TextAccumulator

LIMITS = Limits()


def statistics_of(columns: dict[str, pa.Array]) -> dict[str, Any]:
    """What a model that was trained on these columns would say of them."""
    said: dict[str, Any] = {"numbers": {}, "texts": {}}
    for name, values in spread(columns).items():
        one: NumberAccumulator | TextAccumulator
        if pa.types.is_string(values.type):
            one = TextAccumulator()
            one.add(values)
            said["texts"][name] = vars_of(one.result(min_rows=2, max_values=1_000))
        else:
            one = NumberAccumulator()
            one.add(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
            numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
            said["numbers"][name] = vars_of(one.result(24)) | {"sketch": sketch_of(numbers)}
    return said


def vars_of(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(one)))
    return found


def drift(then: dict[str, pa.Array], now: dict[str, pa.Array]) -> dict[str, FieldDrift]:
    counted = Drift(statistics_of(then), spread(then), LIMITS)
    counted.add(now)
    return {one.feature: one for one in counted.result()}


RANDOM = np.random.default_rng(5)
NORMAL = pa.array(RANDOM.normal(0, 1, 20_000))


@pytest.mark.parametrize(
    "draw",
    [
        lambda size: RANDOM.normal(0, 1, size),
        lambda size: RANDOM.integers(5, 24, size),
        lambda size: RANDOM.integers(0, 2, size).astype(bool),
        lambda size: RANDOM.choice([0.0, 0.0, 0.0, 0.0, 0.5, 1.3], size),
        lambda size: np.where(RANDOM.random(size) < 0.9, 0.0, RANDOM.exponential(1, size)),
        lambda size: np.full(size, 7.5),
        lambda size: RANDOM.choice(["EWR", "JFK", "LGA"], size),
    ],
)
def test_the_same_distribution_is_no_drift(draw: Callable[[int], np.ndarray]) -> None:
    found = drift({"x": pa.array(draw(20_000))}, {"x": pa.array(draw(5_000))})["x"]
    assert found.psi is not None
    assert found.psi < 0.03
    assert found.violations == []


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (NORMAL, pa.array(RANDOM.normal(1, 1, 5_000)), "PSI"),
        (NORMAL, pa.array([None] * 2_000 + [0.1] * 2_000), "PSI"),
        (NORMAL, pa.array([*NORMAL.to_pylist()[:980], *[9.0] * 20]), "2.0% of the values are outside"),
        (pa.array([7.0] * 200), pa.array([8.0] * 200), "100.0% of the values are outside of training's 7.0 to 7.0"),
        (pa.array(["a"] * 500 + ["b"] * 500), pa.array(["a"] * 950 + ["b"] * 50), "PSI"),
        (pa.array(["a"] * 500 + ["b"] * 500), pa.array(["a"] * 500 + ["b"] * 480 + ["c"] * 20), "unknown to training"),
        (pa.nulls(500, pa.float64()), pa.array([1.0] * 500), "PSI"),
    ],
)
def test_what_changes_is_a_violation(then: pa.Array, now: pa.Array, words: str) -> None:
    assert any(words in text for text in drift({"x": then}, {"x": now})["x"].violations)


def test_small_samples_and_the_edges_of_the_index() -> None:
    few = drift({"x": NORMAL}, {"x": pa.array([50.0] * 20)})["x"]
    assert few.psi is None
    assert len(few.violations) == 1
    assert few.violations[0].startswith("100.0% of the values are outside of training's -")
    none = drift({"x": NORMAL}, {})["x"]
    assert (none.rows, none.low, none.violations) == (0, None, [])
    by_hand = 0.4 * np.log(0.9 / 0.5) + -0.4 * np.log(0.1 / 0.5)
    assert population_stability_index(np.array([0.5, 0.5]), np.array([0.9, 0.1])) == pytest.approx(by_hand)
    lists = pa.FixedSizeListArray.from_arrays(pa.array([1.0, None] * 300), 2)
    assert set(drift({"recent": lists}, {"recent": lists})) == {"recent[0]", "recent[1]"}


# -- sources ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """What a model would say that was trained on 400 sales of the shop."""
    features = compute(app, sales(400, seed=2))
    return statistics_of({name: features.column(name) for name in app.features})


def test_each_source_gives_the_same_drift(tmp_path: Path, said: dict[str, Any]) -> None:
    block = sales(400, seed=2)
    write(tmp_path / "history", block)
    serve(app, to_messages(app, block), tmp_path / "archive")
    history = validate_table(app, str(tmp_path / "history"), said, LIMITS)
    assert (history.kind, history.events, history.rows, history.refused) == ("history", 400, 300, {})
    archived = validate_table(app, str(tmp_path / "archive"), said, LIMITS)
    assert (archived.kind, archived.rows) == ("archive", 300)
    compact_archive(tmp_path / "archive")
    assert validate_table(app, str(tmp_path / "archive"), said, LIMITS).fields == archived.fields == history.fields
    rows = pa.Table.from_batches([compute(app, block)])
    (tmp_path / "training" / "train").mkdir(parents=True)
    pq.write_table(rows, tmp_path / "training" / "train" / "2023-11.parquet")
    (tmp_path / "training" / MANIFEST).write_text("{}")
    trained = validate_table(app, str(tmp_path / "training"), said, LIMITS)
    assert (trained.kind, trained.fields) == ("training", history.fields)
    assert {"amounts_20s[2]", "kinds_20s[0]", "paid_share_10s"} <= {one.feature for one in history.fields}


def test_events_that_a_job_would_refuse_are_counted(
    tmp_path: Path, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = compute(app, pa.Table.from_batches([sales(20)]))
    monkeypatch.setattr("batch.validation.features_of_history", lambda *_, **__: features)
    block = sales(200, seed=3)
    place = block.schema.get_field_index("sale.amount")
    amounts = [float("inf") if i % 50 == 0 else one for i, one in enumerate(block.column(place).to_pylist())]
    block = block.set_column(place, "sale.amount", pa.array(amounts, pa.float64()))
    write(tmp_path / "history", block)
    found = validate_table(app, str(tmp_path / "history"), said, LIMITS)
    assert found.refused == {"not_finite": 4}
    assert "4 events are refused: not_finite" in found.violations


def test_messages_are_looked_at_by_themselves(said: dict[str, Any]) -> None:
    messages = to_messages(app, sales(400, seed=3))
    messages += [Message(b'{"event_id": "x", "amount": "much"}', {"event_type": "sale"}, "m", 1, "a")]
    found = validate_messages(app, messages, said, LIMITS, "here")
    assert (found.kind, found.events, found.rows, found.refused) == ("messages", 401, 300, {"wrong_type": 1})
    assert found.example is not None
    assert "must be a number" in found.example
    assert [one.feature for one in found.fields] == ["amount", "hour", "kind"]
    assert "sum_10s" in found.left_out
    nothing = validate_messages(app, [], said, LIMITS, "here")
    assert (nothing.events, nothing.rows, nothing.violations) == (0, 0, [])


# -- the command --------------------------------------------------------------------------------------------
@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]) -> Path:
    """A folder with the shop, now with a model, its archive and history, and what the model says of itself."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parent / "shop", tmp_path / "modelled")
    text = (tmp_path / "modelled" / "app.py").read_text()
    text = text.replace("    Label,\n", "    Label,\n    Model,\n").replace(
        'Rule("big_sale", sale.amount > 2.0)', 'Model("big")'
    )
    (tmp_path / "modelled" / "app.py").write_text(text)
    folder = tmp_path / "var"
    held = {name: {**one} for name, one in said["numbers"].items()}
    sketches = {name: base64.b64encode(one.pop("sketch").serialize()).decode() for name, one in held.items()}
    summary = {"definitions": app.definitions, "statistics": {**said, "numbers": held}}
    place = folder / "models" / "shop" / "big" / "3" / "assets.extra"
    place.mkdir(parents=True)
    (place / "sameriver.json").write_text(json.dumps(summary))
    (place / "sketches.json").write_text(json.dumps({"features": sketches, "predictions": {}}))
    write(folder / "history" / "shop", sales(400, seed=2))
    serve(app, to_messages(app, sales(400, seed=2)), folder / "archive" / "shop")
    monkeypatch.setenv("SAMERIVER_VALIDATE_APP", str(tmp_path / "modelled"))
    return folder


def validate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["validate", *map(str, arguments)], auto_envvar_prefix="SAMERIVER")


def test_the_command_says_what_is_wrong(var: Path) -> None:
    good = validate()
    assert good.exit_code == 0, good.output
    assert good.output.splitlines()[-1] == "no violation"
    assert f"archive {Path('var/archive/shop')}" in good.output.splitlines()[0]
    (var / "other" / "train").mkdir(parents=True)
    other = compute(app, pa.Table.from_batches([sales(200, seed=4)]))
    pq.write_table(other, var / "other" / "train" / "2023-11.parquet")
    (var / "other" / MANIFEST).write_text("{}")
    strict = validate(var / "other", "--psi", 0.01, "--json")
    assert strict.exit_code == 1
    told = json.loads(strict.stdout)
    assert told["ok"] is False
    assert any("is above 0.01" in text for text in told["violations"])
    assert validate("--topic", "x").exit_code == 2
    missing = validate("--version", 2)
    assert missing.exit_code == 2
    assert ", it has 3: name another" in missing.output
    path = var / "models" / "shop" / "big" / "3" / "assets.extra" / "sameriver.json"
    path.write_text(json.dumps({"definitions": app.definitions}))
    assert "tells nothing of its training data" in validate().output
    path.write_text(json.dumps({"definitions": {**app.definitions, "lateness_us": 1}}))
    assert "lateness_us differs from that of model big" in validate().output


def test_the_commands_of_the_guide_run(
    var: Path, start_process: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_process(["-m", "cli", "broker", "--port", "0", "--in-memory", "--json"], ready='"ready"')
    address = json.loads(broker.line)["host_port"]
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
    endpoint = Endpoint("sameriver", address)
    topic = topics_of(app)["events"]
    create_topic(endpoint, topic)
    stopped = threading.Event()
    messages = [OutgoingMessage(one.data, one.attributes) for one in to_messages(app, sales(400, seed=2))]

    def publish() -> None:
        publisher = Publisher(endpoint)
        while not stopped.wait(0.05):
            publisher.publish(topic, messages)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        (block,) = [one for one in repository.code_blocks("sh") if "sameriver validate" in one.code and one.path == DOC]
        for line in block.code.splitlines():
            done = validate(*line.replace("flights", "shop").split("#")[0].split()[2:])
            assert done.exit_code == 0, done.output
    finally:
        stopped.set()
        thread.join()
    assert "messages topic shop-events: 400 events" in done.output


DOC = Path("docs/explore.md")
