"""What survives on disk: crashes, damage, backlogs larger than memory, a full disk."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.pubsub_v1 import types

from shared_features.errors import ConfigurationError
from streaming.broker.core import Core
from streaming.broker.database import NAME, Database
from streaming.broker.leases import Consumer
from streaming.broker.messages import PubsubMessage, unframed
from streaming.broker.recovery import recover
from streaming.broker.storage import StorageError
from tests.processes import new_seed

TOPIC = "projects/p1/topics/events"
JOB = "projects/p1/subscriptions/job"
OTHER = "projects/p1/subscriptions/other"


class Stored:
    """A core on a folder, committed step by step as the server does it."""

    def __init__(self, folder: Path, memory_bytes: int = 1 << 28) -> None:
        self.storage = Database(folder)
        self.core = Core(storage=self.storage, memory_bytes=memory_bytes)
        self.damage = recover(self.core)

    def commit(self, *accepted: Any) -> None:
        stored = self.core.store(accepted)
        self.core.report_progress()
        self.storage.seal(self.core.next_id)
        self.storage.sync()
        for one in stored:
            self.core.deliver(one, durable=True)

    def create(self, *subscriptions: str) -> None:
        self.core.create_topic(types.Topic.pb()(name=TOPIC))
        for name in subscriptions:
            self.core.create_subscription(types.Subscription.pb()(name=name, topic=TOPIC))
        self.commit()

    def accept(self, *data: bytes, key: str = "") -> Any:
        return self.core.publish(TOPIC, [PubsubMessage(data=one, ordering_key=key) for one in data], 1)

    def publish(self, *data: bytes, key: str = "") -> list[int]:
        accepted = self.accept(*data, key=key)
        self.commit(accepted)
        return list(accepted.batch.ids)

    def take(self, name: str = JOB, limit: int = 1000) -> dict[str, bytes]:
        """Ack id -> data."""
        queue = self.core.subscription(name).queue
        clock = self.core.clock
        taken = queue.take(Consumer(10_000_000), clock.monotonic_us(), clock.wall_us(), limit)
        return {queue.ack_id(one).decode(): PubsubMessage.FromString(unframed(one.field)).data for one in taken}

    def acknowledge(self, ack_ids: Sequence[str], name: str = JOB) -> None:
        self.core.subscription(name).queue.acknowledge(ack_ids)

    def crash(self, folder: Path) -> Path:
        """A copy of the files as they are now, as a new process would find them after kill -9."""
        shutil.copytree(self.storage.path.parent, folder)
        return folder

    def close(self) -> None:
        self.storage.close()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def reopened(tmp_path: Path) -> Iterator[Any]:
    """A function that opens what a crash left, closed at the end."""
    opened: list[Stored] = []

    def reopen(stored: Stored, **options: Any) -> Stored:
        opened.append(Stored(stored.crash(tmp_path / f"crash-{len(opened)}"), **options))
        return opened[-1]

    yield reopen
    for one in opened:
        one.close()


def test_a_crash_loses_nothing_that_was_committed(stored: Stored, reopened: Any) -> None:
    stored.create(JOB, OTHER)
    ids = stored.publish(b"1", b"2", b"3") + stored.publish(b"4", key="k")
    held = stored.take()
    stored.acknowledge([ack_id for ack_id, data in held.items() if data in (b"2", b"4")])
    stored.commit()
    stored.acknowledge([ack_id for ack_id, data in held.items() if data == b"1"])  # not synced: comes again
    again = reopened(stored)
    assert again.damage == []
    assert list(again.take().values()) == [b"1", b"3"]
    assert list(again.take(OTHER).values()) == [b"1", b"2", b"3", b"4"]
    assert again.publish(b"5")[0] > ids[-1]
    assert again.core.topic(TOPIC).config == stored.core.topic(TOPIC).config
    assert again.core.subscription(JOB).config == stored.core.subscription(JOB).config


def test_acknowledgements_of_messages_leased_before_the_crash_count_after_it(stored: Stored, reopened: Any) -> None:
    stored.create(JOB)
    stored.publish(b"1", b"2")
    held = list(stored.take())
    again = reopened(stored)
    again.acknowledge(held[:1])
    assert list(again.take().values()) == [b"2"]


def test_what_was_acknowledged_before_it_was_read_again_is_not_taken_for_damaged(
    stored: Stored, reopened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stored.create(JOB)
    stored.publish(b"1")
    held = list(stored.take())
    again = reopened(stored, memory_bytes=0)
    again.acknowledge(held)
    again.commit()
    assert again.take() == {}
    again.commit()
    assert "damaged" not in caplog.text
    assert reopened(again).take() == {}
    assert again.storage._reader.execute("SELECT count(*) FROM batch").fetchone()[0] == 0


def test_single_messages_of_one_commit_become_one_batch_with_their_own_ids(stored: Stored, reopened: Any) -> None:
    stored.create(JOB)
    first, keyed, second = stored.accept(b"1"), stored.accept(b"k", key="k"), stored.accept(b"2", b"3")
    stored.commit(first, keyed, second)
    batches = [list(batch.ids) for batch, _ in stored.core.subscription(JOB).queue.unacknowledged()]
    assert batches == [[*first.batch.ids, *second.batch.ids], [*keyed.batch.ids]]
    held = stored.take()
    stored.acknowledge([ack_id for ack_id, data in held.items() if data == b"2"])
    stored.commit()
    assert list(reopened(stored).take().values()) == [b"1", b"3", b"k"]


def test_what_everybody_has_acknowledged_leaves_the_disk(stored: Stored) -> None:
    stored.create(JOB, OTHER)

    def rows() -> list[int]:
        return [
            stored.storage._reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("batch", "progress")
        ]

    stored.publish(b"1", b"2")
    stored.acknowledge(list(stored.take()))
    stored.commit()
    assert rows() == [1, 1]
    stored.acknowledge(list(stored.take(OTHER)), OTHER)
    stored.commit()
    assert rows() == [0, 0]


def test_the_disk_is_given_back_after_a_backlog(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    stored.create(JOB)
    for _ in range(10):
        stored.publish(b"x" * 2_500_000)
    while taken := stored.take():
        stored.acknowledge(list(taken))
    stored.commit()
    stored.close()
    assert (tmp_path / NAME).stat().st_size < 1_000_000


@pytest.mark.parametrize("how", ["delete", "detach"])
def test_a_subscription_that_is_deleted_or_detached_needs_its_messages_no_more(
    stored: Stored, reopened: Any, how: str
) -> None:
    stored.create(JOB, OTHER)
    stored.publish(b"1")
    getattr(stored.core, f"{how}_subscription")(OTHER)
    stored.commit()
    again = reopened(stored)
    assert (OTHER in again.core.subscriptions) == (how == "detach")
    assert list(again.take().values()) == [b"1"]
    stored.core.delete_subscription(JOB)
    stored.commit()
    assert stored.storage._reader.execute("SELECT count(*) FROM batch").fetchone()[0] == 0


def test_a_deleted_topic_leaves_messages_to_its_subscriptions(stored: Stored, reopened: Any) -> None:
    stored.create(JOB)
    stored.publish(b"1")
    stored.core.delete_topic(TOPIC)
    stored.commit()
    again = reopened(stored)
    assert again.core.topics == {}
    assert list(again.take().values()) == [b"1"]
    assert again.core.subscription(JOB).config.topic == "_deleted-topic_"


def test_a_subscription_has_nothing_from_before_its_creation(stored: Stored, reopened: Any) -> None:
    stored.create(JOB)
    stored.publish(b"1")
    stored.core.create_subscription(types.Subscription.pb()(name=OTHER, topic=TOPIC))
    stored.publish(b"2")
    assert list(reopened(stored).take(OTHER).values()) == [b"2"]


def test_a_backlog_larger_than_memory_comes_back_from_disk(stored: Stored, tmp_path: Path) -> None:
    stored.close()
    small = Stored(tmp_path / "small", memory_bytes=20_000)
    small.create(JOB, OTHER)
    data = [b"%06d" % n * 50 for n in range(1000)]
    for start in range(0, 1000, 20):
        small.publish(*data[start : start + 20])
    assert small.core.memory.used_bytes <= 20_000
    for name in (JOB, OTHER):
        got: list[bytes] = []
        while taken := small.take(name, 7):
            got += taken.values()
            small.acknowledge(list(taken), name)
        assert got == data
    assert small.core.memory.used_bytes == 0
    small.commit()
    small.close()
    again = Stored(tmp_path / "small")
    assert again.take() == {}
    again.close()
    stored.storage = Database(tmp_path / "unused")


def test_a_full_disk_refuses_what_it_cannot_store_and_goes_on_once_there_is_room(stored: Stored, reopened: Any) -> None:
    stored.create(JOB)
    stored.publish(b"1")
    writer = stored.storage._writer
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0] + 5}")
    stored.acknowledge(list(stored.take()))
    with pytest.raises(StorageError, match="database or disk is full"):
        stored.publish(b"x" * 1_000_000)
    writer.execute("PRAGMA max_page_count = 1000000")
    stored.publish(b"2")
    assert list(stored.take().values()) == [b"2"]
    assert list(reopened(stored).take().values()) == [b"2"]


def test_random_damage_is_said_and_leaves_everything_else_as_it_was(tmp_path: Path) -> None:
    """Flip a bit or cut the end, anywhere in the files: nothing false comes back, and losses are told.

    The last transaction may be lost in silence: damage to it looks like a crash while it was written.
    """
    seed = new_seed()
    draw = random.Random(seed)
    source = Stored(tmp_path / "source")
    source.create(JOB)
    sent = [draw.randbytes(draw.choice([10, 3000, 9000])) for _ in range(40)]
    for one in sent[:20]:
        source.publish(one)
    source.storage._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for one in sent[20:]:
        source.publish(one)
    told = 0
    for trial in range(60):
        folder = source.crash(tmp_path / f"trial-{trial}")
        file = folder / draw.choice([NAME, NAME + "-wal"])
        contents = bytearray(file.read_bytes())
        place = draw.randrange(len(contents))
        cut = trial % 6 == 0
        if cut:
            del contents[place:]
        else:
            contents[place] ^= 1 << draw.randrange(8)
        file.write_bytes(contents)
        what = f"seed {seed}, trial {trial}: {file.name} at {place}, cut {cut}"
        damaged = _opened(folder)
        if damaged is None:
            continue  # refused with a sentence: a person decides
        got = list(damaged.take().values()) if JOB in damaged.core.subscriptions else []
        damaged.close()
        assert [one for one in sent if one in got] == got, f"{what}: something false came back"
        told += bool(damaged.damage)
        if cut and file.name.endswith("-wal"):
            assert got == sent[: len(got)], f"{what}: not a prefix"
        elif len(got) < len(sent) - 1:
            assert damaged.damage, f"{what}: {len(sent) - len(got)} messages lost in silence"
        shutil.rmtree(folder)
    source.close()
    assert told, "no trial did damage"


def _opened(folder: Path) -> Stored | None:
    try:
        return Stored(folder)
    except ConfigurationError:
        return None


def test_a_damaged_message_is_dropped_when_it_is_read_back(stored: Stored, caplog: pytest.LogCaptureFixture) -> None:
    stored.create(JOB)
    stored.core.memory.limit_bytes = 0
    first = stored.publish(b"1", b"2")[0]
    stored.publish(b"3")
    stored.storage._writer.execute("UPDATE batch SET messages = messages || x'00' WHERE first_id = ?", (first,))
    assert list(stored.take().values()) == [b"3"]
    assert "2 messages" in caplog.text
    assert "are damaged on disk" in caplog.text
    assert stored.core.subscription(JOB).queue.counts()["unacknowledged"] == 1


def test_a_folder_is_for_one_broker(stored: Stored) -> None:
    with pytest.raises(ConfigurationError, match="is in use by another broker"):
        Database(stored.storage.path.parent)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else" * 100)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Database(tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"something else" * 100


def test_a_newer_format_is_refused(stored: Stored, tmp_path: Path) -> None:
    stored.storage._writer.execute("PRAGMA user_version = 3")
    with pytest.raises(ConfigurationError, match="has format 3, wanted 2 or less"):
        Database(stored.crash(tmp_path / "newer"))
