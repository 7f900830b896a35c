"""How a training tells how far it is, and ends."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from training import progress


def test_a_signal_that_a_library_swallowed_ends_the_work_where_it_next_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_signals", [signal.SIGTERM])

    def work(tell: progress.Tell) -> dict[str, Any]:
        tell(progress.Progress("train", 0.5, "epoch 2"))
        return {}

    with pytest.raises(SystemExit) as ended:
        progress.run_command(work, str, True)
    assert ended.value.code == 143
