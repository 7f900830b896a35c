"""The example history of an app: what ``history.py`` beside its ``app.py`` says.

    write_history(folder, progress)   writes the events as Parquet into the folder, or finds them there; returns a
                                      summary with ``as_dict()``: ``events`` (rows per type), ``reused``, ``files``,
                                      ``bytes``, ``first_publish``, ``last_publish``, and whatever else was counted
    SPLITS                            optional: ``validate_from``, ``test_from``, and ``start`` and ``end`` of the rows

An app need not have one: it can be given a history by option, or collect its own.
"""

from __future__ import annotations

from collections.abc import Callable
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

    Raises:
        ConfigurationError: ``history.py`` has no function ``write_history``.
    """

    def __init__(self, app: App) -> None:
        from batch.splits import Splits
        from shared_features.app import load_beside
        from shared_features.errors import ConfigurationError

        self._app = app
        module = load_beside(app.spec, MODULE)
        self._write: Callable[[Path, Progress], Any] | None = getattr(module, FUNCTION, None)
        if module is not None and self._write is None:
            raise ConfigurationError(f"{module.__file__} has no {FUNCTION}: define {FUNCTION}(folder, progress) there")
        given = getattr(module, "SPLITS", None)
        self.splits: Splits | None = None if given is None else Splits.from_dict(given)

    @property
    def exist(self) -> bool:
        """Whether the app has an example history."""
        return self._write is not None

    def write(self, folder: Path, tell: Progress) -> dict[str, Any]:
        """Write the history, or find it there; its summary as plain values.

        Raises:
            ConfigurationError: the app has none.
        """
        from shared_features.errors import ConfigurationError

        if self._write is None:
            raise ConfigurationError(
                f"app {self._app.name!r} has no example history: define {FUNCTION}(folder, progress) in {MODULE}.py "
                f"beside its app.py, or put its events as Parquet into {options.history_folder(self._app)}"
            )
        summary: dict[str, Any] = self._write(folder, tell).as_dict()
        return summary
