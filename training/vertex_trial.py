"""One trial of a search on Vertex AI: train with the options that it tries, and say how well that went.

    python -m training.vertex_trial --rows /gcs/bucket/training/flights --kind wide_and_deep --options '{…}' \
        --learning_rate=0.001 '--units=[64, 64]'

What is not known here is an option of the model, as JSON, given by Vertex AI. It reads the score from a file of lines
of JSON, as its package cloudml-hypertune writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_features.errors import ConfigurationError
from training.progress import Progress, Tell, run_command
from training.rows import open_rows
from training.trial import run_trial
from training.vertex import SCORE

FILE = "CLOUD_ML_HP_METRIC_FILE"
DEFAULT_FILE = Path(tempfile.gettempdir(), "hypertune", "output.metrics")
TRIAL = "CLOUD_ML_TRIAL_ID"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 2 on an expected error."""
    parser = argparse.ArgumentParser(prog="python -m training.vertex_trial", description="One trial on Vertex AI.")
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--options", required=True, type=json.loads)
    parser.add_argument("--fingerprint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given, tried = parser.parse_known_args(arguments)

    def work(tell: Tell) -> dict[str, Any]:
        rows = open_rows(given.rows)
        rows.require_fingerprint(given.fingerprint)
        options = {**given.options, **_read(tried)}
        found = run_trial(
            rows,
            given.kind,
            options,
            given.seed,
            quick=given.quick,
            tell=lambda done, said: tell(Progress("train", done, said)),
        )
        _report(found[SCORE])
        return {**found, "options": options}

    return run_command(work, json.dumps, as_json=True)


def _read(tried: Sequence[str]) -> dict[str, Any]:
    """Options as ``--name=JSON``; Vertex AI writes whole numbers of a range as 8 or 8.0."""
    found = {}
    for one in tried:
        name, _, text = one.removeprefix("--").partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            raise ConfigurationError(f"An option that is tried must be --NAME=JSON, got {one!r}.") from None
        found[name] = int(value) if isinstance(value, float) and value.is_integer() and value >= 1 else value
    return found


def _report(score: float) -> None:
    path = Path(os.environ.get(FILE) or DEFAULT_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"timestamp": time.time(), "trial": os.environ.get(TRIAL, "0"), SCORE: str(score), "global_step": "0"}
    path.write_text(json.dumps({**told, "checkpoint_path": ""}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
