"""The flights' history on disk: the same bytes every time, reused when whole, refused where it cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps.flights.history import HistorySummary, history_is_complete, write_history
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.history import MANIFEST

ROOT = Path(__file__).parent.parent

Written = tuple[Path, HistorySummary]


def test_same_bytes_in_another_zone_locale_and_process(written: Written, tmp_path: Path) -> None:
    code = "import sys; from apps.flights.history import write_history; print(write_history(sys.argv[1]).reused)"
    environment = {**os.environ, "TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(tmp_path / "h")]
    done = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n"
    names = sorted(path.name for path in written[0].iterdir())
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == names
    for name in names:
        assert (tmp_path / "h" / name).read_bytes() == (written[0] / name).read_bytes(), name


def test_a_complete_history_is_reused_and_a_damaged_one_is_not(written: Written, tmp_path: Path) -> None:
    folder = tmp_path / "flights"
    shutil.copytree(written[0], folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert history_is_complete(folder)
    steps: list[tuple[float, str]] = []
    again = write_history(folder, lambda share, step: steps.append((share, step)))
    assert again.reused
    assert again.as_dict() == {**written[1].as_dict(), "folder": str(folder), "reused": True}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert steps[-1] == (1.0, "reused")

    june = folder / "2013-06.parquet"
    good = june.read_bytes()
    june.write_bytes(good[:-1] + b"?")
    assert not history_is_complete(folder)
    june.unlink()
    assert not history_is_complete(folder)
    june.write_bytes(good)
    assert history_is_complete(folder)
    (folder / "2012-12.parquet").write_bytes(good)
    assert not history_is_complete(folder)
    (folder / "2012-12.parquet").unlink()
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    for key in ("code", "package", "time_zones"):
        (folder / MANIFEST).write_text(json.dumps({**manifest, key: "of another day"}), "utf-8")
        assert not history_is_complete(folder)
    for broken in ("", "[]", '{"files": 3}'):
        (folder / MANIFEST).write_text(broken, "utf-8")
        assert not history_is_complete(folder)

    # What a run that was cut off leaves: some files, one of them torn, no manifest.
    (folder / MANIFEST).unlink()
    june.write_bytes(good[:1000])
    steps.clear()
    assert not write_history(folder, lambda share, step: steps.append((share, step))).reused
    assert june.read_bytes() == good
    assert history_is_complete(folder)
    shares = [share for share, _ in steps]
    assert shares == sorted(shares)
    assert steps[-1] == (1.0, "written")
    assert {path.name for path in folder.iterdir()} == {path.name for path in written[0].iterdir()}


def test_strangers_and_unwritable_folders_are_refused(tmp_path: Path) -> None:
    stranger = tmp_path / "mine" / "notes.parquet"
    stranger.parent.mkdir()
    stranger.write_bytes(b"PAR1")
    with pytest.raises(HistoryError, match=r"notes\.parquet .* name another folder"):
        write_history(stranger.parent)
    assert [path.name for path in stranger.parent.iterdir()] == ["notes.parquet"]
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_history(stranger / "flights")
