"""History in BigQuery gives the same bytes of training rows as the same history in Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import bigquery
from batch.bigquery import Endpoints
from batch.tables import open_history
from batch.traindata import MANIFEST, features_of_history, make_training_rows
from shared_features import load_app
from shared_features.blocks import nest
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.plan import make_plan
from tests import histories
from tests.bigquery_server import PROJECT, environment
from tests.histories import block_of, event
from tests.shop.app import app
from tests.test_traindata import EVENTS, SPLITS, tree


@pytest.fixture
def dataset(bigquery_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> str:
    """``bq://project.dataset`` of an emulator that the environment names."""
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    return f"bq://{PROJECT}.batch_history"


def load(uri: str, block: pa.RecordBatch) -> str:
    bigquery.load_table(uri, nest(pa.Table.from_batches([block])).drop_columns(["message_id"]))
    return uri


def test_training_rows_are_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    folder = histories.write(tmp_path / "history", block_of(EVENTS), files=2)
    uri = load(f"{dataset}.shop", block_of(EVENTS))
    first = make_training_rows(app, folder, tmp_path / "parquet", splits=SPLITS)
    second = make_training_rows(app, uri, tmp_path / "bigquery", splits=SPLITS, shards=3)
    ours, theirs = tree(tmp_path / "parquet"), tree(tmp_path / "bigquery")
    assert ours.pop(MANIFEST) != theirs.pop(MANIFEST)
    assert ours == theirs
    assert (first.rows, first.rows_left_out, first.events) == (second.rows, second.rows_left_out, second.events)


def test_rows_are_reused_until_the_table_changes(dataset: str, tmp_path: Path) -> None:
    uri = load(f"{dataset}.reuse", block_of(EVENTS))
    out = tmp_path / "rows"
    assert not make_training_rows(app, uri, out, splits=SPLITS).reused
    assert make_training_rows(app, uri, out, splits=SPLITS).reused
    load(uri, block_of([*EVENTS, event("sale", 11, shop="a", event_id="new")]))
    assert not make_training_rows(app, uri, out, splits=SPLITS).reused


def test_a_range_is_restricted_where_the_table_is(dataset: str, tmp_path: Path) -> None:
    events = [event("sale", at, shop="a", till=at % 2, amount=at / 3) for at in range(0, 2000, 3)]
    uri = load(f"{dataset}.range", block_of(events))
    folder = histories.write(tmp_path, block_of(events))
    since = block_of([event("sale", 1300)]).column("event_time")[0].as_py()
    got = features_of_history(app, uri, since=since, published_until=since.replace(year=2024))
    assert got.num_rows == 233
    assert got.equals(features_of_history(app, folder, since=since, published_until=since.replace(year=2024)))


def test_a_table_without_publish_times_goes_by_event_time(dataset: str, tmp_path: Path) -> None:
    block = block_of(EVENTS, published=False)
    uri = f"{dataset}.unpublished"
    bigquery.load_table(uri, nest(pa.Table.from_batches([block])).drop_columns(["message_id", "publish_time"]))
    folder = histories.write(tmp_path, block)
    assert features_of_history(app, uri).equals(features_of_history(app, folder))


def test_a_missing_table_or_column_is_named(dataset: str) -> None:
    plan = make_plan(app)
    with pytest.raises(HistoryError, match="no such table"):
        open_history(f"{dataset}.nowhere", plan)
    with pytest.raises(HistoryError, match=r"bq://project\.dataset\.table, got"):
        open_history("bq://half.a_name", plan)
    block = block_of([event("sale", 1)])
    uri = load(f"{dataset}.narrow", block.select([name for name in block.schema.names if name != "sale.amount"]))
    with pytest.raises(HistoryError, match=r"has no column 'sale\.amount' \(double\): it has sale\.shop"):
        open_history(uri, plan)


def test_an_empty_table_gives_no_rows(dataset: str) -> None:
    uri = load(f"{dataset}.empty", block_of([event("sale", 1)]).slice(0, 0))
    assert features_of_history(app, uri).num_rows == 0


def test_real_flights_are_the_same_bytes(
    dataset: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first 20,000 events of February."""
    events = pq.read_table(histories.flights(tmp_path_factory) / "2013-02.parquet").slice(0, 20_000)
    pq.write_table(events, tmp_path / "events.parquet")
    bigquery.load_table(f"{dataset}.flights", events)
    flights = load_app("flights")
    make_training_rows(flights, tmp_path / "events.parquet", tmp_path / "parquet", splits=histories.SPLITS_2013)
    make_training_rows(flights, f"{dataset}.flights", tmp_path / "bigquery", splits=histories.SPLITS_2013, shards=3)
    with pytest.raises(ConfigurationError, match="--validate-from and --test-from"):
        make_training_rows(flights, f"{dataset}.flights", tmp_path / "unsplit")
    ours, theirs = tree(tmp_path / "parquet"), tree(tmp_path / "bigquery")
    del ours[MANIFEST], theirs[MANIFEST]
    assert ours == theirs
    assert len(ours) == 1
