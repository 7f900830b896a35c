"""Compiled code that is kept: loaded instead of compiled again, and never trusted when it is not ours or not whole."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_features import machine_code
from shared_features.exact import wide_product
from shared_features.machine_code import Kept


def total(values: Any, factor: Any) -> Any:
    """The sum of values times a factor."""
    found = np.int64(0)
    for value in values:
        found += wide_product(value, factor)[1]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_code, "FOLDER", tmp_path / "__pycache__")
    return tmp_path / "__pycache__"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were compiled, not loaded."""
    seen: list[str] = []
    right = Kept._compiled

    def noted(self: Kept, types: Any) -> tuple[str, bytes]:
        seen.append(self.__name__)
        return right(self, types)

    monkeypatch.setattr(Kept, "_compiled", noted)
    return seen


def use() -> int:
    """A function made anew, as in another process."""
    return int(Kept(total, "int64(int64[::1], int64)")(np.arange(4), 3))


def test_the_second_one_is_loaded(folder: Path, compilations: list[str]) -> None:
    assert (use(), use(), compilations) == (18, 18, ["total"])
    (file,) = folder.glob("*.o")
    assert file.stat().st_mode & 0o077 == 0


def test_of_some_that_start_together_one_compiles(folder: Path, compilations: list[str]) -> None:
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: use(), range(3))) == [18] * 3
    assert compilations == ["total"]
    assert len(list(folder.glob("*.o"))) == 1


def test_other_sources_or_types_are_other_code(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert use() == 18
    assert Kept(total, "int64(int32[::1], int64)")(np.arange(4, dtype=np.int32), 3) == 18
    monkeypatch.setattr(machine_code, "_key", lambda _: "another source")
    assert use() == 18
    assert compilations == ["total"] * 3
    assert len(list(folder.glob("*.o"))) == 1  # former ones go


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_what_is_not_whole_is_compiled_again(folder: Path, compilations: list[str], damage: str) -> None:
    use()
    (file,) = folder.glob("*.o")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[:-100]), "empty": b""}[damage])
    assert use() == 18
    assert use() == 18
    assert compilations == ["total"] * 2


def test_what_others_could_have_written_is_left_aside(
    folder: Path, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    use()
    (file,) = folder.glob("*.o")
    file.chmod(0o666)
    assert use() == 18
    assert compilations == ["total"] * 2
    assert "another user could have written it" in caplog.text


def test_where_nothing_can_be_kept_it_works_all_the_same(
    tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(machine_code, "FOLDER", tmp_path / "file" / "folder")
    assert (use(), use(), compilations) == (18, 18, ["total"] * 2)
    assert os.listdir(tmp_path) == ["file"]


def test_arguments_of_other_types_are_refused(folder: Path) -> None:
    one = Kept(total, "int64(int64[::1], int64)")
    with pytest.raises(TypeError, match=r"No matching definition for .*float64"):
        one(np.arange(4.0), 3)
    assert folder.is_dir()
