"""How a pipeline is run: in this process or in others, and which ways are refused."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest

from batch import runner
from batch.traindata import features_of_history
from commands.options import runner_options
from shared_features import App
from shared_features.errors import ConfigurationError, HistoryError
from tests import histories
from tests.histories import block_of, computed, event
from tests.shop.app import app


@pytest.mark.parametrize(
    "option", ["--direct_running_mode=multi_threading", "--experiments=data_buffer_time_limit_ms=9"]
)
def test_a_way_of_running_that_damages_elements_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match="flushes half-written elements"):
        runner.run(print, [option])


def test_a_job_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"job server '127\.0\.0\.1:9' does not answer: wanted host:port"):
        runner_options("flink", ["--job_endpoint=127.0.0.1:9"])


class Look(beam.DoFn):
    """Gives on whether the app that it was made with is there, not a copy."""

    def __init__(self, held: App) -> None:
        self._held = held

    def process(self, element: tuple[int, object]) -> Iterator[tuple[int, object]]:
        SEEN.append(self._held is app)
        yield element


SEEN = list[bool]()


def test_steps_in_this_process_have_the_app_itself() -> None:
    """Beam's workers write steps again, in threads of their own; an app may hold a raster of the globe."""
    SEEN.clear()
    runner.run(
        lambda pipeline: (
            pipeline
            | beam.Create([(1, 2)])
            | "first" >> beam.ParDo(Look(app))
            | beam.GroupByKey()
            | "second" >> beam.ParDo(Look(app))
        )
    )
    assert SEEN == [True, True]


def test_a_full_disk_is_told_in_one_sentence() -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigurationError, match=r"^a disk is full: free space"):
        runner.run(lambda pipeline: pipeline | beam.Create([1]) | beam.Map(full))


def test_steps_run_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster: functions and blocks travel to a worker's process, and an error comes back as its sentence.

    It runs beside folders of a user's that are called like our packages.
    """
    for name in ("batch", "shared_features"):
        (tmp_path / "user" / name).mkdir(parents=True)
        (tmp_path / "user" / name / "__init__.py").write_text("raise RuntimeError('a folder of the user was imported')")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("PYTHONPATH", ".")
    block = block_of([event("sale", at, shop="ab"[at % 2], till=at % 3, amount=at / 3) for at in range(30)])
    elsewhere = ["--direct_running_mode=multi_processing", "--direct_num_workers=1"]
    folder = histories.write(tmp_path / "history", block)
    rows = features_of_history(app, folder, shards=3, runner_options=elsewhere).drop_columns("publish_time")
    assert rows.replace_schema_metadata(None).equals(computed(app, block))
    wide = block.set_column(
        block.schema.get_field_index("sale.units"), "sale.units", pa.array([2**63] * 30, pa.uint64())
    )
    folder = histories.write(tmp_path / "wide", wide)
    with pytest.raises(HistoryError, match=r"^column 'sale\.units' of history .* has a value that is no int64: .*$"):
        features_of_history(app, folder, runner_options=elsewhere)
