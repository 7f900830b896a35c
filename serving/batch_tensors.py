"""Tensors of several requests as one, and the answer taken apart again: along the first dimension.

Source: tensorflow_serving/batching/batching_session.cc and batching_util.cc.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.status import Code, RefusalError, failed_precondition, invalid
from serving.tensorflow_c import Tensor
from serving.tensors import FILL_LIMIT_BYTES, Array

_RANK_LIMIT = 6  # of tensors that can be padded


def size_of(feeds: Sequence[Tensor]) -> int:
    """Rows of a request; RefusalError if its tensors cannot be part of a batch."""
    if not feeds:
        raise invalid("Batching Run() must have at least one input tensor")
    for feed in feeds:
        if not feed.shape:
            raise invalid("Batching Run() input tensors must have at least one dimension")
        if feed.shape[0] != feeds[0].shape[0]:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return feeds[0].shape[0]


def joined(parts: Sequence[Tensor], padding: int = 0, name: str = "") -> Tensor:
    """Parts one below the other, then the first row of the last part `padding` times.

    RefusalError (FAILED_PRECONDITION), with the tensor's name, if rows differ in shape.
    """
    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:]:
            raise failed_precondition(
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim."
            )
    if len(parts) == 1 and not padding:
        return first
    rows = sum(part.shape[0] for part in parts) + padding
    shape = (rows, *first.shape[1:])
    if isinstance(first.values, list):
        width = math.prod(first.shape[1:])
        values: list[bytes] = list(itertools.chain.from_iterable(part.values for part in parts))
        return Tensor(first.dtype, shape, values + list(parts[-1].values[:width]) * padding)
    arrays: list[Any] = [part.values for part in parts]
    if padding:
        arrays.append(np.broadcast_to(arrays[-1][:1], (padding, *first.shape[1:])))
    return Tensor(first.dtype, shape, np.concatenate(arrays))


def split(output: Tensor, sizes: Sequence[int], padding: int) -> list[Tensor]:
    """An output as one tensor per request; what was padded is left out. RefusalError if it has other rows."""
    if not output.shape:
        raise failed_precondition("Batched output tensor has 0 dimensions")
    if output.shape[0] != sum(sizes) + padding:
        raise failed_precondition(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors"
        )
    if len(sizes) == 1 and not padding:
        return [output]
    width = math.prod(output.shape[1:]) if isinstance(output.values, list) else 1
    found = []
    at = 0
    for size in sizes:
        found.append(Tensor(output.dtype, (size, *output.shape[1:]), output.values[at * width : (at + size) * width]))
        at += size
    return found


def cut(feeds: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """A request in pieces of so many rows."""
    return [list(piece) for piece in zip(*(split(feed, sizes, 0) for feed in feeds), strict=True)]


def padded_to_largest(parts: list[Tensor]) -> list[Tensor]:
    """Each part filled up with its own first value, to the largest size of every dimension but the first."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1:
        return parts
    if len({len(shape) for shape in shapes}) > 1:
        raise failed_precondition("Tensors of different ranks cannot be padded to one shape")
    inner = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    if sum(part.shape[0] for part in parts) * math.prod(inner) * 24 > FILL_LIMIT_BYTES:
        raise RefusalError(Code.RESOURCE_EXHAUSTED, "The padded batch is larger than this server allows")
    return [part if part.shape[1:] == inner else _padded(part, inner) for part in parts]


def _padded(part: Tensor, inner: tuple[int, ...]) -> Tensor:
    if not 1 <= len(part.shape) <= _RANK_LIMIT:
        raise invalid("Only tensors with rank from 1 to 6 can be padded.")
    if not math.prod(part.shape):
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    shape = (part.shape[0], *inner)
    given: Array = np.array(part.values, object).reshape(part.shape) if isinstance(part.values, list) else part.values
    filled = np.full(shape, given.flat[0], given.dtype)
    filled[tuple(slice(0, size) for size in part.shape)] = given
    return Tensor(part.dtype, shape, filled.ravel().tolist() if isinstance(part.values, list) else filled)
