"""The example history of an app: what ``history.py`` beside its ``app.py`` says.

    write_history(folder, progress)   writes the events as Parquet into the folder, or finds them there; returns a
                                      summary with ``as_dict()``: ``events`` (rows per type), ``reused``, ``files``,
                                      ``bytes``, ``first_publish``, ``last_publish``, and whatever else was counted
    SPLITS                            optional: ``validate_from``, ``test_from``, and ``start`` and ``end`` of the rows
    REPLAY                            optional: ``days`` and ``quick_days`` that `sameriver demo` replays from test_from

What else ``write_history`` takes by name, `sameriver data --with NAME=VALUE` gives it.

An app need not have one: it can be given a history by option, or collect its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands import options
from commands.output import Progress

if TYPE_CHECKING:
    from batch.splits import Splits
    from shared_features.app import App

MODULE, FUNCTION = "history", "write_history"


class Examples:
    """The example history of one app.

    Attributes:
        exist: whether the app has one.
        splits: which of its rows train, validate and test; None leaves that to shares of its time.
        replay: days that a demo replays, and a quick one.

    Raises:
        ConfigurationError: ``history.py`` has no function ``write_history``.
    """

    def __init__(self, app: App) -> None:
        from batch.splits import Splits
        from shared_features.app import load_beside
        from shared_features.errors import ConfigurationError

        self._app = app
        module = load_beside(app.spec, MODULE)
        self._write: Callable[..., Any] | None = getattr(module, FUNCTION, None)
        if module is not None and self._write is None:
            raise ConfigurationError(f"{module.__file__} has no {FUNCTION}: define {FUNCTION}(folder, progress) there")
        given = getattr(module, "SPLITS", None)
        self.splits: Splits | None = None if given is None else Splits.from_dict(given)
        replay = getattr(module, "REPLAY", {})
        self.replay: tuple[float, float] = (float(replay.get("days", 7)), float(replay.get("quick_days", 3)))

    @property
    def exist(self) -> bool:
        """Whether the app has an example history."""
        return self._write is not None

    def write(self, folder: Path, tell: Progress, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the history, or find it there; its summary as plain values.

        Args:
            folder: where to.
            tell: told as it goes.
            settings: by name, of the app's own ``write_history``.

        Raises:
            ConfigurationError: the app has none, or its history has no such setting.
        """
        from shared_features.errors import ConfigurationError

        if self._write is None:
            raise ConfigurationError(
                f"app {self._app.name!r} has no example history: define {FUNCTION}(folder, progress) in {MODULE}.py "
                f"beside its app.py, or put its events as Parquet into {options.history_folder(self._app)}"
            )
        parameters = signature(self._write).parameters.values()
        known = {one.name: one.default for one in parameters if one.kind is Parameter.KEYWORD_ONLY}
        for name, value in (settings or {}).items():
            if name in known and not _suits(value, known[name]):
                wanted = "a whole number" if isinstance(known[name], int) else "a number"
                raise ConfigurationError(f"setting {name!r} got {value!r}: wanted {wanted}, such as {known[name]}")
            if name not in known:
                raise ConfigurationError(
                    f"the history of app {self._app.name!r} has no setting {name!r}, only {', '.join(known) or 'none'}"
                )
        summary: dict[str, Any] = self._write(folder, tell, **(settings or {})).as_dict()
        return summary


def _suits(value: Any, default: Any) -> bool:
    """Whether a setting is of the kind of its default: a number, and a whole one where that is."""
    if not isinstance(default, int | float):
        return True
    return isinstance(value, int) or (isinstance(value, float) and isinstance(default, float))
