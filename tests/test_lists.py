"""Lists as features: in blocks and messages, in training rows, on their way to a model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from batch.rows import row_schema
from batch.verify import same_bits
from serving.request import RequestEncoder, Signature, SignatureMismatchError
from serving.tensors import write_numbers, write_strings
from serving.wire import PredictRequest
from shared_features import App, Reaction, Rule, compute, last_values
from shared_features.blocks import flatten, nest
from shared_features.columns import Column, Evaluator, from_arrow, to_arrow
from shared_features.errors import HistoryError
from shared_features.lists import Listed, place_names, spread
from shared_features.reactions import reaction_stages
from streaming.messages import plain
from streaming.outgoing import outgoing
from streaming.results import apply_rule, with_results
from tests import training_rows
from tests.expression_rows import EPOCH, ROWS, Row, block_of, require
from tests.histories import block_of as sales
from tests.histories import event
from tests.shop.app import by_shop, sale, visit
from training.rows import Feature, open_rows

FLOATS = pa.list_(pa.float64(), 3)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_a_list_has_the_values_of_its_parts(rows: list[Row], seed: int) -> None:
    cases: dict[str, tuple[Listed, Callable[[Row], Any]]] = {
        "floats": (
            Listed([sale.amount, -sale.amount, sale.amount / 0]),
            lambda r: [r["amount"], None if r["amount"] is None else 0 - r["amount"], None],
        ),
        "texts": (Listed([sale.kind, sale.shop]), lambda r: [r["kind"], r["shop"]]),
        "booleans": (Listed([sale.paid, sale.kind == "tea"]), lambda r: [r["paid"], is_tea(r)]),
        "integers": (Listed([sale.units]), lambda r: [r["units"]]),
        "times": (Listed([sale.sold_at, sale.sold_at]), lambda r: [EPOCH + timedelta(microseconds=r["at"])] * 2),
    }
    require(cases, rows, seed)
    for expression, _ in cases.values():
        array = Evaluator(block_of(rows)).array(expression)
        assert array.type == expression.arrow_type
        assert to_arrow(from_arrow(array[1:], "list"), "list").equals(array[1:])


def is_tea(row: Row) -> bool | None:
    return None if row["kind"] is None else row["kind"] == "tea"


def test_a_list_that_counts_nowhere_is_a_list_of_nulls() -> None:
    """Parquet cannot hold a null list of a fixed size: read back, "Expected all lists to be of size=2"."""
    column = Evaluator(block_of([{"amount": 1.0}, {"amount": 2.0}])).column(Listed([sale.amount, sale.amount]))
    array = to_arrow(Column(column.values, np.array([False, True])), "list")
    assert array.null_count == 0
    assert array.to_pylist() == [[None, None], [2.0, 2.0]]


def test_spread_over_one_column_for_each_place() -> None:
    array = pa.array([[1.0, None, 3.0], [4.0, 5.0, 6.0]], FLOATS)
    columns = spread({"a": array, "b": pa.array([1, 2])})
    assert {name: values.to_pylist() for name, values in columns.items()} == {
        "a[0]": [1.0, 4.0],
        "a[1]": [None, 5.0],
        "a[2]": [3.0, 6.0],
        "b": [1, 2],
    }
    assert place_names("a", FLOATS) == ["a[0]", "a[1]", "a[2]"]


def test_lists_differ_if_one_place_differs_by_a_bit() -> None:
    ours = pa.array([[0.0, 1.0, None], [0.0, 1.0, None], [0.0, 1.0, None], [0.0, 1.0, None]], FLOATS)
    theirs = pa.array([[0.0, 1.0, None], [-0.0, 1.0, None], [0.0, 1.0, 2.0], [0.0, np.nextafter(1, 2), None]], FLOATS)
    assert same_bits(ours, theirs).tolist() == [True, False, False, False]


class TestThroughAJob:
    """What the live job makes of a block with lists, from the features to the messages."""

    recent = last_values(sale.amount, 2, by=by_shop, over="10s")
    rule = Rule("always", sale.amount >= 0)
    app = App(
        "lists",
        event_types=[sale, visit],
        predict_on=sale,
        features={"recent": recent, "kinds": last_values(sale.kind, 2, by=by_shop, over="1h")},
        models=[rule],
        reactions=[Reaction("tell", when=sale.paid, payload={"recent": recent})],
    )
    events = sales(
        [
            event("sale", 0, shop="a", amount=1.0, kind="tea", paid=False),
            event("visit", 1, shop="a", length=1.0),
            event("sale", 2, shop="a", amount=2.0, kind=None, paid=True),
        ]
    )

    def block(self) -> pa.RecordBatch:
        """The block as the live job has it: features, then results."""
        from shared_features.compute import compute_block
        from shared_features.plan import make_plan

        block = compute_block(make_plan(self.app), self.events)
        answers = {self.rule.name: apply_rule(self.app, self.rule, block)}
        return with_results(self.app, block, answers, reaction_stages(self.app))

    def test_on_disk_and_back(self, tmp_path: Path) -> None:
        block = self.block()
        pq.write_table(pa.Table.from_batches([nest(block)]), tmp_path / "block.parquet")
        again = flatten(pq.read_table(tmp_path / "block.parquet")).combine_chunks()
        assert again["feature.recent"].to_pylist() == [[1.0, None], [None, None], [2.0, 1.0]]
        assert again["feature.kinds"].to_pylist() == [["tea", None], [None, None], ["tea", None]]
        assert row_schema(self.app, labelled=False).field("recent").type == pa.list_(pa.float64(), 2)

    def test_in_messages(self) -> None:
        messages = outgoing(self.app, self.block(), with_features=True)
        predictions = [plain(message.data) for message in messages["lists-predictions"]]
        assert [one["features"] for one in predictions] == [
            {"recent[0]": 1.0, "recent[1]": None, "kinds[0]": "tea", "kinds[1]": None},
            {"recent[0]": 2.0, "recent[1]": 1.0, "kinds[0]": "tea", "kinds[1]": None},
        ]
        (reaction,) = messages["lists-reaction-tell"]
        assert plain(reaction.data)["payload"] == {"recent[0]": 2.0, "recent[1]": 1.0}

    def test_in_a_notebook(self) -> None:
        features = compute(self.app, pa.Table.from_batches([self.events]))
        assert features["kinds"].to_pylist() == [["tea", None], ["tea", None]]
        assert [one.tolist() for one in features["kinds"].to_pandas()] == [["tea", None], ["tea", None]]


def encoded(column: pa.Array, kind: str, shape: tuple[int | None, ...]) -> PredictRequest:
    signature = Signature({"x": kind}, {"y": "DT_FLOAT"}, input_shapes={"x": shape})
    return PredictRequest.FromString(RequestEncoder("m", signature).encode(pa.record_batch({"x": column})))


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("shape", [(None, 3), (None, None)])
def test_a_model_takes_a_list_as_one_tensor(rows: int, shape: tuple[int | None, ...]) -> None:
    numbers: list[Any] = [[float(row), None, -1.5] for row in range(rows + 2)]
    column = pa.array(numbers, FLOATS).slice(2)
    wanted = PredictRequest()
    wanted.model_spec.name = "m"
    array = np.array([[float(row), np.nan, -1.5] for row in range(2, rows + 2)], np.float32)
    write_numbers(wanted.inputs["x"], 1, array, as_content=True)
    assert encoded(column, "DT_FLOAT", shape) == wanted
    texts = pa.array([[f"é{row}", None, ""] for row in range(rows)], pa.list_(pa.string(), 3))
    wanted = PredictRequest()
    wanted.model_spec.name = "m"
    values = [text.encode() for row in range(rows) for text in (f"é{row}", "", "")]
    write_strings(wanted.inputs["x"], values, (rows, 3))
    assert encoded(texts, "DT_STRING", shape) == wanted


def test_lists_that_do_not_fit_the_model_are_named() -> None:
    column = pa.array([[1.0, 2.0, 3.0]], FLOATS)
    with pytest.raises(SignatureMismatchError, match=r"'x' of shape \(None,\) takes one value a row.*a list of 3"):
        encoded(column, "DT_FLOAT", (None,))
    with pytest.raises(SignatureMismatchError, match=r"takes a list of 2 a row, the block has a list of 3"):
        encoded(column, "DT_FLOAT", (None, 2))
    with pytest.raises(SignatureMismatchError, match=r"takes a list of 2 a row, the block has one value"):
        encoded(pa.array([1.0]), "DT_FLOAT", (None, 2))
    with pytest.raises(SignatureMismatchError, match="list that is null in some rows"):
        encoded(pa.array([None], FLOATS), "DT_FLOAT", (None, 3))


def test_rows_with_a_null_in_a_list_of_integers_are_named() -> None:
    signature = Signature({"x": "DT_INT32"}, {"y": "DT_FLOAT"}, input_shapes={"x": (None, 2)})
    column = pa.array([[1, 2], [3, None], [4, 2**40]], pa.list_(pa.int64(), 2))
    unusable = RequestEncoder("m", signature).unusable(pa.record_batch({"x": column}))
    assert sorted(unusable) == [1, 2]
    assert "is null" in unusable[1]


def with_lists(rows: int, seed: int) -> pa.Table:
    """Training rows whose feature ``recent`` is a list of two numbers, the second often null."""
    table = training_rows.table(rows, seed)
    delays = table["delay"].to_pylist()
    recent = [[delay, None if row % 3 else row % 7] for row, delay in enumerate(delays)]
    return table.append_column("recent", pa.array(recent, pa.list_(pa.float64(), 2)))


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {split: with_lists(200, seed) for seed, split in enumerate(("train", "validate", "test"), 1)}
    return training_rows.write(tmp_path_factory.mktemp("lists"), splits, shards=2)


def test_training_takes_a_list_as_numbers(rows_folder: Path) -> None:
    rows = open_rows(rows_folder)
    assert rows.lists == {"recent": ("recent[0]", "recent[1]")}
    assert rows.features[-2:] == (Feature("recent[0]", "number"), Feature("recent[1]", "number"))
    table = rows.table("test")
    assert table["recent[0]"].to_pylist() == table["delay"].to_pylist()
    packed = rows.packed(table)
    np.testing.assert_array_equal(packed.numbers[:, rows.numbers.index("recent[0]")], packed.numbers[:, 0])
    assert [block.schema.names for block in rows.blocks("test", ["recent[1]", "hour"])] == [["recent[1]", "hour"]] * 2


def test_training_refuses_a_list_of_texts(tmp_path: Path) -> None:
    few = training_rows.table(3, 1)
    few = few.append_column("kinds", pa.array([["a", "b"]] * 3, pa.list_(pa.string(), 2)))
    folder = training_rows.write(tmp_path, {"train": few, "validate": few, "test": few})
    with pytest.raises(HistoryError, match=r"or a list of numbers, but kinds in .* is fixed_size_list<.*string>"):
        open_rows(folder)


@pytest.mark.tensorflow
def test_an_exported_model_has_one_input_for_a_list(rows_folder: Path, tmp_path: Path) -> None:
    from training.export import SavedModel, write_saved_model
    from training.options import WideAndDeepOptions
    from training.statistics import compute_statistics
    from training.wide_and_deep import build

    rows = open_rows(rows_folder)
    model = build(compute_statistics(rows), WideAndDeepOptions(units=(4,)))
    write_saved_model(model, rows, tmp_path)
    exported = SavedModel(tmp_path)
    assert exported.inputs["recent"] == "float32"
    spread_rows = rows.table("test").sort_by("event_id")
    listed = pa.concat_tables([pq.read_table(path) for path in rows.shards["test"]]).sort_by("event_id")
    answers = exported.probabilities(listed)
    np.testing.assert_array_equal(answers, exported.probabilities(spread_rows))
    numbers, texts, _ = rows.packed(spread_rows).take(np.arange(len(listed)))
    direct = model([numbers, texts], training=False).numpy()[:, 0]
    np.testing.assert_allclose(answers, 1 / (1 + np.exp(-direct)), rtol=1e-5)
    assert len(set(answers.tolist())) > 50
