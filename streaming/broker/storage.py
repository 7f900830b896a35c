"""What the broker asks of its storage, and the storage that keeps nothing.

The core reports what happened; `seal` and `sync` make it durable, many reports at a time. Not guaranteed: that
acknowledgements survive a crash at once (they are synced with the next commit, or a tenth of a second later);
leases are not kept, so that after a restart what was not acknowledged is delivered again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streaming.broker.backlog import Batch


class StorageError(Exception):
    """What was sealed could not be made durable; the text says why. Nothing of it is stored."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A topic, subscription, snapshot or schema.

    Attributes:
        kind: ``topic``, ``subscription``, ``snapshot`` or ``schema``.
        uid: unique over the broker's life, from the same counter as message ids.
        topic_uid: of a subscription or snapshot: the topic that it was made for.
        config: the serialised protobuf message; of a schema, all of its revisions.
    """

    kind: str
    uid: int
    topic_uid: int
    config: bytes


@dataclass(slots=True)
class Recovered:
    """What a storage still had.

    Attributes:
        resources: by uid.
        batches: (topic uid, batch) in the order of publication.
        left: (uid of subscription or snapshot, first id of the batch) -> ids not acknowledged; no entry means that
            nothing was said of it.
        next_id: greater than any id given out before.
        damage: one sentence for each thing that was lost.
    """

    resources: list[Resource] = field(default_factory=list)
    batches: Iterable[tuple[int, Batch]] = ()
    left: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    next_id: int = 0
    damage: list[str] = field(default_factory=list)


class Storage(Protocol):
    """All but `sync` are called from one thread; `sync` may run in another while reports go on."""

    volatile: bool
    """True if nothing is kept: `seal` and `sync` need not be called."""

    def recover(self) -> Recovered:
        """What was durable when the last process ended; called once, before anything else."""

    def resource(self, resource: Resource) -> None:
        """It was created or changed."""

    def resource_gone(self, uid: int) -> None:
        """A resource was deleted."""

    def published(self, topic_uid: int, batch: Batch) -> None:
        """Messages were accepted for a topic that has subscriptions."""

    def progressed(self, subscription_uid: int, batch: Batch, left: Sequence[int]) -> None:
        """Of a batch only these messages are not acknowledged by a subscription, or kept by a snapshot."""

    def finished(self, batch: Batch) -> None:
        """Nobody needs the batch any more."""

    def load(self, first_id: int) -> list[bytes]:
        """The messages of a stored batch.

        Raises:
            DamagedError: they cannot be read.
        """

    def seal(self, next_id: int) -> None:
        """What was reported so far belongs to the next `sync`; ids below `next_id` are given out."""

    def sync(self) -> None:
        """Return when everything that was sealed survives a crash of process or machine.

        Raises:
            StorageError: the disk is full or broken.
        """

    def close(self) -> None:
        """Let go of the files."""


class InMemory:
    """Keeps nothing beyond the process: for tests and demos."""

    volatile = True

    def recover(self) -> Recovered:
        return Recovered()

    def resource(self, resource: Resource) -> None:
        pass

    def resource_gone(self, uid: int) -> None:
        pass

    def published(self, topic_uid: int, batch: Batch) -> None:
        pass

    def progressed(self, subscription_uid: int, batch: Batch, left: Sequence[int]) -> None:
        pass

    def finished(self, batch: Batch) -> None:
        pass

    def load(self, first_id: int) -> list[bytes]:
        raise LookupError(f"batch {first_id} was not kept")

    def seal(self, next_id: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
