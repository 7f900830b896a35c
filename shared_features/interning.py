"""Strings as numbers: a track of strings holds codes, each of which stands for one string while it is in use."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FIRST_LIMIT = 1024


class Interner:
    """Codes of the strings of one track. Codes of strings that are no longer held are given out again."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._texts: list[str | None] = []
        self._free: list[int] = []
        self._limit = _FIRST_LIMIT

    @property
    def is_full(self) -> bool:
        """Whether it is time to `release` what is no longer held."""
        return len(self._codes) > self._limit

    def encode(self, texts: pa.Array, wanted: np.ndarray) -> np.ndarray:
        """Codes of the strings where ``wanted`` (they are not null there), else 0; int64, shape [rows]."""
        codes = np.zeros(len(texts), np.int64)
        rows = np.flatnonzero(wanted)
        if len(rows):
            chosen = texts if len(rows) == len(texts) else texts.take(pa.array(rows))
            encoded = chosen.dictionary_encode()
            code_of = np.array([self._code(text) for text in encoded.dictionary.to_pylist()], np.int64)
            codes[rows] = code_of[encoded.indices.to_numpy()]
        return codes

    def decode(self, codes: np.ndarray, valid: np.ndarray) -> pa.Array:
        """Strings of the codes, null where not ``valid``; shape [rows]."""
        distinct, inverse = np.unique(codes[valid], return_inverse=True)
        texts = pa.array([self._texts[code] for code in distinct.tolist()], pa.string())
        indices = np.zeros(len(codes), np.int64)
        indices[valid] = inverse
        return pc.take(texts, pa.array(indices, mask=~valid))

    def release(self, held: np.ndarray) -> None:
        """Forget all strings but those of the codes in ``held``."""
        keep = set(np.unique(held).tolist())
        for text, code in list(self._codes.items()):
            if code not in keep:
                del self._codes[text]
                self._texts[code] = None
                self._free.append(code)
        self._limit = max(_FIRST_LIMIT, 2 * len(self._codes))

    def _code(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._texts[code] = text
            else:
                code = len(self._texts)
                self._texts.append(text)
            self._codes[text] = code
        return code
