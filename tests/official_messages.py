"""Compares `serving.wire` with the official modules, in a process of its own because these load TensorFlow.

Prints one JSON object: how much was compared, and every difference. Random messages are written by either side and
must be read and written again, byte for byte, by the other.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from serving import wire
from tests.random_messages import fill

MESSAGES = 40


def main() -> None:
    from google.protobuf import descriptor_pool, message_factory
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2  # noqa: F401 - registers messages
    from tensorflow_serving.apis import (  # noqa: F401
        get_model_status_pb2,
        model_service_pb2,
        prediction_log_pb2,
        prediction_service_pb2,
    )

    official_pool = descriptor_pool.Default()
    differences: list[str] = []
    fields = 0
    names = []
    for file in ("sameriver/tensorflow.proto", "sameriver/serving.proto"):
        names += [message.full_name for message in _all_messages(wire.POOL.FindFileByName(file))]
    for name in names:
        ours, theirs = wire.POOL.FindMessageTypeByName(name), official_pool.FindMessageTypeByName(name)
        for field in ours.fields:
            fields += 1
            if _facts(field) != _facts(theirs.fields_by_name[field.name]):
                differences.append(f"{field.full_name}: {_facts(field)}")
        for enum in ours.enum_types:
            if enum.values_by_name.keys() != theirs.enum_types_by_name[enum.name].values_by_name.keys():
                differences.append(enum.full_name)
    for enum_name in ("tensorflow.DataType", "tensorflow.error.Code", "tensorflow.serving.ModelType"):
        pairs = [
            {value.name: value.number for value in pool.FindEnumTypeByName(enum_name).values}
            for pool in (wire.POOL, official_pool)
        ]
        if pairs[0] != pairs[1]:
            differences.append(enum_name)

    randomness = random.Random(2013)
    compared = 0
    for name in names:
        ours_class = wire.message_class(name)
        theirs_class = message_factory.GetMessageClass(official_pool.FindMessageTypeByName(name))
        for writer, reader in ((theirs_class, ours_class), (ours_class, theirs_class)):
            for _ in range(MESSAGES):
                message = writer()
                fill(message, ours_class.DESCRIPTOR, randomness)
                written = message.SerializeToString(deterministic=True)
                if reader.FromString(written).SerializeToString(deterministic=True) != written:
                    differences.append(f"{name}: {written.hex()[:80]}")
                compared += 1
    methods = [
        f"/{service.full_name}/{method.name}"
        for module in (prediction_service_pb2, model_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    json.dump(
        {
            "messages": len(names),
            "fields": fields,
            "compared": compared,
            "differences": differences,
            "methods": methods,
            "type_url": _type_url(wire.GetModelMetadataResponse(), wire.SignatureDefMap()),
        },
        sys.stdout,
    )


def _facts(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return (
        field.number,
        field.type,
        field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED,
        field.is_packed if hasattr(field, "is_packed") else None,
        kind.full_name if kind else None,
        oneof,
        field.has_presence,
    )


def _all_messages(scope: Any) -> list[Any]:
    found = []
    for message in getattr(scope, "message_types_by_name", getattr(scope, "nested_types_by_name", {})).values():
        if not message.GetOptions().map_entry:
            found += [message, *_all_messages(message)]
    return found


def _type_url(response: Any, packed: Any) -> str:
    response.metadata["signature_def"].Pack(packed)
    url: str = response.metadata["signature_def"].type_url
    return url


if __name__ == "__main__":
    main()
