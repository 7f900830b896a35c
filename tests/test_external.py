"""External models: what they say becomes part of the event; what fails is asked again, what is refused is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch.admission import admit
from serving.external import Externals, read_addresses
from serving.external_calls import NoAnswerError, TextsRefusedError, transport
from shared_features import App, EventType, External, compute
from shared_features.blocks import block_schema
from shared_features.errors import ConfigurationError, DefinitionError, HistoryError
from shared_features.external import Said, answered, require_answered
from shared_features.plan import make_plan
from tests import serving_models
from tests.processes import Started, free_port
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
    return Externals({"review": event}, {"mood": address}, wait=wait or Waits(), clock=lambda: 0.0)


def with_options(**options: Any) -> External:
    said = {"version": 3, "of": "text", "fills": {"mood": "score"}, "recorded": "mood_version", "timeout_s": 30}
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
    external = with_options(batch=4, timeout_s=0.5 if word == "STALL" else 30)
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
    external = with_options(fills={"mood": "pair[1]"})
    models = asking(address, external)
    said = models.ask(external, [b"good bad great", b"AWFUL", b"no\tmore", "grün".encode()])
    assert said.values["mood"][[0, 1, 3]].tolist() == [3.0, 1.0, 0.0]
    assert list(said.refused) == [2]
    assert "INVALID_ARGUMENT" in said.refused[2]
    models.close()
    with pytest.raises(ConfigurationError, match=r"version 4 cannot be asked .*NOT_FOUND"):
        asking(address, with_options(version=4))
    with pytest.raises(ConfigurationError, match=r"it has outputs \['pair', 'score'\], not \['nothing'\]"):
        asking(address, with_options(fills={"mood": "nothing"}))
    with pytest.raises(TextsRefusedError):
        transport(external, address).call([b"\t"])
