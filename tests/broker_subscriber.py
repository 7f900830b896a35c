"""``python -m tests.broker_subscriber PORT SUBSCRIPTION``: print what comes, then acknowledge it, until killed."""

from __future__ import annotations

import sys

from streaming.topics import Endpoint, Subscriber


def main(port: str, subscription: str) -> None:
    """Print ``got DATA MESSAGE_ID`` per message."""
    subscriber = Subscriber(Endpoint("p1", f"127.0.0.1:{port}"), subscription, max_messages=200)
    print("ready", flush=True)
    while True:
        messages = subscriber.pull(100, 0.5)
        if messages:
            print("\n".join(f"got {one.data.decode()} {one.message_id}" for one in messages), flush=True)
            subscriber.acknowledge([one.ack_id for one in messages])


if __name__ == "__main__":
    main(*sys.argv[1:])
