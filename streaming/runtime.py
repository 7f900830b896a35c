"""What one process of a job holds: connections, state and queue, found again by every step of the pipeline.

Beam makes and drops instances of its steps as it likes; clients, live state and the queue belong to the process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from shared_features.plan import Plan
from shared_features.state import StageState
from streaming.deduplication import Deduplicator
from streaming.delivery import Delivery
from streaming.intake import Intake
from streaming.monitoring import Monitoring
from streaming.saved_state import StateSaver
from streaming.topics import Subscriber
from streaming.tracing import Tracing

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
    """All that the steps of one running job share in this process.

    Attributes:
        saver: saves state between two works.
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
    saver: StateSaver | None = None
    events_in_steps: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def in_flight(self) -> int:
        """Events that were decoded and have not ended: between the steps, and waiting for their commit."""
        return self.events_in_steps + self.delivery.events_waiting


_JOBS: dict[bytes, Job] = {}


def register(job_id: bytes, job: Job) -> None:
    """Make ``job`` known to the steps that run in this process."""
    _JOBS[job_id] = job


def get(job_id: bytes) -> Job:
    """The job of this id in this process.

    Raises:
        RuntimeError: this process has none.
    """
    if job_id not in _JOBS:
        raise RuntimeError("no such job in this process: all of its steps must run in the process that pulls")
    return _JOBS[job_id]


def forget(job_id: bytes) -> None:
    """Let go of a job that has ended."""
    _JOBS.pop(job_id, None)
