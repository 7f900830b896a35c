"""An embedded Pub/Sub: google.pubsub.v1 over gRPC on loopback, for official clients and for the demo.

names, settings ─> core ─> subscription ─> leases, ordering      pure state machine, the clock is an argument
                    │
                 storage                                         journal, group commit
                    │
service, desk, commits ─> server                                 gRPC on one event loop
"""

from streaming.broker.server import Broker

__all__ = ["Broker"]
