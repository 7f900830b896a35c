"""An embedded Pub/Sub: google.pubsub.v1 over gRPC and REST on loopback, for official clients and for the demo.

names, settings, filters, avro ─> core, schemas, snapshots ─> flow ─> subscription ─> leases, ordering   pure, the clock
                                                                │                                        is an argument
                                                             storage ─> database                         group commit
                                                                │
publisher, subscriber, streams, schema_calls ─> service, desk, commits ─> server                         one event loop
"""

from streaming.broker.server import Broker

__all__ = ["Broker"]
