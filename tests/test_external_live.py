"""External models in the live job and in batch: the same values, exactly once, while the service dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from batch.verify import verify
from cli import main
from serving.external import Externals
from shared_features import compute
from shared_features.blocks import nest
from streaming.archive import read_commits
from streaming.intake import Intake
from streaming.job import create_topics
from streaming.naming import dead_letters_of
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, Subscriber
from tests.faults.jobs import Jobs
from tests.processes import Started, free_port, start, wait_until
from tests.reviews import service
from tests.reviews.app import app
from tests.test_external import START_US, Served

Start = Callable[..., Started]


def messages(texts: Sequence[str | None]) -> list[OutgoingMessage]:
    found = []
    for number, text in enumerate(texts):
        event = {"event_id": f"r{number}", "written_at": START_US + number * 1_000_000, "shop": f"s{number % 3}"}
        found.append(OutgoingMessage(json.dumps({**event, "text": text}).encode(), {"event_type": "review"}))
    return found


def test_a_refused_text_can_come_again() -> None:
    """It is refused before duplicates are told: what is mended is no duplicate."""
    served = Served()
    models = Externals(app.event_types, {"mood": served.address})
    intake = Intake(app.event_types, ask=models.ask)
    sent = messages(["good", "REFUSE", None])
    pulled = [Message(one.data, one.attributes, f"m{n}", START_US + 10**9, f"a{n}") for n, one in enumerate(sent)]
    taken = intake.take(pulled)
    assert taken.events == 3
    assert taken.block.column("event_id").to_pylist() == ["r0", "r2"]
    assert taken.rows.tolist() == [0, 2]
    assert [(one.index, one.reason) for one in taken.refused] == [(1, "external_refused")]
    served.close()


def test_live_batch_and_verify_agree_while_the_service_dies(
    start_process: Start, warm_jobs: Jobs, tmp_path: Path
) -> None:
    """The service is killed with -9 in mid-stream, and ends itself at a text; nothing is lost."""
    port = free_port()

    def begin() -> Started:
        return start(["-m", "tests.reviews.service", str(port)], ready="listening on")

    mood_service = begin()
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    endpoint = Endpoint("sameriver", broker.line.rsplit(" ", 1)[-1])
    create_topics(app, endpoint)
    archive = tmp_path / "archive"
    arguments = ["stream", "--app", "tests/reviews", "--emulator", str(endpoint.host_port), "--archive", str(archive)]
    job = warm_jobs.start([*arguments, "--external", f"mood=http://127.0.0.1:{port}", "--max-messages", "16", "--json"])
    job.wait_ready()
    words = ["good", "bad", "great", "awful", "love", None]
    texts = [words[number % 6] and f"{words[number % 6]} {number}" for number in range(120)]
    texts[70] = "it must CRASH"
    publisher = Publisher(endpoint)
    sent = messages(texts)
    publisher.publish("reviews-events", sent[:60])

    def archived() -> int:
        return sum(commit.block.num_rows for commit in read_commits(archive))

    wait_until(lambda: archived() >= 16, what="some reviews are archived")
    mood_service.kill()
    publisher.publish("reviews-events", sent[60:])
    mood_service = begin()

    def all_but_one() -> bool:
        nonlocal mood_service
        if mood_service.process.poll() is not None:  # it has read the text that it cannot stand
            mood_service.kill()
            mood_service = begin()
        return archived() == 119

    wait_until(all_but_one, what="all reviews but one are archived")
    totals = job.drain()
    mood_service.kill()
    assert (totals["received"], totals["dead_letters"], totals["duplicates"]) == (120, 1, 0)
    letters = Subscriber(endpoint, dead_letters_of(app))
    assert [one.attributes["reason"] for one in letters.pull(10, 30)] == ["external_refused"]
    letters.close()
    publisher.close()

    assert verify(app, archive).mismatches == 0  # and asks nobody: the service is gone
    live = pa.Table.from_batches([commit.block for commit in read_commits(archive) if commit.block.num_rows])
    by_id = dict(zip(live["event_id"].to_pylist(), live["review.mood"].to_pylist(), strict=True))
    assert by_id == {f"r{n}": text and service.mood(text) for n, text in enumerate(texts) if n != 70}

    # The same events without answers: asked about in batch, and the features are those of the live job.
    plain = ["event_type", "event_id", "event_time", "publish_time", "review.shop", "review.text"]
    raw = live.select([*plain, *(name for name in live.column_names if name.startswith("stage."))])
    (tmp_path / "raw").mkdir()
    pq.write_table(nest(raw), tmp_path / "raw" / "reviews.parquet")
    mood_service = begin()
    out = tmp_path / "asked"
    ask = ["ask", "--app", "tests/reviews", "--history", str(tmp_path / "raw"), "--out", str(out), "--json"]
    for _ in range(2):  # the second time everything is there
        done = CliRunner().invoke(main, [*ask, "--external", f"mood=http://127.0.0.1:{port}"])
        assert done.exit_code == 0, done.output
        summary = json.loads(done.output.splitlines()[-1])
        assert (summary["rows"], summary["texts"], summary["left_out"]) == (119, 99, {})
        mood_service.kill()
        mood_service = begin()
    mood_service.kill()
    batch = compute(app, pq.read_table(out))
    features = dict(zip(live["event_id"].to_pylist(), live["feature.mood_1h"].to_pylist(), strict=True))
    assert dict(zip(batch["event_id"].to_pylist(), batch["mood_1h"].to_pylist(), strict=True)) == features
