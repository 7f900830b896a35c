"""The gateway's answers: events validated, published once, matched with what the job says of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from serving.gateway import web as gateway_web
from serving.gateway.desk import DeskSettings
from serving.gateway.openapi import EXAMPLE_TIME, example
from serving.gateway.ports import OutgoingEvent
from shared_features import App, Reaction, Rule, prediction
from shared_features.decode import Decoder
from tests.gateway_kit import (
    SHOP,
    Running,
    prediction_of,
    reaction_of,
    refusal_of,
    running,
    wait_for_events,
)
from tests.processes import wait_until

SALE = {"event_id": "s1", "sold_at": EXAMPLE_TIME, "shop": "a", "amount": 9.0}


@pytest.fixture
def gateway() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def quiet() -> Iterator[Running]:
    """One for all requests that are refused."""
    with running() as started:
        yield started


def test_a_raw_event_comes_back_with_prediction_and_reaction(gateway: Running) -> None:
    answer = gateway.post({"shop": "a", "amount": 9.0, "colour": "red"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["outputs"], body["model"]) == ("predicted", {"probability": 1.0}, "big_sale")
    assert body["reactions"] == [{"reaction": "praise", "reaction_id": "ab" * 16, "payload": {"amount": 9.0}}]
    assert body["reactions_complete"] is True
    assert body["ignored_fields"] == ["colour"]
    (event,) = gateway.topics.published
    sent = orjson.loads(event.data)
    assert event.attributes == {"event_type": "sale", "event_id": body["event_id"]}
    assert sorted(sent) == ["amount", "event_id", "shop", "sold_at"]  # identity and time were filled in
    assert gateway.client.get(body["ask_again"]).json()["prediction_id"] == body["prediction_id"]
    assert gateway.client.get(f"/v1/predictions/{body['prediction_id']}").json()["event_id"] == body["event_id"]


def test_the_trace_of_a_request_goes_on_with_its_events(gateway: Running) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    gateway.post([SALE, {**SALE, "event_id": "s2"}], headers={"traceparent": parent})
    assert [event.attributes["traceparent"] for event in gateway.topics.published] == [parent, parent]
    for nonsense in ("", "00-1-2-3", parent.upper(), f"{parent}-more", "x" * 2_000):
        gateway.post({**SALE, "event_id": f"s{len(nonsense)}{nonsense[-1:]}"}, headers={"traceparent": nonsense})
    assert len(gateway.topics.published) == 7
    assert all("traceparent" not in event.attributes for event in gateway.topics.published[2:])


def test_the_same_identity_twice_is_published_once_and_answered_alike(gateway: Running) -> None:
    first, again = gateway.post(SALE), gateway.post({**SALE, "amount": 1.0})
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    both = gateway.post([{**SALE, "event_id": "s2"}, {**SALE, "event_id": "s2"}]).json()
    assert both[0] == both[1]
    assert len(gateway.topics.published) == 2


def test_retries_while_the_first_one_is_on_its_way_wait_for_the_same_answer(gateway: Running) -> None:
    gateway.topics.hold.clear()
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(gateway.post(SALE).json())) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: gateway.desk.in_flight == 5, what="five requests")
    gateway.topics.hold.set()
    for thread in threads:
        thread.join(120)
    assert len(gateway.topics.published) == 1
    assert [answer["status"] for answer in answers] == ["predicted"] * 5


def test_what_does_not_come_in_time_is_asked_for_again(gateway: Running) -> None:
    gateway.topics.react = None
    answer = gateway.post(SALE, wait_s=0)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    place = answer.headers["location"]
    assert place == answer.json()["ask_again"]
    assert gateway.client.get(place).status_code == 202
    assert gateway.post(SALE, wait_s=0).headers["location"] == place  # and is not published again
    (event,) = gateway.topics.published
    late = prediction_of(event, 1.0, reactions=("praise",))
    gateway.topics.arrived([late])
    asked = gateway.client.get(place)  # the reaction is still to come, and that is known
    assert (asked.status_code, asked.json()["reactions_complete"]) == (202, False)
    threading.Timer(0.05, gateway.topics.arrived, [[reaction_of(late)]]).start()
    asked = gateway.client.get(f"{place}?wait_s=30")
    assert (asked.status_code, len(asked.json()["reactions"])) == (200, 1)


def test_a_reaction_may_come_before_its_prediction(gateway: Running) -> None:
    def backwards(event: OutgoingEvent) -> list[Any]:
        known = prediction_of(event, 1.0)
        return [reaction_of(known), known]

    gateway.topics.react = backwards
    assert len(gateway.post(SALE).json()["reactions"]) == 1


def test_a_list_is_taken_whole_or_not_at_all_and_each_fault_names_its_field(gateway: Running) -> None:
    good = [{**SALE, "event_id": "a"}, {"event_type": "visit", "shop": "a", "length": 3.0}]
    answer = gateway.post(good)
    assert [one["status"] for one in answer.json()] == ["predicted", "accepted"]
    bad = [*good, {"amount": "9"}, {"event_type": "visit", "entered_at": "noon"}, {"till": 2.5}, {"sold_at": -1}]
    answer = gateway.post(bad)
    assert answer.status_code == 422
    assert [(one["index"], one["field"], one["reason"]) for one in answer.json()["errors"]] == [
        (2, "amount", "wrong_type"),
        (3, "entered_at", "wrong_type"),
        (4, "till", "wrong_type"),
        (5, "sold_at", "timestamp_out_of_range"),
    ]
    assert answer.json()["error"] == "sale.amount must be a number, got '9'."
    assert len(gateway.topics.published) == 2


@pytest.mark.parametrize(
    ("body", "status", "reason", "said"),
    [
        (b"", 400, "malformed_json", "no JSON"),
        (b"{", 400, "malformed_json", "no JSON"),
        (b'{"amount": NaN}', 400, "not_finite", "finite, got 'NaN'"),
        (b'{"amount": 1e999}', 400, "not_finite", "finite"),
        (b"[" * 100_000, 400, "malformed_json", "nested 64 deep at most"),
        (b'{"kind": ' * 70 + b"1" + b"}" * 70, 400, "malformed_json", "nested 64 deep"),
        (b"3", 422, "wrong_type", "an event or a list of events, got int"),
        (b"[]", 422, "wrong_type", "at least one"),
        (b"[3]", 422, "wrong_type", "must be a JSON object, got int"),
        (b'{"event_type": "theft"}', 422, "unknown_event_type", "one of sale, visit, got 'theft'"),
        (b'{"event_id": ""}', 422, "missing_event_id", "1 to 1,024 bytes"),
        (b'{"event_id": 7}', 422, "wrong_type", "sale.event_id must be a string"),
        (b'{"event_id": "%s"}' % (b"x" * 1025), 422, "out_of_range", "at most 1024 bytes"),
        (b'{"units": 99999999999999999999}', 422, "out_of_range", "must fit 64 bits"),
    ],
)
def test_every_refusal_says_why(quiet: Running, body: bytes, status: int, reason: str, said: str) -> None:
    answer = quiet.post(body)
    assert (answer.status_code, answer.json()["errors"][0]["reason"]) == (status, reason)
    assert said in answer.json()["error"]
    assert quiet.topics.published == []


def test_a_refusal_by_the_job_is_told_and_mended_data_is_published_again(gateway: Running) -> None:
    gateway.topics.react = lambda event: [
        refusal_of(event, "0" * 64),  # another message of this identity: not ours
        refusal_of(event, hashlib.sha256(event.data).hexdigest()),
    ]
    for _ in range(2):  # known the second time
        answer = gateway.post(SALE)
        assert (answer.status_code, answer.json()["errors"][0]["reason"]) == (422, "beyond_horizon")
    assert len(gateway.topics.published) == 1
    gateway.topics.react = lambda event: [prediction_of(event, 0.0)]
    assert gateway.post({**SALE, "amount": 1.0}).json()["status"] == "predicted"
    assert len(gateway.topics.published) == 2


def test_what_the_topic_does_not_take_is_not_pretended_to_be_stored(gateway: Running) -> None:
    gateway.topics.refuse = "UNAVAILABLE"
    answer = gateway.post(SALE, wait_s=0)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "was not published: UNAVAILABLE" in answer.json()["error"]
    gateway.topics.refuse = ""
    assert gateway.post(SALE).status_code == 200


def test_too_much_is_turned_away_and_the_rest_is_served() -> None:
    with running(settings=DeskSettings(max_in_flight=3)) as gateway:
        gateway.topics.hold.clear()
        waiting = threading.Thread(target=gateway.post, args=([{"amount": 1.0}] * 3,))
        waiting.start()
        wait_until(lambda: gateway.desk.in_flight == 3, what="three events")
        answer = gateway.post(SALE)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        gateway.topics.hold.set()
        waiting.join(120)
        assert gateway.post(SALE).status_code == 200
        assert gateway.post([{"amount": 1.0}] * 1_001).status_code == 422


def test_bodies_that_are_too_much_together_are_turned_away(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_web, "ALL_BODIES_BYTES", 1_000)
    assert gateway.post(b" " * 1_001).status_code == 429
    for _ in range(20):  # what was counted is let go, whatever came of it
        assert gateway.post(b" " * 900).status_code == 400
    assert gateway.post(SALE).status_code == 200


def test_the_oldest_are_forgotten_and_that_is_said() -> None:
    with running(settings=DeskSettings(remember=10)) as gateway:
        first = gateway.post(SALE).json()
        for number in range(12):
            gateway.post({**SALE, "event_id": f"n{number}"})
        assert len(gateway.desk.memory) == 10
        for name in (first["ask_again"], f"/v1/predictions/{first['prediction_id']}"):
            answer = gateway.client.get(name)
            assert answer.status_code == 404
            assert "remembers the latest 10 events" in answer.json()["error"]


def test_predictions_on_events_of_others_are_known_too(gateway: Running) -> None:
    """Another gateway's, or of a client of the topic: asked for by identity, it is not published again."""
    elsewhere = OutgoingEvent(orjson.dumps(SALE), {"event_type": "sale", "event_id": "s1"})
    gateway.topics.arrived([prediction_of(elsewhere, 0.25, version=7)])
    answer = gateway.post(SALE)
    assert (answer.status_code, answer.json()["model_version"]) == (200, 7)
    assert answer.json()["reactions_complete"] is True
    assert gateway.topics.published == []
    gateway.topics.arrived([prediction_of(elsewhere, 0.5, version=8)])  # promoted meanwhile: the newest counts
    wait_until(lambda: gateway.post(SALE).json()["model_version"] == 8, what="the newer prediction")


def test_several_models_answer_together_and_the_first_one_leads() -> None:
    sale = SHOP.event_types["sale"]
    rules = [Rule(name, sale.amount > limit) for name, limit in (("big_sale", 2.0), ("huge_sale", 9.0))]
    app = App(
        name="shop", event_types=[sale], predict_on=sale, features={"amount": sale.amount}, models=rules,
        reactions=[Reaction("praise", when=prediction() > 0.5)],
    )  # fmt: skip
    with running(app) as gateway:

        def react(event: OutgoingEvent) -> list[Any]:
            first = prediction_of(event, 1.0, reactions=("praise",))
            return [prediction_of(event, 0.0, model="huge_sale"), reaction_of(first), first]

        gateway.topics.react = react
        answer = gateway.post({"amount": 5.0}).json()
        assert (answer["model"], answer["reactions_complete"]) == ("big_sale", True)
        both = [(one["model"], one["outputs"]["probability"]) for one in answer["predictions"]]
        assert both == [("big_sale", 1.0), ("huge_sale", 0.0)]
        gateway.topics.react = lambda event: react(event)[1:]  # one of the two is still to come
        assert gateway.post({"amount": 6.0}, wait_s=0.01).status_code == 202


def test_the_description_has_the_apps_own_schema_and_an_example_that_works(gateway: Running) -> None:
    described = gateway.client.get("/openapi.json").json()
    assert described["info"]["version"] == "1.2.3"
    event = described["components"]["schemas"]["Event_sale"]
    assert sorted(event["properties"]) == sorted([*SHOP.event_types["sale"].fields, "event_type"])
    assert event["required"] == []  # identity and time are filled in, all else may be missing
    assert described["components"]["schemas"]["Event_visit"]["required"] == ["event_type"]
    examples = described["paths"]["/v1/apps/shop/events"]["post"]["requestBody"]["content"]["application/json"]
    for name, given in examples["examples"].items():
        answer = gateway.post(given["value"])
        assert (answer.status_code, answer.json()["event_type"]) == (200, name)
    page = gateway.client.get("/docs")
    assert "curl http://127.0.0.1" in page.text
    assert "price, euro" in page.text
    assert "<script" not in page.text
    assert [part for part in page.text.split('"') if part.startswith(("http:", "https:", "//"))] == []


def test_examples_are_valid_for_every_type_of_field() -> None:
    from tests.sample_events import SCHEMAS, Message

    decoder = Decoder(SCHEMAS, max_future_s=1e12)
    for name, schema in SCHEMAS.items():
        message = Message(orjson.dumps(example(schema)), {"event_type": name}, "1", 1)
        assert decoder.decode([message]).rejected == []


def test_ready_means_that_events_can_be_taken(gateway: Running) -> None:
    assert gateway.client.get("/healthz").json() == {"status": "ok"}
    assert gateway.client.get("/readyz").json()["status"] == "ready"
    gateway.topics.trouble = "nothing is received any more"
    answer = gateway.client.get("/readyz")
    assert (answer.status_code, answer.json()["why"]) == (503, "nothing is received any more")
    wait_for_events(gateway.topics, 0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/apps/shop/events", 405),
        ("POST", "/v1/apps/other/events", 404),
        ("POST", "/v1/apps/..%2f..%2fshop/events", 404),
        ("GET", "/v1/predictions/..%2f..%2fetc%2fpasswd", 404),
        ("GET", f"/v1/predictions/{'A' * 32}", 404),
        ("GET", f"/v1/predictions/{'a' * 4096}", 404),
        ("POST", "/v1/apps/shop/events?wait_s=never", 422),
        ("POST", "/v1/apps/shop/events?wait_s=1e9", 422),
        ("POST", "/v1/apps/shop/events?wait_s=nan", 422),
        ("DELETE", "/v1/predictions/aa", 405),
    ],
)
def test_other_addresses_are_refused_in_json(quiet: Running, method: str, path: str, status: int) -> None:
    answer = quiet.client.request(method, path, content=b"{}" if method == "POST" else None)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
