"""A model trained by the command that people run, twice, for all tests that look at what it is."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import processes, training_rows
from training.export import SavedModel
from training.rows import open_rows

OPTIONS = json.dumps({"crosses": [["shop", "carrier"]], "embeddings": ["carrier"], "units": [32, 32], "epochs": 3})

GATES = json.dumps(
    [
        {"metric": "auc", "not_worse_by": 0.0, "slices": []},
        {"metric": "log_loss", "not_worse_by": 0.001, "slices": ["shop", "carrier"]},
        {"metric": "calibration_error", "at_most": 0.0001, "slices": []},
    ]
)


STOPS_AFTER_AN_EPOCH = """
import builtins, os, signal, sys
from training.train import main
say = print
def tell(text, **more):
    say(text, **more)
    if "epoch 1 of 3: validation" in text:
        os.kill(os.getpid(), signal.SIGSTOP)
builtins.print = tell
main(sys.argv[1:])
"""


def start(module: str, *arguments: str | Path, code: str = "") -> subprocess.Popen[str]:
    run = ["-c", code] if code else ["-m", module]
    command = [sys.executable, *run, *map(str, arguments), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=processes.REPOSITORY, **pipes)  # type: ignore[call-overload,no-any-return]


def end(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]], str]:
    try:
        output, complaints = process.communicate(timeout=processes.PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, [json.loads(line) for line in output.splitlines()], complaints


class Trained:
    """Two runs of the same command, the second one killed and begun again; the first one's artefact, and the rows."""

    def __init__(self, folder: Path) -> None:
        self.rows_folder = training_rows.write(folder / "rows", shards=2)
        self.homes = [folder / "one", folder / "two"]
        started = [self._begin(self.homes[0]), self._begin(self.homes[1], STOPS_AFTER_AN_EPOCH)]
        self.left = _killed_after_its_first_epoch(started[1], self.homes[1] / "wide_and_deep")
        started[1] = self._begin(self.homes[1])
        self.lines: list[list[dict[str, Any]]] = []
        for process in started:
            code, lines, complaints = end(process)
            assert code == 0, complaints
            self.lines.append(lines)
        self.rows = open_rows(self.rows_folder)
        self.test = self.rows.table("test")
        self.version = self.homes[0] / "wide_and_deep" / "1"
        self.model = SavedModel(self.version)

    def _begin(self, home: Path, code: str = "") -> subprocess.Popen[str]:
        arguments: list[str | Path] = ["--rows", self.rows_folder, "--models", home, "--options", OPTIONS]
        return start("training.train", *arguments, "--seed", "3", "--tensorboard", home / "logs", code=code)


def _killed_after_its_first_epoch(process: subprocess.Popen[str], home: Path) -> set[str]:
    """What a training has left when it was killed with -9, where it has stopped itself: beginnings of names."""
    assert process.stdout is not None
    try:
        while not json.loads(process.stdout.readline())["progress"]["detail"].startswith("epoch 1 of 3: validation"):
            pass
    finally:
        process.kill()
        process.communicate()
    return {path.name.partition("-")[0] for path in home.iterdir()}


def check_slices_and_gates(report: dict[str, Any]) -> None:
    """The champion is the same model: all differences are 0, and only the bound on calibration is broken."""
    assert {one["feature"] for one in report["slices"]} == {"month", "shop", "carrier"}
    for one in report["slices"]:
        assert one["auc"]["low"] < one["auc"]["value"] < one["auc"]["high"]
        assert one["against_champion"]["auc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert sum(one["rows"] for one in report["slices"] if one["feature"] == "shop") == 2_000
    assert [one["passed"] for one in report["gate"]["rules"]] == [True, True, False]
    assert not report["gate"]["passed"]


def check_the_page(page: str, report: dict[str, Any]) -> None:
    """One file with everything inside: the card with data, fingerprint and limits, and no script and no address."""
    assert "Parcels &amp; their &lt;delays&gt;." in page
    for said in (training_rows.FINGERPRINT, "6,000", *(html.escape(one) for one in report["card"]["limits"])):
        assert said in page
    assert "may not be promoted" in page
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"<script|https?://", page)


def logged(home: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard finds of the one run whose models are in ``home``: tag to (step, value)."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    (run,) = (home / "logs").iterdir()
    assert run.name.startswith("wide_and_deep-")
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found
