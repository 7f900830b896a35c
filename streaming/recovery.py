"""Coming back: state, deduplication and unpublished results from the job's own archive (contract C6, C9)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared_features.app import App
from shared_features.columns import Evaluator
from shared_features.errors import HistoryError
from shared_features.kernel import fold
from shared_features.plan import Plan
from shared_features.reactions import ReactionStage
from shared_features.state import StageState
from streaming import results
from streaming.archive import Commit, read_commits, segments
from streaming.deduplication import Deduplicator
from streaming.naming import topic
from streaming.outgoing import dead_letter_of_row, outgoing
from streaming.saved_state import load_state
from streaming.snapshots import at_begin
from streaming.topics import OutgoingMessage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """State as it was after the last commit.

    Attributes:
        states, stages: of the keyed stages, and of the reactions that remember.
        rows: how many had to be folded again; those before stand in saved state.
        republished: messages.
        last: sequence number and counts of the last commit; -1 if there is none.
    """

    states: list[StageState]
    stages: list[ReactionStage]
    rows: int
    republished: int
    last: tuple[int, Mapping[str, Any]] = (-1, {})


def recover(
    plan: Plan,
    archive: Path,
    deduplicator: Deduplicator,
    publish: Callable[[str, Sequence[OutgoingMessage]], object],
    *,
    with_features: bool,
    as_blocks: bool = False,
) -> Recovered:
    """Fold the archive again and publish what its last commits did not get out, before anything is pulled.

    Raises:
        HistoryError: positions found do not follow from the archive; it is damaged or not whole.
    """
    rows, republished, after = 0, 0, -1
    saved = load_state(archive, plan, deduplicator) if segments(archive) else None
    if saved is not None:
        states, stages, after = saved.states, saved.stages, saved.commit
    else:
        states, stages = at_begin(archive, plan, deduplicator)
    if not segments(archive):
        return Recovered(states, stages, 0, 0)
    last: tuple[int, Mapping[str, Any]] = (after, {})
    for commit in read_commits(archive, after):
        last = commit.sequence, commit.counts
        if commit.block.num_rows and commit.sequence > after:
            fold_archived(plan, states, commit.block)
            react_again(plan.app, stages, commit.block)
            deduplicator.accept(commit.block)
            rows += commit.block.num_rows
        if not commit.published:
            republished += _publish_again(plan, commit, publish, with_features=with_features, as_blocks=as_blocks)
    if rows:
        log.info("recovered %d rows from the archive, published %d messages again", rows, republished)
    return Recovered(states, stages, rows, republished, last)


def fold_archived(plan: Plan, states: Sequence[StageState], block: pa.RecordBatch) -> None:
    """Fold one archived block and check that it stands at the positions at which it was folded live."""
    evaluator = Evaluator(block)
    for stage, state in zip(plan.stages, states, strict=True):
        folded = fold(state, evaluator)
        column = f"stage.{stage.name}.position"
        if not folded[column].equals(block.column(column)):
            raise HistoryError(
                f"archive has other positions in stage {stage.name!r} than its rows give: wanted them without gaps; "
                "restore the archive from a copy"
            )


def react_again(app: App, stages: Sequence[ReactionStage], block: pa.RecordBatch) -> None:
    """Fold one archived block into the reactions' memory: the rows that took part in it."""
    for stage in stages:
        column = f"stage.{stage.name}.position"
        if stage.key is not None and column in block.schema.names:
            part = block.filter(block.column(column).is_valid())
            results.reactions(app, [stage], part, results.ended_columns(part))


def _publish_again(
    plan: Plan,
    commit: Commit,
    publish: Callable[[str, Sequence[OutgoingMessage]], object],
    *,
    with_features: bool,
    as_blocks: bool,
) -> int:
    if commit.block.num_rows == 0:
        return 0
    sent = outgoing(plan.app, commit.block, with_features=with_features, as_blocks=as_blocks)
    failed = [
        part
        for row, outcome in enumerate(commit.block.column("outcome").to_pylist())
        if outcome == results.FAILED
        for part in dead_letter_of_row(plan.app, commit.block, row)
    ]
    if failed:
        sent[topic(plan.app.name, "dead-letters")] = failed
    for destination, messages in sent.items():
        publish(destination, messages)
    return sum(len(messages) for messages in sent.values())
