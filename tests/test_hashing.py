"""Hashes: golden values, agreement of the vectorised form with the obvious one, framing, evenness."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.blake2b import hex_digests
from shared_features.errors import DefinitionError
from shared_features.hashing import (
    HASH_NAME,
    hash128_hex,
    hash_bytes,
    hash_column,
    hash_columns,
    prediction_id,
    prediction_ids,
    reaction_id,
    shard_of,
)

GOLDEN_STRINGS = [
    17280346270528514342,
    17633202739746905086,
    8820667393342074070,
    2644220054110733776,
    1310764441268014659,
]
GOLDEN_INTEGERS = [8922497616986557598, 5348651604043249702, 7679411569137598510, 10245912222877910221]
GOLDEN_PAIRS = [11670349322663616213, 3577919911037167533]
GOLDEN_SEEDED = 8163002587904070258

INT64 = st.integers(-(2**63), 2**63 - 1)


def fmix64(state: int) -> int:
    """MurmurHash3's finaliser, from its C source."""
    mask = 2**64 - 1
    state ^= state >> 33
    state = state * 0xFF51AFD7ED558CCD & mask
    state ^= state >> 33
    state = state * 0xC4CEB9FE1A85EC53 & mask
    return state ^ state >> 33


@pytest.mark.parametrize(
    ("data", "fnv1a64"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_published_values_of_fnv1a_64(data: bytes, fnv1a64: int) -> None:
    """The vectors of RFC 9923."""
    assert hash_bytes(data) == fmix64(fnv1a64)


def test_golden_values_never_change() -> None:
    """Shards, ids and archives rest on these: a change here is a new hash and needs a new name."""
    assert HASH_NAME == "fnv1a64_fmix"
    strings = ["", "JFK", "N14228", "Zürich", "日本"]
    assert hash_column(pa.array(strings)).tolist() == GOLDEN_STRINGS
    assert hash_column(pa.array([0, 1, -1, 2**63 - 1])).tolist() == GOLDEN_INTEGERS
    assert hash_columns([pa.array(["JFK", None]), pa.array([1, 2])]).tolist() == GOLDEN_PAIRS
    assert hash_bytes(b"JFK", seed=1) == GOLDEN_SEEDED
    assert prediction_id("flights", "departed", "UA1", "wide", 3, "ab") == "3a5a72491bc2ebf47cc79caa9bdd3e80"
    assert reaction_id("00" * 16, "rebook") == "56779637ee61f4c01badacefd9382883"
    assert hash128_hex(b"a", b"bc") == "f14abc19c330e936bb9c8506d69bac9b"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=12), max_size=30),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10),
    st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]),
)
def test_strings_agree_with_the_obvious_form(values: list[str | None], seed: int, skip: int, kind: pa.DataType) -> None:
    array = pa.array([None if v is None else v.encode() for v in values], pa.binary())
    wanted = [0 if v is None else hash_bytes(v.encode(), seed) for v in values]
    assert hash_column(array.cast(kind), seed).tolist() == wanted
    assert hash_column(array.cast(kind).slice(skip), seed).tolist() == wanted[skip:]
    assert hash_column(array.dictionary_encode(), seed).tolist() == wanted
    assert hash_column(array.dictionary_encode().slice(skip), seed).tolist() == wanted[skip:]
    chunked = pa.chunked_array([array.slice(skip), array.slice(0, skip)])
    assert hash_column(chunked, seed).tolist() == wanted[skip:] + wanted[:skip]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | INT64, max_size=30), st.integers(0, 5))
def test_integers_agree_with_the_obvious_form(values: list[int | None], skip: int) -> None:
    wanted = [0 if v is None else hash_bytes(v.to_bytes(8, "little", signed=True)) for v in values]
    assert hash_column(pa.array(values, pa.int64()).slice(skip)).tolist() == wanted[skip:]
    stamps = pa.array(values, pa.timestamp("us", tz="UTC"))
    assert hash_column(stamps).tolist() == wanted


def test_equal_values_of_several_types_hash_alike() -> None:
    want = hash_column(pa.array([5, None], pa.int64())).tolist()
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32()):
        assert hash_column(pa.array([5, None], kind)).tolist() == want
    at = datetime(2013, 11, 1, tzinfo=UTC)
    millis = pa.array([at], pa.timestamp("ms", tz="UTC"))
    assert hash_column(millis).tolist() == hash_column(millis.cast(pa.timestamp("us", tz="UTC"))).tolist()
    assert hash_column(pa.array([True, False, None])).tolist() == [hash_bytes(b"\1"), hash_bytes(b"\0"), 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.none() | st.text(max_size=5), st.none() | INT64), min_size=1, max_size=20))
def test_columns_are_framed(rows: list[tuple[str | None, int | None]]) -> None:
    def framed(value: bytes | None) -> bytes:
        return b"\xff" * 4 if value is None else len(value).to_bytes(4, "little") + value

    wanted = []
    for text, number in rows:
        one = None if text is None else text.encode()
        two = None if number is None else number.to_bytes(8, "little", signed=True)
        wanted.append(hash_bytes(framed(one) + framed(two)))
    texts, numbers = pa.array([r[0] for r in rows], pa.string()), pa.array([r[1] for r in rows], pa.int64())
    assert hash_columns([texts, numbers]).tolist() == wanted
    assert hash_columns([texts.dictionary_encode(), numbers]).tolist() == wanted


def test_framing_tells_neighbours_apart() -> None:
    one = hash_columns([pa.array(["a"]), pa.array(["bc"])])
    two = hash_columns([pa.array(["ab"]), pa.array(["c"])])
    three = hash_columns([pa.array(["abc"]), pa.array([None], pa.string())])
    four = hash_columns([pa.array(["abc"]), pa.array([""])])
    assert len({int(h[0]) for h in (one, two, three, four)}) == 4
    assert hash128_hex(b"a", b"bc") != hash128_hex(b"ab", b"c")


def test_empty_columns() -> None:
    for kind in (pa.string(), pa.int64(), pa.bool_(), pa.dictionary(pa.int32(), pa.string())):
        empty = hash_column(pa.array([], kind))
        assert (len(empty), empty.dtype) == (0, np.dtype(np.uint64))
        assert len(hash_column(pa.chunked_array([], kind))) == 0
        assert hash_column(pa.nulls(2, kind)).tolist() == [0, 0]


@pytest.mark.parametrize("kind", [pa.float64(), pa.uint64(), pa.date32(), pa.list_(pa.int64()), pa.null()])
def test_types_without_canonical_bytes_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(DefinitionError, match="canonical bytes"):
        hash_column(pa.nulls(1, kind))


def test_hash_columns_needs_columns_of_one_length() -> None:
    for wrong in ([], [pa.array(["a"]), pa.array(["a", "b"])]):
        with pytest.raises(ValueError, match="one length"):
            hash_columns(wrong)


@pytest.mark.parametrize("shards", [8, 64, 100])
def test_shards_are_even_over_like_keys(shards: int) -> None:
    """Chi-square of 20,000 near-identical keys: within 6 standard deviations of its mean."""
    keys = pa.array([f"N{i}" for i in range(20_000)])
    for hashes in (hash_column(keys), hash_column(pa.array(range(20_000)))):
        counts = np.bincount(shard_of(hashes, shards), minlength=shards)
        expected = 20_000 / shards
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - (shards - 1)) < 6 * (2 * (shards - 1)) ** 0.5


def test_ids_differ_in_every_part_and_agree_in_bulk() -> None:
    base = ("flights", "departed", "UA1", "wide", 3, "ab")
    others = [
        ("flight", "sdeparted", "UA1", "wide", 3, "ab"),
        ("flights", "departed", "UA1", "wid", 3, "eab"),
        ("flights", "departed", "UA1", "wide", 4, "ab"),
        ("flights", "departed", "UA2", "wide", 3, "ab"),
        ("flights", "departed", "UA1", "wide", 3, "ac"),
        ("flights", "departedU", "A1", "wide", 3, "ab"),
    ]
    ids = [prediction_id(*parts) for parts in [base, *others]]
    assert len(set(ids)) == len(ids)
    assert all(len(each) == 32 for each in ids)
    assert prediction_ids("flights", "departed", pa.array(["UA1", "UA2"]), "wide", 3, "ab").to_pylist() == [
        ids[0],
        ids[4],
    ]
    assert reaction_id(ids[0], "rebook") != reaction_id(ids[0], "rebooks") != reaction_id(ids[1], "rebook")


@pytest.mark.parametrize("begun", [0, 1, 119, 120, 121, 127, 128, 129, 255, 256, 300])
def test_a_column_of_texts_has_the_digests_of_hashlib(begun: int) -> None:
    """Around every edge of BLAKE2b's blocks of 128 bytes, in a slice whose bytes do not begin at its first."""
    start, texts = (
        bytes(range(1, 251)) * 2,
        ["left out", "", "a", "é" * 9, *("b" * n for n in (111, 112, 113, 120, 121, 300))],
    )
    expected = []
    for text in texts[1:]:
        data = text.encode()
        framed = start[:begun] + len(data).to_bytes(8, "little") + data
        expected.append(hashlib.blake2b(framed, digest_size=16, person=b"test").hexdigest())
    assert hex_digests(start[:begun], pa.array(texts)[1:], person=b"test").to_pylist() == expected


def test_ids_of_many_are_those_of_each() -> None:
    ids = [f"UA{number}" for number in range(100)]
    column = prediction_ids("flights", "departed", pa.array(ids), "wide", 3, "ab")
    assert column.to_pylist() == [prediction_id("flights", "departed", one, "wide", 3, "ab") for one in ids]


def test_another_process_gives_the_same_hashes() -> None:
    """No per-process salt, as Python's own hash() has."""
    code = (
        "import pyarrow as pa; from shared_features.hashing import *; "
        "print(hash_column(pa.array(['JFK'])).tolist(), prediction_id('a', 'b', 'c', 'd', 1, 'e'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [f"[{hash_bytes(b'JFK')}]", prediction_id("a", "b", "c", "d", 1, "e")]
