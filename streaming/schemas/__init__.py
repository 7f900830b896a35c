"""Avro schemas of the messages that Sameriver publishes; ``docs/messages.md`` explains them."""
