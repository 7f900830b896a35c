"""What one process of a job holds: connections, state and queue, found again by every step of the pipeline.

Beam makes and drops instances of its steps as it likes; clients, live state and the queue belong to the process.

A *life* of a job lasts from one recovery from the archive to the next. What a life pulls is numbered, and every step
with memory takes works of its own life only, without a gap. Where a runner has lost a work between two steps (a bundle
failed) the next one shows the gap; the job then begins another life: its messages were not acknowledged and come
again, and its memory is made from the archive, which holds exactly what had passed all steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from shared_features.plan import Plan
from shared_features.state import StageState
from streaming.checkpoints import CheckpointedAcks
from streaming.deduplication import Deduplicator
from streaming.delivery import Delivery
from streaming.intake import Intake
from streaming.monitoring import Monitoring
from streaming.saved_state import StateSaver
from streaming.topics import Message, Subscriber
from streaming.tracing import Tracing
from streaming.work import Work

log = logging.getLogger(__name__)

RECOVERED = b"recovered"
"""The token of state that came from the archive, before the first fold."""


class StateMismatchError(RuntimeError):
    """What this process remembers is not what the work builds on: the job must begin anew from the archive."""


class StateCache:
    """Live kernel state by stage, each under the token of its last fold."""

    def __init__(self, states: list[StageState]) -> None:
        self._held: dict[int, tuple[bytes, StageState]] = {i: (RECOVERED, state) for i, state in enumerate(states)}
        self._newest = dict(enumerate(states))

    def take(self, stage: int, token: bytes) -> StageState:
        """The state, out of the cache.

        Args:
            stage: number of the stage.
            token: what the runner's state holds. State that has just come from the archive fits any.

        Raises:
            StateMismatchError: it is not there under this token: a fold before this one failed, or the runner has
                gone back to an older checkpoint.
        """
        held = self._held.pop(stage, None)
        if held is None or held[0] not in (token, RECOVERED):
            raise StateMismatchError(f"state of stage {stage} does not match its token: restart the job to rebuild it")
        return held[1]

    def put(self, stage: int, token: bytes, state: StageState) -> None:
        self._held[stage] = (token, state)
        self._newest[stage] = state

    def states(self) -> list[StageState]:
        """The states by stage; those that a fold has taken out are not among them."""
        return [self._held[stage][1] for stage in sorted(self._held)]

    def nbytes(self) -> int:
        """Bytes of all states, those that a fold has taken out among them; any thread may ask."""
        return sum(state.nbytes for state in list(self._newest.values()))


@dataclass(slots=True)
class Job:
    """All that the steps of one running job share in this process, for one life.

    Attributes:
        life: names this life; works of another are dropped.
        works_pulled, messages_delivered: how many in this life.
        passed: by step, the number of the last work that it took.
        acks: holds acknowledgements back until a checkpoint; None acknowledges at once.
        saver: saves state between two works; None where works can be lost between two steps.
        reopen: ends this life and begins the next, where the runner goes on after a failure; None: the job must end.
    """

    plan: Plan
    intake: Intake
    deduplicator: Deduplicator
    states: StateCache
    subscriber: Subscriber
    delivery: Delivery
    max_messages: int
    monitoring: Monitoring | None = None
    tracing: Tracing | None = None
    life: str = ""
    acks: CheckpointedAcks | None = None
    saver: StateSaver | None = None
    reopen: Callable[[], Job] | None = None
    events_in_steps: int = 0
    messages_delivered: int = 0
    works_pulled: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def numbered(self, messages: list[Message]) -> Work:
        """What was just pulled, as the next work of this life."""
        self.works_pulled += 1
        return Work(messages, life=self.life, number=self.works_pulled)

    def in_flight(self) -> int:
        """Events that were decoded and have not ended: between the steps, and waiting for their commit."""
        return self.events_in_steps + self.delivery.events_waiting


_JOBS: dict[bytes, Job] = {}
_OPENING = threading.RLock()


def register(job_id: bytes, job: Job) -> None:
    """Make ``job`` known to the steps that run in this process."""
    _JOBS[job_id] = job


def get(job_id: bytes) -> Job:
    """The job of this id in this process; waits while it begins anew.

    Raises:
        RuntimeError: this process has none.
    """
    job = _JOBS.get(job_id)
    if job is not None:
        return job
    with _OPENING:
        if job_id not in _JOBS:
            raise RuntimeError("no such job in this process: all of its steps must run in the process that pulls")
        return _JOBS[job_id]


def obtain(job_id: bytes, begin: Callable[[], Job]) -> Job:
    """The job of this id in this process, begun here if there is none."""
    with _OPENING:
        if job_id not in _JOBS:
            _JOBS[job_id] = begin()
        return _JOBS[job_id]


def enter(step: str, job_id: bytes, work: Work) -> Job | None:
    """The job that pulled ``work``, if this work is the next of its life for ``step``.

    None if the work must be dropped: its life has ended, or ends now because works before it got lost. Its messages
    come again.
    """
    job = get(job_id)
    if work.life != job.life:
        return None
    last = job.passed.get(step, 0)
    if work.number and work.number != last + 1:
        begin_anew(job_id, job, StateMismatchError(f"{step} got work {work.number} after {last}: works got lost"))
        return None
    job.passed[step] = work.number
    return job


def begin_anew(job_id: bytes, job: Job, why: Exception) -> None:
    """End this life of the job and begin the next; nothing happens if another thread has done so.

    Raises:
        Exception: ``why``, where the runner does not go on after a failure.
    """
    if job.reopen is None:
        raise why
    with _OPENING:
        if _JOBS.get(job_id) is not job:
            return
        log.warning("the job begins anew from its archive: %s", why)
        del _JOBS[job_id]
        _JOBS[job_id] = job.reopen()


def forget(job_id: bytes) -> None:
    """Let go of a job that has ended."""
    _JOBS.pop(job_id, None)
