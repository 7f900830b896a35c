"""Settings of topics and subscriptions: checked, completed with the service's defaults, turned into a policy.

What this broker does not do is refused with UNIMPLEMENTED when it is asked for: a setting that is stored but not
applied would make tests pass here that fail on Google's service.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streaming.broker.errors import RefusedError, invalid, too_large, too_small
from streaming.broker.filters import parse
from streaming.broker.names import check_name
from streaming.broker.subscription import Policy

DAY_S = 86_400
DEFAULT_RETENTION_S = 7 * DAY_S
MAX_LABELS = 64
MAX_BACKOFF_S = 600

_TOPIC_FIELDS = {
    "name", "labels", "message_retention_duration", "message_storage_policy", "state", "satisfies_pzs",
    "schema_settings", "kms_key_name",
}  # fmt: skip
_SUBSCRIPTION_FIELDS = {
    "name", "topic", "ack_deadline_seconds", "retain_acked_messages", "message_retention_duration", "labels",
    "enable_message_ordering", "expiration_policy", "dead_letter_policy", "retry_policy", "detached",
    "enable_exactly_once_delivery", "topic_message_retention_duration", "state", "push_config", "filter",
}  # fmt: skip
_FIXED = {"name", "topic", "enable_message_ordering", "filter", "detached", "state"}
_OUTPUT_ONLY = ("state", "satisfies_pzs", "detached", "topic_message_retention_duration")


def complete_topic(topic: Any) -> Any:
    """A Topic as it will be stored.

    Raises:
        RefusedError: INVALID_ARGUMENT or UNIMPLEMENTED.
    """
    check_name(topic.name, "topics")
    _refuse_unsupported(topic, _TOPIC_FIELDS)
    _clear_output(topic)
    check_labels(topic.labels)
    if topic.HasField("message_retention_duration"):
        _seconds("message_retention_duration", topic.message_retention_duration, 600, 31 * DAY_S)
    topic.state = 1  # ACTIVE
    return topic


def complete_subscription(subscription: Any) -> Any:
    """A Subscription as it will be stored, with the service's defaults where nothing was said.

    Raises:
        RefusedError: INVALID_ARGUMENT or UNIMPLEMENTED.
    """
    check_name(subscription.name, "subscriptions")
    _refuse_unsupported(subscription, _SUBSCRIPTION_FIELDS)
    _clear_output(subscription)
    check_labels(subscription.labels)
    if subscription.push_config.push_endpoint:
        raise _unimplemented("push delivery")
    subscription.push_config.SetInParent()  # shown, and empty, wherever messages are pulled
    deadline_s = subscription.ack_deadline_seconds or 10
    _in_range("ack_deadline_seconds", deadline_s, 10, 600)
    subscription.ack_deadline_seconds = deadline_s
    if not subscription.HasField("message_retention_duration"):
        subscription.message_retention_duration.seconds = DEFAULT_RETENTION_S
    _seconds("message_retention_duration", subscription.message_retention_duration, 600, 31 * DAY_S)
    if not subscription.HasField("expiration_policy"):
        subscription.expiration_policy.ttl.seconds = 31 * DAY_S
    elif subscription.expiration_policy.HasField("ttl"):
        _seconds("expiration_policy.ttl", subscription.expiration_policy.ttl, DAY_S, 365 * DAY_S)
    if subscription.HasField("retry_policy"):
        _complete_retry(subscription.retry_policy)
    if subscription.HasField("dead_letter_policy"):
        policy = subscription.dead_letter_policy
        check_name(policy.dead_letter_topic, "topics")
        policy.max_delivery_attempts = policy.max_delivery_attempts or 5
        _in_range("max_delivery_attempts", policy.max_delivery_attempts, 5, 100)
    if subscription.filter:
        parse(subscription.filter)
    subscription.state = 1  # ACTIVE
    return subscription


def policy_of(subscription: Any) -> Policy:
    """What a completed Subscription means for deliveries."""
    retry = subscription.retry_policy
    return Policy(
        ack_deadline_us=subscription.ack_deadline_seconds * 1_000_000,
        retention_us=micros(subscription.message_retention_duration),
        ordered=subscription.enable_message_ordering,
        exactly_once=subscription.enable_exactly_once_delivery,
        min_backoff_us=micros(retry.minimum_backoff) if subscription.HasField("retry_policy") else 0,
        max_backoff_us=micros(retry.maximum_backoff) if subscription.HasField("retry_policy") else 0,
        max_attempts=subscription.dead_letter_policy.max_delivery_attempts
        if subscription.HasField("dead_letter_policy")
        else 0,
    )


def time_to_live_us(subscription: Any) -> int | None:
    """After how long without use a subscription is deleted; None: never."""
    policy = subscription.expiration_policy
    return micros(policy.ttl) if policy.HasField("ttl") else None


def updated(current: Any, wanted: Any, paths: Iterable[str]) -> Any:
    """A copy of `current` with the fields that an update mask names taken from `wanted`.

    Raises:
        RefusedError: INVALID_ARGUMENT for an empty mask, an unknown field or one that cannot change.
    """
    paths = list(paths)
    kind = current.DESCRIPTOR.name
    wrong = f"Invalid update_mask provided in the Update{kind}Request:"
    if not paths:
        raise invalid(
            f"The update_mask in the Update{kind}Request must be set, and must contain a non-empty paths list."
        )
    fields = {field.name for field in current.DESCRIPTOR.fields}
    changed = type(current)()
    changed.CopyFrom(current)
    for path in paths:
        name = path.partition(".")[0]
        if name not in fields:
            raise invalid(
                f"{wrong} {path} is not a known {kind} field. Note that field paths must be of the form "
                "'push_config' rather than 'pushConfig'."
            )
        if name in _FIXED or name in _OUTPUT_ONLY:
            raise invalid(f"{wrong} the {path} field in the {kind} is not mutable.")
        part = type(current)()
        part.CopyFrom(wanted)
        for field in fields - {name}:
            part.ClearField(field)
        changed.ClearField(name)
        changed.MergeFrom(part)
    return changed


def _complete_retry(retry: Any) -> None:
    if not retry.HasField("minimum_backoff"):
        retry.minimum_backoff.seconds = 10
    if not retry.HasField("maximum_backoff"):
        retry.maximum_backoff.seconds = 600
    shortest, longest = retry.minimum_backoff, retry.maximum_backoff
    for name, one in (("minimum_backoff", shortest), ("maximum_backoff", longest)):
        if not 0 <= micros(one) <= MAX_BACKOFF_S * 1_000_000:
            raise invalid(
                f"The value for {name} is out of bounds. You passed {one.ToJsonString()} in the request, but the value "
                f"must be between 0s and {MAX_BACKOFF_S}s."
            )
    if micros(shortest) > micros(longest):
        raise invalid(
            f"The value for maximum_backoff is too small. You passed {longest.ToJsonString()} in the request, but the "
            f"minimum value is {shortest.ToJsonString()}."
        )


def _refuse_unsupported(config: Any, supported: set[str]) -> None:
    for field, _ in config.ListFields():
        if field.name not in supported:
            raise _unimplemented(field.name)


def _unimplemented(what: str) -> RefusedError:
    return RefusedError(
        "UNIMPLEMENTED", f"The embedded broker does not support {what}: leave it out, or use Google's Pub/Sub."
    )


def _clear_output(config: Any) -> None:
    for name in _OUTPUT_ONLY:
        if name in config.DESCRIPTOR.fields_by_name:
            config.ClearField(name)


def check_labels(labels: Any) -> None:
    """INVALID_ARGUMENT for labels that no resource can have."""
    if len(labels) > MAX_LABELS:
        raise too_large("labels", len(labels), MAX_LABELS)
    for key, value in labels.items():
        if not key or len(key) > 63 or len(value) > 63:
            raise invalid(f"Invalid label {key!r}: keys have 1 to 63 characters, values up to 63.")


def _in_range(what: str, value: int, minimum: int, maximum: int) -> None:
    if value < minimum:
        raise too_small(what, value, minimum)
    if value > maximum:
        raise too_large(what, value, maximum)


def _seconds(what: str, duration: Any, minimum: int, maximum: int) -> None:
    if duration.nanos < 0 or duration.seconds < 0:
        raise too_small(what, duration.seconds, minimum)
    _in_range(what, duration.seconds + (duration.nanos > 0 and duration.seconds >= maximum), minimum, maximum)


def micros(duration: Any) -> int:
    """A protobuf Duration in microseconds."""
    return int(duration.seconds * 1_000_000 + duration.nanos // 1000)
