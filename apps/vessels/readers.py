"""Raw AIS sentences (NMEA 0183, AIVDM and AIVDO) as events, for `sameriver publish --format nmea`.

Positions come from messages 1 to 3, 18 and 19; the kind of ship comes from 5, 19 and 24 and goes to the positions of
the same vessel that follow. Messages of several sentences are put together, others are passed over. pyais decodes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from apps.vessels.history import IDENTITY_EPOCH_S

POSITIONS_A, POSITIONS_B, STATIC = (1, 2, 3), (18, 19), (5, 19, 24)
MINUTE_S = 60
AHEAD_S = 5
"""How far a vessel's clock may be ahead of the receiver's."""

MILLISECONDS_FROM = 100_000_000_000
"""Tag blocks give seconds or milliseconds; there is no telling but by the size (IEC 61162-450)."""


def nmea(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
    """Events of a file of sentences, one a line, with or without tag blocks.

    A position says at which second of a minute it was fixed, not in which minute: that is the one before the receiver's
    time in the tag block (``c:``), or where there is none before now.

    Yields:
        The line from 1 on, of the last sentence of a message, and an event as `publish` takes it; of a line that is no
        sentence, or has a wrong checksum, the line itself.
    """
    from pyais import IterMessages

    feed = _Lines(lines)
    ship_types: dict[int, int] = {}
    for message in IterMessages(feed):
        yield from feed.refused()
        try:
            if not message.is_valid:
                raise ValueError("checksum")
            record: dict[str, Any] = message.decode().asdict(enum_as_int=True)
        except Exception:  # a library's whole tree, on bytes from anywhere: the line is told as it is
            yield feed.number, feed.last
            continue
        kind, vessel = int(record["msg_type"]), int(record["mmsi"])
        if kind in STATIC and record.get("ship_type") is not None:
            ship_types[vessel] = int(record["ship_type"])
        if kind in POSITIONS_A + POSITIONS_B:
            yield feed.number, _position(record, kind, vessel, ship_types.get(vessel), _received_s(message))
    yield from feed.refused()


READERS = {"nmea": nmea}
"""Formats that `sameriver publish --format` takes for this app besides its own."""


class _Lines:
    """Hands out the lines that are sentences, and remembers where it is and which are none."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.number, self.last = 0, b""
        self._refused: list[tuple[int, bytes]] = []

    def __iter__(self) -> Iterator[bytes]:
        from pyais.exceptions import AISBaseException
        from pyais.messages import NMEASentenceFactory

        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            try:
                NMEASentenceFactory.produce(text)
            except (AISBaseException, ValueError, IndexError):
                self._refused.append((number, text))
                continue
            self.number, self.last = number, text
            yield text

    def refused(self) -> Iterator[tuple[int, bytes]]:
        """The lines since the last call that are no sentence."""
        found, self._refused = self._refused, []
        yield from found


def _received_s(message: Any) -> float:
    """When the receiver heard it, by its tag block; now if it does not say."""
    block = message.tag_block
    if block is not None:
        block.init()
        if block.receiver_timestamp is not None and str(block.receiver_timestamp).isdecimal():
            stamp = int(block.receiver_timestamp)
            return stamp / 1000 if stamp >= MILLISECONDS_FROM else float(stamp)
    return time.time()


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
