"""External models: what they say becomes part of the event; what fails is asked again, what is refused is told."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.admission import admit
from batch.verify import verify
from cli import main
from serving.external import Externals, read_addresses
from serving.external_calls import NoAnswerError, TextsRefusedError, transport
from shared_features import App, EventType, External, compute
from shared_features.blocks import block_schema, nest
from shared_features.errors import ConfigurationError, DefinitionError, HistoryError
from shared_features.external import Said, answered, require_answered
from shared_features.plan import make_plan
from streaming.archive import read_commits
from streaming.intake import Intake
from streaming.job import create_topics
from streaming.naming import dead_letters_of
from streaming.topics import Endpoint, Message, OutgoingMessage, Publisher, Subscriber
from tests import serving_models
from tests.faults.jobs import Jobs
from tests.processes import Started, free_port, start, wait_until
from tests.reviews import service
from tests.reviews.app import app, mood, review

Start = Callable[..., Started]
SCHEMA = Path(__file__).parent / "reviews" / "review.avsc"
START_US = 1_700_000_000_000_000


def rows(*texts: str | None, **more: Any) -> pa.RecordBatch:
    """Reviews of one shop, a minute apart."""
    found = [
        {
            "event_type": "review",
            "event_id": f"r{number}",
            "event_time": START_US + number * 60_000_000,
            "review.shop": "s",
            "review.text": text,
            **more,
        }
        for number, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(found, schema=block_schema([review]))


def column(block: pa.RecordBatch, name: str) -> list[Any]:
    values: list[Any] = block.column(f"review.{name}").to_pylist()
    return values


# -- what is said becomes part of the event ---------------------------------------------------------------------


class Model:
    """A model that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, _: External, texts: Sequence[bytes]) -> Said:
        self.asked += texts
        values = np.array([service.mood(text.decode()) for text in texts])
        refused = {index: "no" for index, text in enumerate(texts) if b"REFUSE" in text}
        return Said({"mood": values}, refused)


def test_each_text_is_asked_about_once_and_no_text_is_no_answer() -> None:
    model = Model()
    block, refused = answered(rows("good", None, "bad", "good"), app.event_types, model)
    assert model.asked == [b"good", b"bad"]
    assert column(block, "mood") == [0.75, None, 0.25, 0.75]
    assert column(block, "mood_version") == [3, None, 3, 3]
    assert refused == {}
    again, _ = answered(block, app.event_types, model)
    assert again.equals(block)
    assert len(model.asked) == 2


@pytest.mark.parametrize(
    ("brought", "asked"),
    [
        ({"review.mood": 0.1, "review.mood_version": 3}, False),
        ({"review.mood": 0.1, "review.mood_version": 2}, True),
        ({"review.mood": 0.1}, True),
        ({"review.mood_version": 3}, True),
    ],
)
def test_only_what_this_version_said_counts(brought: dict[str, Any], asked: bool) -> None:
    model = Model()
    block, _ = answered(rows("good", **brought), app.event_types, model)
    assert bool(model.asked) == asked
    assert column(block, "mood") == ([0.75] if asked else [0.1])
    assert column(block, "mood_version") == [3]
    without, _ = answered(rows(None, **brought), app.event_types, model)
    assert column(without, "mood") == [None]


def test_a_refused_row_is_told_and_has_no_version() -> None:
    block, refused = answered(rows("good", "REFUSE", None), app.event_types, Model())
    assert refused == {1: "review.text: no"}
    assert column(block, "mood") == [0.75, None, None]
    assert column(block, "mood_version") == [3, None, None]


def test_bytes_and_their_limit() -> None:
    image = External("mood", 3, of="text", fills={"mood": "s"}, recorded="mood_version", is_base64=True, max_bytes=8)
    event = EventType("review", SCHEMA, time="written_at", external=[image])
    model = Model()
    block, refused = answered(rows("Z29vZA==", "#", "Z29vZGdvb2Q="), {"review": event}, model)
    assert model.asked == [b"good"]
    assert column(block, "mood") == [0.75, None, None]
    assert "got other characters" in refused[1]
    assert "takes 8 bytes at most, got 12" in refused[2]


def test_what_is_no_number_is_refused() -> None:
    def odd(_: External, texts: Sequence[bytes]) -> Said:
        return Said({"mood": np.array([np.nan, np.inf, 1.0])[: len(texts)]}, {})

    block, refused = answered(rows("a", "b", "c"), app.event_types, odd)
    assert column(block, "mood") == [None, None, 1.0]
    assert refused[1] == "review.text: external model 'mood', version 3 says inf for 'mood', which is no finite number"


def test_batch_asks_nobody() -> None:
    with pytest.raises(HistoryError, match=r"1 texts of the history do not carry .* `sameriver ask --app reviews`"):
        admit(make_plan(app), rows("good"))
    with pytest.raises(HistoryError, match="sameriver ask"):
        compute(app, rows("good"))
    recorded, _ = answered(rows("good", "bad"), app.event_types, Model())
    assert require_answered(recorded, app.event_types, "reviews").equals(recorded)
    assert compute(app, recorded).column("mood_1h").to_pylist() == [0.75, 0.5]


def test_the_version_is_in_the_fingerprint_and_the_way_to_it_is_not() -> None:
    def made(**changed: Any) -> str:
        options = {"version": 3, "of": "text", "fills": {"mood": "score"}, "recorded": "mood_version", **changed}
        event = EventType("review", SCHEMA, time="written_at", external=[External("mood", **options)])
        return App("reviews", event_types=[event], predict_on=event, features={"mood": event.mood}).fingerprint

    plain = EventType("review", SCHEMA, time="written_at")
    without = App("reviews", event_types=[plain], predict_on=plain, features={"mood": plain.mood}).fingerprint
    assert len({without, made(), made(version=4), made(fills={"mood": "other"}), made(max_bytes=9)}) == 5
    assert made(timeout_s=5, batch=1, texts_per_s=3) == made()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "a/b"}, "wanted a name of letters"),
        ({"version": 0}, "wanted 1 or more"),
        ({"fills": {}}, "fills no field"),
        ({"fills": {"mood": "x["}}, "wanted the name of an output"),
        ({"fills": {"mod": "s"}}, "names field 'mod', which the schema does not have; did you mean 'mood'?"),
        ({"fills": {"shop": "s"}}, "names 'shop', a string, wanted a double"),
        ({"of": "mood"}, "names 'mood', a double, wanted a string"),
        ({"of": "event_id"}, "which is the event's time or identity"),
        ({"recorded": "mood"}, "names 'mood', a double, wanted a long"),
        ({"timeout_s": 0}, "got timeout_s=0, wanted more than 0"),
        ({"texts_per_s": -1}, "got texts_per_s=-1"),
    ],
)
def test_a_definition_that_cannot_work_is_told(changed: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"model": "mood", "version": 3, "of": "text", "fills": {"mood": "s"}}
    with pytest.raises(DefinitionError, match=re.escape(said)):
        EventType(
            "r", SCHEMA, time="written_at", external=[External(**options | {"recorded": "mood_version"} | changed)]
        )


# -- the service --------------------------------------------------------------------------------------------------


class Served:
    """The service in a thread, and a way to it that waits no time."""

    def __init__(self, port: int = 0, handler: type[service.Handler] | None = None) -> None:
        self.server = service.serve(port, handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.calls: list[int] = self.server.RequestHandlerClass.calls  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Waits:
    """Notes how long is waited, and waits not at all; does something before the first time."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.seconds: list[float] = []
        self._before = before

    def __call__(self, seconds: float) -> bool:
        if not self.seconds:
            self._before()
        self.seconds.append(seconds)
        return False


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.close()


def asking(address: str, external: External = mood, wait: Callable[[float], bool] | None = None) -> Externals:
    event = EventType("review", SCHEMA, time="written_at", external=[external])
    return Externals({"review": event}, {"mood": address}, wait=wait or Waits())


def with_options(**options: Any) -> External:
    said = {"version": 3, "of": "text", "fills": {"mood": "score"}, "recorded": "mood_version", "timeout_s": 0.3}
    return External("mood", **{**said, **options})


def test_texts_are_asked_about_in_batches_and_remembered(served: Served) -> None:
    models = asking(served.address)
    served.calls.clear()
    texts = [f"good {number}".encode() for number in range(20)]
    said = models.ask(mood, texts)
    assert served.calls == [8, 8, 4]
    assert said.values["mood"].tolist() == [0.75] * 20
    assert models.ask(mood, texts[::-1]).values["mood"].tolist() == [0.75] * 20
    assert served.calls == [8, 8, 4]


@pytest.mark.parametrize("word", ["REFUSE", "FAIL", "STALL"])
def test_a_text_that_the_service_cannot_stand_is_refused_alone(served: Served, word: str) -> None:
    external = with_options(batch=4)
    said = asking(served.address, external).ask(external, [b"good", b"bad", f"it {word}".encode(), b"great"])
    assert list(said.refused) == [2]
    assert np.isnan(said.values["mood"]).tolist() == [False, False, True, False]
    wanted = {"REFUSE": "refuses it (400: ", "FAIL": "failed at this one (HTTP status 500", "STALL": "(timed out"}
    assert wanted[word] in said.refused[2]
    assert "\n" not in said.refused[2]


def test_a_service_that_is_away_is_asked_until_it_is_back() -> None:
    port, later = free_port(), list[Served]()
    waits = Waits(before=lambda: later.append(Served(port)))
    models = asking(f"http://127.0.0.1:{port}", wait=waits)
    assert models.ask(mood, [b"good"]).values["mood"].tolist() == [0.75]
    assert len(waits.seconds) == 1
    later[0].close()


def test_a_service_that_asks_for_a_pause_gets_it() -> None:
    class Busy(service.Handler):
        def answer(self, texts: list[str]) -> tuple[int, dict[str, Any]]:
            return (503, {}) if len(self.calls) in (2, 3, 4, 5) else super().answer(texts)

    busy, waits = Served(handler=Busy), Waits()
    models = asking(busy.address, wait=waits)
    assert models.ask(mood, [b"good"]).refused == {}  # four times: no text is blamed for it
    assert [seconds >= 1.0 for seconds in waits.seconds] == [True] * 4
    busy.close()


def test_a_stopped_job_waits_for_nobody() -> None:
    models = asking(f"http://127.0.0.1:{free_port()}", wait=lambda _: True)
    with pytest.raises(ConfigurationError, match=r"told to stop while it waited .* what it had pulled comes again"):
        models.ask(mood, [b"good"])


def test_a_limited_rate(served: Served) -> None:
    external, waits = with_options(texts_per_s=100.0, batch=10), Waits()
    asking(served.address, external, waits).ask(external, [f"{number}".encode() for number in range(30)])
    assert [round(seconds, 1) for seconds in waits.seconds] == [0.1, 0.2]


def test_answers_that_are_none_are_no_answers(served: Served) -> None:
    answers: list[Any] = [b"[", {"predictions": [1.0, 2.0]}, {"predictions": [[1.0], [2.0, 3.0]]}, {"x": 1}]

    class Odd(service.Handler):
        def answer(self, texts: list[str]) -> tuple[int, Any]:  # noqa: ARG002
            return 200, answers[len(self.calls) - 1]

    odd = Served(handler=Odd)
    way = transport(mood, odd.address)
    for _ in answers:
        with pytest.raises(NoAnswerError) as told:
            way.call([b"a", b"b", b"c"])
        assert told.value.by_text
    odd.close()


def test_a_version_that_is_not_there_is_told_at_the_start(served: Served) -> None:
    with pytest.raises(ConfigurationError, match=r"version 4 cannot be asked \(HTTP status 404.*--external"):
        asking(served.address, with_options(version=4))
    with pytest.raises(ConfigurationError, match="version 3 answers, wanted 4"):
        asking(f"{served.address}/score", with_options(version=4))
    assert asking(f"{served.address}/score").ask(mood, [b"bad"]).values["mood"].tolist() == [0.25]


@pytest.mark.parametrize("address", ["mood", "ftp://127.0.0.1:1", "http://", "grpc://u:p@127.0.0.1:1", "http://a:b"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="wanted grpc://HOST:PORT"):
        transport(mood, address)


def test_texts_go_to_other_machines_by_tls_only() -> None:
    for address in ("http://models.example.org/score", "grpc://10.0.0.7:8500"):
        with pytest.raises(ConfigurationError, match="with TLS only"):
            transport(mood, address)
    with pytest.raises(ConfigurationError, match="who is no external model of the app, which has mood"):
        Externals(app.event_types, {"who": "http://127.0.0.1:1"})
    with pytest.raises(ConfigurationError, match="must be NAME=VALUE"):
        read_addresses(["mood"], "--external")


def test_a_model_on_the_model_server_over_grpc(start_process: Start, tmp_path: Path) -> None:
    """TensorFlow's own operations on texts, in the model server, by version."""
    serving_models.put("mood", tmp_path / "mood", 3)
    flags = ["--port=0", "--model_name=mood", f"--model_base_path={tmp_path / 'mood'}"]
    server = start_process(["-m", "serving.server", *flags], ready="listening on 127.0.0.1:")
    address = f"grpc://{server.line.split()[-1]}"
    external = with_options(fills={"mood": "pair[1]"}, timeout_s=10)
    models = asking(address, external)
    said = models.ask(external, [b"good bad great", b"AWFUL", b"no\tmore", "grün".encode()])
    assert said.values["mood"][[0, 1, 3]].tolist() == [3.0, 1.0, 0.0]
    assert list(said.refused) == [2]
    assert "INVALID_ARGUMENT" in said.refused[2]
    models.close()
    with pytest.raises(ConfigurationError, match=r"version 4 cannot be asked .*NOT_FOUND"):
        asking(address, with_options(version=4, timeout_s=10))
    with pytest.raises(ConfigurationError, match=r"it has outputs \['pair', 'score'\], not \['nothing'\]"):
        asking(address, with_options(fills={"mood": "nothing"}, timeout_s=10))
    with pytest.raises(TextsRefusedError):
        transport(external, address).call([b"\t"])


# -- live and in batch --------------------------------------------------------------------------------------------


def messages(texts: Sequence[str | None]) -> list[OutgoingMessage]:
    found = []
    for number, text in enumerate(texts):
        event = {"event_id": f"r{number}", "written_at": START_US + number * 1_000_000, "shop": f"s{number % 3}"}
        found.append(OutgoingMessage(json.dumps({**event, "text": text}).encode(), {"event_type": "review"}))
    return found


def test_a_refused_text_can_come_again(served: Served) -> None:
    """It is refused before duplicates are told: what is mended is no duplicate."""
    models = asking(served.address)
    intake = Intake(app.event_types, ask=models.ask)
    sent = messages(["good", "REFUSE", None])
    pulled = [Message(one.data, one.attributes, f"m{n}", START_US + 10**9, f"a{n}") for n, one in enumerate(sent)]
    taken = intake.take(pulled)
    assert taken.events == 3
    assert taken.block.column("event_id").to_pylist() == ["r0", "r2"]
    assert taken.rows.tolist() == [0, 2]
    assert [(one.index, one.reason) for one in taken.refused] == [(1, "external_refused")]


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

    wait_until(lambda: archived() >= 16, 60, "some reviews are archived")
    mood_service.kill()
    publisher.publish("reviews-events", sent[60:])
    mood_service = begin()

    def all_but_one() -> bool:
        nonlocal mood_service
        if mood_service.process.poll() is not None:  # it has read the text that it cannot stand
            mood_service.kill()
            mood_service = begin()
        return archived() == 119

    wait_until(all_but_one, 90, "all reviews but one are archived")
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
