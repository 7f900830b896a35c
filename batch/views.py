"""Views: tables that follow from an archive and are kept up to date beside a live job, or computed from all of it.

An app's views stand in ``views.py`` beside its ``app.py``: a list ``VIEWS`` of classes, each made with the app.
A view folds an archive's rows in their order and says which rows of its table changed. It is told no more than
the archive holds, so live and batch give the same table: batch folds the same rows in larger pieces. The rows of a
backfill, made of a history that no job has seen, are folded alike.

A changed row goes out whole, with a ``revision``: of two with the same key the one with the higher revision holds.
It is the number of the last commit folded, so that what is published again after a restart changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from batch.backfill_out import predicted_files
from batch.output_rows import with_sized_lists
from batch.replay import CHUNK_ROWS
from shared_features.app import App, load_beside
from shared_features.blocks import concat_blocks
from shared_features.errors import ConfigurationError, FingerprintError
from shared_features.whole_files import replace_text
from streaming import archive as archives
from streaming.archive_log import Commit
from streaming.following import follow_commits
from streaming.naming import topic
from streaming.topics import OutgoingMessage

MODULE = "views"


class View(Protocol):
    """A table that follows from an archive.

    Attributes:
        name: part of its topic, ``<app>-view-<name>``.
        key: columns that name a row.
        left_out: how many of what it was given its table does not count, by reason; a view may be without.

    Promised: the table depends on the rows folded and their order only, never on how they were cut into blocks.
    Not promised: any order of the table's rows.
    """

    name: str
    key: Sequence[str]

    def fold(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Take in an archive's next rows; those rows of the table that changed, each whole and once."""

    def table(self) -> pa.RecordBatch:
        """All rows."""


def view_of(app: App, name: str | None) -> View:
    """One of the app's views, empty; without a name the only one.

    Raises:
        ConfigurationError: there is none of that name.
    """
    module = load_beside(app.spec, MODULE)
    made = [] if module is None else [make(app) for make in module.VIEWS]
    found: list[View] = [view for view in made if name in (None, view.name)]
    if len(found) != 1:
        if not made:
            raise ConfigurationError(f"app {app.name!r} has no views: wanted some in {MODULE}.py beside its app.py")
        names = ", ".join(view.name for view in made)
        raise ConfigurationError(f"app {app.name!r} has the views {names}: name one of them, got {name or 'none'!r}")
    return found[0]


def fold_backfill(view: View, app: App, folder: Path) -> int:
    """Fold the rows that `sameriver backfill` wrote into a folder; how many.

    They come by publish date, each shard's in the order of its positions: what depends on the set of rows, or on the
    order within the key of the app's last stage, is the table of the archive.

    Raises:
        ConfigurationError: there are none that the app, as it is, predicted on.
    """
    rows = 0
    for path in predicted_files(app, folder):
        with pq.ParquetFile(path) as file:
            for block in file.iter_batches(CHUNK_ROWS):
                view.fold(with_sized_lists(app, block))
                rows += block.num_rows
    return rows


class ViewFollower:
    """Keeps a view up to date with an archive.

    Args:
        view: not yet folded into.
        archive: folder of the archive.
        app: whose view it is.

    Attributes:
        revision: number of the last commit folded; -1 before the first.
        rows: of the archive, folded so far.

    Raises:
        FingerprintError: the archive was written by another app, or with other features.
        HistoryError: there is no archive.
    """

    def __init__(self, view: View, archive: Path, app: App) -> None:
        written = archives.identity(archive)
        if written["fingerprint"] != app.fingerprint:
            raise FingerprintError(
                f"archive {archive} was written by fingerprint {written['fingerprint']}, app {app.name!r} has "
                f"{app.fingerprint}: give the app's own archive"
            )
        self.view, self.revision, self.rows = view, -1, 0
        self._commits = follow_commits(archive)
        self._next: Commit | None = None

    def step(self, until: int | None = None) -> pa.RecordBatch | None:
        """Fold what has come, at most a chunk, and no commit after ``until``; None if there was nothing."""
        held: list[pa.RecordBatch] = []
        rows = 0
        while rows < CHUNK_ROWS and self.revision != until and (commit := self._next or next(self._commits)):
            if held and commit.block.num_rows and commit.block.schema != held[0].schema:
                self._next = commit  # a block has one list of columns
                break
            self._next, self.revision = None, commit.sequence
            if commit.block.num_rows:
                held.append(commit.block)
                rows += commit.block.num_rows
        self.rows += rows
        return self.view.fold(concat_blocks(held)) if held else None

    def catch_up(self, until: int | None = None) -> Iterator[pa.RecordBatch]:
        """Fold until there is nothing further, or up to commit ``until``; what changed, piece by piece."""
        while (changed := self.step(until)) is not None:
            yield changed


class ViewPublisher:
    """Publishes changed rows, from the first commit on that was not published before.

    Args:
        app, follower: whose view it is.
        cursor: the file that remembers how far it came.
        publish: takes a topic and messages, and returns when they are durable.
    """

    def __init__(
        self,
        app: App,
        follower: ViewFollower,
        cursor: Path,
        publish: Callable[[str, Sequence[OutgoingMessage]], object],
    ) -> None:
        self._follower, self._cursor, self._publish = follower, cursor, publish
        self.topic = topic(app.name, f"view-{follower.view.name}")
        self._fingerprint = app.fingerprint
        self.published = 0
        for _ in follower.catch_up(self._published_up_to()) if cursor.exists() else ():
            pass

    def take(self, changed: pa.RecordBatch) -> None:
        """Publish what a step changed, then remember that it is."""
        messages = view_messages(self._follower.view, changed, self._follower.revision)
        if messages:
            self._publish(self.topic, messages)
        self.published += len(messages)
        self._cursor.parent.mkdir(exist_ok=True)
        cursor = {"commit": self._follower.revision, "fingerprint": self._fingerprint}
        replace_text(self._cursor, json.dumps(cursor))

    def _published_up_to(self) -> int:
        try:
            found = json.loads(self._cursor.read_bytes())
            commit = found["commit"] if found["fingerprint"] == self._fingerprint else -1
        except (ValueError, KeyError, TypeError):
            commit = -1  # what was published is published again, under revisions that change nothing
        return commit if isinstance(commit, int) else -1


def view_messages(view: View, changed: pa.RecordBatch, revision: int) -> list[OutgoingMessage]:
    """A message for each changed row: the row as JSON; attributes ``view``, ``key`` (JSON) and ``revision``."""
    messages = []
    for row in changed.to_pylist():
        key = orjson.dumps([row[name] for name in view.key], option=orjson.OPT_UTC_Z).decode()
        attributes = {"view": view.name, "key": key, "revision": str(revision)}
        messages.append(OutgoingMessage(orjson.dumps(row, option=orjson.OPT_UTC_Z), attributes, ordering_key=key))
    return messages


def check_ending(path: Path) -> None:
    """ConfigurationError unless a table can be written to a file of this name."""
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigurationError(f"file {path} is of an unknown kind: wanted one that ends with .parquet or .csv")


def write_table(view: View, path: Path) -> int:
    """Write all rows by key, as Parquet or, for ``….csv``, CSV, in place of the file; the number of rows.

    Raises:
        ConfigurationError: another ending, or it cannot be written.
    """
    check_ending(path)
    table = pa.Table.from_batches([view.table()]).sort_by([(name, "ascending") for name in view.key])
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigurationError(f"view {view.name} cannot be written to {path} ({error}): name another file") from None
    return int(table.num_rows)
