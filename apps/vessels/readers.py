"""Raw AIS sentences (NMEA 0183, AIVDM and AIVDO) as events, for `sameriver publish --format nmea`.

Positions come from messages 1 to 3, 18 and 19; the kind of ship comes from 5, 19 and 24 and goes to the positions of
the same vessel that follow. Messages of several sentences are put together, other messages passed over. pyais decodes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from apps.vessels.history import IDENTITY_EPOCH_S

if TYPE_CHECKING:
    from pyais.messages import AISSentence

POSITIONS_A, POSITIONS_B, STATIC = (1, 2, 3), (18, 19), (5, 19, 24)
MINUTE_S = 60
AHEAD_S = 5
"""How far a vessel's clock may be ahead of the receiver's."""

MILLISECONDS_FROM = 100_000_000_000
"""Tag blocks give seconds or milliseconds; there is no telling but by the size (IEC 61162-450)."""

Line = tuple[bytes, str]
"""A line that gives no event, and why."""


def nmea(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | Line]]:
    """Events of a file of sentences, one a line, with or without tag blocks.

    A position says at which second of a minute it was fixed, not in which minute: that is the one before the receiver's
    time in the tag block (``c:``), or where there is none before now.

    Yields:
        The line from 1 on, of the last sentence of a message, and an event as `publish` takes it; of a line that cannot
        be used, or is a part of a message whose other parts do not come, the line itself and what is wrong.
    """
    parts, ship_types = _Parts(), dict[int, int]()
    event: dict[str, Any] | Line | None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        try:
            message = parts.put(number, text, _sentence(text))
            event = None if message is None else _event(message, ship_types)
        except ValueError as error:
            event = text, str(error)
        yield from parts.given_up()
        if event is not None:
            yield number, event
    yield from parts.given_up(last=True)


READERS = {"nmea": nmea}
"""Formats that `sameriver publish --format` takes for this app besides its own."""


def _sentence(text: bytes) -> AISSentence:
    """One line, its checksums right. Raises ValueError, saying what is wrong."""
    from pyais.exceptions import AISBaseException
    from pyais.messages import AISSentence, NMEASentenceFactory

    try:
        found = NMEASentenceFactory.produce(text)
    except (AISBaseException, ValueError, IndexError):
        raise ValueError("no AIS sentence") from None
    if not isinstance(found, AISSentence):
        raise ValueError("no AIS sentence")
    if not found.is_valid:
        raise ValueError("wrong checksum")
    if found.tag_block is not None:
        found.tag_block.init()
        if not found.tag_block.is_valid:
            raise ValueError("wrong checksum of the tag block")
    return found


class _Parts:
    """Puts messages of several sentences together: these come in their order, others may come between."""

    def __init__(self) -> None:
        self._begun: dict[Any, list[tuple[int, bytes, AISSentence]]] = {}
        self._given_up: list[tuple[int, bytes, AISSentence]] = []

    def put(self, number: int, text: bytes, sentence: AISSentence) -> AISSentence | None:
        """The message that this sentence ends, if it does. Raises ValueError where parts before it are missing."""
        if sentence.frag_cnt == 1:
            return sentence
        of = sentence.seq_id, sentence.channel, sentence.talker_id, sentence.type, sentence.frag_cnt
        if sentence.frag_num == 1:
            self._given_up += self._begun.pop(of, [])
        begun = self._begun.setdefault(of, [])
        if sentence.frag_num != len(begun) + 1:
            raise ValueError(f"part {sentence.frag_num} of {sentence.frag_cnt} without those before it")
        begun.append((number, text, sentence))
        if sentence.frag_num < sentence.frag_cnt:
            return None
        return sentence.assemble_from_iterable([part for _, _, part in self._begun.pop(of)])

    def given_up(self, *, last: bool = False) -> Iterator[tuple[int, Line]]:
        """The parts, since the last call, whose message will not be whole; with ``last`` all that wait."""
        found, self._given_up = self._given_up, []
        for number, text, part in [*found, *itertools.chain(*self._begun.values())] if last else found:
            yield number, (text, f"part {part.frag_num} of {part.frag_cnt} without those behind it")


def _event(message: AISSentence, ship_types: dict[int, int]) -> dict[str, Any] | None:
    """The position that a message tells, if it does; ``ship_types`` learns. Raises ValueError."""
    try:
        record: dict[str, Any] = message.decode().asdict(enum_as_int=True)
        kind, vessel = int(record["msg_type"]), int(record["mmsi"])
        if kind in STATIC and record.get("ship_type") is not None:
            ship_types[vessel] = int(record["ship_type"])
        if kind not in POSITIONS_A + POSITIONS_B:
            return None
        return _position(record, kind, vessel, ship_types.get(vessel), _received_s(message))
    except Exception:  # a library's whole tree, on bytes from anywhere; a message that is cut off has None
        raise ValueError("its message cannot be decoded") from None


def _received_s(message: AISSentence) -> float:
    """When the receiver heard it, by its tag block; now if it does not say."""
    told = "" if message.tag_block is None else str(message.tag_block.receiver_timestamp)
    if not told.isdecimal():
        return time.time()
    return int(told) / 1000 if int(told) >= MILLISECONDS_FROM else float(told)


def _position(
    record: dict[str, Any], kind: int, vessel: int, ship_type: int | None, received_s: float
) -> dict[str, Any]:
    at_s = _fixed_s(int(record["second"]), received_s)
    return {
        "event_type": "position",
        "event_id": f"{vessel}{at_s - IDENTITY_EPOCH_S:09d}",
        "reported_at": at_s * 1_000_000,
        "vessel": vessel,
        "latitude": float(record["lat"]),
        "longitude": float(record["lon"]),
        "speed": float(record["speed"]),
        "course": float(record["course"]),
        "ship_type": ship_type,
        "transponder": "A" if kind in POSITIONS_A else "B",
    }


def _fixed_s(second: int, received_s: float) -> int:
    """The latest moment with this second of the minute that is not after the receiver's time.

    >>> _fixed_s(59, 1_426_032_001.0) % 60, _fixed_s(59, 1_426_032_001.0) - 1_426_032_001
    (59, -2)
    >>> _fixed_s(60, 1_426_032_001.7)  # not available
    1426032001
    """
    if not 0 <= second < MINUTE_S:
        return int(received_s)
    found = int(received_s) // MINUTE_S * MINUTE_S + second
    return found - MINUTE_S if found > received_s + AHEAD_S else found
