"""A file whose content is taken up again when it changes, as rotated certificates and tokens are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")

log = logging.getLogger("sameriver.serving")


class WatchedFile(Generic[Value]):
    """What `read` makes of a file; looked at anew whenever it is asked for and the file has changed.

    Args:
        path: of the file.
        read: from path to value. What it raises the first time goes to the caller; later it is logged and the
            value before stays.
    """

    def __init__(self, path: Path, read: Callable[[Path], Value]) -> None:
        self._path = path
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read(path)

    def value(self) -> Value:
        """The latest value that could be read."""
        stamp = self._look()
        with self._lock:
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._read(self._path)
                    log.info("%s is read again", self._path)
                except Exception as error:
                    log.error("%s cannot be used, what it said before stays: %s", self._path, error)
            return self._value

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)
