"""Names for shards that Flink deals out evenly.

Flink hashes a key into one of `KEY_GROUPS` groups and gives each of its workers a stretch of groups. A few shards
under names of no thought would crowd on some workers; these are named so that shard i of n lies at i / n of all
groups, and every number of workers gets its share.
"""

from __future__ import annotations

from functools import cache

KEY_GROUPS = 128
MAX_SHARDS = KEY_GROUPS


@cache
def shard_names(shards: int) -> list[bytes]:
    """The key of each shard.

    >>> [key_group(name) for name in shard_names(4)]
    [16, 48, 80, 112]
    """
    names = []
    for shard in range(shards):
        wanted = (2 * shard + 1) * KEY_GROUPS // (2 * shards)
        tries = (f"{shard}.{number}".encode("ascii") for number in range(1 << 20))
        names.append(next(name for name in tries if key_group(name) == wanted))
    return names


def shard_number(name: bytes) -> int:
    """Which shard has this name."""
    return int(name.partition(b".")[0])


def key_group(key: bytes) -> int:
    """Flink's group of a Beam key of bytes: murmur of Java's hash of the length and the bytes."""
    code = 1
    for byte in reversed(bytes([len(key)]) + key):
        code = (31 * code + (byte - 256 if byte > 127 else byte)) & 0xFFFFFFFF
    return _murmur(code) % KEY_GROUPS


def _murmur(code: int) -> int:
    """``org.apache.flink.util.MathUtils.murmurHash``: never negative."""
    code = _rotated(code * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
    code = (_rotated(code, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    code ^= 4
    code = (code ^ (code >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    code = (code ^ (code >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    code ^= code >> 16
    if code < 1 << 31:
        return code
    return (1 << 32) - code if code != 1 << 31 else 0


def _rotated(code: int, bits: int) -> int:
    return (code << bits | code >> (32 - bits)) & 0xFFFFFFFF
