"""What a restart need not fold again: state and identities as of one commit, beside the archive they follow from.

``state/<commit>.state`` is a sequence of the archive's frames: ``H`` a JSON header, ``S`` each stage's state (see
docs/state.md), ``R`` what each reaction remembers, ``D`` the identities as an Arrow IPC stream. A part is as many
frames of its kind as it takes and an empty one, so that it is written and read piece by piece, whatever its size. The
file is written where everything that was folded has been committed and published, so that it says what folding the
archive up to that commit says. It is a shortcut and never needed: one that is damaged, of other features or reactions,
of a shorter deduplication horizon, or of another archive is passed over.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shared_features.errors import HistoryError
from shared_features.plan import Plan
from shared_features.reactions import ReactionStage, reaction_stages
from shared_features.state import StageState
from streaming.archive import Archive, counts_of
from streaming.archive_log import Frame, frames, sync_folder, write_frame
from streaming.deduplication import Deduplicator

if TYPE_CHECKING:
    from streaming.delivery import Delivery
    from streaming.recovery import Recovered

log = logging.getLogger(__name__)

SAVE_ROWS = 100_000
"""So many rows are folded in a second or two: fewer are not worth a file."""

FOLDER = "state"
"""Where a job's saved state is, in its archive."""

_FORMAT = 4
_HEADER, _STATE, _REACTION, _IDENTITIES = b"H", b"S", b"R", b"D"
_FRAME_BYTES = 1 << 22
_NOT_SAVED = "state was not saved (%s): a restart folds more of the archive"


@dataclass(frozen=True, slots=True)
class SavedState:
    """State after ``commit``; ``notes`` are whoever's it was who saved it."""

    commit: int
    states: list[StageState]
    stages: list[ReactionStage]
    notes: Mapping[str, Any]


class StateSaver:
    """Saves a job's state now and then, between two works, when a restart would have too much to fold.

    Args:
        plan: of the app.
        archive, delivery, deduplicator: of the job.
        states: gives the stages' states.
        recovered: what the job came back with; its reactions' stages are the ones that the job goes on with.
    """

    def __init__(
        self,
        plan: Plan,
        archive: Archive,
        delivery: Delivery,
        deduplicator: Deduplicator,
        states: Callable[[], list[StageState]],
        recovered: Recovered,
    ) -> None:
        self._plan, self._archive, self._delivery = plan, archive, delivery
        self._deduplicator, self._states = deduplicator, states
        self._stages = recovered.stages
        self._last, self._saved_rows = recovered.last, -recovered.rows
        self._keeping: threading.Thread | None = None

    def between_works(self, *, at_end: bool = False) -> None:
        """Save if it is time to: wait until what was folded is published, then write, some millions of events a second.

        The more there is to write, the seldomer: once for an eighth as many rows as events and identities are
        remembered. The job goes on while the file is forced to disk, and where it cannot be written.

        Args:
            at_end: nothing will be pulled any more.
        """
        if at_end:
            self.close()
        if self._keeping is not None and self._keeping.is_alive():
            return
        waiting = self._archive.rows - self._saved_rows
        if waiting < SAVE_ROWS:
            return
        states = self._states()
        if not at_end and not is_worth_it(waiting, states, len(self._deduplicator)):
            return
        if len(states) != len(self._plan.stages) or not self._delivery.wait_until_empty():
            return
        self._saved_rows = self._archive.rows
        commit, counts = self._archive.last if self._archive.last[0] >= 0 else self._last
        folder = self._archive.folder / FOLDER
        try:
            file = write_state(folder, self._plan, states, self._stages, self._deduplicator, commit, counts)
        except OSError as error:
            log.warning(_NOT_SAVED, error)
            return
        self._keeping = threading.Thread(target=self._keep, args=(file, commit), name="keep state", daemon=True)
        self._keeping.start()

    def _keep(self, file: IO[bytes], commit: int) -> None:
        try:
            keep_state(file, commit)
        except OSError as error:
            log.warning(_NOT_SAVED, error)

    def close(self) -> None:
        """Wait until what was written is on disk."""
        if self._keeping is not None:
            self._keeping.join()


def is_worth_it(waiting: int, states: Sequence[StageState], identities: int = 0) -> bool:
    """Whether so many rows have been folded since the last time that state is worth writing again."""
    return waiting >= max(SAVE_ROWS, (identities + sum(state.retained for state in states)) // 8)


def write_state(
    folder: Path,
    plan: Plan,
    states: Sequence[StageState],
    stages: Sequence[ReactionStage],
    deduplicator: Deduplicator,
    commit: int,
    counts: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> IO[bytes]:
    """Write what a restart needs of everything up to a commit to a file that no restart sees: see `keep_state`.

    Args:
        folder: of saved state, in the archive's.
        plan, states, stages, deduplicator: as the commits up to this one, and no other, have made them.
        commit, counts: the last commit; its counts tell archives of the same app apart.
        notes: JSON-able, for `load_state` to give back.
    """
    began_s = time.monotonic()
    header = {
        "format": _FORMAT,
        "fingerprint": plan.app.fingerprint,
        "commit": commit,
        "counts": counts,
        "horizon_us": deduplicator.horizon_us,
        "newest_us": deduplicator.newest_us,
        "notes": notes or {},
    }
    folder.mkdir(exist_ok=True)
    file = (folder / "new").open("wb")
    try:
        write_frame(file, _HEADER, json.dumps(header).encode("utf-8"))
        for state in states:
            with _PartWriter(file, _STATE) as part:
                state.write(part)
        for memory in (memory for stage in stages for memory in stage.save()):
            with _PartWriter(file, _REACTION) as part:
                part.write(memory)
        with _PartWriter(file, _IDENTITIES) as part:
            deduplicator.save(part)
        file.flush()
    except BaseException:
        file.close()
        raise
    log.info("wrote state as of commit %d in %.2f s", commit, time.monotonic() - began_s)
    return file


def keep_state(file: IO[bytes], commit: int) -> None:
    """Make what `write_state` gave for a commit durable and the newest, and drop the one before it."""
    temporary = Path(file.name)
    folder = temporary.parent
    target = folder / f"{commit:016d}.state"
    with file:
        os.fsync(file.fileno())
    os.replace(temporary, target)
    sync_folder(folder)
    for older in folder.glob("*.state"):
        if older != target:
            older.unlink()


def load_state(archive: Path, plan: Plan, deduplicator: Deduplicator, folder: str = FOLDER) -> SavedState | None:
    """The newest saved state, with its identities put into the deduplicator; None if there is none that fits."""
    for path in sorted((archive / folder).glob("*.state"), reverse=True):
        try:
            found = _read(path, archive, plan, deduplicator)
        except (HistoryError, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            log.warning("saved state %s cannot be used (%s): folding the archive instead", path.name, error)
            continue
        if found is not None:
            return found
    return None


def _read(path: Path, archive: Path, plan: Plan, deduplicator: Deduplicator) -> SavedState | None:
    with path.open("rb") as file:
        read = frames(file, is_last=False)
        header = json.loads(bytes(next(read).payload))
        wanted = (_FORMAT, plan.app.fingerprint, counts_of(archive, header["commit"]))
        if (header["format"], header["fingerprint"], header["counts"]) != wanted:
            log.info("saved state %s is not of this app or not of this archive", path.name)
            return None
        if header["horizon_us"] < deduplicator.horizon_us:
            log.info("saved state %s has forgotten identities that the longer horizon wants", path.name)
            return None
        states = [_loaded(read, _STATE, partial(StageState.load, stage)) for stage in plan.stages]
        stages = reaction_stages(plan.app)
        for stage in stages:
            count = 0 if stage.key is None else len(stage.reactions)
            stage.load([_loaded(read, _REACTION, io.BufferedReader.read) for _ in range(count)])
        fresh = Deduplicator(deduplicator.horizon_us)
        _loaded(read, _IDENTITIES, partial(fresh.load, newest_us=header["newest_us"]))
        if next(read, None) is not None:
            raise HistoryError("it has more parts than the app")
    deduplicator.become(fresh)
    return SavedState(header["commit"], states, stages, header["notes"])


def _loaded(read: Iterator[Frame], kind: bytes, load: Callable[[io.BufferedReader], Any]) -> Any:
    """What ``load`` makes of the next part, which it must read to its end."""
    raw: io.RawIOBase = _PartReader(read, kind)
    part: io.BufferedReader = io.BufferedReader(raw, _FRAME_BYTES)
    found = load(part)
    if part.read(1):
        raise HistoryError(f"a part {kind!r} is longer than it says")
    return found


class _PartWriter(io.RawIOBase):
    """What is written becomes frames of some megabytes of one kind; closed, an empty one."""

    def __init__(self, file: IO[bytes], kind: bytes) -> None:
        self._file, self._kind, self._held = file, kind, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        if len(self._held) >= _FRAME_BYTES:
            self._give()
        return len(data)

    def close(self) -> None:
        if not self.closed:
            if self._held:
                self._give()
            write_frame(self._file, self._kind, b"")
        super().close()

    def _give(self) -> None:
        write_frame(self._file, self._kind, memoryview(self._held))
        self._held = bytearray()


class _PartReader(io.RawIOBase):
    """The bytes of one part, up to its empty frame.

    Raises:
        HistoryError: while it is read: a frame is damaged, or of another kind.
    """

    def __init__(self, read: Iterator[Frame], kind: bytes) -> None:
        self._read, self._kind, self._left, self._is_whole = read, kind, memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        if not len(self._left) and not self._is_whole:
            frame = next(self._read, None)
            if frame is None or frame.kind != self._kind:
                raise HistoryError(f"a part {self._kind!r} is not where it was wanted, or not whole")
            self._left, self._is_whole = frame.payload, not len(frame.payload)
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
