"""Protocol-buffer messages with random content, bounded in size."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

DEPTH = 4


def fill(message: Any, fields_of: Any, randomness: random.Random, depth: int = 0) -> None:
    """Set about half of the message's fields, of those only that the descriptor `fields_of` has too."""
    for field in fields_of.fields:
        if randomness.random() < 0.5:
            continue
        if field.message_type is not None and depth >= DEPTH:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(randomness.randrange(1, 3)):
                target = getattr(message, field.name)
                if value.message_type is None:
                    target[scalar(key, randomness)] = scalar(value, randomness)
                else:
                    fill(target[scalar(key, randomness)], value.message_type, randomness, depth + 1)
        elif field.is_repeated:
            for _ in range(randomness.randrange(1, 4)):
                if field.message_type is None:
                    getattr(message, field.name).append(scalar(field, randomness))
                else:
                    fill(getattr(message, field.name).add(), field.message_type, randomness, depth + 1)
        elif field.message_type is None:
            setattr(message, field.name, scalar(field, randomness))
        else:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), field.message_type, randomness, depth + 1)


def scalar(field: Any, randomness: random.Random) -> Any:
    """A random value of a scalar field's type, the edges of its range among them."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return "".join(randomness.choices("abcXYZ_é☃", k=randomness.randrange(5)))
    if kind == FieldDescriptor.TYPE_BYTES:
        return randomness.randbytes(randomness.randrange(6))
    if kind == FieldDescriptor.TYPE_BOOL:
        return randomness.random() < 0.5
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return randomness.choice([0.0, -1.5, 1e30, float("inf"), 0.1])
    if kind == FieldDescriptor.TYPE_ENUM:
        return randomness.choice(field.enum_type.values).number
    bits = 32 if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32) else 64
    if kind in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
        return randomness.choice([0, 1, 300, 2**bits - 1])
    return randomness.choice([0, 1, -1, 300, 2 ** (bits - 1) - 1, -(2 ** (bits - 1))])
