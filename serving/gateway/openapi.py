"""The gateway's description of itself: OpenAPI with the app's own event types, made from their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.gateway.desk import DeskSettings
from shared_features.app import App
from shared_features.schema import TIMESTAMP, EventSchema, FieldType
from shared_features.validate import REASONS

EXAMPLE_TIME: Final = "2026-01-31T12:00:00Z"

_TYPES: Final[Mapping[str, dict[str, Any]]] = {
    "int": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "format": "int64"},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
}
_EXAMPLES: Final[Mapping[str, Any]] = {"int": 1, "long": 1, "float": 1.5, "double": 1.5, "boolean": True}


def required(schema: EventSchema) -> list[str]:
    """Fields that a caller must give: neither nullable nor filled in by the gateway."""
    return [field.name for field in schema.fields.values() if not field.nullable and field.name not in filled(schema)]


def filled(schema: EventSchema) -> dict[str, str]:
    """Fields that the gateway fills in where they are absent, and with what."""
    return {schema.id or "event_id": "a random identity", schema.time: "the time of the request"}


def example(schema: EventSchema) -> dict[str, Any]:
    """An event that is valid: each field's own ``example`` in the schema file, else a plain value of its type."""
    given = {field["name"]: field["example"] for field in schema.avro["fields"] if "example" in field}
    event: dict[str, Any] = {"event_type": schema.name}
    for field in schema.fields.values():
        if field.name in given:
            event[field.name] = given[field.name]
        elif field.arrow == TIMESTAMP:
            event[field.name] = EXAMPLE_TIME
        elif field.symbols:
            event[field.name] = field.symbols[0]
        elif field.name == schema.id:
            event[field.name] = f"{schema.name}-1"
        elif not field.nullable or field.avro != "string":
            event[field.name] = _EXAMPLES.get(field.avro, field.name)
    return event


def document(app: App, settings: DeskSettings, version: str, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of one app's gateway."""
    events = {f"Event_{name}": _event(schema, name == app.predict_on.name) for name, schema in app.event_types.items()}
    one_event = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in events]}
    path = f"/v1/apps/{app.name}/events"
    wait = {
        "name": "wait_s",
        "in": "query",
        "description": "Seconds to wait for predictions; 0 answers as soon as the events are stored.",
        "schema": {"type": "number", "minimum": 0, "maximum": settings.longest_wait_s, "default": settings.wait_s},
    }
    answers = {
        "200": _answer("All events have their answers: an object, or for a list a list.", _either("Answer")),
        "202": _answer("Some predictions have not come yet: ask again.", _either("Answer")),
        "400": _answer("The body is no JSON, or nested too deeply.", _ref("Error")),
        "413": _answer("The body is too large.", _ref("Error")),
        "422": _answer("An event is invalid; nothing was published, but for a refusal by the job.", _ref("Error")),
        "429": _answer("Too many events wait already; Retry-After says when to try again.", _ref("Error")),
        "503": _answer("The topic cannot be reached, or the gateway is stopping.", _ref("Error")),
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"{app.name}: events in, predictions out",
            "version": version,
            "description": "Publish raw events; the streaming job computes their features and predicts.",
        },
        "paths": {
            path: {
                "post": {
                    "operationId": "postEvents",
                    "summary": "Publish one event or a list, and get what becomes of each",
                    "parameters": [wait],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {
                                    "oneOf": [
                                        one_event,
                                        {"type": "array", "items": one_event, "maxItems": settings.max_events},
                                    ]
                                },
                                "examples": {
                                    name: {"value": example(schema)} for name, schema in app.event_types.items()
                                },
                            }
                        },
                    },
                    "responses": answers,
                }
            },
            "/v1/predictions/{id}": {
                "get": {
                    "operationId": "getPrediction",
                    "summary": "Ask again, by the place that an answer named or by prediction_id",
                    "parameters": [
                        {
                            "name": "id",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
                        },
                        wait,
                    ],
                    "responses": {
                        "200": _answer("What is known of the event.", _ref("Answer")),
                        "202": _answer("Nothing has come yet.", _ref("Answer")),
                        "404": _answer("Unknown here: never heard of, or forgotten.", _ref("Error")),
                    },
                }
            },
            "/healthz": {
                "get": {"summary": "Whether the process answers", "responses": {"200": {"description": "ok"}}}
            },
            "/readyz": {
                "get": {
                    "summary": "Whether events can be taken now",
                    "responses": {"200": {"description": "yes"}, "503": {"description": "no, and why"}},
                }
            },
        },
        "components": {"schemas": {**events, "Answer": _answer_schema(app), "Error": _error_schema()}},
    }
    if secured:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _event(schema: EventSchema, predicted: bool) -> dict[str, Any]:
    said = schema.avro.get("doc", "")
    properties: dict[str, Any] = {
        "event_type": {"const": schema.name, "description": "May be left out." if predicted else "Which event it is."}
    }
    if schema.id is None:
        properties["event_id"] = {"type": "string", "description": "Identity; a random one if left out."}
    for field in schema.fields.values():
        properties[field.name] = _property(field, filled(schema).get(field.name, ""))
    return {
        "type": "object",
        "description": f"{said} {'Gets a prediction.' if predicted else 'Gets none by itself.'}".strip(),
        "properties": properties,
        "required": required(schema) if predicted else ["event_type", *required(schema)],
        "examples": [example(schema)],
    }


def _property(field: FieldType, filled_with: str) -> dict[str, Any]:
    if field.arrow == TIMESTAMP:
        unit = "milliseconds" if field.avro == "timestamp-millis" else "microseconds"
        found: dict[str, Any] = {
            "oneOf": [
                {"type": "string", "format": "date-time"},
                {"type": "integer", "description": f"{unit} since 1970 UTC"},
            ]
        }
    elif field.symbols:
        found = {"type": "string", "enum": list(field.symbols)}
    else:
        found = dict(_TYPES[field.avro])
    if field.nullable or filled_with:
        found = {"oneOf": [*found.pop("oneOf", [found]), {"type": "null"}]}
    said = [field.doc] if field.doc else []
    if filled_with:
        said.append(f"If left out: {filled_with}.")
    elif field.nullable:
        said.append("May be left out: missing.")
    if said:
        found["description"] = " ".join(said)
    return found


def _answer_schema(app: App) -> dict[str, Any]:
    outputs = {name: {"type": "number"} for model in app.models for name in model.outputs}
    text, flag = {"type": "string"}, {"type": "boolean"}
    return {
        "type": "object",
        "required": ["status", "event_type", "event_id", "ask_again"],
        "properties": {
            "status": {
                "enum": ["predicted", "recorded", "accepted", "pending", "refused"],
                "description": "recorded: the app has no model yet. accepted: an event that gets no prediction itself.",
            },
            "event_type": text,
            "event_id": text,
            "ask_again": {"type": "string", "description": "Where to ask for the same again."},
            "prediction_id": text,
            "outputs": {"type": "object", "properties": outputs},
            "model": text,
            "model_version": {"type": "integer"},
            "event_time": {"type": "integer", "description": "Microseconds since 1970 UTC."},
            "late": flag,
            "predictions": {
                "type": "array",
                "description": "Of each model, where an app has several; the members beside this are the first one's.",
                "items": {
                    "type": "object",
                    "properties": {
                        "model": {"enum": [model.name for model in app.models]} if app.models else text,
                        "model_version": {"type": "integer"},
                        "prediction_id": text,
                        "outputs": {"type": "object", "properties": outputs},
                    },
                },
            },
            "reactions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "reaction": {"enum": [reaction.name for reaction in app.reactions]} if app.reactions else text,
                        "reaction_id": text,
                        "payload": {"type": "object"},
                    },
                },
            },
            "reactions_complete": {"type": "boolean", "description": "False: others may still come."},
            "ignored_fields": {"type": "array", "items": text},
            "reason": {"enum": [*REASONS, "beyond_horizon", "prediction_failed"]},
            "detail": text,
        },
    }


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    one = {"index": {"type": "integer"}, "field": text, "reason": text, "detail": text}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "string", "description": "One sentence."},
            "errors": {"type": "array", "items": {"type": "object", "properties": one}},
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _either(name: str) -> dict[str, Any]:
    return {"oneOf": [_ref(name), {"type": "array", "items": _ref(name)}]}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
