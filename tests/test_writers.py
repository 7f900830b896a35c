"""Destinations keep one contract, whatever they are: folders, buckets and tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from batch import files
from batch.files import open_files
from batch.parquet_files import opened, parquet_files
from batch.writers import Piece, Shape, Written, open_destination
from shared_features.blocks import flatten
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.schema import TIMESTAMP
from tests.storage_server import BUCKET

SCHEMA = pa.schema(
    [("prediction_id", pa.string()), ("publish_time", TIMESTAMP), ("feature.delay", pa.float64()), ("seen", pa.int64())]
)
SHAPE = Shape(SCHEMA, "prediction_id", (), ("seen",))


def rows(*ids: str, delay: float = 1.0, day: int = 0, seen: int = 0) -> pa.RecordBatch:
    count = len(ids)
    times = pa.array([day * 86_400_000_000 + place for place in range(count)]).cast(TIMESTAMP)
    return pa.RecordBatch.from_arrays(
        [pa.array(ids, pa.string()), times, pa.array([delay] * count), pa.array([seen] * count)], schema=SCHEMA
    )


def put(uri: str, *blocks: pa.RecordBatch, name: str = "a", shape: Shape = SHAPE) -> Written:
    destination = open_destination(uri, shape)
    destination.prepare()
    with destination.piece(name) as piece:
        for block in blocks:
            piece.write(block)
    return destination.commit([piece.token])


@pytest.fixture(params=["here", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new folder, here or at a storage service."""
    if request.param == "here":
        return str(tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("storage_address"))
    return f"gs://{BUCKET}/writers/{tmp_path.name}"


def tables(uri: str) -> list[pa.Table]:
    try:
        _, paths = parquet_files(uri)
    except HistoryError:
        return []
    found = []
    for path in paths:
        with opened(path) as file:
            found.append(file.read())
    return found


def seen(uri: str) -> list[str]:
    return sorted(one for table in tables(uri) for one in table["prediction_id"].to_pylist())


def test_a_second_run_adds_nothing_and_what_differs_is_told(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    assert put(uri, rows("a", "b"), rows("c", day=1)) == Written(rows=3)
    assert put(uri, rows("a", "b"), rows("c", day=1)) == Written(existing=3)
    assert put(uri, rows("a", "b", "d", seen=7)) == Written(rows=1, existing=2)
    assert put(uri, rows("c", delay=-0.0, day=1)) == Written(existing=1, differing=1)
    assert "c is there already with feature.delay = 1.0, not -0.0: it stays as it is" in caplog.text
    assert seen(uri) == ["a", "b", "c", "d"]
    assert flatten(tables(uri)[0]).schema.names == SCHEMA.names


def test_nothing_is_seen_before_it_is_committed_and_twice_is_once(uri: str) -> None:
    destination = open_destination(uri, SHAPE)
    destination.prepare()
    tokens = []
    for name, ids in [("day=1/x", "ab"), ("day=2/x", "cd")]:
        with destination.piece(name) as piece:
            piece.write(rows(*ids))
        tokens.append(piece.token)
    with pytest.raises(KeyError), destination.piece("broken") as piece:
        _write_and_fail(piece)
    with destination.piece("again") as piece:  # a bundle that was done twice: this one's token is dropped
        piece.write(rows("a", "b"))
    assert seen(uri) == []
    destination.commit(tokens[:1])
    assert seen(uri) == ["a", "b"]
    assert destination.commit(tokens) == destination.commit(tokens) == Written(rows=4)
    assert seen(uri) == ["a", "b", "c", "d"]
    assert len(open_files(uri).names("_pieces/")) == 1


def _write_and_fail(piece: Piece) -> None:
    piece.write(rows("e"))
    raise KeyError


def test_without_identity_the_name_decides(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = Shape(SCHEMA)
    assert put(uri, rows("a"), shape=plain) == Written(rows=1)
    assert put(uri, rows("a"), shape=plain) == Written(rows=1)
    assert put(uri, rows("b", "c"), shape=plain) == Written(existing=2, differing=2)
    assert "a.parquet was there and holds other rows" in caplog.text
    assert seen(uri) == ["a"]


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="s3://x names no destination: wanted a folder, gs://bucket"):
        open_destination("s3://x", SHAPE)
    with pytest.raises(ConfigurationError, match=r"gs://bucket/folder, got 'gs://B'"):
        open_destination("gs://B", SHAPE).prepare()
    destination = open_destination(str(tmp_path), SHAPE)
    for name in ("../x", "/x", "a b", ""):
        with pytest.raises(ConfigurationError, match="cannot be named"):
            destination.piece(name)
    with destination.piece("a") as piece:
        piece.write(rows("a"))
    for path in (tmp_path / "_pieces").iterdir():
        path.unlink()
    with pytest.raises(HistoryError, match=r"is gone before it was committed: write it again"):
        destination.commit([piece.token])
    with pytest.raises(HistoryError, match="a token of a written piece was wanted"):
        destination.commit([b"{}"])
    (tmp_path / "other.parquet").write_bytes(b"no")
    with pytest.raises(HistoryError, match=r"other.parquet at the destination cannot be read"):
        put(str(tmp_path), rows("z"))


def test_a_bucket_that_is_not_there_or_not_reached_is_told(
    storage_address: str, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    with pytest.raises(HistoryError, match=r"listing gs://nobucket/x failed: no such bucket or object"):
        put("gs://nobucket/x", rows("a"), shape=Shape(SCHEMA))
    monkeypatch.setattr(files, "DEADLINE_S", 0.3)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(HistoryError, match=r"listing gs://lake/x failed .*: check that it can be reached"):
        put("gs://lake/x", rows("a"))
