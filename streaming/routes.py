"""Who predicts an event: the champion, or for its share of keys a candidate; and one in the shadow, for nobody to see.

What is promoted stands in a file (`serving.promotion`), looked at once a second; the model server looks at the same.
The two need not see a change at the same moment, so that nothing here depends on it: where the server does not know a
label yet, or no more, a candidate's rows go to the champion, and the champion's rows wait until it does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pyarrow as pa

from serving.client import ClientAccess, ModelClient
from serving.model_error import ModelError
from serving.prediction import Description, Prediction
from serving.promotion import CANARY, STABLE, Promotion, Watched
from serving.timers import Timers
from streaming.results import Answer

log = logging.getLogger(__name__)

Keys = Callable[[str], pa.Array]

NOT_KNOWN = frozenset({"INVALID_ARGUMENT", "NOT_FOUND"})
"""Codes of a server that has no such label, or no such version, at present."""
ASK_AGAIN_S = 0.1
SAY_EVERY_S = 10.0
CANARY_WAIT_S = 5.0
SHADOW_WAIT_S = 0.25
SHADOW_PAUSE_S = 10.0


class RoutedModel:
    """One model of an app, asked as its promotion says; safe to share between threads.

    Args:
        target: ``host:port`` of the model server, or several.
        model: its name.
        home: folder of its versions, where the promotion stands; None: nothing is promoted.
        access: certificates and a token.

    The champion is asked until it answers. A candidate costs nothing but time: its rows are the champion's where it
    fails or takes more than `CANARY_WAIT_S`; in the shadow it has `SHADOW_WAIT_S` after the champion's answer, and if
    that is not enough it is left alone for `SHADOW_PAUSE_S`.
    """

    def __init__(
        self, target: str, model: str, *, home: Path | None = None, access: ClientAccess | None = None
    ) -> None:
        self.model, self._target, self._access = model, target, access
        self._watched = Watched(home)
        self._lock = threading.Lock()
        self._clients: dict[str, ModelClient] = {}
        self._timers = Timers(f"routes of {model}")
        self._shadow_after_s = self._said_s = float("-inf")

    def describe(self) -> Description:
        """Fingerprint and definitions of what predicts now; the latest, if the server does not know the champion yet.

        Raises ModelError as `ModelClient.describe`.
        """
        if self._watched.now is not None:
            try:
                return self._client(STABLE).describe()
            except ModelError as error:
                if error.code not in NOT_KNOWN:
                    raise
        return self._client("").describe()

    def predict(self, features: pa.RecordBatch, keys: Keys) -> Future[Answer]:
        """Ask about all rows.

        Args:
            features: a column for each of the model's inputs.
            keys: see `streaming.delivery.Keys`.
        """
        promotion = self._watched.now
        if promotion is None:
            return self._ask("", features)
        if promotion.stage == "canary":
            return self._canary(promotion, features, promotion.to_candidate(keys(promotion.by)))
        answer = self._champion(promotion, features)
        if promotion.stage == "shadow" and time.monotonic() >= self._shadow_after_s:
            return self._with_shadow(promotion, answer, self._ask(CANARY, features))
        return answer

    def close(self) -> None:
        """End what is under way."""
        self._timers.close()
        for client in list(self._clients.values()):
            client.close()

    def _champion(self, promotion: Promotion, features: pa.RecordBatch, sign: int = 1) -> Future[Answer]:
        """The champion's answer, asked for until there is one."""
        found: Future[Answer] = Future()

        def ask() -> None:
            _then(self._ask(STABLE, features), take)

        def take(answer: Answer | BaseException) -> None:
            if isinstance(answer, Answer):
                as_said = sign if answer.version == promotion.champion else -1
                found.set_result(_routed(answer, as_said * promotion.revision))
            elif isinstance(answer, ModelError) and answer.code in NOT_KNOWN:
                self._say(f"model {self.model}: the server does not know the label {STABLE!r} yet, asking on: {answer}")
                self._timers.after(ASK_AGAIN_S, ask)
            else:
                found.set_exception(answer)

        ask()
        return found

    def _canary(self, promotion: Promotion, features: pa.RecordBatch, mine: np.ndarray) -> Future[Answer]:
        """The candidate's answer for its rows, the champion's for the others and where the candidate has none."""
        rows = {True: np.flatnonzero(mine), False: np.flatnonzero(~mine)}
        if not len(rows[True]):
            return self._champion(promotion, features)
        found: Future[Answer] = Future()
        parts: dict[bool, Answer] = {}

        def take(candidate: bool, answer: Answer | BaseException) -> None:
            if not isinstance(answer, Answer):
                with suppress(InvalidStateError):
                    found.set_exception(answer)
                return
            with self._lock:
                parts[candidate] = answer
                whole = len(parts) == (2 if len(rows[False]) else 1)
            if whole:
                with suppress(InvalidStateError):
                    found.set_result(_joined(parts, rows, features.num_rows))

        def take_candidate(answer: Answer | BaseException) -> None:
            if isinstance(answer, Answer) and answer.version == promotion.candidate:
                take(True, _routed(answer, promotion.revision))
                return
            if isinstance(answer, Answer):  # the server's file is older, or newer, than ours
                answer = ModelError(f"version {answer.version} has the label {CANARY!r}")
            self._say(f"model {self.model}: the candidate cannot answer ({answer}), the champion does")
            # On the timers' thread: this one may belong to a connection, and must not wait for another call.
            self._timers.after(0.0, lambda: _then(self._champion(promotion, its, -1), lambda other: take(True, other)))

        its = features.take(pa.array(rows[True]))
        if len(rows[False]):
            others = self._champion(promotion, features.take(pa.array(rows[False])))
            _then(others, lambda answer: take(False, answer))
        _then(self._within(CANARY_WAIT_S, self._ask(CANARY, its)), take_candidate)
        return found

    def _with_shadow(self, promotion: Promotion, answer: Future[Answer], shadow: Future[Answer]) -> Future[Answer]:
        """The champion's answer, with the shadow's if that comes soon enough after it."""
        found: Future[Answer] = Future()

        def take(champion: Answer | BaseException) -> None:
            if isinstance(champion, Answer):
                _then(self._within(SHADOW_WAIT_S, shadow), lambda said: end(champion, said))
            else:
                found.set_exception(champion)

        def end(champion: Answer, said: Answer | BaseException) -> None:
            if isinstance(said, Answer) and said.version != promotion.candidate:
                said = ModelError(f"version {said.version} has the label {CANARY!r}")
            if not isinstance(said, Answer):
                self._shadow_after_s = time.monotonic() + SHADOW_PAUSE_S
                self._say(f"model {self.model}: the candidate in the shadow has no answer ({said})")
            found.set_result(replace(champion, shadow=said if isinstance(said, Answer) else None))

        _then(answer, take)
        return found

    def _within(self, wait_s: float, future: Future[Answer]) -> Future[Answer]:
        """What the future gives within so many seconds, or a TimeoutError."""
        bounded: Future[Answer] = Future()

        def take(result: Answer | BaseException) -> None:
            with suppress(InvalidStateError):
                if isinstance(result, BaseException):
                    bounded.set_exception(result)
                else:
                    bounded.set_result(result)

        if not future.done():
            # The timer holds nothing of what is asked: answers come in a moment, and blocks are large.
            waiting = ref(bounded)

            def expire() -> None:
                still = waiting()
                if still is not None:
                    with suppress(InvalidStateError):
                        still.set_exception(TimeoutError(f"no answer within {wait_s:g} s"))

            self._timers.after(wait_s, expire)
        _then(future, take)
        return bounded

    def _ask(self, label: str, features: pa.RecordBatch) -> Future[Answer]:
        answer: Future[Answer] = Future()

        def take(said: Prediction | BaseException) -> None:
            if isinstance(said, BaseException):
                answer.set_exception(said)
            else:
                answer.set_result(Answer(said.outputs, said.refused, said.model_version))

        try:
            _then(self._client(label).predict(features), take)
        except ModelError as error:  # the first request asks the server for its signature, at once
            answer.set_exception(error)
        return answer

    def _client(self, label: str) -> ModelClient:
        with self._lock:
            if label not in self._clients:
                self._clients[label] = ModelClient(self._target, self.model, access=self._access, label=label)
            return self._clients[label]

    def _say(self, line: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            log.warning("%s", line)


class EachVersion:
    """Asks each row's own version again, whatever predicts now; for `sameriver verify`.

    Args:
        target: ``host:port`` of the model server, or several.
        model: its name.
    """

    def __init__(self, target: str, model: str) -> None:
        self._target, self._model = target, model
        self._clients: dict[int, ModelClient | None] = {}

    def ask(self, features: pa.RecordBatch, versions: np.ndarray) -> Answer:
        """Every row's answer by its version, int64 [rows]; version -1 where the server holds that one no more.

        In requests of at most 1,024 rows.
        """
        rows = len(versions)
        outputs: dict[str, np.ndarray] = {}
        answered, refused = np.full(rows, -1, np.int64), dict[int, str]()
        for version in np.unique(versions).tolist():
            mine = np.flatnonzero(versions == version)
            client = self._client(version)
            if client is None:
                continue
            pieces = [mine[start : start + 1024] for start in range(0, len(mine), 1024)]
            waiting = [client.predict(features.take(pa.array(piece))) for piece in pieces]
            for piece, future in zip(pieces, waiting, strict=True):
                said = future.result()
                for name, values in said.outputs.items():
                    whole = outputs.setdefault(name, np.full((rows, *values.shape[1:]), np.nan))
                    whole[piece] = values
                answered[piece] = said.model_version
                refused |= {int(piece[row]): reason for row, reason in said.refused.items()}
        return Answer(outputs, refused, answered)

    def close(self) -> None:
        """Let go of the connections."""
        for client in self._clients.values():
            if client is not None:
                client.close()

    def _client(self, version: int) -> ModelClient | None:
        if version not in self._clients:
            client = ModelClient(self._target, self._model, version=version)
            self._clients[version] = client
            try:
                client.metadata()
            except ModelError as error:
                client.close()
                if error.code not in NOT_KNOWN:
                    raise
                self._clients[version] = None
        return self._clients[version]


def _then(future: Future[Any], take: Callable[[Any], None]) -> None:
    """Call ``take`` with the result, or with what went wrong, once it is there."""

    def done(ended: Future[Any]) -> None:
        error = ended.exception()
        take(ended.result() if error is None else error)

    future.add_done_callback(done)


def _routed(answer: Answer, route: int) -> Answer:
    rows = len(next(iter(answer.outputs.values())))
    return replace(answer, route=np.full(rows, route, np.int64))


def _joined(parts: dict[bool, Answer], rows: dict[bool, np.ndarray], total: int) -> Answer:
    """One answer of the candidate's and the champion's rows."""
    first = next(iter(parts.values()))
    outputs = {name: np.full((total, *values.shape[1:]), np.nan) for name, values in first.outputs.items()}
    version, route = np.zeros(total, np.int64), np.zeros(total, np.int64)
    refused: dict[int, str] = {}
    for candidate, answer in parts.items():
        mine = rows[candidate]
        for name, values in outputs.items():
            values[mine] = answer.outputs[name]
        assert answer.route is not None
        version[mine], route[mine] = answer.version, answer.route
        refused |= {int(mine[row]): reason for row, reason in answer.refused.items()}
    return Answer(outputs, dict(sorted(refused.items())), version, route)
