"""What a restart need not fold again: state and identities as of one commit, beside the archive they follow from.

``state/<commit>.state`` is a sequence of the archive's frames: ``H`` a JSON header, ``S`` each stage's state (see
docs/state.md), ``R`` what each reaction remembers, ``D`` each hour's identities as an Arrow IPC stream. It is written
where everything that was folded has been committed and published, so that it says what folding the archive up to that
commit says. It is a shortcut and never needed: one that is damaged, of other features or reactions, of a shorter
deduplication horizon, or of another archive is passed over.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_features.errors import HistoryError
from shared_features.plan import Plan
from shared_features.reactions import ReactionStage, reaction_stages
from shared_features.state import StageState
from streaming.archive import Archive, counts_of
from streaming.archive_log import frames, sync_folder, write_frame
from streaming.deduplication import Deduplicator

if TYPE_CHECKING:
    from streaming.delivery import Delivery
    from streaming.recovery import Recovered

log = logging.getLogger(__name__)

SAVE_ROWS = 100_000
"""So many rows are folded in a second or two: fewer are not worth a file."""

_FORMAT = 2
_HEADER, _STATE, _REACTION, _IDENTITIES = b"H", b"S", b"R", b"D"
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class SavedState:
    """State after ``commit``."""

    commit: int
    states: list[StageState]
    stages: list[ReactionStage]


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

    def between_works(self, *, at_end: bool = False) -> None:
        """Save if it is time to: wait until what was folded is published, then write, some millions of events a second.

        The more there is to write, the seldomer: once for an eighth as many rows as events and identities are
        remembered. Where it cannot be written, the job goes on.

        Args:
            at_end: nothing will be pulled any more.
        """
        waiting = self._archive.rows - self._saved_rows
        if waiting < SAVE_ROWS:
            return
        states = self._states()
        if not at_end and waiting < (len(self._deduplicator) + sum(state.retained for state in states)) // 8:
            return
        if len(states) != len(self._plan.stages) or not self._delivery.wait_until_empty():
            return
        self._saved_rows = self._archive.rows
        commit, counts = self._archive.last if self._archive.last[0] >= 0 else self._last
        try:
            save_state(self._archive.folder, self._plan, states, self._stages, self._deduplicator, commit, counts)
        except OSError as error:
            log.warning("state was not saved (%s): a restart folds more of the archive", error)


def save_state(
    archive: Path,
    plan: Plan,
    states: Sequence[StageState],
    stages: Sequence[ReactionStage],
    deduplicator: Deduplicator,
    commit: int,
    counts: Mapping[str, Any],
) -> None:
    """Write what a restart needs of everything up to a commit, and drop the one before it.

    Args:
        archive: its folder.
        plan, states, stages, deduplicator: as the commits up to this one, and no other, have made them.
        commit, counts: the last commit; its counts tell archives of the same app apart.
    """
    began_s = time.monotonic()
    folder = archive / "state"
    header = {
        "format": _FORMAT,
        "fingerprint": plan.app.fingerprint,
        "commit": commit,
        "counts": counts,
        "horizon_us": deduplicator.horizon_us,
        "newest_us": deduplicator.newest_us,
    }
    parts = [(_HEADER, json.dumps(header).encode("utf-8"))]
    parts += [(_STATE, state.save()) for state in states]
    parts += [(_REACTION, part) for stage in stages for part in stage.save()]
    parts += [(_IDENTITIES, part) for part in deduplicator.save()]
    if max(len(payload) for _, payload in parts) > _MOST_BYTES:
        log.warning("state is too large to be saved: a restart folds the whole archive")
        return
    folder.mkdir(exist_ok=True)
    temporary, target = folder / "new", folder / f"{commit:016d}.state"
    with temporary.open("wb") as file:
        for kind, payload in parts:
            write_frame(file, kind, payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    sync_folder(folder)
    for older in folder.glob("*.state"):
        if older != target:
            older.unlink()
    log.info("saved state as of commit %d in %.2f s", commit, time.monotonic() - began_s)


def load_state(archive: Path, plan: Plan, deduplicator: Deduplicator) -> SavedState | None:
    """The newest saved state, with its identities put into the deduplicator; None if there is none that fits."""
    for path in sorted((archive / "state").glob("*.state"), reverse=True):
        try:
            found = _read(path, archive, plan, deduplicator)
        except (HistoryError, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            log.warning("saved state %s cannot be used (%s): folding the archive instead", path.name, error)
            continue
        if found is not None:
            return found
    return None


def _read(path: Path, archive: Path, plan: Plan, deduplicator: Deduplicator) -> SavedState | None:
    identities, states, memories = list[memoryview](), list[StageState](), list[bytes]()
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
        for frame in read:
            if frame.kind == _STATE:
                states.append(StageState.load(plan.stages[len(states)], bytes(frame.payload)))
            elif frame.kind == _REACTION:
                memories.append(bytes(frame.payload))
            elif frame.kind == _IDENTITIES:
                identities.append(frame.payload)
    if len(states) != len(plan.stages):
        raise HistoryError(f"it has {len(states)} stages, wanted {len(plan.stages)}")
    stages = reaction_stages(plan.app)
    for stage in stages:
        count = 0 if stage.key is None else len(stage.reactions)
        stage.load(memories[:count])
        del memories[:count]
    if memories:
        raise HistoryError("it has more reactions that remember than the app")
    deduplicator.load(identities, header["newest_us"])
    return SavedState(header["commit"], states, stages)
