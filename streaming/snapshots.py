"""A snapshot: state, memory and identities as of a cut T in publish time, from which a live job begins (contract C9).

The file has the frames of saved state (`streaming.saved_state`), under a header that says of which cut and which
history it is. A job that begins with it copies it into its archive, as ``snapshot.state``: what the archive's commits
are folded onto whenever the job comes back.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.plan import Plan
from shared_features.reactions import ReactionStage, reaction_stages
from shared_features.state import StageState
from streaming.archive import read_counts
from streaming.archive_log import Frame, frames, sync_folder, write_frame
from streaming.deduplication import Deduplicator
from streaming.saved_state import _HEADER, _IDENTITIES, _REACTION, _STATE, _loaded, _PartWriter
from streaming.topics.endpoint import Endpoint, seek, subscription_exists

NAME = "snapshot.state"
SEEK_BACK_US = 60_000_000
"""The subscription goes back to so long before the cut: clocks differ, and what the snapshot holds is dropped."""

_FORMAT = "snapshot 2"
_READABLE = (_FORMAT, "snapshot 1")  # the first one knew nothing of reactions


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot says of itself.

    Attributes:
        app, fingerprint: of which features.
        cut_us: all that was published before is in it; microseconds since 1970. What else is, it knows by identity.
        horizon_us: of event time, for which it knows identities.
        newest_us: greatest event time in it.
        history: where it was made from.
        epoch: of what is folded onto it.
        reactions: how many parts say what reactions remember.
    """

    app: str
    fingerprint: str
    cut_us: int
    horizon_us: int
    newest_us: int
    history: str
    epoch: int = 0
    reactions: int = 0


class Begin(NamedTuple):
    """What an archive's first commit was folded onto."""

    states: list[StageState]
    stages: list[ReactionStage]


def write_snapshot(
    path: Path,
    plan: Plan,
    states: Sequence[StageState],
    deduplicator: Deduplicator,
    cut_us: int,
    history: str,
    *,
    stages: Sequence[ReactionStage] = (),
    epoch: int = 0,
) -> None:
    """Write state, memory and identities of everything published before ``cut_us``, whole or not at all."""
    memories = [memory for stage in stages for memory in stage.save()]
    header = {
        "format": _FORMAT,
        "app": plan.app.name,
        "fingerprint": plan.app.fingerprint,
        "cut_us": cut_us,
        "horizon_us": deduplicator.horizon_us,
        "newest_us": deduplicator.newest_us,
        "history": history,
        "epoch": epoch,
        "reactions": len(memories),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        write_frame(file, _HEADER, json.dumps(header).encode("utf-8"))
        for state in states:
            with _PartWriter(file, _STATE) as part:
                state.write(part)
        for memory in memories:
            with _PartWriter(file, _REACTION) as part:
                part.write(memory)
        with _PartWriter(file, _IDENTITIES) as part:
            deduplicator.save(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_snapshot(path: Path) -> Snapshot:
    """What a snapshot says of itself.

    Raises:
        HistoryError: there is none, or it is damaged.
    """
    with _opened(path) as read:
        return _header(path, read)


def load_snapshot(path: Path, plan: Plan, deduplicator: Deduplicator) -> Begin:
    """State and memory; its identities are put into the deduplicator. What it knows of no reaction begins anew.

    Raises:
        HistoryError: it is damaged, or has forgotten identities that the deduplicator's horizon wants.
        FingerprintError: it is of other features.
    """
    with _opened(path) as read:
        header = _header(path, read)
        _check(path, header, plan, deduplicator.horizon_us)
        try:
            states = [_loaded(read, _STATE, partial(StageState.load, stage)) for stage in plan.stages]
            memories = [_loaded(read, _REACTION, io.BufferedReader.read) for _ in range(header.reactions)]
            fresh = Deduplicator(deduplicator.horizon_us)
            _loaded(read, _IDENTITIES, partial(fresh.load, newest_us=header.newest_us))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"snapshot {path} is damaged ({error}): make it again") from error
    deduplicator.become(fresh)
    stages = reaction_stages(plan.app, header.epoch)
    for stage in stages:
        stage.take_over(memories)
    return Begin(states, stages)


def begin_from(archive: Path, snapshot: Path, plan: Plan, horizon_us: int, seek: Callable[[int], None]) -> None:
    """Make an archive without commits begin with a snapshot; nothing happens where it began with this one.

    Args:
        archive: its folder, held by this job.
        snapshot: the file.
        horizon_us: of the job's deduplication.
        seek: sends the job's subscription to a publish time, microseconds since 1970; called before anything is
            written, so that a job which is cut off here does it again.

    Raises:
        ConfigurationError: the archive has commits, or began with another snapshot.
        HistoryError, FingerprintError: the snapshot cannot be used.
    """
    header = read_snapshot(snapshot)
    _check(snapshot, header, plan, horizon_us)
    target = archive / NAME
    if target.exists():
        if _digest(target) != _digest(snapshot):
            raise ConfigurationError(
                f"archive folder {archive} began with another snapshot than {snapshot}: leave --snapshot out, or give "
                "a new folder with --archive"
            )
        return
    if next(iter(read_counts(archive)), None) is not None:
        raise ConfigurationError(
            f"archive folder {archive} has events already, and a snapshot is what an archive begins with: leave "
            "--snapshot out, or give a new folder with --archive"
        )
    seek(header.cut_us - SEEK_BACK_US)
    temporary = target.with_suffix(".new")
    with snapshot.open("rb") as source, temporary.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    sync_folder(archive)


def seek_existing(endpoint: Endpoint, subscription: str, time_us: int) -> None:
    """Send a subscription to a publish time.

    Raises:
        ConfigurationError: there is none: nothing has kept for the job what was published since.
    """
    if not subscription_exists(endpoint, subscription):
        raise ConfigurationError(
            f"subscription {subscription} does not exist in {endpoint}, so that nothing has kept what was published "
            "since the snapshot's cut: make it before the cut, with `sameriver snapshot --subscribe`"
        )
    seek(endpoint, subscription, time_us)


def at_begin(archive: Path, plan: Plan, deduplicator: Deduplicator | None = None) -> Begin:
    """What an archive's first commit was folded onto: its snapshot, or nothing.

    Args:
        deduplicator: takes the snapshot's identities.
    """
    path = archive / NAME
    if not path.exists():
        return Begin([StageState(stage) for stage in plan.stages], reaction_stages(plan.app))
    if deduplicator is None:
        deduplicator = Deduplicator(read_snapshot(path).horizon_us)
    return load_snapshot(path, plan, deduplicator)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[Frame]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise HistoryError(
            f"snapshot {path} cannot be read ({error.strerror}): make one with `sameriver snapshot`"
        ) from None
    with file:
        yield frames(file, is_last=False)


def _header(path: Path, read: Iterator[Frame]) -> Snapshot:
    try:
        header = json.loads(bytes(next(read).payload))
        if header.pop("format") not in _READABLE:
            raise ValueError("another format")
        return Snapshot(**header)
    except (HistoryError, StopIteration, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(f"{path} is no snapshot ({error}): make one with `sameriver snapshot`") from error


def _check(path: Path, header: Snapshot, plan: Plan, horizon_us: int) -> None:
    if header.fingerprint != plan.app.fingerprint:
        raise FingerprintError(
            f"snapshot {path} is of fingerprint {header.fingerprint} of app {header.app!r}, wanted "
            f"{plan.app.fingerprint}: make one of the app as it is"
        )
    if header.horizon_us < horizon_us:
        raise HistoryError(
            f"snapshot {path} knows identities of {header.horizon_us // 1_000_000} s, the job's horizon wants "
            f"{horizon_us // 1_000_000} s: make it again with a longer --horizon, or give the job a shorter one"
        )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
