"""The live road: topics, broker, streaming job, archive."""
