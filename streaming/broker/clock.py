"""The broker's clock, an argument wherever time matters."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, both in integer microseconds."""

    def wall_us(self) -> int:
        """Time since 1970 (UTC): publish times and retention."""

    def monotonic_us(self) -> int:
        """Time that never jumps: leases and redelivery."""


class SystemClock:
    """The machine's clock."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000
