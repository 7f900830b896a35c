"""A model from where Vertex AI put it: a folder of Cloud Storage, or one that is mounted."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

GRAPH = "saved_model.pb"


def fetch_model(uri: str, into: Path) -> Path:
    """Copy a model to this machine, where it is served from.

    Args:
        uri: ``gs://bucket/folder`` or a folder, with a SavedModel in it or with folders of numbered versions, of which
            the newest is taken.
        into: a folder for it.

    Returns:
        The folder of its versions, as ``--model_base_path`` wants it.

    Raises:
        ConfigurationError: there is no model, or Cloud Storage cannot be reached.
    """
    from batch.files import open_files
    from shared_features.errors import ConfigurationError

    files = open_files(uri)
    names = files.names()
    below, version = "", 1
    if GRAPH not in names:
        versions = [int(name.split("/")[0]) for name in names if name.endswith(f"/{GRAPH}") and _is_version(name)]
        if not versions:
            raise ConfigurationError(
                f"AIP_STORAGE_URI {uri} must hold {GRAPH} or numbered folders with one, and has {len(names)} other "
                f"files: give the folder that `sameriver train` wrote as artifactUri"
            )
        version = max(versions)
        below = f"{version}/"
    for name in (name for name in names if name.startswith(below)):
        path = PurePosixPath(name.removeprefix(below))
        if ".." in path.parts or path.is_absolute():
            raise ConfigurationError(f"file {name!r} of {uri} leads out of its folder: export the model again")
        target = into / str(version) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return into


def _is_version(name: str) -> bool:
    first, *rest = name.split("/")
    return first.isascii() and first.isdigit() and len(rest) == 1
