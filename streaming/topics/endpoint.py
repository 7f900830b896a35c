"""Where topics live, and the calls that make and delete them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.pubsub_v1 import types

from shared_features.errors import ConfigurationError, SameriverError

GOOGLE = "pubsub.googleapis.com:443"
SCOPE = "https://www.googleapis.com/auth/pubsub"
DEFAULT_PROJECT = "sameriver"

RETRYABLE = frozenset(
    grpc.StatusCode[name]
    for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN")
)

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
]


class TopicError(SameriverError):
    """The service refused for good what was asked of a topic or subscription; `code` is the gRPC status code."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where topics live.

    Attributes:
        project: the project's id.
        host_port: an emulator or embedded broker, reached in plain text; None is Google's service with the
            application default credentials.
    """

    project: str = DEFAULT_PROJECT
    host_port: str | None = None

    @classmethod
    def from_environment(cls, project: str | None = None) -> Endpoint:
        """PUBSUB_EMULATOR_HOST and, unless `project` is given, PUBSUB_PROJECT_ID or GOOGLE_CLOUD_PROJECT."""
        named = project or os.environ.get("PUBSUB_PROJECT_ID") or os.environ.get("GOOGLE_CLOUD_PROJECT")
        return cls(named or DEFAULT_PROJECT, os.environ.get("PUBSUB_EMULATOR_HOST") or None)

    def topic(self, name: str) -> str:
        """``projects/P/topics/T``; a full name is returned as it is."""
        return name if name.startswith("projects/") else f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        """``projects/P/subscriptions/S``; a full name is returned as it is."""
        return name if name.startswith("projects/") else f"projects/{self.project}/subscriptions/{name}"

    def channel(self) -> grpc.Channel:
        """A new gRPC channel of its own connection.

        Raises:
            ConfigurationError: Google's service is meant and no credentials are found.
        """
        own_connection = [*_CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if self.host_port is not None:
            return grpc.insecure_channel(self.host_port, options=own_connection)
        import google.auth  # 0.2 s that only Google's service needs
        import google.auth.transport.grpc
        import google.auth.transport.requests

        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise ConfigurationError(
                "Google's Pub/Sub needs application default credentials and none were found: run `gcloud auth "
                "application-default login`, or point PUBSUB_EMULATOR_HOST at a broker."
            ) from error
        request = google.auth.transport.requests.Request()
        made: grpc.Channel = google.auth.transport.grpc.secure_authorized_channel(
            credentials, request, GOOGLE, options=own_connection
        )
        return made

    def __str__(self) -> str:
        return f"project {self.project} at {self.host_port or GOOGLE}"


# Resources.


def create_topic(endpoint: Endpoint, topic: str, *, deadline_s: float = 60.0) -> None:
    """Make a topic; nothing happens if it exists."""
    config = types.Topic.pb()(name=endpoint.topic(topic))
    _admin(endpoint, "Publisher/CreateTopic", config, deadline_s, accept=grpc.StatusCode.ALREADY_EXISTS)


def create_subscription(
    endpoint: Endpoint,
    subscription: str,
    topic: str,
    *,
    ack_deadline_s: int = 60,
    ordered: bool = False,
    deadline_s: float = 60.0,
) -> None:
    """Make a subscription that receives what is published from now on; nothing happens if it exists."""
    config = types.Subscription.pb()(
        name=endpoint.subscription(subscription),
        topic=endpoint.topic(topic),
        ack_deadline_seconds=ack_deadline_s,
        enable_message_ordering=ordered,
    )
    config.expiration_policy.SetInParent()  # no time to live: never expires
    _admin(endpoint, "Subscriber/CreateSubscription", config, deadline_s, accept=grpc.StatusCode.ALREADY_EXISTS)


def seek(endpoint: Endpoint, subscription: str, time_us: int, *, deadline_s: float = 60.0) -> None:
    """Send a subscription to a publish time: what was published before counts as acknowledged, the rest comes (again).

    Args:
        time_us: microseconds since 1970. What was acknowledged comes again only where the subscription retains it.
    """
    request = types.SeekRequest.pb()(subscription=endpoint.subscription(subscription))
    request.time.FromMicroseconds(time_us)
    _admin(endpoint, "Subscriber/Seek", request, deadline_s, accept=grpc.StatusCode.OK)


def subscription_exists(endpoint: Endpoint, subscription: str, *, deadline_s: float = 60.0) -> bool:
    """Whether there is such a subscription."""
    channel = endpoint.channel()
    try:
        call = stub(channel, "Subscriber/GetSubscription")
        name = endpoint.subscription(subscription)
        data = types.GetSubscriptionRequest.pb()(subscription=name).SerializeToString()
        what, missing = f"GetSubscription of {name}", grpc.StatusCode.NOT_FOUND
        return retrying(lambda left_s: call(data, timeout=left_s), deadline_s, endpoint, what, missing) is not None
    finally:
        channel.close()


def delete_topic(endpoint: Endpoint, topic: str, *, deadline_s: float = 60.0) -> None:
    """Delete a topic; nothing happens if there is none."""
    request = types.DeleteTopicRequest.pb()(topic=endpoint.topic(topic))
    _admin(endpoint, "Publisher/DeleteTopic", request, deadline_s, accept=grpc.StatusCode.NOT_FOUND)


def delete_subscription(endpoint: Endpoint, subscription: str, *, deadline_s: float = 60.0) -> None:
    """Delete a subscription; nothing happens if there is none."""
    request = types.DeleteSubscriptionRequest.pb()(subscription=endpoint.subscription(subscription))
    _admin(endpoint, "Subscriber/DeleteSubscription", request, deadline_s, accept=grpc.StatusCode.NOT_FOUND)


def _admin(endpoint: Endpoint, method: str, request: Any, deadline_s: float, accept: grpc.StatusCode) -> None:
    channel = endpoint.channel()
    try:
        call = stub(channel, method)
        data = request.SerializeToString()
        name = next(value for _, value in request.ListFields() if isinstance(value, str))
        retrying(lambda left_s: call(data, timeout=left_s), deadline_s, endpoint, f"{method} of {name}", accept)
    finally:
        channel.close()


def stub(channel: grpc.Channel, method: str) -> Any:
    """A unary call that sends and receives bytes."""
    return channel.unary_unary(f"/google.pubsub.v1.{method}", None, None)


def retrying(
    call: Callable[[float], Any],
    deadline_s: float,
    endpoint: Endpoint,
    what: str,
    accept: grpc.StatusCode | None = None,
) -> Any:
    """Call until it succeeds or is refused for good; waits between 50 ms and 2 s, with jitter.

    Raises:
        TopicError: refused, or not reached within `deadline_s`.
    """
    until = time.monotonic() + deadline_s
    pause_s = 0.05
    while True:
        try:
            return call(min(30.0, max(0.001, until - time.monotonic())))
        except grpc.RpcError as error:
            code = error.code()
            if accept is not None and code == accept:
                return None
            if code not in RETRYABLE or time.monotonic() + pause_s > until:
                raise TopicError(f"{what} failed for {endpoint}: {code.name}, {error.details()}", code) from error
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        pause_s = min(2.0, pause_s * 2)
