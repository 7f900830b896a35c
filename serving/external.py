"""What external models say: asked in batches, at a limited rate, remembered, and never given up on.

A service that is away, too slow or out of order is asked again, with growing pauses, until it answers: whoever waits
pulls nothing meanwhile, and nothing is lost. Only a text's own fault refuses it. That is the case where the service
says so (HTTP 400, 413, 422; gRPC INVALID_ARGUMENT and its like), or where it got the text `TRIES` times by itself and
stalled, failed or went away each time, and then answered another text: a service that stalls or crashes on a text does
not stop the stream for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.external_calls import Answers, NoAnswerError, TextsRefusedError, Transport, transport
from serving.retry import pause_s
from shared_features.errors import ConfigurationError
from shared_features.external import External, Said
from shared_features.schema import EventSchema

log = logging.getLogger("sameriver.external")

DEFAULT_ADDRESS = "grpc://127.0.0.1:8500"
TRIES = 3
REMEMBERED_BYTES = 64 << 20
_ENTRY_BYTES = 200  # of Python's objects around a text

Wait = Callable[[float], bool]
"""Waits so many seconds; True if it must not be waited for any longer."""


@dataclass(slots=True)
class _Part:
    """Texts that are asked about in one call."""

    texts: list[int]
    tries: int = 0
    blamed: int = 0


class _Model:
    """One external model."""

    def __init__(self, external: External, way: Transport, clock: Callable[[], float]) -> None:
        self.external, self.way, self._clock = external, way, clock
        self.known_good = b""
        self._remembered: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()
        self._bytes = 0
        self._free_s = 0.0

    def remembered(self, text: bytes) -> tuple[float, ...] | None:
        found = self._remembered.get(text)
        if found is not None:
            self._remembered.move_to_end(text)
        return found

    def remember(self, text: bytes, values: tuple[float, ...]) -> None:
        self._remembered[text] = values
        self._bytes += len(text) + _ENTRY_BYTES
        while self._bytes > REMEMBERED_BYTES:
            gone, _ = self._remembered.popitem(last=False)
            self._bytes -= len(gone) + _ENTRY_BYTES

    def turn_s(self, texts: int) -> float:
        """Seconds to wait before so many texts may be asked about; takes the turn."""
        rate = self.external.texts_per_s
        if rate is None:
            return 0.0
        now_s = self._clock()
        begin_s = max(now_s, self._free_s)
        self._free_s = begin_s + texts / rate
        return begin_s - now_s

    def is_alive(self) -> bool:
        """Whether the service answers another text, in whatever way."""
        try:
            self.way.call([self.known_good])
        except TextsRefusedError:
            return True
        except NoAnswerError:
            return False
        return True


class Externals:
    """The external models of an app.

    Args:
        schemas: event type to schema.
        addresses: by model where it is; others are at `DEFAULT_ADDRESS`.
        tokens: by model the file of a token to show.
        wait: between two tries; ends them where it returns True.
        clock: seconds, monotonic.

    Raises:
        ConfigurationError: an address is wrong or names no model of the app, or a service does not serve the version.
    """

    def __init__(
        self,
        schemas: Mapping[str, EventSchema],
        addresses: Mapping[str, str] | None = None,
        tokens: Mapping[str, Path] | None = None,
        *,
        wait: Wait | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait = wait or threading.Event().wait
        found = {(one.model, one.version): one for schema in schemas.values() for one in schema.external}
        addresses, tokens = addresses or {}, tokens or {}
        strange = ({*addresses, *tokens}) - {model for model, _ in found}
        if strange:
            known = ", ".join(sorted({model for model, _ in found})) or "none"
            raise ConfigurationError(
                f"{', '.join(sorted(strange))} is no external model of the app, which has {known}: correct the name"
            )
        self._models = {
            key: _Model(one, transport(one, addresses.get(one.model, DEFAULT_ADDRESS), tokens.get(one.model)), clock)
            for key, one in found.items()
        }
        for model in self._models.values():
            try:
                model.way.call([b""])
            except TextsRefusedError:
                pass
            except NoAnswerError as error:
                if error.is_setup:
                    self.close()
                    raise ConfigurationError(
                        f"{model.external} cannot be asked ({error}): serve this version, correct its address with "
                        "--external NAME=ADDRESS, or the app's file"
                    ) from None
                log.warning("%s does not answer (%s): it will be asked until it does", model.external, error)

    def ask(self, external: External, texts: Sequence[bytes]) -> Said:
        """What the model says about each of the texts; waits until it is there.

        Raises:
            ConfigurationError: it must not be waited for any longer.
        """
        model = self._models[external.model, external.version]
        values = {name: np.full(len(texts), np.nan) for name in external.fills}
        refused: dict[int, str] = {}

        def take(index: int, found: tuple[float, ...]) -> None:
            for name, value in zip(external.fills, found, strict=True):
                values[name][index] = value

        fresh = []
        for index, text in enumerate(texts):
            known = model.remembered(text)
            if known is None:
                fresh.append(index)
            else:
                take(index, known)
        parts = [_Part(fresh[start : start + external.batch]) for start in range(0, len(fresh), external.batch)][::-1]
        while parts:
            part = parts.pop()
            try:
                turn_s = model.turn_s(len(part.texts))
                if turn_s > 0 and self._wait(turn_s):
                    time.sleep(turn_s)  # what was pulled is finished before the job stops, at the rate that is allowed
                answers = _rows(external, model.way.call([texts[index] for index in part.texts]), len(part.texts))
            except TextsRefusedError as error:
                if len(part.texts) == 1:
                    refused[part.texts[0]] = f"{external} refuses it ({error})"
                else:
                    parts += _halves(part, 0)
            except NoAnswerError as error:
                self._failed(model, part, parts, refused, error)
            else:
                for index, found in zip(part.texts, answers, strict=True):
                    take(index, found)
                    model.remember(texts[index], found)
                model.known_good = texts[part.texts[-1]]
        return Said(values, refused)

    def close(self) -> None:
        """Let go of the connections."""
        for model in self._models.values():
            model.way.close()

    def _failed(
        self, model: _Model, part: _Part, parts: list[_Part], refused: dict[int, str], error: NoAnswerError
    ) -> None:
        """Ask again; smaller parts, where the texts may be the cause, and none at last."""
        log.warning("%s does not answer (%s): asking again", model.external, error)
        while True:
            part.tries += 1
            self._pause(model, max(error.pause_s, pause_s(part.tries)), str(error))
            if not error.by_text or model.is_alive():
                break
        part.blamed += error.by_text
        if part.blamed < TRIES:
            parts.append(part)
        elif len(part.texts) > 1:
            parts += _halves(part, TRIES - 1)
        else:
            refused[part.texts[0]] = f"{model.external} answers other texts, but failed at this one ({error})"

    def _pause(self, model: _Model, seconds: float, why: str) -> None:
        if self._wait(seconds):
            raise ConfigurationError(
                f"the job was told to stop while it waited for {model.external} ({why}): what it had pulled comes again"
            )


def _rows(external: External, answers: Answers, rows: int) -> list[tuple[float, ...]]:
    """By text the values of the fields.

    Raises:
        NoAnswerError: an output has no such place.
    """
    columns = []
    for output, place in external.outputs.values():
        column = answers[output]
        wrong = column.ndim != 1 if place is None else column.ndim != 2 or place >= column.shape[1]
        if wrong:
            what = "one number" if place is None else f"a list with a place {place}"
            detail = f"output {output!r} has shape {list(column.shape)}, wanted {what} for each text"
            raise NoAnswerError(detail, by_text=True)
        columns.append(column if place is None else column[:, place])
    return list(zip(*(column.tolist() for column in columns), strict=True)) if rows else []


def _halves(part: _Part, blamed: int) -> list[_Part]:
    """Two parts, the later one first, as they are taken from the end; a single text has all its tries before it."""
    middle = len(part.texts) // 2
    halves = (part.texts[middle:], part.texts[:middle])
    return [_Part(texts, blamed=blamed if len(texts) > 1 else 0) for texts in halves]


def read_addresses(given: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` by name.

    Raises:
        ConfigurationError: one is not of this form.
    """
    for one in given:
        if not all(one.partition("=")):
            raise ConfigurationError(f"{option} must be NAME=VALUE, the name that of an external model, got {one!r}")
    return {name: value for name, _, value in (one.partition("=") for one in given)}
