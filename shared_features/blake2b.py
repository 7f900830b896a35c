"""BLAKE2b of 16 bytes over many texts that follow one beginning, a column at a time (Saarinen and Aumasson, RFC 7693).

`hashlib` takes one text after the other: with its objects and strings that costs four times what hashing them does.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from shared_features.exact import compiled
from shared_features.hashing import string_buffers
from shared_features.machine_code import kept

_BLOCK, _DIGEST = 128, 16
_HEX_DIGITS: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_IV: Final = np.array(
    [
        *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
        *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
    ],
    np.uint64,
)
_SIGMA: Final = np.array(
    [
        *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        *(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
        *(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
        *(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
        *(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
        *(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
        *(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
        *(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
        *(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
        *(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
        *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        *(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    ],
    np.uint64,  # places without a sign, which compiled code need not ask for one
)


def hex_digests(begun: bytes, texts: pa.StringArray, *, person: bytes) -> pa.StringArray:
    """For each text 32 hexadecimal digits: of ``begun``, the text's length (8 bytes, little endian) and the text.

    Args:
        begun: what all of them begin with.
        texts: none of them null.
        person: BLAKE2b's personalization, up to 16 bytes.

    >>> hex_digests(b"begun", pa.array(["text"]), person=b"doctest").to_pylist()
    ['662513daab9f862aa7d07b8987393191']
    """
    offsets, data = string_buffers(texts)
    data.flags.writeable = False  # as the compiled code's signature has it
    start = _IV.copy()
    start[0] ^= np.uint64(0x01010000 ^ _DIGEST)
    start[6:] ^= np.frombuffer(person.ljust(16, b"\0"), np.uint64)
    rest, words = np.zeros(_BLOCK // 8, np.uint64), np.zeros(_BLOCK // 8, np.uint64)
    digits = np.empty(len(texts) * 2 * _DIGEST, np.uint8)
    first = np.frombuffer(begun, np.uint8)
    _digest_all(first, offsets, data, start, start.copy(), rest, words, words.view(np.uint8), digits)
    ends = np.arange(len(texts) + 1, dtype=np.int32) * (2 * _DIGEST)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(digits))


@compiled(inline="always")
def _mix(a, b, c, d, x, y):  # type: ignore[no-untyped-def]
    """G of RFC 7693, section 3.1."""
    a = a + b + x
    d = _turned(d ^ a, 32)
    c = c + d
    b = _turned(b ^ c, 24)
    a = a + b + y
    d = _turned(d ^ a, 16)
    c = c + d
    b = _turned(b ^ c, 63)
    return a, b, c, d


@compiled(inline="always")
def _turned(word, bits):  # type: ignore[no-untyped-def]
    return (word >> np.uint64(bits)) | (word << np.uint64(64 - bits))


@compiled()
def _compress(h, m, length, last):  # type: ignore[no-untyped-def]
    """F of RFC 7693, section 3.2: block ``m`` into state ``h``, ``length`` bytes with it."""
    v0, v1, v2, v3, v4, v5, v6, v7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
    v8, v9, v10, v11 = _IV[0], _IV[1], _IV[2], _IV[3]
    v12, v13, v14, v15 = _IV[4] ^ np.uint64(length), _IV[5], _IV[6], _IV[7]
    if last:
        v14 = ~v14
    for at in range(0, len(_SIGMA), 16):
        s = _SIGMA[at : at + 16]
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[s[0]], m[s[1]])
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[s[2]], m[s[3]])
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[s[4]], m[s[5]])
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[s[6]], m[s[7]])
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[s[8]], m[s[9]])
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[s[10]], m[s[11]])
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[s[12]], m[s[13]])
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[s[14]], m[s[15]])
    h[0] ^= v0 ^ v8
    h[1] ^= v1 ^ v9
    h[2] ^= v2 ^ v10
    h[3] ^= v3 ^ v11
    h[4] ^= v4 ^ v12
    h[5] ^= v5 ^ v13
    h[6] ^= v6 ^ v14
    h[7] ^= v7 ^ v15


_GIVEN, _WORDS, _BYTES = "Array(uint8, 1, 'C', readonly=True)", "uint64[::1]", "uint8[::1]"


@kept(
    f"void({_GIVEN}, int64[::1], {_GIVEN}, uint64[::1], uint64[::1], uint64[::1], uint64[::1], uint8[::1], uint8[::1])"
)
def _digest_all(begun, offsets, data, start, h, rest, words, block, digits):  # type: ignore[no-untyped-def]
    """``words`` and ``block`` are the same memory; all of it is zero, as is ``rest``."""
    begun_filled = 0
    for i in range(len(begun)):
        if begun_filled == _BLOCK:  # never the last block: the text's length follows
            _compress(start, words, i, False)
            for k in range(len(words)):
                words[k] = 0
            begun_filled = 0
        block[begun_filled] = begun[i]
        begun_filled += 1
    for k in range(len(words)):
        rest[k] = words[k]
    for row in range(len(offsets) - 1):
        for k in range(len(h)):
            h[k] = start[k]
        for k in range(len(words)):
            words[k] = rest[k]
        filled, done = begun_filled, len(begun) - begun_filled
        length = offsets[row + 1] - offsets[row]
        for i in range(-8, length):
            if filled == _BLOCK:
                done += _BLOCK
                _compress(h, words, done, False)
                for k in range(len(words)):
                    words[k] = 0
                filled = 0
            block[filled] = data[offsets[row] + i] if i >= 0 else np.uint8((length >> ((i + 8) * 8)) & 0xFF)
            filled += 1
        _compress(h, words, done + filled, True)
        for i in range(_DIGEST):
            byte = np.int64(h[i >> 3] >> np.uint64((i & 7) * 8)) & 0xFF
            digits[row * 2 * _DIGEST + 2 * i] = _HEX_DIGITS[byte >> 4]
            digits[row * 2 * _DIGEST + 2 * i + 1] = _HEX_DIGITS[byte & 15]
