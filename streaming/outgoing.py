"""What goes out for a committed block: a pure function of it, so that a restart publishes the same again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App, Reaction
from shared_features.columns import Evaluator, is_one_of
from shared_features.encode import EventMessage, rows_to_messages
from shared_features.errors import EventError
from streaming import results
from streaming.dead_letters import DeadLetter
from streaming.event_blocks import row_as_event
from streaming.messages import columns_under, prediction_ids, prediction_messages, reaction_messages
from streaming.naming import topic
from streaming.prediction_blocks import prediction_block_messages
from streaming.topics import Message, OutgoingMessage


def outgoing(
    app: App, block: pa.RecordBatch, *, with_features: bool, as_blocks: bool = False
) -> dict[str, list[OutgoingMessage]]:
    """Topic to messages: the predictions (or recorded features) and the reactions of an archived block.

    Args:
        block: rows after `streaming.results.with_results`.
        with_features: whether prediction messages carry the features; recorded ones always do.
        as_blocks: predictions go as blocks, not one by one; reactions always go one by one.
    """
    ended = is_one_of(block.column("outcome"), results.PREDICTED, results.RECORDED)
    if not ended.any():
        return {}
    dropped = _not_needed(app, block, with_features=with_features)
    done = block.select([name for name in block.schema.names if name not in dropped])
    done = done if ended.all() else done.filter(pa.array(ended))
    keys = _keys(app, done)
    fired = {
        reaction.name: done.column(f"reaction.{reaction.name}")
        for reaction in app.reactions
        if f"reaction.{reaction.name}" in done.schema.names
    }
    make = prediction_block_messages if as_blocks else prediction_messages
    predictions: list[OutgoingMessage] = []
    sent = {topic(app.name, "predictions"): predictions}
    all_ids: list[pa.StringArray] = []
    for name in [model.name for model in results.models_of(app, done)] or [""]:
        versions = done.column(f"version.{name}") if name else 0
        ids = prediction_ids(done, app=app.name, fingerprint=app.fingerprint, model=name, model_version=versions)
        predictions += make(
            done,
            ids,
            app=app.name,
            fingerprint=app.fingerprint,
            keys=keys,
            model=name,
            model_version=versions,
            reactions={} if all_ids else fired,
            with_features=with_features or not name,
        )
        all_ids.append(ids)
    for reaction in app.reactions:
        if reaction.name not in fired or not fired[reaction.name].true_count:
            continue
        rows = pc.indices_nonzero(fired[reaction.name])
        told = done.take(rows)
        sent[topic(app.name, f"reaction-{reaction.name}")] = reaction_messages(
            told,
            all_ids[0].take(rows).to_pylist(),
            app=app.name,
            reaction=reaction.name,
            keys={key: values.take(rows) for key, values in keys.items()},
            payload=_payload(app, reaction, told),
        )
    return sent


def _payload(app: App, reaction: Reaction, done: pa.RecordBatch) -> dict[str, pa.Array]:
    """What a reaction's messages say, of each row."""
    evaluator = results.feature_evaluator(app, done)
    payload = {field: evaluator.array(value) for field, value in reaction.payload.items()}
    payload = payload or columns_under(done, f"prediction.{app.models[0].name}.")
    started = f"started.{reaction.name}"
    return payload | ({"started": done.column(started)} if started in done.schema.names else {})


def _not_needed(app: App, block: pa.RecordBatch, *, with_features: bool) -> set[str]:
    """Columns that no message is made of: they are many, and filtering them all costs more than the rest."""
    others = tuple(f"{name}." for name in app.event_types if name != app.predict_on.name)
    dropped = {name for name in block.schema.names if name.startswith(others)}
    recorded = is_one_of(block.column("outcome"), results.RECORDED)
    if not with_features and not recorded.any():
        dropped |= {f"feature.{name}" for name in app.features if name not in app.told_features}
    return dropped


def _keys(app: App, block: pa.RecordBatch) -> dict[str, pa.Array]:
    """The value of every key on each row."""
    evaluator = Evaluator(block)
    return {key.name: evaluator.array(key.fields[app.predict_on.name]) for key in app.all_keys}


def dead_letter(app: App, message: Message, reason: str, detail: str) -> list[OutgoingMessage]:
    """A received message for the dead-letter topic."""
    return DeadLetter.of(message, reason, detail, app=app.name).messages()


def dead_letter_of_row(app: App, block: pa.RecordBatch, row: int) -> list[OutgoingMessage]:
    """An archived row that the model refused: its message was acknowledged or comes no more."""
    return row_letter(app, block, row, results.FAILED, block.column("failure")[row].as_py() or "")


def row_letter(app: App, block: pa.RecordBatch, row: int, reason: str, detail: str) -> list[OutgoingMessage]:
    """A row for the dead-letter topic, its event encoded anew."""
    one = block.slice(row, 1)
    try:
        event = rows_to_messages(one, app.event_types)[0]
    except EventError:  # a block can bring what the schema's own unit cannot hold, such as microseconds
        schema = app.event_types[one.column("event_type")[0].as_py()]
        own = {} if schema.id else {"event_id": one.column("event_id")[0].as_py()}
        event = EventMessage(row_as_event(schema, one, 0), {"event_type": schema.name, **own})
    published = one.column("publish_time").cast(pa.int64())[0].as_py() or 0
    message = Message(event.data, event.attributes, one.column("message_id")[0].as_py() or "", published)
    return dead_letter(app, message, reason, detail)
