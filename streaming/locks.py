"""A file that one process holds, until it ends or lets go: who has a folder to itself."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def take_lock(path: Path) -> IO[str] | None:
    """The file, made if absent and locked until it is closed; None if another process holds it.

    Raises:
        OSError: the file cannot be written.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
