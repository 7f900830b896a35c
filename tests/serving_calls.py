"""Calls a model server with our own messages, which are the official ones byte for byte (tests/test_wire.py).

As `tests.official_client`, but without the seconds that TensorFlow takes to load.
"""

from __future__ import annotations

import http.client
import json

import grpc
from google.protobuf import json_format, text_format

from serving import wire
from tests.official_client import METHODS, Answer
from tests.processes import PATIENCE_S, Started


def ask(channel: grpc.Channel, method: str, text: str, token: str = "", timeout_s: float = PATIENCE_S) -> Answer:
    """Make one call with a request in text format."""
    name, service = METHODS[method]
    request = text_format.Parse(text, wire.message_class(f"tensorflow.serving.{name}")())
    response_class = wire.message_class(f"tensorflow.serving.{name.replace('Request', 'Response')}")
    call = channel.unary_unary(f"/tensorflow.serving.{service}Service/{method}", None, response_class.FromString)
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    try:
        response = call(request.SerializeToString(), timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        return Answer(error.code().name, error.details() or "", {})
    return Answer("OK", "", json_format.MessageToDict(response, preserving_proto_field_name=True))


def ask_all(target: str, requests: dict[str, tuple[str, str]]) -> dict[str, Answer]:
    """Several, one after the other."""
    with grpc.insecure_channel(target) as channel:
        return {label: ask(channel, method, text) for label, (method, text) in requests.items()}


def rest(server: Started, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Make one call of the REST API; status and text of the answer."""
    connection = http.client.HTTPConnection(server.wait_for_line("REST API on").split()[-1], timeout=120)
    try:
        connection.request(method, f"/v1/models/{path}", None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()
