"""The queue between folding and publishing takes so much and no more, by works and by rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming import delivery as module
from streaming.archive import Archive
from streaming.delivery import Delivery
from streaming.topics import OutgoingMessage
from streaming.work import Work
from tests.processes import wait_until
from tests.shop.app import app
from tests.test_verify import sales


@pytest.mark.parametrize(("max_waiting", "max_rows", "taken"), [(64, 10, 2), (3, 1_000, 3)])
def test_the_queue_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_waiting: int, max_rows: int, taken: int
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_ROWS", max_rows)
    released = threading.Event()

    def publish(_: str, __: Sequence[OutgoingMessage]) -> None:
        released.wait()

    plan = make_plan(app)
    block = sales(6)
    for stage in plan.stages:
        block = step(StageState(stage), block)
    archive = Archive(tmp_path, {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    queue = Delivery(
        app,
        predict={},
        archive=archive,
        publish=publish,
        acknowledge=lambda _: None,
        max_waiting=max_waiting,
        collect=True,
    )
    works = [Work([], finish(plan, block), [0] * 6, [], 0, 6) for _ in range(6)]

    def submit() -> None:
        for work in works:
            queue.submit(work)

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    wait_until(lambda: queue.waiting >= taken)
    submitting.join(0.1)  # it cannot end while nothing is published
    assert (submitting.is_alive(), queue.waiting, queue.events_waiting) == (True, taken, 6 * taken)
    released.set()
    submitting.join()
    queue.close()
    archive.close()
    assert queue.totals.received == 36
