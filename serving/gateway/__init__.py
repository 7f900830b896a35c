"""A REST API for events: one raw event in, its prediction and reactions out, from any language.

`desk` takes requests and answers them, `intake` reads and validates bodies, `memory` matches what the streaming job
publishes to what was asked, `reactions` knows which reactions are still to come, `web` speaks HTTP and `server` runs
it. Topics are passed in (`ports`): nothing here knows Pub/Sub or the streaming job.
"""
