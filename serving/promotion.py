"""Which version of a model predicts, and which one is on trial: a small file beside the versions.

    <models>/<model>/promotion.json     {"revision": 3, "champion": 1, "candidate": 2, "stage": "canary", …}
    <models>/models.config              the same for a model server: which versions to serve, under which labels

The champion's label is ``stable``, the candidate's ``canary``. `sameriver promote` and `sameriver rollback` write both
files, each whole or not at all; job and model server look at the first one every second, TensorFlow's own server at
the second, and nothing is restarted. Where there is no such file the newest version predicts.

Whether an event of a canary goes to the candidate is decided by a stable hash of its key, salted with the candidate's
number: the same key always goes the same way, a larger share only adds keys, and the next candidate gets other ones.
Each change has a number, its revision, under which the archive names it; the file holds all former ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError
from shared_features.whole_files import replace_text

if TYPE_CHECKING:
    import pyarrow as pa

FILE: Final = "promotion.json"
CONFIG: Final = "models.config"
STABLE, CANARY = "stable", "canary"
LOOK_EVERY_S = 1.0

Stage = Literal["shadow", "canary", "full"]
STAGES: tuple[Stage, ...] = ("shadow", "canary", "full")

_PARTS = 1_000_000
"""Of the keys; a share is a whole number of them."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """One state of a model's versions.

    Attributes:
        revision: number of the change that led here, from 1.
        champion: version that predicts.
        stage: ``full``: the champion predicts all; ``shadow``: the candidate predicts too, for the archive only;
            ``canary``: it predicts for its share of keys.
        candidate: version on trial; None at ``full``.
        share: of the keys that a canary gets, in (0, 1]; 0 at the other stages.
        by: name of the key whose values are shared out; "" shares out events by their identity.
        previous: version that predicted before, kept loaded for an instant rollback.
        changed_at: ISO 8601, UTC.
        why: one line: the command, and what the gate said.
    """

    revision: int
    champion: int
    stage: Stage = "full"
    candidate: int | None = None
    share: float = 0.0
    by: str = ""
    previous: int | None = None
    changed_at: str = ""
    why: str = ""

    @property
    def versions(self) -> list[int]:
        """Those that a server must hold, ascending."""
        return sorted({one for one in (self.champion, self.candidate, self.previous) if one is not None})

    @property
    def labels(self) -> dict[str, int]:
        """Label to version."""
        return {STABLE: self.champion} | ({} if self.candidate is None else {CANARY: self.candidate})

    def to_candidate(self, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Which rows the candidate predicts.

        Args:
            keys: of each row the value of the key ``by``, or the event's identity; a null goes to the champion.

        Returns:
            bool [rows]; all false but at the stage ``canary``.
        """
        from shared_features.hashing import hash_column

        if self.stage != "canary" or self.candidate is None:
            return np.zeros(len(keys), bool)
        parts = hash_column(keys, seed=self.candidate) % np.uint64(_PARTS)
        mine: npt.NDArray[np.bool_] = (parts < np.uint64(round(self.share * _PARTS))) & np.asarray(keys.is_valid())
        return mine


def read_history(home: Path) -> list[Promotion]:
    """Every state of a model's versions, oldest first; empty where nothing was ever promoted.

    Args:
        home: the model's folder.

    Raises:
        ConfigurationError: the file is not one of ours.
    """
    path = home / FILE
    try:
        told = json.loads(path.read_text("utf-8"))
        return [Promotion(**one) for one in told["history"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}): restore it, or remove it, and the newest version predicts."
        ) from error


def read_promotion(home: Path) -> Promotion | None:
    """The present state; None where nothing was ever promoted. Raises as `read_history`."""
    history = read_history(home)
    return history[-1] if history else None


def change(home: Path, after: Promotion) -> Promotion:
    """Make ``after`` the model's state, with the next revision and the time; returns what was written.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    history = read_history(home)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    written = replace(after, revision=1 + (history[-1].revision if history else 0), changed_at=now)
    told = {"present": asdict(written), "history": [asdict(one) for one in [*history, written]]}
    try:
        replace_text(home / FILE, json.dumps(told, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"A promotion is written beside the versions, but {home} cannot be written ({error.strerror}): run it "
            "where the models can be changed."
        ) from error
    return written


def server_config(models: Path, names: Sequence[str]) -> str:
    """What a model server is to serve, as a ModelServerConfig in text format.

    Args:
        models: folder with a folder for each model.
        names: of the models.
    """
    return "model_config_list {\n" + "".join(_model_config(models / name) for name in names) + "}\n"


def write_server_config(models: Path, names: Sequence[str]) -> Path:
    """Write `server_config` to ``models.config`` unless it stands there; OSError where it cannot be written."""
    path, text = models / CONFIG, server_config(models, names)
    if not path.is_file() or path.read_text("utf-8") != text:
        replace_text(path, text)
    return path


def _model_config(home: Path) -> str:
    base = json.dumps(str(home.absolute()))  # strings in text format are escaped as JSON's are
    parts = [f"    name: {json.dumps(home.name)}", f"    base_path: {base}"]
    promotion = read_promotion(home)
    if promotion is not None:
        versions = " ".join(f"versions: {version}" for version in promotion.versions)
        parts.append(f"    model_version_policy {{ specific {{ {versions} }} }}")
        parts += [
            f'    version_labels {{ key: "{label}" value: {version} }}' for label, version in promotion.labels.items()
        ]
    return "  config {\n" + "\n".join(parts) + "\n  }\n"


class Watched:
    """A model's state as the file says, looked at once a second at most.

    Args:
        home: the model's folder; None: nothing is ever promoted.
        every_s: between two looks.
    """

    def __init__(self, home: Path | None, every_s: float = LOOK_EVERY_S) -> None:
        self._home, self._every_s = home, every_s
        self._looked_s = float("-inf")
        self._stamp: object = None
        self._found: Promotion | None = None
        self.complaint = ""

    @property
    def now(self) -> Promotion | None:
        """The state; the last one that could be read while the file cannot be."""
        if self._home is not None and time.monotonic() - self._looked_s >= self._every_s:
            self._look(self._home)
        return self._found

    def _look(self, home: Path) -> None:
        self._looked_s = time.monotonic()
        try:
            status = os.stat(home / FILE)
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        try:
            self._found, self.complaint, self._stamp = read_promotion(home), "", stamp
        except ConfigurationError as error:
            self.complaint = str(error)


def summary(promotion: Promotion) -> Mapping[str, Any]:
    """A state as plain values."""
    return asdict(promotion)
