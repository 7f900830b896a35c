"""History in BigQuery gives the same bytes of training rows as the same history in Parquet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery as google_bigquery

from batch import bigquery, training_out
from batch.admission import admit, first_of_each
from batch.bigquery import Endpoints
from batch.bigquery_service import rest_client
from batch.files import open_files
from batch.splits import by_share
from batch.tables import open_history, read_split
from batch.traindata import MANIFEST, features_of_history, make_training_rows
from batch.training_out import put_training_rows
from shared_features import load_app
from shared_features.blocks import concat_blocks, nest
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.plan import make_plan
from shared_features.schema import TIMESTAMP
from streaming.event_blocks import block_message
from streaming.intake import Intake
from streaming.topics import Message
from tests import histories
from tests.bigquery_server import PROJECT, environment
from tests.histories import block_of, event
from tests.serving_steps import to_messages
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
    load(f"{dataset}.somewhere", block_of([event("sale", 1)]))
    with pytest.raises(
        HistoryError, match=r"no such table: bq://.*nowhere; dataset batch_history has .*somewhere.*: name"
    ):
        open_history(f"{dataset}.nowhere", plan)
    with pytest.raises(HistoryError, match=r"project sameriver has no dataset elsewhere, but .*batch_history.*: check"):
        open_history("bq://sameriver.elsewhere.nowhere", plan)
    with pytest.raises(HistoryError, match=r"project another-one has no dataset a, but none: check the names"):
        open_history("bq://another-one.a.b", plan)
    with pytest.raises(HistoryError, match=r"bq://project\.dataset\.table, got"):
        open_history("bq://half.a_name", plan)
    block = block_of([event("sale", 1)])
    uri = load(f"{dataset}.narrow", block.select([name for name in block.schema.names if name != "sale.amount"]))
    with pytest.raises(HistoryError, match=r"has no column 'sale\.amount' \(double\): it has sale\.shop"):
        open_history(uri, plan)


def test_views_and_queries_are_read_as_tables_are(dataset: str) -> None:
    load(f"{dataset}.seen", block_of(EVENTS))
    view = google_bigquery.Table(f"{PROJECT}.batch_history.view")
    view.view_query = "SELECT * FROM `sameriver.batch_history.seen`"
    with rest_client(PROJECT, Endpoints.from_environment()) as client:
        client.create_table(view, exists_ok=True)
    wanted = events(f"{dataset}.seen")
    assert events(f"{dataset}.view").equals(wanted)
    query = "SELECT * FROM batch_history.seen WHERE event_type IN ('sale', 'visit')"
    assert events(f"bq://{PROJECT}?query={query}").equals(wanted)
    assert open_history(f"{dataset}.view", make_plan(app)).version is None
    with pytest.raises(HistoryError, match=r"running the query of bq://sameriver\?query=SELECT nothing failed"):
        open_history(f"bq://{PROJECT}?query=SELECT nothing", make_plan(app))
    with pytest.raises(HistoryError, match="does not begin with a project's name"):
        open_history("bq://A B?query=SELECT 1", make_plan(app))


def events(uri: str) -> pa.Table:
    history = open_history(uri, make_plan(app))
    read = pa.Table.from_batches([block for split in history.splits for block in read_split(split)])
    return read.sort_by([("event_type", "ascending"), ("event_id", "ascending")])


def test_a_table_that_a_subscription_wrote_gives_what_the_live_job_would_take(dataset: str, tmp_path: Path) -> None:
    """Single events, a block of events, a message that came twice, and three that the live job refuses."""
    block = block_of(EVENTS)
    singles = to_messages(app, block.slice(0, 9), block.column("publish_time").cast(pa.int64()).to_pylist())
    rest = block.slice(9)
    many = [
        block_message(schema, rest.filter(pc.equal(rest.column("event_type"), name)))
        for name, schema in app.event_types.items()
    ]
    at = block.column("publish_time")[-1].value
    bad = [(b"{", {"event_type": "sale"}), (b"{}", {"event_type": "other"}), (b"x", {"compression": "zip"})]
    rows = [(one.message_id, one.publish_time_us, one.data, one.attributes) for one in [*singles, singles[3]]]
    rows += [(f"block{i}", at, one.data, one.attributes) for i, one in enumerate(many)]
    rows += [(f"bad{i}", at, data, attributes) for i, (data, attributes) in enumerate(bad)]
    uri = f"{dataset}.subscribed"
    subscribed = {
        "subscription_name": pa.array(["projects/p/subscriptions/s"] * len(rows)),
        "message_id": pa.array([row[0] for row in rows]),
        "publish_time": pa.array([row[1] for row in rows]).cast(TIMESTAMP),
        "data": pa.array([row[2] for row in rows], pa.binary()),
        "attributes": pa.array([json.dumps(row[3]) for row in rows]),
    }
    bigquery.load_table(uri, pa.table(subscribed))
    blocks = [Message(one.data, one.attributes, f"block{i}", at, "") for i, one in enumerate(many)]
    live = Intake(app.event_types).take([*singles, *blocks]).block
    plan, history = make_plan(app), open_history(uri, make_plan(app))
    read = [admit(plan, block)[0] for split in history.splits for block in read_split(split)]
    wanted = live.select(history.schema.names)
    order = [("event_type", "ascending"), ("event_id", "ascending")]
    found = first_of_each(concat_blocks(read))
    assert pa.Table.from_batches([found]).sort_by(order).equals(pa.Table.from_batches([wanted]).sort_by(order))
    summary = make_training_rows(app, uri, tmp_path / "rows", splits=SPLITS)
    with pytest.raises(ConfigurationError, match="does not say which time it covers: give the splits"):
        make_training_rows(app, uri, tmp_path / "unsplit")
    refused = {"duplicate": 1, "malformed_json": 1, "unknown_event_type": 1, "unknown_encoding": 1}
    assert {name: count for name, count in summary.events_left_out.items() if count} == refused


def test_training_rows_go_to_a_table_once_or_to_a_bucket(
    dataset: str, tmp_path: Path, storage_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    history = str(histories.write(tmp_path / "history", block_of(EVENTS)))
    here = make_training_rows(app, history, tmp_path / "here", splits=SPLITS)
    origin = json.loads((tmp_path / "here" / MANIFEST).read_bytes())["origin"]
    table, bucket = f"{dataset}.rows", "gs://lake/training/shop"
    for there in (False, True):
        assert training_out._to_table(tmp_path / "here", table, origin) is there
        assert training_out._to_bucket(tmp_path / "here", bucket, origin) is there
    got = pa.Table.from_batches(bigquery.read_table(table))
    assert Counter(got["split"].to_pylist()) == Counter({name: count for name, count in here.rows.items() if count})
    assert got.num_rows == len(set(got["row_id"].to_pylist()))
    assert bytes_at(bucket) == tree(tmp_path / "here")
    with pytest.raises(ConfigurationError, match=r"gs://lake/training/shop holds training rows of something else"):
        training_out._to_bucket(tmp_path / "here", bucket, {**origin, "fingerprint": ""})
    with pytest.raises(ConfigurationError, match="have no file format: leave --format out"):
        put_training_rows(app, history, table, work=tmp_path / "work", splits=SPLITS, file_format="csv")


def bytes_at(uri: str) -> dict[str, bytes]:
    files, found = open_files(uri), {}
    for name in files.names():
        with files.open(name) as file:
            found[name] = file.read()
    return found


def test_an_empty_table_gives_no_rows(dataset: str) -> None:
    uri = load(f"{dataset}.empty", block_of([event("sale", 1)]).slice(0, 0))
    assert features_of_history(app, uri).num_rows == 0


def test_real_flights_are_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    """The first 20,000 events of February."""
    events = pq.read_table(histories.flights() / "2013-02.parquet").slice(0, 20_000)
    pq.write_table(events, tmp_path / "events.parquet")
    bigquery.load_table(f"{dataset}.flights", events)
    flights = load_app("flights")
    make_training_rows(flights, tmp_path / "events.parquet", tmp_path / "parquet", splits=histories.SPLITS_2013)
    make_training_rows(flights, f"{dataset}.flights", tmp_path / "bigquery", splits=histories.SPLITS_2013, shards=3)
    here, there = (open_history(uri, make_plan(flights)) for uri in (tmp_path / "events.parquet", f"{dataset}.flights"))
    assert by_share(there) == by_share(here)
    ours, theirs = tree(tmp_path / "parquet"), tree(tmp_path / "bigquery")
    del ours[MANIFEST], theirs[MANIFEST]
    assert ours == theirs
    assert len(ours) == 1
