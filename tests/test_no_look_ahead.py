"""C10: what happens later changes no earlier feature; only labels may, and only labels do."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import given, settings

from batch.traindata import features_of_history, make_training_rows
from shared_features import load_app
from tests import histories, repository
from tests.histories import EVENT, block_of
from tests.shop.app import app


def features(events: list[dict[str, Any]], shards: int) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        rows = features_of_history(app, histories.write(Path(name), block_of(events)), shards=shards).to_pylist()
    return {row["event_id"]: row for row in rows}


def published(event: dict[str, Any]) -> tuple[int, int]:
    return event["at"] + event["late"], event["edge"]


@settings(max_examples=4)
@given(
    events=st.lists(EVENT, min_size=2, max_size=30),
    changed=EVENT,
    remove=st.booleans(),
    shards=st.sampled_from([1, 7]),
    data=st.data(),
)
def test_a_changed_later_event_changes_no_earlier_feature(
    events: list[dict[str, Any]], changed: dict[str, Any], remove: bool, shards: int, data: st.DataObject
) -> None:
    events = [{**e, "event_id": f"e{i}"} for i, e in enumerate(events)]
    at = data.draw(st.integers(0, len(events) - 1))
    later = {**changed, "event_id": events[at]["event_id"]}
    after = [*events[:at], *([] if remove else [later]), *events[at + 1 :]]
    moment = published(events[at]) if remove else min(published(events[at]), published(later))
    first, second = features(events, shards), features(after, shards)
    earlier = [e["event_id"] for e in events if e["event_type"] == "sale" and published(e) < moment]
    assert [first[event_id] for event_id in earlier] == [second[event_id] for event_id in earlier]


def test_on_real_flights_only_labels_see_what_came_later(tmp_path: Path) -> None:
    """Every arrival from 20 January on is made an hour later and every flight after it late: rows before the day
    keep every feature, and those whose arrival changed may change their label."""
    january = pq.read_table(histories.flights() / "2013-01.parquet")
    day = pa.scalar(1_358_640_000_000_000, pa.timestamp("us", "UTC"))  # 2013-01-20T00:00Z
    later = pc.greater_equal(january["publish_time"], day)
    structs = {}
    for kind, field in (("arrived", "arrival_delay"), ("departed", "departure_delay")):
        struct = january[kind].combine_chunks()
        shifted = pc.if_else(later.combine_chunks(), pc.add(struct.field(field), 60.0), struct.field(field))
        names = [f.name for f in struct.type]
        arrays = [shifted if name == field else struct.field(name) for name in names]
        structs[kind] = pa.StructArray.from_arrays(arrays, names=names, mask=struct.is_null())
    changed = january
    for kind, struct in structs.items():
        changed = changed.set_column(changed.schema.get_field_index(kind), kind, struct)
    rows = {}
    for name, table in (("as it was", january), ("changed", changed)):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "january.parquet")
        out = tmp_path / f"rows {name}"
        make_training_rows(load_app("flights"), tmp_path / name, out, splits=histories.SPLITS_2013)
        rows[name] = pq.read_table(tmp_path / f"rows {name}" / "train")
        rows[name] = rows[name].filter(pc.less(rows[name]["publish_time"], day)).combine_chunks()
    before, after = rows["as it was"], rows["changed"]
    assert before.num_rows > 15_000
    assert before.drop_columns("label").equals(after.drop_columns("label"))
    differing = pc.sum(pc.not_equal(before["label"], after["label"])).as_py()
    assert 0 < differing < 200  # flights in the air at midnight


def test_nothing_that_predicts_imports_labels() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in repository.python_files("streaming", "serving", "shared_features", "apps")
        for node in ast.walk(repository.tree(path))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batch"))
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "batch" for alias in node.names))
    ]
    assert found == []
