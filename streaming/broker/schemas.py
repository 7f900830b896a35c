"""Schemas and their revisions, and whether what is published to a topic fits its schema.

Avro only: a Protocol Buffer schema is refused with UNIMPLEMENTED, as by Google's emulator.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streaming.broker.avro import Avro, MismatchError
from streaming.broker.errors import RefusedError, already_exists, invalid, not_found
from streaming.broker.messages import Schema, SchemaRevisions
from streaming.broker.names import DELETED_SCHEMA, check_name, check_project
from streaming.broker.storage import Resource

if TYPE_CHECKING:
    from streaming.broker.core import Core

AVRO, PROTOCOL_BUFFER = 2, 1
BASIC, FULL = 1, 2
JSON, BINARY = 1, 2
ENCODINGS = {JSON: "JSON", BINARY: "BINARY"}
MAX_REVISIONS = 20


@dataclass(slots=True)
class _Known:
    """One schema: its revisions from the oldest on, and each parsed."""

    uid: int
    revisions: list[Any]
    parsed: dict[str, Avro] = field(default_factory=dict)

    def avro(self, revision: Any) -> Avro:
        found = self.parsed.get(revision.revision_id)
        if found is None:
            found = self.parsed[revision.revision_id] = parse(revision)
        return found


def parse(schema: Any) -> Avro:
    """The schema that a Schema message defines.

    Raises:
        RefusedError: INVALID_ARGUMENT, or UNIMPLEMENTED for protocol buffers.
    """
    if schema.type_ == PROTOCOL_BUFFER:
        raise RefusedError(
            "UNIMPLEMENTED",
            "The embedded broker does not support Protocol Buffer schemas: use Avro, or Google's Pub/Sub.",
        )
    if schema.type_ != AVRO:
        raise invalid("Invalid schema type: wanted AVRO.")
    try:
        return Avro(schema.definition)
    except MismatchError as error:
        raise invalid(f"Invalid schema definition: {error}.") from None


class Schemas:
    """The schemas of one broker."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[str, _Known] = {}

    def create(self, parent: str, schema_id: str, schema: Any) -> Any:
        check_project(parent)
        name = check_name(f"{parent}/schemas/{schema_id or f'schema-{secrets.token_hex(8)}'}", "schemas")
        if name in self._known:
            raise already_exists(name)
        parse(schema)
        self._known[name] = _Known(self._core.new_id(), [])
        return self._revise(name, schema.type_, schema.definition)

    def recovered(self, uid: int, config: bytes) -> None:
        """Take over what the storage had."""
        revisions: Any = SchemaRevisions.FromString(config)
        self._known[revisions.schemas[0].name] = _Known(uid, list(revisions.schemas))

    def get(self, name: str, view: int = FULL) -> Any:
        """A schema's newest revision, or the one that ``name@revision`` names."""
        known, revision_id = self._named(name)
        return _view(_revision(known, revision_id) if revision_id else known.revisions[-1], view or FULL)

    def of_project(self, parent: str, view: int) -> dict[str, Any]:
        """The newest revision of each schema, by name."""
        prefix = f"{check_project(parent)}/"
        return {
            name: _view(known.revisions[-1], view or BASIC)
            for name, known in self._known.items()
            if name.startswith(prefix)
        }

    def revisions(self, name: str, view: int) -> list[Any]:
        """All revisions of a schema, the oldest first."""
        return [_view(one, view or BASIC) for one in self._named(name)[0].revisions]

    def commit(self, name: str, schema: Any) -> Any:
        """Add a revision."""
        known, _ = self._named(name)
        if schema.name and schema.name != name:
            raise invalid(f"The schema's name {schema.name} is not the name of the request, {name}.")
        parse(schema)
        if schema.type_ != known.revisions[-1].type_:
            raise invalid("A revision cannot change the type of its schema.")
        return self._revise(name, schema.type_, schema.definition)

    def rollback(self, name: str, revision_id: str) -> Any:
        """Add a revision with the definition of an earlier one."""
        known, _ = self._named(name)
        if not revision_id:
            raise invalid("The request names no revision_id to go back to.")
        earlier = _revision(known, revision_id)
        return self._revise(name, earlier.type_, earlier.definition)

    def delete(self, name: str) -> None:
        """Delete a schema; topics that are bound to it take no more messages until they are changed."""
        known, _ = self._named(name)
        del self._known[name]
        self._core.storage.resource_gone(known.uid)
        for topic in self._core.topics.values():
            if topic.config.schema_settings.schema == name:
                topic.config.schema_settings.schema = DELETED_SCHEMA
                config = topic.config.SerializeToString()
                self._core.storage.resource(Resource("topic", topic.uid, 0, config))

    def delete_revision(self, name: str, revision_id: str) -> Any:
        known, in_name = self._named(name)
        gone = _revision(known, in_name or revision_id)
        if len(known.revisions) == 1:
            raise invalid("The last revision of a schema cannot be deleted: delete the schema.")
        known.revisions.remove(gone)
        self._store(known)
        return gone

    def check_message(self, name: str, schema: Any, message: bytes, encoding: int) -> None:
        """Whether a message fits a schema: an inline one, or the one of this name.

        Raises:
            RefusedError: INVALID_ARGUMENT, NOT_FOUND.
        """
        if encoding not in ENCODINGS:
            raise invalid("No encoding provided: wanted JSON or BINARY.")
        if name:
            known, revision_id = self._named(name)
            revision = _revision(known, revision_id) if revision_id else known.revisions[-1]
            avro = known.avro(revision)
        else:
            avro = parse(schema)
        try:
            _check(avro, message, encoding)
        except MismatchError as error:
            raise _refusal(encoding, str(error)) from None

    # Topics.

    def check_settings(self, topic: Any) -> None:
        """Whether a topic's schema settings can be applied."""
        if not topic.HasField("schema_settings"):
            return
        settings = topic.schema_settings
        known, _ = self._named(settings.schema)
        if settings.encoding not in ENCODINGS:
            raise invalid("Invalid schema encoding provided: wanted JSON or BINARY.")
        ids = [one.revision_id for one in known.revisions]
        for revision_id in (settings.first_revision_id, settings.last_revision_id):
            if revision_id and revision_id not in ids:
                raise not_found(f"{settings.schema}@{revision_id}")
        first, last = settings.first_revision_id, settings.last_revision_id
        if first and last and ids.index(first) > ids.index(last):
            raise invalid("first_revision_id is newer than last_revision_id.")

    def check_messages(self, settings: Any, messages: Sequence[Any]) -> None:
        """Check every message of a request, and set the attributes that tell which revision each fits.

        Raises:
            RefusedError: INVALID_ARGUMENT if one of them fits no revision that the topic allows.
        """
        known = self._known.get(settings.schema)
        if known is None:
            raise RefusedError("NOT_FOUND", "Schema associated with topic deleted.")
        allowed = list(_allowed(known, settings))
        for message in messages:
            revision_id = _fitting(known, allowed, message.data, settings)
            message.attributes["googclient_schemaencoding"] = ENCODINGS[settings.encoding]
            message.attributes["googclient_schemaname"] = settings.schema
            message.attributes["googclient_schemarevisionid"] = revision_id

    # Steps inside.

    def _named(self, name: str) -> tuple[_Known, str]:
        """A schema, and the revision id behind its name ("" if there is none)."""
        bare, _, revision_id = name.partition("@")
        found = self._known.get(bare)
        if found is None:
            raise not_found(check_name(bare, "schemas"))
        return found, revision_id

    def _revise(self, name: str, kind: int, definition: str) -> Any:
        known = self._known[name]
        if len(known.revisions) >= MAX_REVISIONS:
            raise RefusedError(
                "FAILED_PRECONDITION", f"A schema has at most {MAX_REVISIONS} revisions: delete one that is not used."
            )
        made: Any = Schema(name=name, type_=kind, definition=definition, revision_id=secrets.token_hex(4))
        made.revision_create_time.FromMicroseconds(self._core.clock.wall_us())
        known.revisions.append(made)
        self._store(known)
        return made

    def _store(self, known: _Known) -> None:
        config = SchemaRevisions(schemas=known.revisions).SerializeToString()
        self._core.storage.resource(Resource("schema", known.uid, 0, config))


def _revision(known: _Known, revision_id: str) -> Any:
    for one in known.revisions:
        if one.revision_id == revision_id:
            return one
    raise not_found(f"{known.revisions[0].name}@{revision_id}")


def _view(schema: Any, view: int) -> Any:
    if view != BASIC:
        return schema
    shown = Schema()
    shown.CopyFrom(schema)
    shown.ClearField("definition")
    return shown


def _allowed(known: _Known, settings: Any) -> Iterator[Any]:
    """The revisions that a topic takes, the newest first."""
    inside = not settings.last_revision_id
    for one in reversed(known.revisions):
        inside = inside or one.revision_id == settings.last_revision_id
        if inside:
            yield one
        if one.revision_id == settings.first_revision_id:
            return


def _fitting(known: _Known, allowed: Sequence[Any], data: bytes, settings: Any) -> str:
    """The id of the newest allowed revision that a message fits."""
    last = ""
    for one in allowed:
        try:
            _check(known.avro(one), data, settings.encoding)
        except MismatchError as error:
            last = f", last checked revision: revision_id={one.revision_id} failed with status: {error}"
        else:
            revision_id: str = one.revision_id
            return revision_id
    raise _refusal(
        settings.encoding, f"Could not validate message with any schema revision for schema: {settings.schema}{last}"
    )


def _check(avro: Avro, data: bytes, encoding: int) -> None:
    if encoding == JSON:
        avro.check_json(data)
    else:
        avro.check_binary(data)


def _refusal(encoding: int, why: str) -> RefusedError:
    return RefusedError(
        "INVALID_ARGUMENT",
        "Invalid data in message: Message failed schema validation.",
        {"message": "Message failed schema validation", "revisionInfo": why},
        f"INVALID_{ENCODINGS[encoding]}_AVRO_MESSAGE",
    )
