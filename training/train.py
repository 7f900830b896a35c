"""Train a model on training rows, export it, and measure the exported artefact.

    python -m training.train --rows var/training/flights --models var/models --model wide_and_deep --json

As a process of its own it keeps TensorFlow (seconds to load, 600 MB) out of the caller's; see
``training.progress`` for what it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from shared_features.errors import ConfigurationError, HistoryError
from training import boosted_trees, polynomial_logistic
from training.background import write_background
from training.batches import ShuffledBatches
from training.devices import DEVICES, use_device
from training.event_log import UNLOGGED, EventLog
from training.export import SavedModel, read_summary, staged_version, write_saved_model, write_summary
from training.metrics import figures
from training.options import KINDS, WideAndDeepOptions
from training.progress import Progress, Tell, end_on_sigterm, quiet, run_command
from training.recipe import find_recipe, recipe
from training.rows import LABEL, TrainingRows, open_rows
from training.sketches import write_sketches
from training.statistics import compute_statistics
from training.together import LOST, Alone, WorkerLostError, place, together

QUICK_ROWS = 80_000
QUICK_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """An exported model.

    Attributes:
        model: its name.
        version: its number.
        path: its folder.
        fingerprint: of the features it was trained on.
        metrics: split -> figures of the exported model (auc, log_loss, calibration_error, …).
        epochs: what was measured on the validation split after each.
        duration_s: of the whole training.
        reused: whether it was there already, made of the same by the same.
    """

    model: str
    version: int
    path: Path
    fingerprint: str
    metrics: Mapping[str, Mapping[str, float]]
    epochs: tuple[Mapping[str, float], ...]
    duration_s: float
    reused: bool = False

    def summary(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {**asdict(self), "path": str(self.path)}


def train(
    rows_folder: Path | str,
    models_folder: Path | str,
    model_name: str = "wide_and_deep",
    *,
    fingerprint: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 1,
    quick: bool = False,
    reuse: bool = False,
    device: str = "auto",
    tensorboard: Path | None = None,
    progress: Tell = quiet,
) -> TrainedModel:
    """Train a model and export it as the next version.

    Fingerprint and definitions come from the rows' metadata and go into the model. On one machine the same
    rows, options and seed give the same model. This sets TensorFlow's seed and deterministic operations for
    the process: call it in a process of its own.

    Args:
        rows_folder: as written by ``sameriver traindata``; holds train, validate and test.
        models_folder: the version goes to ``<models_folder>/<model_name>/<version>``.
        model_name: what it is, one of ``training.options.KINDS``, unless the option ``kind`` says that.
        fingerprint: refuse rows with another; None takes the rows' own.
        options: see ``WideAndDeepOptions``, ``BoostedTreesOptions`` and ``PolynomialLogisticOptions``.
        seed: of shuffling, weights and dropout.
        quick: fewer rows and epochs, for trying things out.
        reuse: where a version of the same recipe (rows, options, seed, libraries) is there, take it.
        device: that trains, see `training.devices.use_device`.
        tensorboard: folder for TensorBoard's files, a folder in it for each model and recipe.
        progress: called as the work goes on, from this thread.

    Raises:
        HistoryError: rows are missing or unusable.
        FingerprintError: rows were made by other features.
        ConfigurationError: unknown model or option, or a folder that cannot be written.
    """
    started = time.monotonic()
    options = dict(options or {})
    kind = options.setdefault("kind", model_name)
    rows, libraries, made_of = _begun(rows_folder, model_name, fingerprint, options, seed=seed, quick=quick)
    if reuse and (found := find_recipe(Path(models_folder) / model_name, made_of)) is not None:
        summary = read_summary(found)
        progress(Progress("measure", 1.0, f"version {found.name} is made of the same"))
        epochs = tuple(summary["epochs"])
        return TrainedModel(
            model_name, int(found.name), found, rows.fingerprint, summary["metrics"], epochs, 0.0, reused=True
        )
    del options["kind"]
    with staged_version(models_folder, model_name) as staged:
        if kind == polynomial_logistic.KIND:
            made = _given(rows, options, staged.folder, progress)
        elif kind == boosted_trees.KIND:
            made = _boosted(rows, options, staged.folder, seed, quick, progress)
        else:
            held = staged.home / f".checkpoint-{made_of}.npz"
            made = _fitted(
                rows,
                options,
                staged.folder,
                kind=kind,
                seed=seed,
                quick=quick,
                checkpoint=held,
                device=device,
                progress=progress,
                log=EventLog(None if tensorboard is None else tensorboard / f"{model_name}-{made_of[:8]}"),
            )
        progress(Progress("measure", 0.93, "measuring the exported model"))
        metrics, predictions = _measure(rows, staged.folder)
        if "statistics" in made:
            write_sketches(staged.folder, rows, {"probability": predictions})
        write_background(staged.folder, rows, made.get("statistics", {}).get("texts", {}))
        summary = {
            "app": rows.app,
            "model": model_name,
            "fingerprint": rows.fingerprint,
            "definitions": json.loads(rows.definitions),
            "features": [asdict(feature) for feature in rows.features],
            "data": {
                split: {"rows": rows.counts[split], **dict(zip(("from", "to"), rows.time_range(split), strict=True))}
                for split in rows.counts
            },
            **made,
            "metrics": metrics,
            "libraries": libraries | {"python": platform.python_version()},
            "recipe": made_of,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_summary(staged.folder, summary)
        version, path = staged.publish()
        (staged.home / f".checkpoint-{made_of}.npz").unlink(missing_ok=True)
    progress(Progress("measure", 1.0, f"version {version}: test AUC {metrics['test']['auc']:.4f}"))
    duration_s = time.monotonic() - started
    epochs = tuple(made["epochs"])
    return TrainedModel(model_name, version, path, rows.fingerprint, metrics, epochs, duration_s)


def help_to_train(
    rows_folder: Path | str,
    models_folder: Path | str,
    model_name: str,
    *,
    fingerprint: str | None,
    options: Mapping[str, Any],
    seed: int,
    quick: bool,
    device: str,
) -> None:
    """What a worker other than the first does (see `training.together`): the same, without writing anything."""
    options = dict(options)
    kind = options.setdefault("kind", model_name)
    rows, _, made_of = _begun(rows_folder, model_name, fingerprint, options, seed=seed, quick=quick)
    del options["kind"]
    held = Path(models_folder) / model_name / f".checkpoint-{made_of}.npz"
    _fitted(rows, options, None, kind=kind, seed=seed, quick=quick, checkpoint=held, device=device, progress=quiet)


def _begun(
    rows_folder: Path | str,
    model_name: str,
    fingerprint: str | None,
    options: Mapping[str, Any],
    *,
    seed: int,
    quick: bool,
) -> tuple[TrainingRows, dict[str, str], str]:
    """The rows, the versions of libraries, and the recipe of what is to be made."""
    if options["kind"] not in KINDS:
        raise ConfigurationError(
            f"A model must be one of {', '.join(KINDS)}, but is {options['kind']!r}: correct the app file or --model."
        )
    _, workers = place()
    if workers > 1 and options["kind"] in (polynomial_logistic.KIND, boosted_trees.KIND):
        raise ConfigurationError(
            f"A model of kind {options['kind']!r} is made by one worker, but there are {workers}: leave out --workers."
        )
    rows = open_rows(rows_folder)
    rows.require_fingerprint(fingerprint)
    libraries = {name: version_of(name) for name in ("tensorflow", "keras", "numpy", "pyarrow", "scikit-learn")}
    return rows, libraries, recipe(rows, model_name, options, libraries, seed=seed, quick=quick, workers=workers)


def _fitted(
    rows: TrainingRows,
    options: Mapping[str, Any],
    folder: Path | None,
    *,
    kind: str,
    seed: int,
    quick: bool,
    checkpoint: Path,
    device: str,
    progress: Tell,
    log: EventLog = UNLOGGED,
) -> dict[str, Any]:
    """Train a model and write it into ``folder``, if any; what the summary says of it."""
    chosen = WideAndDeepOptions.from_mapping(options, rows.numbers, rows.texts, kind)
    if quick:
        chosen = replace(chosen, epochs=min(chosen.epochs, QUICK_EPOCHS))
    progress(Progress("read", 0.0, f"constants of {rows.counts['train']:,} training rows"))
    _require_both_outcomes(rows)
    statistics = compute_statistics(rows, buckets=chosen.buckets, min_rows=chosen.min_rows)
    sample_rows = min(QUICK_ROWS, rows.counts["train"]) if quick else None
    rank, count = place()
    batches = ShuffledBatches(
        rows, batch_rows=chosen.batch_rows, seed=seed, sample_rows=sample_rows, rank=rank, workers=count
    )
    progress(Progress("read", 0.05, "loading TensorFlow"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what it says of CPU instructions helps nobody
    use_device(device)  # loads TensorFlow, as what follows does
    workers = together()
    import tensorflow as tf

    from training.fit import fit

    try:
        model, epochs = fit(
            rows,
            statistics,
            chosen,
            batches,
            seed,
            lambda done, said: progress(Progress("train", 0.1 + 0.8 * done, said)),
            kind=kind,
            checkpoint=checkpoint,
            log=log,
            workers=workers,
        )
    except tf.errors.OpError as error:
        if isinstance(workers, Alone):
            raise
        raise WorkerLostError(str(error).partition("\n")[0][:300]) from error
    if folder is not None:
        progress(Progress("export", 0.9, "exporting the model"))
        write_saved_model(model, rows, folder)
    workers.add_up(np.zeros(1, np.float32))  # the others stay until the model is written
    return {
        "options": chosen.summary(kind),
        "seed": seed,
        "quick": quick,
        "trained_rows": batches.rows,
        **({"workers": count} if count > 1 else {}),
        "statistics": statistics.summary(),
        "epochs": epochs,
    }


def _boosted(
    rows: TrainingRows, options: Mapping[str, Any], folder: Path, seed: int, quick: bool, progress: Tell
) -> dict[str, Any]:
    """Fit trees and write them into ``folder`` as TensorFlow operations; what the summary says of it."""
    chosen = boosted_trees.BoostedTreesOptions.from_mapping(options, rows.numbers)
    _require_both_outcomes(rows)
    progress(Progress("train", 0.05, f"growing up to {chosen.iterations} trees"))
    fitted = boosted_trees.BoostedTrees(rows, chosen, seed, quick=quick)
    progress(Progress("export", 0.8, "loading TensorFlow"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.tree_graph import TreeGraph

    write_saved_model(TreeGraph(fitted), rows, folder)
    return {
        "options": chosen.summary(),
        "seed": seed,
        "quick": quick,
        "trained_rows": fitted.trained_rows,
        "statistics": fitted.statistics.summary(),
        "epochs": [fitted.measured],
    }


def _given(rows: TrainingRows, options: Mapping[str, Any], folder: Path, progress: Tell) -> dict[str, Any]:
    """Write a model whose coefficients the app gives into ``folder``; what the summary says of it."""
    chosen = polynomial_logistic.PolynomialLogisticOptions.from_mapping(options, rows.numbers)
    progress(Progress("export", 0.1, "loading TensorFlow"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    polynomial_logistic.write_polynomial_logistic(chosen, rows, folder)
    return {"options": chosen.summary(), "quick": False, "trained_rows": 0, "epochs": []}


def _require_both_outcomes(rows: TrainingRows) -> None:
    for split, count in rows.counts.items():
        positives = sum(pc.sum(block[LABEL]).as_py() for block in rows.blocks(split, [LABEL]))
        if positives in (0, count):
            raise HistoryError(
                f"Training needs both outcomes, but all {count} labels in {rows.folder / split} are the same: use a "
                "longer period or another label."
            )


def _measure(rows: TrainingRows, folder: Path) -> tuple[dict[str, dict[str, float]], npt.NDArray[np.float32]]:
    """Figures by split, and the predictions of both; neither was trained on."""
    exported = SavedModel(folder)
    metrics, predicted = {}, []
    for split in ("validate", "test"):
        labels, probabilities = [], []
        for block in rows.blocks(split):
            labels.append(block[LABEL].to_numpy(zero_copy_only=False))
            probabilities.append(exported.probabilities(block))
        predicted.append(np.concatenate(probabilities))
        metrics[split] = figures(np.concatenate(labels), predicted[-1])
    return metrics, np.concatenate(predicted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m training.train``; exit code 2 on an expected error."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train, export and measure a model.")
    parser.add_argument("--rows", required=True, type=Path, help="folder of training rows")
    parser.add_argument("--models", required=True, type=Path, help="folder of models")
    parser.add_argument(
        "--model", default=KINDS[0], help=f"one of {', '.join(KINDS)}, or any name with the option kind"
    )
    parser.add_argument("--options", default="{}", help="the model's options as a JSON object")
    parser.add_argument("--fingerprint", help="refuse rows of other features than these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer rows and epochs")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="that trains; auto: a GPU if there is one")
    parser.add_argument("--tensorboard", type=Path, help="folder for TensorBoard's files")
    parser.add_argument("--reuse", action="store_true", help="take the version that is made of the same, if any is")
    parser.add_argument("--json", action="store_true", help="progress and result as JSON lines")
    given = parser.parse_args(arguments)

    def work(tell: Tell) -> dict[str, Any]:
        what = {name: getattr(given, name) for name in ("fingerprint", "seed", "quick", "device")}
        what["options"] = _options(given.options)
        rank, workers = place()
        if rank > 0:
            help_to_train(given.rows, given.models, given.model, **what)
            return {"worker": rank + 1, "workers": workers}
        what |= {"reuse": given.reuse, "tensorboard": given.tensorboard}
        trained = train(given.rows, given.models, given.model, progress=tell, **what)
        return trained.summary()

    def shown(result: dict[str, Any]) -> str:
        return f"{result['path']}: {json.dumps(result['metrics']['test'])}" if "path" in result else json.dumps(result)

    try:
        return run_command(work, shown, given.json)
    except WorkerLostError as error:
        print(f"another worker is gone: {error}", file=sys.stderr)
        return LOST


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ConfigurationError(f"--options must be a JSON object, but is {text!r}: quote it for the shell.")
    return options


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
