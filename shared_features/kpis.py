"""What predictions are worth once their outcome is known, and when somebody is to be told: KPIs and alarms.

No part of the fingerprint: a feature is the same, whatever is thought of the predictions made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_features.columns import Column, Evaluator, all_valid
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, BlockColumn, Expression
from shared_features.outcomes import Prediction, check_name
from shared_features.source_lines import caller

if TYPE_CHECKING:
    import pyarrow as pa

    from shared_features.app import App

QUALITY = ("auc", "log_loss", "brier", "calibration_error")
DRIFT = ("psi", "ks")
OUTCOME = "outcome.label"


class Outcome(Expression):
    """What came to pass, as the app's label says; only KPIs may look at it (contract C10)."""

    dtype = "bool"

    def __init__(self) -> None:
        self.definition = ["outcome"]

    def evaluate(self, of: Any) -> Any:
        """The label's column of the block."""
        return BlockColumn("outcome", ["label"], "bool").evaluate(of)


def outcome() -> Outcome:
    """The label of the event predicted on: true, false, or null while it is not known."""
    return Outcome()


class Kpi:
    """A number for each prediction whose outcome is known; told as its mean over a window of time.

    The number is rounded to ``scale`` decimal places and added as an integer, so that live and batch agree to the last
    bit, whatever the order. Where it is null, the prediction does not count.

    Args:
        name: what it is called in tables, metrics and alarms.
        value: number or boolean over features, `shared_features.prediction` and `outcome`.
        scale: decimal places, 0 to 9.

    Raises:
        DefinitionError: it is no number, its name is taken, or the scale is out of range.

    >>> from shared_features import Kpi, outcome, prediction, where
    >>> Kpi("missed", outcome() & (prediction() < 0.5), scale=0).name
    'missed'
    """

    def __init__(self, name: str, value: Expression, *, scale: int = 6) -> None:
        check_name("KPI", name)
        if name in (*QUALITY, *DRIFT):
            raise DefinitionError(f"KPI name {name!r} is that of a figure that is always told: choose another")
        if value.dtype not in NUMERIC:
            raise DefinitionError(f"KPI {name!r} gives a {value.dtype}, wanted a number or a boolean")
        if type(scale) is not int or not 0 <= scale <= 9:
            raise DefinitionError(f"KPI {name!r} got scale={scale!r}, wanted decimal places from 0 to 9")
        self.name, self.value, self.scale, self.at = name, value, scale, caller()

    @property
    def model(self) -> str | None:
        """The model whose predictions it looks at; None if it looks at none."""
        return next((node.model for node in self.value.walk() if isinstance(node, Prediction)), None)

    def units(
        self, app: App, block: pa.RecordBatch, labels: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Its value of each row in units of the last decimal place, and where it has one; both of shape [rows].

        Args:
            app: whose KPI it is.
            block: rows with ``feature.…`` and ``prediction.…`` columns.
            labels: the outcomes [rows].
        """
        evaluator = Evaluator(block, stored=app.stored_features)
        evaluator.learn_column(OUTCOME, Column(labels, all_valid(len(labels))))
        column = evaluator.column(self.value)
        scaled = np.rint(np.where(column.valid, column.values, 0).astype(np.float64) * 10**self.scale)
        small = np.abs(scaled) < 2**53
        return np.where(small, scaled, 0).astype(np.int64), column.valid & small

    def mean(self, total: int, count: int) -> float | None:
        """The mean of ``count`` values whose units add up to ``total``; None without any."""
        return total / (count * 10**self.scale) if count else None


class Alarm:
    """When to tell of a figure: it goes on beyond one bound and off beyond another, so that it does not flutter.

    A window of time is judged once: for drift as it ends, for all else when its labels can have come. The window's
    predictions of the version that made most of them count. On, it goes off at the first window within ``until``.

    Args:
        metric: ``psi`` or ``ks`` (drift of features and predictions, less what chance explains), ``auc``,
            ``log_loss``, ``brier``, ``calibration_error``, or the name of a KPI.
        above, below: one of them: the bound beyond which the alarm goes on.
        until: the bound at which it goes off; the same if not given.
        windows: so many windows in a row must be beyond the bound.
        of: for drift: features, or ``"prediction"``; all of them if empty. Each has an alarm of its own.

    Raises:
        DefinitionError: not exactly one bound, or ``until`` on its wrong side.

    >>> Alarm("auc", below=0.85, until=0.88).words
    'auc below 0.85'
    """

    def __init__(
        self,
        metric: str,
        *,
        above: float | None = None,
        below: float | None = None,
        until: float | None = None,
        windows: int = 1,
        of: Sequence[str] = (),
    ) -> None:
        bounds = [bound for bound in (above, below) if bound is not None]
        if len(bounds) != 1 or type(windows) is not int or windows < 1:
            raise DefinitionError(
                f"alarm on {metric} got above={above!r}, below={below!r} and windows={windows!r}, wanted one bound and "
                "1 or more windows"
            )
        self.sign = 1.0 if above is not None else -1.0
        self.bound = float(bounds[0])
        self.until = self.bound if until is None else float(until)
        if self.sign * self.until > self.sign * self.bound:
            raise DefinitionError(f"alarm on {metric} got until={until!r}, which lies beyond its bound {self.bound:g}")
        if isinstance(of, str) or (of and metric not in DRIFT):
            raise DefinitionError(f"alarm on {metric} got of={of!r}, wanted a list of features, and psi or ks")
        self.metric, self.windows, self.of, self.at = metric, windows, tuple(of), caller()

    @property
    def kind(self) -> str:
        """``drift``, ``quality`` or ``kpi``."""
        return "drift" if self.metric in DRIFT else "quality" if self.metric in QUALITY else "kpi"

    @property
    def words(self) -> str:
        """What it says of itself."""
        return f"{self.metric} {'above' if self.sign > 0 else 'below'} {self.bound:g}"

    def is_beyond(self, value: float) -> bool:
        """Whether a value calls for it."""
        return self.sign * value > self.sign * self.bound

    def is_over(self, value: float) -> bool:
        """Whether a value ends it."""
        return self.sign * value <= self.sign * self.until


DEFAULT_ALARMS = (Alarm("psi", above=0.25, until=0.1),)
"""What holds for an app that declares none."""
