"""The job as a graph with state in the runner: the very transforms that Dataflow gets, on Beam's in-process runner."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from batch import beam_tables
from batch.backfill import backfill
from batch.backfill_rows import Asking
from batch.beam_tables import WriteRows, table_of
from batch.bigquery_service import Endpoints
from batch.traindata import features_of_history
from shared_features import load_app
from shared_features.app import App
from shared_features.blocks import flatten
from streaming import dataflow_steps, keyed_state
from streaming.archive import read_commits
from streaming.dataflow import Ends, Transform, build, ended_schema, pubsub_ends
from streaming.job import JobSettings, create_topics
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher
from tests.bigquery_server import environment
from tests.histories import block_of, computed, event, in_order
from tests.processes import Started, wait_until
from tests.serving_steps import serve, to_messages
from tests.test_backfill_reactions import app as reacting
from tests.test_backfill_reactions import events as reacting_events

SHOP = load_app(str(Path(__file__).parent / "shop"))
SETTINGS = JobSettings(Endpoint("my-project"), Path("/"))
PREDICTIONS = "gs://lake/dataflow/predictions"
SENT: dict[str, list[PubsubMessage]] = defaultdict(list)

EVENTS = [
    *(event("sale", at, shop="abc"[at % 3], till=at % 2, amount=at / 7, kind="xy"[at % 2]) for at in range(0, 120, 2)),
    *(event("visit", at, shop="abc"[at % 3], length=at % 4) for at in range(1, 120, 6)),
    *(event("sale", at, amount=1.5) for at in range(5, 120, 40)),  # neither shop nor till
]


class Ran(NamedTuple):
    """What a run left behind: rows of the archive, the folder that they are in, messages by topic."""

    rows: pa.Table
    archive: Path
    sent: dict[str, list[PubsubMessage]]


def run(
    folder: Path, messages: list[Message], *, shards: int, repeat: int = 0, predictions: str = "", app: App = SHOP
) -> Ran:
    """The graph from a list to files, each bundle done ``repeat`` times over."""
    pour(messages, {"archive": str(folder / "archive"), "predictions": predictions}, shards, repeat, app)
    rows = pa.concat_tables([flatten(pq.read_table(path)) for path in folder.glob("archive/archive/*.parquet")])
    return Ran(in_order(rows), folder / "archive", dict(SENT))


def pour(messages: list[Message], uris: dict[str, str], shards: int, repeat: int = 0, app: App = SHOP) -> None:
    """The graph from a list into tables by their kinds; none where a URI is empty."""
    SENT.clear()
    tables: dict[str, Transform] = {}
    for kind, uri in uris.items():
        if uri:
            table = table_of(app, kind, uri, ended_schema(app, SETTINGS))
            table.prepare()
            tables[kind] = WriteRows(app.spec, kind, table, every_s=None)
    pipeline = beam.Pipeline(FnApiRunner(bundle_repeat=repeat), options=PipelineOptions([]))
    source = beam.Create([_arrived(message) for message in messages], reshuffle=False)
    build(pipeline, app, SETTINGS, Ends(source, lambda topic: beam.Map(_keep, topic), tables), shards)
    pipeline.run().wait_until_finish()


def _arrived(message: Message) -> PubsubMessage:
    published = datetime.fromtimestamp(message.publish_time_us / 1e6, UTC)
    return PubsubMessage(message.data, dict(message.attributes), message.message_id, published)


def _keep(message: PubsubMessage, topic: str) -> None:
    SENT[topic].append(message)


def features(rows: pa.Table) -> list[dict[str, object]]:
    """Of the rows predicted on, in order; bits as text."""
    done = rows.filter(pa.compute.equal(rows.column("event_type"), "sale"))
    return [
        {name: repr(value) for name, value in row.items()}
        for row in done.select(["event_id", *(f"feature.{name}" for name in SHOP.features)]).to_pylist()
    ]


def batch_features(rows: pa.Table) -> list[dict[str, object]]:
    names = ["event_id", *SHOP.features]
    table = rows.select(names).rename_columns(["event_id", *(f"feature.{name}" for name in SHOP.features)])
    return [{name: repr(value) for name, value in row.items()} for row in table.to_pylist()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, storage_address: str) -> Iterator[Ran]:
    """Out of order, some twice, some unusable, over four shards; predictions into a bucket."""
    messages = to_messages(SHOP, block_of(EVENTS))
    unusable = [Message(b"{", {"event_type": "sale"}, "x1", 1), Message(b"{}", {"event_type": "other"}, "x2", 2)]
    mixed = [*messages, *messages[::5], *unusable]
    random.Random(7).shuffle(mixed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage_address)
        yield run(tmp_path_factory.mktemp("dataflow"), mixed, shards=4, predictions=PREDICTIONS)


def test_each_event_ends_once(ran: Ran) -> None:
    assert sorted(ran.rows.column("event_id").to_pylist()) == sorted(block_of(EVENTS).column("event_id").to_pylist())
    predicted = [json.loads(message.data)["event_id"] for message in ran.sent["shop-predictions"]]
    sales = ran.rows.filter(pa.compute.equal(ran.rows.column("outcome"), "predicted"))
    assert sorted(predicted) == sorted(sales.column("event_id").to_pylist())
    assert sales.num_rows == 63
    reasons = sorted(message.attributes["reason"] for message in ran.sent["shop-dead-letters"])
    assert reasons == ["malformed_json", "unknown_event_type"]
    assert ran.sent["shop-reaction-praise"]


def test_every_shard_numbers_its_rows_without_a_gap(ran: Ran) -> None:
    for stage in ("shop", "till"):
        places = ran.rows.select([f"stage.{stage}.{name}" for name in ("shard", "position")]).drop_null().to_pylist()
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place in places:
            by_shard[place[f"stage.{stage}.shard"]].append(place[f"stage.{stage}.position"])
        assert len(by_shard) > (stage == "shop")
        for positions in by_shard.values():
            assert sorted(positions) == list(range(len(positions)))


def test_batch_over_the_archive_gives_the_same_bits(ran: Ran) -> None:
    """What `verify` does of an archive on this machine: fold again, by the positions that the rows carry."""
    assert features(ran.rows) == batch_features(features_of_history(SHOP, ran.archive))


def test_a_backfill_of_the_archive_finds_its_predictions_there(ran: Ran, tmp_path: Path) -> None:
    """Nothing is added, and nothing differs: that is how a job on Dataflow is verified."""
    found = backfill(SHOP, ran.archive, PREDICTIONS, asking=Asking("", None, {}), work=tmp_path)
    assert (found.rows_added, found.rows_there, found.rows_differing) == (0, 63, 0)


def test_in_the_order_of_publication_it_is_what_history_gives(tmp_path: Path) -> None:
    """One shard of all keeps the order: then live and a history that knows of no positions agree."""
    history = block_of(sorted(EVENTS, key=lambda one: one["at"]))
    ran = run(tmp_path, to_messages(SHOP, history), shards=1)
    assert features(ran.rows) == batch_features(computed(SHOP, history))


def test_bundles_that_are_done_again_change_nothing(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live state is then newer than the runner's, and made anew from it; here from bases, too."""
    monkeypatch.setattr(keyed_state, "LEAST_JOURNAL_BYTES", 2_000)
    messages = to_messages(SHOP, block_of(EVENTS))
    again = run(tmp_path, messages * 2, shards=2, repeat=1)
    assert len(again.rows) == len(ran.rows)
    assert features(again.rows) == batch_features(features_of_history(SHOP, again.archive))
    by_event = defaultdict(set)
    for message in again.sent["shop-predictions"]:
        by_event[json.loads(message.data)["event_id"]].add(message.data)
    assert len(by_event) == 63
    assert {len(said) for said in by_event.values()} == {1}


def test_reactions_that_remember_are_those_of_the_job_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataflow_steps, "read_description", lambda _: (reacting, SETTINGS))
    monkeypatch.setattr(beam_tables, "load_app", lambda _: reacting)
    block = reacting_events(count=60)
    messages = to_messages(reacting, block, block.column("publish_time").cast(pa.int64()).to_pylist())
    ran = run(tmp_path / "dataflow", messages, shards=1, repeat=1, app=reacting)
    serve(reacting, messages, tmp_path / "live")
    served = pa.Table.from_batches([commit.block for commit in read_commits(tmp_path / "live")])
    compared = ["event_id", *(name for name in served.column_names if name.startswith(("reaction.", "started.")))]
    assert len(compared) > len(reacting.reactions)
    assert ran.rows.select(compared).to_pylist() == in_order(served).select(compared).to_pylist()
    assert any(ran.rows.column("reaction.busy").to_pylist())


@pytest.mark.soak
def test_tables_of_bigquery_have_each_row_once(
    bigquery_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bundles are repeated, so pieces are written that nobody commits; a backfill finds all predictions there."""
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    uris = {kind: f"bq://sameriver.dataflow.{kind}" for kind in ("archive", "predictions")}
    pour(to_messages(SHOP, block_of(EVENTS)), uris, shards=3, repeat=1)
    found = backfill(SHOP, uris["archive"], uris["predictions"], asking=Asking("", None, {}), work=tmp_path)
    assert (found.events, found.rows_added, found.rows_there, found.rows_differing) == (len(EVENTS), 0, 63, 0)


@pytest.mark.soak
def test_pubsub_at_both_ends(
    tmp_path: Path, start_process: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam's own transforms against a broker, over many bundles, as events come; tables now and then."""
    started = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    started = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    host_port = "127.0.0.1:" + started.line.rpartition(":")[2].strip()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host_port)
    endpoint = Endpoint("my-project", host_port)
    settings = replace(SETTINGS, endpoint=endpoint)
    create_topics(SHOP, endpoint)
    publisher = Publisher(endpoint)
    messages = to_messages(SHOP, block_of(EVENTS))
    table = table_of(SHOP, "archive", str(tmp_path), ended_schema(SHOP, settings))
    ends = pubsub_ends(SHOP, endpoint, None, None, {"archive": WriteRows(SHOP.spec, "archive", table, every_s=1)})
    options = PipelineOptions(["--streaming", "--project=my-project"])
    pipeline = beam.Pipeline(BundleBasedDirectRunner(), options=options)
    build(pipeline, SHOP, settings, ends, shards=3)
    running = pipeline.run()
    try:
        for start in range(0, len(messages), 9):
            publisher.publish(
                "shop-events", [OutgoingMessage(one.data, one.attributes) for one in messages[start:][:12]]
            )
        wait_until(lambda: len(_archived(tmp_path)) >= len(EVENTS), what="all rows")
    finally:
        running.cancel()
        publisher.close()
    rows = _archived(tmp_path)
    assert len(rows) == len(EVENTS), "what was published twice is there once"
    assert features(rows) == batch_features(features_of_history(SHOP, tmp_path))


def _archived(folder: Path) -> pa.Table:
    found = [flatten(pq.read_table(path)) for path in folder.glob("archive/*.parquet")]
    return in_order(pa.concat_tables(found)) if found else pa.table({})
