"""A job as bytes that travel with its graph: from these a worker process makes connections and state of its own.

JSON, read back field by field into the same settings: nothing alive travels, and nothing is pickled.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from shared_features.app import App, load_app
from shared_features.errors import ConfigurationError
from streaming.job import JobSettings

_VERSION = 1


def describe_job(app: App, settings: JobSettings) -> bytes:
    """The app by its name or absolute path, its fingerprint, and all settings, as canonical JSON."""
    record = {
        "version": _VERSION,
        "app": place_of(app),
        "fingerprint": app.fingerprint,
        "settings": _absolute(asdict(settings)),
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode("utf-8")


def place_of(app: App) -> str:
    """Its name or absolute path, by which other processes load it."""
    spec = Path(app.spec)
    return str(spec.resolve()) if spec.exists() else app.spec


def read_description(description: bytes) -> tuple[App, JobSettings]:
    """What `describe_job` was given.

    Raises:
        ConfigurationError: the app is not here, or is another one than where the job was submitted.
    """
    record = json.loads(description)
    if record["version"] != _VERSION:
        raise ConfigurationError(
            f"job description has version {record['version']}, wanted {_VERSION}: run the worker with the version "
            "of Sameriver that the job was submitted with"
        )
    app = load_app(record["app"])
    if app.fingerprint != record["fingerprint"]:
        raise ConfigurationError(
            f"app {record['app']!r} has fingerprint {app.fingerprint} at the worker, wanted {record['fingerprint']}: "
            "give the worker the code that the job was submitted with"
        )
    settings: JobSettings = _read(JobSettings, record["settings"])
    return app, settings


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(part) for name, part in value.items()}
    return str(value.absolute()) if isinstance(value, Path) else value


def _read(wanted: Any, value: Any) -> Any:
    """``value``, from JSON, as the type that a field of the settings declares."""
    if isinstance(wanted, types.UnionType):
        if value is None:
            return None
        (wanted,) = (part for part in wanted.__args__ if part is not types.NoneType)
    if typing.get_origin(wanted) is tuple:
        return tuple(value)
    if is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        return typing.cast(Any, wanted)(**{f.name: _read(hints[f.name], value[f.name]) for f in fields(wanted)})
    return Path(value) if wanted is Path else value
