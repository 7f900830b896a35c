"""Topics and subscriptions: the same few verbs on Google's Pub/Sub, its emulator and the embedded broker.

Raw gRPC stubs, no client library between: its publisher waits to fill batches and its subscriber runs a pool of
threads and a schedule of leases; the job has its own batches, its own threads and its own rule for acknowledging.

Guaranteed: what `Publisher.publish` returns for is stored by the service; a message is held by this process until
it is acknowledged, released or the subscriber closes. Not guaranteed: that a message comes once, or in order
without an ordering key.
"""

from streaming.topics.endpoint import (
    DEFAULT_PROJECT,
    Endpoint,
    TopicError,
    create_subscription,
    create_topic,
    delete_subscription,
    delete_topic,
)
from streaming.topics.message import Message, OutgoingMessage
from streaming.topics.publisher import Publisher
from streaming.topics.subscriber import Subscriber

__all__ = [
    "DEFAULT_PROJECT",
    "Endpoint",
    "Message",
    "OutgoingMessage",
    "Publisher",
    "Subscriber",
    "TopicError",
    "create_subscription",
    "create_topic",
    "delete_subscription",
    "delete_topic",
]
