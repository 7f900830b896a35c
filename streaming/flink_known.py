"""What an archive's folder knows of its job on Flink: which it is, where it goes on from, and who watches it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shared_features.errors import ConfigurationError
from streaming.locks import take_lock

STATE_FILE = "flink.json"
LOCK_FILE = "flink.lock"


class KnownJob:
    """The notes of one job, with their reader and writer alone until `close`.

    Args:
        archive: its folder, made if absent.

    Raises:
        ConfigurationError: another process watches the job.
    """

    def __init__(self, archive: Path) -> None:
        archive.mkdir(parents=True, exist_ok=True)
        lock = take_lock(archive / LOCK_FILE)
        if lock is None:
            raise ConfigurationError(
                f"the job of archive {archive} is watched by another `sameriver stream --runner flink`: end that one "
                "first, or give a new archive with --archive"
            )
        self._lock, self._file = lock, archive / STATE_FILE

    def read(self) -> dict[str, Any]:
        """All notes."""
        found: dict[str, Any] = json.loads(self._file.read_text("utf-8")) if self._file.exists() else {}
        return found

    def note(self, **what: Any) -> None:
        """Add notes, or change them."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.read() | what), "utf-8")
        os.replace(temporary, self._file)

    def began(self, job: str, shards: int, start_from: str | None) -> None:
        """The job runs."""
        self.note(job=job, shards=shards, checkpoints=None, savepoint=None, before=start_from, submitted=None)

    def newest(self, shards: int) -> str | None:
        """The savepoint that ended the job, or its newest checkpoint, or what it was itself started from.

        Raises:
            ConfigurationError: the job has another number of shards.
        """
        known = self.read()
        if known.get("shards", shards) != shards:
            raise ConfigurationError(
                f"the job on Flink has {known['shards']} shards, wanted {shards}: state is cut by shard, so "
                "give the same number, or a new archive with --archive"
            )
        folder = known.get("checkpoints")
        found = [] if folder is None else list(Path(folder).glob("chk-*/_metadata"))
        newest = max(found, key=lambda path: int(path.parent.name.removeprefix("chk-")), default=None)
        checkpoint = None if newest is None else newest.parent.as_uri()
        return known.get("savepoint") or checkpoint or known.get("before")

    def close(self) -> None:
        """Let another process watch."""
        self._lock.close()
