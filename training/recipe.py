"""What a model is made of, as one hash: the same recipe gives the same model, and need not be followed again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_features.errors import ConfigurationError
from shared_features.fingerprint import canonical
from training.export import read_summary, versions
from training.rows import TrainingRows

PROCEDURE = 3
"""Of training: counted up whenever the same recipe would give other weights. 2: weights are averaged; 3: numbers are
encoded in another order."""


def rows_digest(rows: TrainingRows) -> str:
    """A hash of the bytes of all shards, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for split, shards in sorted(rows.shards.items()):
        for path in shards:
            digest.update(f"{split}/{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def recipe(
    rows: TrainingRows,
    model: str,
    options: Mapping[str, Any],
    libraries: Mapping[str, str],
    *,
    seed: int,
    quick: bool,
    workers: int = 1,
) -> str:
    """The hash of all that decides a model's weights, 32 hexadecimal digits.

    Args:
        rows: that it learns from.
        model: its name.
        options: as the app gives them, plain JSON values.
        libraries: name to version.
        seed, quick: as for `training.train.train`.
        workers: that train together: of several, numbers are added in another order.
    """
    parts = {
        "procedure": PROCEDURE,
        "rows": rows_digest(rows),
        "fingerprint": rows.fingerprint,
        "model": model,
        "options": options,
        "libraries": libraries,
        "seed": seed,
        "quick": quick,
        **({"workers": workers} if workers > 1 else {}),
    }
    return hashlib.blake2b(canonical(parts).encode("ascii"), digest_size=16).hexdigest()


def find_recipe(home: Path, wanted: str) -> Path | None:
    """The newest version of a model that was made by a recipe; None if there is none."""
    for version in reversed(versions(home)):
        try:
            if read_summary(home / str(version)).get("recipe") == wanted:
                return home / str(version)
        except ConfigurationError:
            continue  # a model of somebody else's
    return None
