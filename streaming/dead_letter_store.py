"""The dead letters of an app as they are kept: in a subscription of their topic, until someone is done with them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from streaming.dead_letters import DeadLetter, read_dead_letters
from streaming.topics import Endpoint, Message, Subscriber

log = logging.getLogger(__name__)

MOST = 100_000
"""Dead letters looked at in one go."""


@dataclass(slots=True)
class KeptLetter:
    """A dead letter and the messages that hold it: parts, and copies of it (delivery is at least once).

    Attributes:
        letter_id: names it in commands: 12 hexadecimal digits.
        letter: what it is.
        ack_ids: of all its messages.
        copies: how often it was published.
    """

    letter_id: str
    letter: DeadLetter
    ack_ids: list[str] = field(default_factory=list)
    copies: int = 1

    @property
    def event_type(self) -> str:
        """As the original message said; empty if it did not."""
        return self.letter.attributes.get("event_type", "")


def letter_id(letter: DeadLetter) -> str:
    """The same for the same message, refused for the same reason."""
    whole = "\0".join((letter.message_id, letter.reason, letter.sha256))
    return hashlib.blake2b(whole.encode(), digest_size=6).hexdigest()


class DeadLetterStore:
    """Looks at an app's dead letters; those that are not let go of stay for the next look.

    Args:
        endpoint: where the topics are.
        subscription: keeps the dead letters (`streaming.naming.dead_letters_of`).
        quiet_s: the look ends when nothing has come for so long.
    """

    def __init__(self, endpoint: Endpoint, subscription: str, *, quiet_s: float = 1.0) -> None:
        self._subscriber = Subscriber(endpoint, subscription, max_messages=MOST, max_bytes=1 << 30, lease_s=60)
        self._quiet_s = quiet_s

    def letters(self, tell: Callable[[int], None] = lambda _: None) -> list[KeptLetter]:
        """All that is kept, oldest original first.

        Args:
            tell: is told now and then how many messages have come.

        Raises:
            TopicError: there is no such subscription, or it cannot be reached.
        """
        messages: list[Message] = []
        until = time.monotonic() + max(self._quiet_s, 5.0)  # the first may take a connection
        while time.monotonic() < until and len(messages) < MOST:
            pulled = self._subscriber.pull(1_000, 0.1)
            if pulled:
                messages += pulled
                tell(len(messages))
                until = time.monotonic() + self._quiet_s
        return kept_letters(messages)

    def done(self, letters: Iterable[KeptLetter]) -> None:
        """Let go of these: they are not kept any longer."""
        self._subscriber.acknowledge([ack_id for one in letters for ack_id in one.ack_ids])

    def close(self) -> None:
        """Leave the others as they were."""
        self._subscriber.close()


def kept_letters(messages: Sequence[Message]) -> list[KeptLetter]:
    """Dead letters from the messages of their topic, copies put together, oldest original first.

    What is no dead letter, and letters of which parts are missing, are left out and logged.
    """
    whole: dict[tuple[str, str, str], list[Message]] = {}
    for message in messages:
        attributes = message.attributes
        key = (attributes.get("message_id", ""), attributes.get("sha256", ""), attributes.get("reason", ""))
        whole.setdefault(key, []).append(message)
    found: dict[str, KeptLetter] = {}
    for group in whole.values():
        try:
            letters = read_dead_letters(group)
        except ValueError as error:
            log.warning("%d messages on the dead-letter topic are no dead letters: %s", len(group), error)
            continue
        if not letters:
            log.warning("dead letter %r has not all of its parts", group[0].attributes.get("message_id"))
            continue
        kept = KeptLetter(letter_id(letters[0]), letters[0], [one.ack_id for one in group], len(letters))
        found[kept.letter_id] = kept
    return sorted(found.values(), key=lambda one: (one.letter.publish_time_us, one.letter.message_id))
