"""The archive: what was appended comes back; a torn end is cut off, damage elsewhere is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from shared_features.errors import ConfigurationError, HistoryError
from streaming.archive import Archive, read_commits, segments

APP = {"app": "shop", "fingerprint": "f" * 32, "definitions": {}}


def block(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": pa.array(values, pa.int64())})


def write(folder: Path, *values: int) -> None:
    archive = Archive(folder, APP)
    for value in values:
        archive.append(block(value), {"received": 1})
    archive.close()


def values(folder: Path) -> list[int]:
    return [value for commit in read_commits(folder) for value in commit.block.column("n").to_pylist()]


def test_commits_come_back_in_order_over_restarts(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    write(tmp_path, 3)
    commits = list(read_commits(tmp_path))
    assert [commit.sequence for commit in commits] == [0, 1, 2]
    assert values(tmp_path) == [1, 2, 3]
    assert commits[0].counts == {"received": 1}


def test_marks_tell_what_was_published(tmp_path: Path) -> None:
    archive = Archive(tmp_path, APP)
    archive.mark_published(archive.append(block(1), {}))
    archive.append(block(2), {})
    archive.close()
    assert [commit.published for commit in read_commits(tmp_path)] == [True, False]


def test_blocks_of_other_columns_follow_each_other(tmp_path: Path) -> None:
    archive = Archive(tmp_path, APP)
    archive.append(block(1), {})
    archive.append(pa.RecordBatch.from_pydict({"m": ["x"]}), {})
    archive.append(block(2), {})
    archive.close()
    assert [commit.block.schema.names for commit in read_commits(tmp_path)] == [["n"], ["m"], ["n"]]


@pytest.mark.parametrize("cut", [1, 5, 40, 150])
def test_a_torn_last_commit_is_cut_off_and_the_prefix_kept(tmp_path: Path, cut: int) -> None:
    write(tmp_path, 1, 2)
    (segment,) = segments(tmp_path)
    os.truncate(segment, segment.stat().st_size - cut)
    assert values(tmp_path) == [1]
    write(tmp_path, 3)
    assert values(tmp_path) == [1, 3]
    assert [commit.sequence for commit in read_commits(tmp_path)] == [0, 1]


def test_a_flipped_bit_in_the_last_commit_cuts_it_off(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    (segment,) = segments(tmp_path)
    data = bytearray(segment.read_bytes())
    data[-3] ^= 0x10
    segment.write_bytes(data)
    assert values(tmp_path) == [1]


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    (segment,) = segments(tmp_path)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0x10
    segment.write_bytes(data)
    with pytest.raises(HistoryError, match="damaged at byte"):
        values(tmp_path)


def test_damage_in_an_older_segment_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    os.truncate(segments(tmp_path)[0], 60)
    with pytest.raises(HistoryError, match="damaged"):
        values(tmp_path)


def test_what_append_returned_survives_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys, itertools, pyarrow as pa; from pathlib import Path; from streaming.archive import Archive\n"
        f"archive = Archive(Path({str(tmp_path)!r}), {APP!r})\n"
        "for n in itertools.count():\n"
        "    archive.append(pa.RecordBatch.from_pydict({'n': pa.array([n], pa.int64())}), {})\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    for line in process.stdout:
        last = int(line)
        if last >= 200:
            process.send_signal(signal.SIGKILL)
            break
    for line in process.stdout:
        last = int(line)
    process.stdout.close()
    process.wait()
    found = values(tmp_path)
    assert found == list(range(len(found)))
    assert len(found) > last


def test_reading_holds_one_commit_at_a_time(tmp_path: Path) -> None:
    archive = Archive(tmp_path, APP)
    for _ in range(24):
        archive.append(block(*range(1 << 17)), {})  # 1 MB each
    archive.close()
    tracemalloc.start()
    try:
        assert sum(commit.block.num_rows for commit in read_commits(tmp_path)) == 24 << 17
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_another_job_and_another_fingerprint_are_refused(tmp_path: Path) -> None:
    archive = Archive(tmp_path, APP)
    with pytest.raises(ConfigurationError, match="in use by another job"):
        Archive(tmp_path, APP)
    archive.close()
    with pytest.raises(ConfigurationError, match="written by fingerprint"):
        Archive(tmp_path, {**APP, "fingerprint": "0" * 32})


def test_no_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="wanted a folder that `sameriver stream` wrote"):
        values(tmp_path / "none")


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Archive(tmp_path / "file" / "archive", APP)
