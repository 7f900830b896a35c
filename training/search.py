"""Which options to try next: KerasTuner's oracles, asked and told one trial at a time, with all they know in one file.

The file is replaced after every trial, so that a search that was killed goes on with what was finished; what was
running is tried again. KerasTuner's own files are left out: they are written one after the other, and a kill between
two of them would leave half a search.

Importing this module loads KerasTuner and with it TensorFlow.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial

from shared_features.errors import ConfigurationError
from shared_features.whole_files import replace_text

SCORE = "log_loss"
STRATEGIES = ("bayesian", "random")


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that was finished.

    Attributes:
        number: in the order in which trials were begun; 0 are the options that the app gives.
        options: that differ from those of the app.
        log_loss, auc: of the validation split; NaN as None where the training went astray.
        seconds: that it took.
    """

    number: int
    options: Mapping[str, Any]
    log_loss: float | None
    auc: float | None
    seconds: float


class Search:
    """A search through a space of options, least log loss first.

    Args:
        path: of the file that holds it; it goes on where there is one.
        space: option to a list of values, or to ``{"low": …, "high": …, "log": …}``.
        strategy: ``bayesian`` (a Gaussian process, after a few random trials) or ``random``.
        trials: how many there will be.
        seed: of what is drawn by chance.

    Raises:
        ConfigurationError: the file is damaged.
    """

    def __init__(self, path: Path, space: Mapping[str, Any], strategy: str, trials: int, seed: int) -> None:
        self.path, self.space, self.tried = path, space, list[Tried]()
        common = {
            "objective": keras_tuner.Objective(SCORE, "min"),
            "hyperparameters": _hyperparameters(space),
            "max_trials": trials,
            "max_consecutive_failed_trials": trials + 1,
            "seed": seed,
        }
        if strategy == "bayesian":
            # KerasTuner would draw three times as many by chance as there are options: as many as most searches have.
            first = max(3, min(2 * len(space), trials // 3))
            self._oracle = _Unsaved(keras_tuner.oracles.BayesianOptimizationOracle)(num_initial_points=first, **common)
        else:
            self._oracle = _Unsaved(keras_tuner.oracles.RandomSearchOracle)(**common)
        self._oracle.verbose = 0
        self._running: dict[int, Any] = {}
        self._asked = 0
        if path.is_file():
            try:
                self._go_on(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"{path} is damaged ({error}): remove it, and the search begins anew."
                ) from error

    def next(self) -> tuple[int, dict[str, Any]] | None:
        """Number and options of the trial to begin; None if no new ones can be found in the space."""
        self._asked += 1
        with _quiet():
            if self._oracle.ongoing_trials and hasattr(self._oracle, "gpr"):
                self._learn()
            trial = self._oracle.create_trial(f"asked-{self._asked}")  # the same name would get the same trial
        if trial.status != "RUNNING":
            return None
        number = int(trial.trial_id) + 1
        self._running[number] = trial
        self._save()
        return number, self._options(trial)

    def finish(self, number: int, log_loss: float, auc: float, seconds: float, options: Mapping[str, Any]) -> None:
        """Take in what came of a trial; number 0 is one that the search did not ask for."""
        fine = bool(np.isfinite(log_loss))
        self.tried.append(
            Tried(number, dict(options), log_loss if fine else None, auc if fine else None, round(seconds, 2))
        )
        if number:
            trial = self._running.pop(number)
            with _quiet():
                if fine:
                    self._oracle.update_trial(trial.trial_id, {SCORE: log_loss})
                trial.status = "COMPLETED" if fine else "FAILED"
                self._oracle.end_trial(trial)
        self._save()

    def best(self) -> Tried | None:
        """The trial with the least log loss, the earlier one of equals; None if none came out well."""
        fine = [one for one in self.tried if one.log_loss is not None]
        return min(fine, key=lambda one: (one.log_loss, one.number), default=None)

    def _options(self, trial: Any) -> dict[str, Any]:
        values = trial.hyperparameters.values
        tried = self.space.items()
        return {name: among[values[name]] if isinstance(among, list) else values[name] for name, among in tried}

    def _learn(self) -> None:
        """Fit the process to what is finished: KerasTuner guesses at what is running by it before it has fitted it."""
        finished = [one for one in self._oracle.trials.values() if one.status == "COMPLETED"]
        if finished:
            space = self._oracle.get_space().space
            values = [[part.value_to_prob(one.hyperparameters.values[part.name]) for part in space] for one in finished]
            self._oracle.gpr.fit(np.array(values), np.array([one.score for one in finished]))

    def _save(self) -> None:
        trials = [one.get_state() for one in self._oracle.trials.values()]
        held = {"tried": [asdict(one) for one in self.tried], "trials": trials, "oracle": self._oracle.get_state()}
        replace_text(self.path, json.dumps(held))

    def _go_on(self, held: Mapping[str, Any]) -> None:
        self.tried = [Tried(**one) for one in held["tried"]]
        self._oracle.trials = {one["trial_id"]: Trial.from_state(one) for one in held["trials"]}
        state = held["oracle"]
        state["retry_queue"] += [
            state["ongoing_trials"][name] for name in sorted(state["ongoing_trials"], reverse=True)
        ]
        self._oracle.set_state(state | {"ongoing_trials": {}})


def _Unsaved(oracle: Any) -> Any:  # noqa: N802
    """The oracle, writing no files of its own."""

    def nothing(*_: Any) -> None:
        """In place of KerasTuner's files."""

    return type(oracle.__name__, (oracle,), {"save": nothing, "_save_trial": nothing})


def _hyperparameters(space: Mapping[str, Any]) -> Any:
    """A list is tried by the place of its values: widths of layers, say, from small to large."""
    found = keras_tuner.HyperParameters()
    for name, tried in space.items():
        if isinstance(tried, list):
            found.Int(name, 0, len(tried) - 1)
            continue
        low, high, sampling = tried["low"], tried["high"], "log" if tried["log"] else "linear"
        add: Callable[..., Any] = found.Int if type(low) is type(high) is int else found.Float
        add(name, low, high, sampling=sampling)
    return found


class _quiet(warnings.catch_warnings):  # noqa: N801
    """KerasTuner calls functions of `threading` that have other names now, and fits processes to very few trials."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
