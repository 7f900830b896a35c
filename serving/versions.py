"""Which versions of a model there are on disk, and which of them ought to be served."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from serving.request_log import LogSettings

log = logging.getLogger("sameriver.serving")

# What strtoll takes, and TensorFlow Serving with it: sign, digits, nothing else.
_NUMBER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Versions to serve: the `latest` n (default 1), or all, or the numbered ones.

    Attributes:
        latest: how many of the highest; 0 if another rule holds.
        specific: these numbers; None if another rule holds. With `latest` 0 and no numbers given: all.
    """

    latest: int = 1
    specific: frozenset[int] | None = None

    def choose(self, versions: dict[int, Path]) -> dict[int, Path]:
        """Those to serve, highest first."""
        ordered = dict(sorted(versions.items(), reverse=True))
        if self.specific is not None:
            return {number: path for number, path in ordered.items() if number in self.specific}
        if self.latest:
            return dict(list(ordered.items())[: self.latest])
        return ordered


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model of a server.

    Attributes:
        name: by which clients ask.
        base_path: folder with a folder per version.
        policy: versions to serve.
        labels: label to version, for clients that ask by label.
        logging: of a sample of its requests; None logs none.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: dict[str, int] = field(default_factory=dict)
    logging: LogSettings | None = None


def find_versions(base_path: Path) -> dict[int, Path]:
    """Folders whose name is an int64 (``00000123`` is 123; others are skipped). OSError if there is no such folder.

    Of two folders with the same number the last in name order counts, with a warning.
    """
    found: dict[int, Path] = {}
    for child in sorted(os.listdir(base_path)):
        if not _NUMBER.fullmatch(child) or len(child) > 40 or int(child) not in _INT64:
            continue
        path = base_path / child
        if not path.is_dir():
            continue
        if int(child) in found:
            log.warning(
                "duplicate version folders: version %d is loaded from %s, %s is ignored",
                int(child), child, found[int(child)].name,
            )  # fmt: skip
        found[int(child)] = path
    return found


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a version's files do: name, size and time of each file of its first two levels."""
    stamps = []
    for pattern in ("*", "*/*"):
        for path in sorted(folder.glob(pattern)):
            try:
                status = path.stat()
            except OSError:
                continue
            stamps.append((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return tuple(stamps)


def leaving_link(folder: Path, root: Path) -> Path | None:
    """The first symbolic link below `folder` (or itself) that leads out of `root`, or None.

    A SavedModel is a program with files: one that reaches outside its own folder may read anything.
    """
    inside = root.resolve()
    for directory, folders, files in os.walk(folder):
        for path in (Path(directory), *(Path(directory, name) for name in (*folders, *files))):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                return path
    return None
