"""Named, stable hashes of canonical bytes: the same on every machine, in every version, in every process.

Two of them, for two uses:

``fnv1a64_fmix``
    64-bit FNV-1a, finished by ``fmix64`` of MurmurHash3 (FNV-1a alone leaves its low bits too regular for
    ``hash % shards``). It picks shards and buckets: quick, vectorised, no defence against chosen input.
    FNV: Fowler, Noll, Vo, RFC 9923. fmix64: Appleby, MurmurHash3.cpp, public domain.

``blake2b-128``
    BLAKE2b (RFC 7693) of 16 bytes, for identities that must not collide: prediction and reaction ids.

Canonical bytes of a value:

    string, large string        its UTF-8 bytes
    binary, large binary        its bytes
    integer up to int64         8 bytes, two's complement, little endian, so int32 5 equals int64 5
    bool                        1 byte, 0 or 1
    timestamp                   microseconds since 1970 as an integer
    dictionary                  those of the value
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import DefinitionError

HASH_NAME: Final = "fnv1a64_fmix"
"""Named in the fingerprint and in every archive: shards of another hash are other shards."""

UInt64Array = npt.NDArray[np.uint64]

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_FNV_OFFSET: Final = 0xCBF2_9CE4_8422_2325
_FNV_PRIME: Final = 0x0000_0100_0000_01B3
_FMIX_1: Final = 0xFF51_AFD7_ED55_8CCD
_FMIX_2: Final = 0xC4CE_B9FE_1A85_EC53
_NULL_LENGTH: Final = 0xFFFF_FFFF
_FEW_CHARACTERS: Final = 64
"""Up to here Python hashes the texts of one row faster than Arrow hands them to compiled code."""


_PREDICTION: Final = b"sameriver-pred"
_FEW_IDS: Final = 32
"""Up to here Python hashes ids faster than compiled code is called; most processes never need to load that."""


def hash_bytes(data: bytes, seed: int = 0) -> int:
    """``fnv1a64_fmix`` of some bytes: the slow, obvious form that :func:`hash_column` agrees with.

    Args:
        seed: any integer from 0 to 2**64 - 1; another seed is another, unrelated hash.

    >>> hex(hash_bytes(b"N14228"))
    '0x7a694e42a6066cd6'
    """
    state = _FNV_OFFSET ^ _fmix(seed)
    for byte in data:
        state = ((state ^ byte) * _FNV_PRIME) & _MASK
    return _fmix(state)


def _fmix(state: int) -> int:
    state &= _MASK
    state ^= state >> 33
    state = (state * _FMIX_1) & _MASK
    state ^= state >> 33
    state = (state * _FMIX_2) & _MASK
    return state ^ (state >> 33)


def hash_column(values: pa.Array | pa.ChunkedArray, seed: int = 0) -> UInt64Array:
    """``fnv1a64_fmix`` of each value's canonical bytes.

    Args:
        values: strings, binaries, integers, bools, timestamps or dictionaries of these; may be a slice.
        seed: see :func:`hash_bytes`.

    Returns:
        One uint64 per row; 0 where the value is null (ask ``values.is_valid()`` to tell them apart: a value
        hashes to 0 once in 2**64).

    Raises:
        DefinitionError: the type has no canonical bytes (floats: equal numbers can differ in bits).

    >>> hash_column(pa.array(["N14228", None])).tolist()
    [8820667393342074070, 0]
    """
    start = _FNV_OFFSET ^ _fmix(seed)
    array = _one_array(values)
    if pa.types.is_dictionary(array.type):
        return _taken(hash_column(array.dictionary, seed), array)
    states = np.full(len(array), start, np.uint64)
    _absorb(array, states, framed=False)
    _finish(states)
    _zero_nulls(array, states)
    return states


def hash_columns(columns: Sequence[pa.Array | pa.ChunkedArray], seed: int = 0) -> UInt64Array:
    """``fnv1a64_fmix`` over several columns, row by row.

    Each value is preceded by its length in bytes as an unsigned 32-bit little-endian integer, so that
    ('a', 'bc') and ('ab', 'c') differ; a null is the length 0xFFFFFFFF and no bytes.

    Args:
        columns: at least one, all of the same length.

    Returns:
        One uint64 per row; nulls count like any other value.

    Raises:
        DefinitionError: a type has no canonical bytes.
        ValueError: no column, or columns of several lengths.
    """
    if not columns or len({len(column) for column in columns}) != 1:
        raise ValueError("hash_columns needs one or more columns of one length.")
    if len(columns[0]) == 1 and all(column.type == pa.string() for column in columns):
        texts = [column[0].as_py() for column in columns]
        if sum(len(text) for text in texts if text is not None) <= _FEW_CHARACTERS:
            return np.array([hash_bytes(b"".join(map(_framed_text, texts)), seed)], np.uint64)
    states = np.full(len(columns[0]), _FNV_OFFSET ^ _fmix(seed), np.uint64)
    for column in columns:
        array = _one_array(column)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        _absorb(array, states, framed=True)
    _finish(states)
    return states


def _framed_text(text: str | None) -> bytes:
    if text is None:
        return _NULL_LENGTH.to_bytes(4, "little")
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def shard_of(hashes: UInt64Array, shards: int) -> npt.NDArray[np.int32]:
    """The shard, 0 to ``shards`` - 1, that each hash belongs to: the hash modulo their number."""
    return (hashes % np.uint64(shards)).astype(np.int32)


def _one_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(values, pa.ChunkedArray):
        return values
    if pa.types.is_dictionary(values.type):
        values = values.unify_dictionaries()
    combined = values.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = combined.chunk(0) if combined.num_chunks else pa.array([], values.type)
    return combined


def _taken(hashes: UInt64Array, array: pa.DictionaryArray) -> UInt64Array:
    codes = array.indices
    if len(hashes) == 0:
        return np.zeros(len(array), np.uint64)
    states: UInt64Array = hashes[np.asarray(codes.fill_null(0))]
    _zero_nulls(codes, states)
    return states


def _zero_nulls(array: pa.Array, states: UInt64Array) -> None:
    if array.null_count:
        states[np.asarray(array.is_null())] = 0


def _absorb(array: pa.Array, states: UInt64Array, *, framed: bool) -> None:
    """Runs FNV-1a over one column's canonical bytes, in place."""
    nulls = _NO_NULLS
    if framed and array.null_count:
        nulls = np.asarray(array.is_null())
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        offsets, data = string_buffers(array)
        _kernels()[0](offsets, data, nulls, framed, states)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        offsets, data = string_buffers(array, np.dtype(np.int64))
        _kernels()[0](offsets, data, nulls, framed, states)
    elif pa.types.is_boolean(kind):
        numbers = np.asarray(array.cast(pa.uint8()).fill_null(0)).astype(np.int64)
        _kernels()[1](numbers, nulls, framed, 1, states)
    elif pa.types.is_timestamp(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        if pa.types.is_timestamp(kind):
            array = pc.cast(array, pa.timestamp("us", tz=kind.tz))
        else:
            array = pc.cast(array, pa.int64())
        numbers = np.ascontiguousarray(np.asarray(array.view(pa.int64()).fill_null(0)))
        _kernels()[1](numbers, nulls, framed, 8, states)
    else:
        raise DefinitionError(
            f"A key or bucket must be a string, an integer, a bool or a timestamp, got {kind}, which has no "
            f"canonical bytes; key by another field."
        )


_NO_NULLS: Final = np.zeros(0, np.bool_)
_INT32: Final = np.dtype(np.int32)


def string_buffers(
    array: pa.Array, width: np.dtype[Any] = _INT32
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The offsets (as int64, of this slice) and the bytes of a string or binary array, the bytes without a copy.

    Args:
        array: may be a slice; what is null has no bytes that mean anything.
        width: type of its offsets: int32, or int64 for the large kinds.
    """
    _, offset_buffer, data_buffer = array.buffers()
    if len(array) == 0 or offset_buffer is None:
        offsets = np.zeros(len(array) + 1, np.int64)
    else:
        narrow = np.frombuffer(offset_buffer, width, count=len(array) + 1, offset=array.offset * width.itemsize)
        offsets = narrow.astype(np.int64)
    if data_buffer is None or data_buffer.size == 0:
        return offsets, np.zeros(0, np.uint8)
    return offsets, np.frombuffer(data_buffer, np.uint8)


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """The three loops, loaded at their first use: those who never hash do not pay for it."""
    from shared_features.exact import compiled
    from shared_features.machine_code import kept

    prime, null_length = np.uint64(_FNV_PRIME), np.uint64(_NULL_LENGTH)
    fmix_1, fmix_2 = np.uint64(_FMIX_1), np.uint64(_FMIX_2)
    byte, eight = np.uint64(0xFF), np.uint64(8)
    integers, octets, flags = (f"Array({name}, 1, 'C', readonly=True)" for name in ("int64", "uint8", "boolean"))

    @compiled(forceinline=True)
    def absorb_integer(state, number, width):  # type: ignore[no-untyped-def]
        for _ in range(width):
            state = (state ^ (number & byte)) * prime
            number = number >> eight
        return state

    @kept(f"void({integers}, {octets}, {flags}, boolean, uint64[::1])")
    def absorb_strings(offsets, data, nulls, framed, states):  # type: ignore[no-untyped-def]
        for row in range(len(states)):
            state = states[row]
            begin, end = offsets[row], offsets[row + 1]
            if framed:
                if len(nulls) > 0 and nulls[row]:
                    states[row] = absorb_integer(state, null_length, 4)
                    continue
                state = absorb_integer(state, np.uint64(end - begin), 4)
            for position in range(begin, end):
                state = (state ^ np.uint64(data[position])) * prime
            states[row] = state

    @kept(f"void({integers}, {flags}, boolean, int64, uint64[::1])")
    def absorb_integers(numbers, nulls, framed, width, states):  # type: ignore[no-untyped-def]
        for row in range(len(states)):
            state = states[row]
            if framed:
                if len(nulls) > 0 and nulls[row]:
                    states[row] = absorb_integer(state, null_length, 4)
                    continue
                state = absorb_integer(state, np.uint64(width), 4)
            states[row] = absorb_integer(state, np.uint64(numbers[row]), width)

    @kept("void(uint64[::1])")
    def finish(states):  # type: ignore[no-untyped-def]
        for row in range(len(states)):
            state = states[row]
            state = (state ^ (state >> np.uint64(33))) * fmix_1
            state = (state ^ (state >> np.uint64(33))) * fmix_2
            states[row] = state ^ (state >> np.uint64(33))

    return absorb_strings, absorb_integers, finish


def _finish(states: UInt64Array) -> None:
    _kernels()[2](states)


def hash128_hex(*parts: bytes) -> str:
    """BLAKE2b of 16 bytes over some parts, each preceded by its length (8 bytes, little endian).

    Returns:
        32 hexadecimal digits.

    >>> hash128_hex(b"a", b"bc") == hash128_hex(b"ab", b"c")
    False
    """
    return _framed(hashlib.blake2b(digest_size=16), parts).hexdigest()


def _framed(state: hashlib.blake2b, parts: Iterable[bytes]) -> hashlib.blake2b:
    for part in parts:
        state.update(_frame(part))
    return state


def _frame(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def prediction_id(app: str, event_type: str, event_id: str, model: str, model_version: int, fingerprint: str) -> str:
    """The id of a prediction: the same event, model and features give the same id (promise C7).

    Returns:
        32 hexadecimal digits.
    """
    return _id_after(_begun(app, event_type, model, model_version, fingerprint), event_id)


def prediction_ids(
    app: str, event_type: str, event_ids: pa.StringArray, model: str, model_version: int, fingerprint: str
) -> pa.StringArray:
    """:func:`prediction_id` of many events of one type and one model."""
    begun = _begun(app, event_type, model, model_version, fingerprint)
    if len(event_ids) <= _FEW_IDS:
        return pa.array([_id_after(begun, one) for one in event_ids.to_pylist()], pa.string())
    from shared_features.blake2b import hex_digests  # brings the compiler

    return hex_digests(begun, event_ids, person=_PREDICTION)


def _id_after(begun: bytes, event_id: str) -> str:
    return hashlib.blake2b(begun + _frame(event_id.encode()), digest_size=16, person=_PREDICTION).hexdigest()


def _begun(app: str, event_type: str, model: str, model_version: int, fingerprint: str) -> bytes:
    """What the ids of one model's predictions begin with."""
    return b"".join(_frame(part.encode()) for part in (app, model, str(int(model_version)), fingerprint, event_type))


def reaction_id(prediction_id: str, reaction: str) -> str:
    """The id of a reaction: the same prediction and reaction name give the same id (promise C7).

    Returns:
        32 hexadecimal digits.
    """
    state = hashlib.blake2b(digest_size=16, person=b"sameriver-react")
    return _framed(state, (prediction_id.encode(), reaction.encode())).hexdigest()
