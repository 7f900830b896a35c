"""The broker's REST API, called as a program without any client library calls it."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared_features.errors import ConfigurationError
from streaming.broker import Broker
from tests.processes import REPOSITORY

TOPIC, JOB = "/v1/projects/p1/topics/events", "/v1/projects/p1/subscriptions/job"
AVRO = '{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}'


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(rest_port=0) as running:
        yield running


@pytest.fixture
def http(broker: Broker) -> Iterator[httpx.Client]:
    """With a topic and a subscription, deleted at the end."""
    with httpx.Client(base_url=f"http://127.0.0.1:{broker.rest_port}", timeout=120) as client:
        assert client.put(TOPIC, json={"labels": {"a": "b"}}).json()["name"] == TOPIC[4:]
        client.put(JOB, json={"topic": TOPIC[4:], "ackDeadlineSeconds": 20}).raise_for_status()
        yield client
        client.delete(JOB)
        client.delete(TOPIC)


def publish(http: httpx.Client, *data: bytes, **more: Any) -> list[str]:
    messages = [{"data": base64.b64encode(one).decode(), **more} for one in data]
    ids: list[str] = http.post(f"{TOPIC}:publish", json={"messages": messages}).raise_for_status().json()["messageIds"]
    return ids


def pull(http: httpx.Client) -> list[Any]:
    answer = http.post(f"{JOB}:pull", json={"maxMessages": 10, "returnImmediately": True}).raise_for_status()
    found: list[Any] = answer.json().get("receivedMessages", [])
    return found


def test_publish_pull_and_acknowledge(http: httpx.Client) -> None:
    ids = publish(http, b"1", b"2", attributes={"colour": "red"})
    got = pull(http)
    assert [one["message"]["messageId"] for one in got] == ids
    assert base64.b64decode(got[1]["message"]["data"]) == b"2"
    assert got[0]["message"]["attributes"] == {"colour": "red"}
    assert got[0]["message"]["publishTime"].endswith("Z")
    assert http.post(f"{JOB}:acknowledge", json={"ackIds": [got[0]["ackId"]]}).json() == {}
    back = {"ackIds": [got[1]["ackId"]], "ackDeadlineSeconds": 0}
    assert http.post(f"{JOB}:modifyAckDeadline", json=back).json() == {}
    assert [one["message"]["messageId"] for one in pull(http)] == ids[1:]


def test_resources_are_shown_changed_and_listed(http: httpx.Client) -> None:
    assert http.get(TOPIC).json() == {"name": TOPIC[4:], "labels": {"a": "b"}, "state": "ACTIVE"}
    changed = {"subscription": {"ackDeadlineSeconds": 44}, "updateMask": "ackDeadlineSeconds"}
    assert http.patch(JOB, json=changed).json()["ackDeadlineSeconds"] == 44
    assert http.get(JOB).json()["messageRetentionDuration"] == "604800s"
    http.put(f"{TOPIC}-2")
    listed = http.get("/v1/projects/p1/topics", params={"pageSize": 1}).json()
    assert [one["name"] for one in listed["topics"]] == [TOPIC[4:]]
    rest = http.get("/v1/projects/p1/topics", params={"pageSize": "1", "pageToken": listed["nextPageToken"]}).json()
    assert [one["name"] for one in rest["topics"]] == [f"{TOPIC[4:]}-2"]
    assert http.get(f"{TOPIC}/subscriptions").json() == {"subscriptions": [JOB[4:]]}
    assert http.delete(f"{TOPIC}-2").json() == {}


def test_seek_and_snapshots(http: httpx.Client) -> None:
    publish(http, b"1")
    snapshot = "/v1/projects/p1/snapshots/before"
    assert http.put(snapshot, json={"subscription": JOB[4:]}).json()["topic"] == TOPIC[4:]
    http.post(f"{JOB}:seek", json={"time": "2100-01-01T00:00:00Z"}).raise_for_status()
    assert pull(http) == []
    http.post(f"{JOB}:seek", json={"snapshot": snapshot[4:]}).raise_for_status()
    assert len(pull(http)) == 1
    assert http.get("/v1/projects/p1/snapshots").json()["snapshots"][0]["name"] == snapshot[4:]
    assert http.delete(snapshot).json() == {}


def test_schemas(http: httpx.Client) -> None:
    schema = "/v1/projects/p1/schemas/event"
    body = {"type": "AVRO", "definition": AVRO}
    made = http.post("/v1/projects/p1/schemas", params={"schemaId": "event"}, json=body).json()
    assert (made["name"], made["type"]) == (schema[4:], "AVRO")
    http.post(f"{schema}:commit", json={"schema": body}).raise_for_status()
    assert len(http.get(f"{schema}:listRevisions").json()["schemas"]) == 2
    assert http.post(f"{schema}:rollback", json={"revisionId": made["revisionId"]}).json()["definition"] == AVRO
    assert http.post("/v1/projects/p1/schemas:validate", json={"schema": body}).json() == {}
    http.delete(f"{schema}@{made['revisionId']}:deleteRevision").raise_for_status()
    settings = {"schema": schema[4:], "encoding": "JSON"}
    http.patch(TOPIC, json={"topic": {"schemaSettings": settings}, "updateMask": "schemaSettings"}).raise_for_status()
    publish(http, b'{"a":"x"}')
    refused = http.post(f"{TOPIC}:publish", json={"messages": [{"data": base64.b64encode(b"x").decode()}]})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"][0]["reason"] == "INVALID_JSON_AVRO_MESSAGE"
    message = {"schema": body, "message": base64.b64encode(b'{"a":1}').decode(), "encoding": "JSON"}
    assert http.post("/v1/projects/p1/schemas:validateMessage", json=message).status_code == 400
    assert http.delete(schema).json() == {}


def test_iam_permits_everything(http: httpx.Client) -> None:
    policy = {"bindings": [{"role": "roles/viewer", "members": ["allUsers"]}]}
    kept = http.post(f"{TOPIC}:setIamPolicy", json={"policy": policy}).json()
    assert kept["bindings"] == policy["bindings"]
    assert http.get(f"{TOPIC}:getIamPolicy").json() == kept
    stale = {"policy": {**policy, "etag": base64.b64encode(b"old").decode()}}
    assert http.post(f"{TOPIC}:setIamPolicy", json=stale).json()["error"]["status"] == "ABORTED"
    asked = {"permissions": ["pubsub.topics.publish"]}
    assert http.post(f"{JOB}:testIamPermissions", json=asked).json() == asked


def test_the_guides_calls_work(http: httpx.Client) -> None:
    answers = []
    for line in (REPOSITORY / "docs" / "broker.md").read_text().splitlines():
        if line.startswith("curl "):
            words = shlex.split(line)
            path = words[words.index("-X") + 2].replace("$api", "/v1/projects/demo")
            body = words[words.index("-d") + 1] if "-d" in words else None
            answers.append(http.request(words[words.index("-X") + 1], path, content=body).raise_for_status().json())
    assert base64.b64decode(answers[-1]["receivedMessages"][0]["message"]["data"]) == b"hello"


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "name"),
    [
        ("GET", "/v1/projects/p1/topics/none", None, 404, "NOT_FOUND"),
        ("PUT", TOPIC, b"{}", 409, "ALREADY_EXISTS"),
        ("PUT", "/v1/projects/p1/topics/1", b"{}", 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b"{", 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b"[]", 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b'{"nope": 1}', 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b'{"messages": [{}]}', 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b"[" * 100_000, 400, "INVALID_ARGUMENT"),
        ("POST", f"{TOPIC}:publish", b" " * 16_000_001, 400, "INVALID_ARGUMENT"),
        ("POST", f"{JOB}:pull", b'{"maxMessages": 0}', 400, "INVALID_ARGUMENT"),
        ("POST", f"{JOB}:strange", b"{}", 404, "NOT_FOUND"),
        ("DELETE", "/v1/projects/p1/topics", None, 404, "NOT_FOUND"),
        ("GET", "/", None, 404, "NOT_FOUND"),
        ("GET", "/v1/projects/p1/topics/..%2F..%2Fetc", None, 404, "NOT_FOUND"),
    ],
)
def test_refusals(http: httpx.Client, verb: str, path: str, body: bytes | None, status: int, name: str) -> None:
    answer = http.request(verb, path, content=body)
    assert (answer.status_code, answer.json()["error"]["status"]) == (status, name)


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"host": "127.0.0.1.evil.example"}, {"origin": "http://evil.example"},
                {"origin": "null"}, {"host": "localhost:1", "origin": "https://localhost.evil.example:1"}]
)  # fmt: skip
def test_a_browser_on_another_site_gets_nothing(http: httpx.Client, headers: dict[str, str]) -> None:
    for verb in ("GET", "PUT", "DELETE", "PATCH", "POST", "OPTIONS", "STRANGE"):
        assert http.request(verb, TOPIC, headers=headers).status_code == 403
    assert http.get(TOPIC, headers={"host": "localhost:8086", "origin": "http://localhost:3000"}).status_code == 200


def test_a_port_in_use_is_said(broker: Broker) -> None:
    other = Broker(rest_port=broker.rest_port)
    with pytest.raises(ConfigurationError, match=f"Port {broker.rest_port} .* cannot be listened on.*--rest-port"):
        other.start()
