"""Delivery: predictions may overtake each other, commits may not. Archive, then publish, then acknowledge.

Calls to the model outlive the bundle that started them. The queue restores the fold order: a row is durable only
with or after every row folded before it (contract C6). One thread commits; it takes along everything at the head
of the queue whose predictions have come, so that a burst shares one sync to disk. Another thread publishes what is
durable, while the next commit is on its way to the disk. A third sends large blocks to the models while the job folds
the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.app import App, Rule
from shared_features.blocks import concat_blocks
from shared_features.columns import FEW_ROWS
from shared_features.reactions import ReactionStage, reaction_stages
from streaming import results
from streaming.archive import Archive
from streaming.intake import refuse_row
from streaming.monitoring import Monitoring
from streaming.naming import reaction_topics, topic
from streaming.outgoing import dead_letter, outgoing
from streaming.topics import OutgoingMessage
from streaming.tracing import committed, step, step_until, with_contexts
from streaming.work import Work

log = logging.getLogger(__name__)

MAX_GROUP_ROWS = 20_000
MAX_WAITING_ROWS = 200_000
"""A row of many features takes a kilobyte or two while it waits."""

Keys = Callable[[str], pa.Array]
"""From the name of a key its value on each row asked about; from "" the rows' identities."""
Predictor = Callable[[pa.RecordBatch, Keys], Future[results.Answer]]
Publish = Callable[[str, Sequence[OutgoingMessage]], object]
Acknowledge = Callable[[Sequence[str]], None]


@dataclass(slots=True)
class Totals:
    """Counts since the job started, for people to look at; the archive's commit records are what counts."""

    received: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    commits: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Waiting:
    """A folded work, and the answers that its models owe once they are asked: of those that a server holds."""

    work: Work
    asked: Future[dict[str, Future[results.Answer]]]

    @property
    def answers(self) -> dict[str, Future[results.Answer]]:
        return self.asked.result()

    def is_ready(self) -> bool:
        return self.asked.done() and all(answer.done() for answer in self.answers.values())


@dataclass(frozen=True, slots=True)
class _Archived:
    """Works of one commit that is durable, and what is to be published of it."""

    works: list[Work]
    sequence: int | None
    counts: dict[str, Any]
    blocks: list[pa.RecordBatch]
    sent: Mapping[str, Sequence[OutgoingMessage]]
    began_ns: int
    archived_ns: int


class Delivery:
    """The end of the road: a bounded queue in fold order, a thread that archives it and one that publishes.

    Args:
        app: the app; all of its models predict.
        predict: by the name of each model that a server holds: starts a prediction of a feature block. A rule needs
            none. Where a served model is not in it, features are only collected.
        archive, publish, acknowledge: where commits, outgoing messages and acknowledgements go.
        max_waiting: works in the queue before `submit` blocks, which stops the pull (back-pressure); it does so too
            where they have `MAX_WAITING_ROWS`.
        with_features: whether prediction messages carry the features.
        collect: record features only, whatever models the app names.
        as_blocks: whether predictions go as blocks.
        stages: the reactions' stages as the archive has left them; None: nothing is remembered yet.
        monitoring: is told of every commit.
    """

    def __init__(
        self,
        app: App,
        *,
        predict: Mapping[str, Predictor],
        archive: Archive,
        publish: Publish,
        acknowledge: Acknowledge,
        max_waiting: int = 64,
        with_features: bool = False,
        collect: bool = False,
        as_blocks: bool = False,
        stages: Sequence[ReactionStage] | None = None,
        monitoring: Monitoring | None = None,
    ) -> None:
        self.app, self.predict, self.archive = app, predict, archive
        self.stages = reaction_stages(app) if stages is None else stages
        answered = all(isinstance(model, Rule) or model.name in predict for model in app.models)
        self.models = app.models if answered and not collect else []
        self.publish, self.acknowledge = publish, acknowledge
        self.max_waiting, self.with_features = max_waiting, with_features
        self.as_blocks, self.monitoring = as_blocks, monitoring
        self._reaction_topics = {name: reaction for reaction, name in reaction_topics(app).items()}
        self.totals = Totals()
        self._queue: deque[_Waiting] = deque()  # the archived ones first, until they are published
        self._archived: deque[_Archived] = deque()
        self._archived_works = 0
        self._all_archived = False
        self._changed = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(part,), name=name, daemon=True)
            for name, part in (("archive", self._archive_all), ("publish", self._publish_all))
        ]
        self._asking = ThreadPoolExecutor(1, "ask")
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Works in the queue."""
        return len(self._queue)

    @property
    def events_waiting(self) -> int:
        """Events that the works in the queue brought."""
        with self._changed:
            return sum(waiting.work.events for waiting in self._queue)

    @property
    def failure(self) -> BaseException | None:
        """What made the committing thread fail, or None."""
        return self._failure

    def submit(self, work: Work) -> None:
        """Take one folded work; returns when the queue has room. Raises what made the committing thread fail."""
        asked: Future[dict[str, Future[results.Answer]]] = Future()
        if work.block is None or work.block.num_rows <= FEW_ROWS:  # at once: the way to another thread is longer
            asked.set_result({} if work.block is None or not work.block.num_rows else self._ask(work, work.block))
        else:
            asked = self._asking.submit(self._ask, work, work.block)
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self._failure is not None)
            self._raise_failure()
            self._queue.append(_Waiting(work, asked))
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._queue) < self.max_waiting and sum(map(_rows, self._queue)) < MAX_WAITING_ROWS

    def wait_until_empty(self) -> bool:
        """Wait until everything that was submitted is committed and published; False if that cannot be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._failure is not None)
            return self._failure is None

    def close(self) -> None:
        """Commit everything that was submitted, then stop. Raises what made the committing thread fail."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._asking.shutdown(wait=False, cancel_futures=True)  # it may wait for a model that is away
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the job cannot commit any more") from self._failure

    def _ask(self, work: Work, block: pa.RecordBatch) -> dict[str, Future[results.Answer]]:
        served = [model for model in self.models if not isinstance(model, Rule)]
        rows = results.asked_rows(self.app, block)
        if not served or len(rows) == 0:
            return {}
        features = results.feature_block(self.app, block, rows)
        began_ns = time.time_ns()
        keys = partial(results.key_values, self.app, block, rows)
        answers = {model.name: self.predict[model.name](features, keys) for model in served}
        for name, answer in answers.items():
            step_until(work, f"predict {name}", began_ns, answer)
        return answers

    def _run(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # whatever it is, submit and close must know
            log.error("the job stops: a commit failed", exc_info=error)
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _archive_all(self) -> None:
        while group := self._next_group():
            commit = self._archive(group)
            with self._changed:
                self._archived_works += len(group)
                self._archived.append(commit)
                self._changed.notify_all()
        with self._changed:
            self._all_archived = True
            self._changed.notify_all()

    def _next_group(self) -> list[_Waiting]:
        """Works that are not archived yet and ready, at least one; empty when all is done."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._queue) > self._archived_works or self._closing or self._failure is not None
            )
            waiting = [] if self._failure is not None else list(self._queue)[self._archived_works :]
        if not waiting:
            return []
        first = waiting[0]
        for answer in first.answers.values():
            answer.exception()  # waits; what went wrong is raised when the result is used
        group, rows = [first], _rows(first)
        for following in waiting[1:]:
            rows += _rows(following)
            if rows > MAX_GROUP_ROWS or not following.is_ready():
                break
            group.append(following)
        return group

    def _archive(self, group: Sequence[_Waiting]) -> _Archived:
        """Make a group durable."""
        blocks = results.with_same_columns([self._with_results(waiting) for waiting in group if _rows(waiting)])
        works, began_ns = [waiting.work for waiting in group], time.time_ns()
        refused = [(one.message(work.messages), one) for work in works for one in work.refused]
        counts: dict[str, Any] = {
            "received": sum(work.events for work in works),
            "duplicates": sum(work.duplicates for work in works),
            "dead_letters": {},
        }
        for _, one in refused:
            counts["dead_letters"][one.reason] = counts["dead_letters"].get(one.reason, 0) + 1
        outcomes: dict[str, int] = {}
        for block in blocks:
            for outcome, number in results.count_outcomes(block).items():
                outcomes[outcome] = outcomes.get(outcome, 0) + number
        counts["outcomes"], counts["committed_at_us"] = outcomes, began_ns // 1000
        if not blocks and not refused and not counts["duplicates"]:  # blocks without events
            return _Archived(works, None, counts, [], {}, began_ns, began_ns)
        whole = concat_blocks(blocks) if blocks else pa.RecordBatch.from_pylist([], pa.schema([]))
        sequence = self.archive.append(whole, counts)
        archived_ns = time.time_ns()
        sent = outgoing(self.app, whole, with_features=self.with_features, as_blocks=self.as_blocks) if blocks else {}
        letters = [part for message, one in refused for part in dead_letter(self.app, message, one.reason, one.detail)]
        letters += self._failed_letters(group, blocks)
        if letters:
            sent[topic(self.app.name, "dead-letters")] = letters
        contexts = with_contexts(sent, works, self._reaction_topics)
        return _Archived(works, sequence, counts, blocks, contexts, began_ns, archived_ns)

    def _publish_all(self) -> None:
        while commits := self._next_archived():
            self._publish(commits)
            with self._changed:
                for commit in commits:
                    self._archived.popleft()
                    self._archived_works -= len(commit.works)
                    for _ in commit.works:
                        self._queue.popleft()
                self._changed.notify_all()

    def _next_archived(self) -> list[_Archived]:
        """All commits that are durable and not published; empty when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._archived or self._all_archived or self._failure is not None)
            return [] if self._failure is not None else list(self._archived)

    def _publish(self, commits: Sequence[_Archived]) -> None:
        """Publish, mark and acknowledge commits: what came while others were published shares a request."""
        sent: dict[str, list[OutgoingMessage]] = {}
        for commit in commits:
            for destination, messages in commit.sent.items():
                sent.setdefault(destination, []).extend(messages)
        for destination, together in sent.items():
            self.publish(destination, together)
        sequences = [commit.sequence for commit in commits if commit.sequence is not None]
        if sequences:
            self.archive.mark_published(sequences[-1])
        for commit in commits:
            committed(commit.works, commit.began_ns, commit.archived_ns)
            self._acknowledge(commit.works)
            if commit.sequence is not None:
                self._count(commit.counts)
                if self.monitoring is not None:
                    self.monitoring.committed(commit.counts, commit.blocks)

    def _acknowledge(self, works: Sequence[Work]) -> None:
        self.acknowledge([message.ack_id for work in works for message in work.messages])

    def _with_results(self, waiting: _Waiting) -> pa.RecordBatch:
        block = waiting.work.block
        assert block is not None
        answers: dict[str, results.Answer] = {}
        for model in self.models:
            if isinstance(model, Rule):
                began_ns = time.time_ns()
                answers[model.name] = results.apply_rule(self.app, model, block)
                step(waiting.work, f"predict {model.name}", began_ns)
            elif model.name in waiting.answers:
                answers[model.name] = waiting.answers[model.name].result()
            else:
                answers[model.name] = results.Answer({name: np.zeros(0) for name in model.outputs}, {}, 0)
        return results.with_results(self.app, block, answers or None, self.stages)

    def _failed_letters(self, group: Sequence[_Waiting], blocks: Sequence[pa.RecordBatch]) -> list[OutgoingMessage]:
        """Dead letters of rows that the model refused, with their original bytes."""
        letters = []
        with_rows = [waiting.work for waiting in group if _rows(waiting)]
        for work, block in zip(with_rows, blocks, strict=True):
            for row, outcome in enumerate(block.column("outcome").to_pylist()):
                if outcome == results.FAILED:
                    detail = str(block.column("failure")[row])
                    types = self.app.event_types
                    one = refuse_row(types, work.messages, work.rows[row], block, row, results.FAILED, detail)
                    letters += dead_letter(self.app, one.message(work.messages), one.reason, one.detail)
        return letters

    def _count(self, counts: dict[str, Any]) -> None:
        totals = self.totals
        totals.received += counts["received"]
        totals.duplicates += counts["duplicates"]
        totals.dead_letters += sum(counts["dead_letters"].values())
        totals.commits += 1
        for outcome, number in counts["outcomes"].items():
            totals.outcomes[outcome] = totals.outcomes.get(outcome, 0) + number


def _rows(waiting: _Waiting) -> int:
    return 0 if waiting.work.block is None else int(waiting.work.block.num_rows)
