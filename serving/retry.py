"""Which calls to repeat, and when."""

from __future__ import annotations

import random

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0

# CANCELLED, where it was not this side that cancelled, is how a server that is stopping hands back calls it has
# not begun.
RETRIED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"})
# What may be one row's doing. Everything else (no such model, no permission ...) is the same for every row.
ROWS_MAY_CAUSE = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE", "INTERNAL", "UNKNOWN", "DATA_LOSS"})
TOO_LARGE = "larger than max"  # gRPC's words for a message beyond a limit; smaller pieces may pass


def pause_s(attempt: int) -> float:
    """Seconds to wait before attempt number `attempt` + 1: exponential with full jitter, never none at all.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 16))
    return random.uniform(FIRST_PAUSE_S / 2, longest)  # noqa: S311 - spreads load, guards nothing
