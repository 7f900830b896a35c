"""Models on disk: a SavedModel as TensorFlow Serving reads it, in a folder for each version.

    <models>/<model>/<version>/saved_model.pb, variables/, assets.extra/sameriver.json

Signature ``serving_default``: one input a feature, shape [rows] ([rows, n] for a list of n numbers); numbers float32
with NaN for missing, texts with "" for missing; output ``probability`` float32 [rows]. Signature ``describe``: no
input; outputs ``fingerprint`` and ``definitions``, strings [1], so that whoever calls can check which features it
must send.

A version appears whole or not at all: it is written beside, flushed, and renamed to the next free number.

Importing this module does not load TensorFlow; writing and loading a model does.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import ConfigurationError
from shared_features.lists import spread
from training.rows import TrainingRows, number_column

SUMMARY = Path("assets.extra") / "sameriver.json"
ROWS_PER_CALL = 16_384


@contextmanager
def staged_version(models_folder: Path | str, model: str) -> Iterator[StagedVersion]:
    """A folder to write a new version into; gone at the end unless ``publish`` was called.

    Args:
        models_folder: holds a folder for each model; made where missing.
        model: the model's name.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    home = Path(models_folder) / model
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        folder = Path(tempfile.mkdtemp(prefix=staged_name(""), dir=home))  # servers look at whole numbers only
    except OSError as error:
        raise ConfigurationError(
            f"Models need a folder that can be written, but {home} cannot ({error.strerror}): choose another."
        ) from error
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would hide the model from a server of another user
        yield StagedVersion(home, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staged_name(what: str) -> str:
    """Of something that this process writes and then renames; what is left of it is removed by the next training."""
    return f".staged-{socket.gethostname()}-{os.getpid()}-{what}"


def _sweep(home: Path) -> None:
    """Remove what processes of this machine that were killed have left half written."""
    for path in home.glob(f".staged-{socket.gethostname()}-*-*"):
        owner = path.name.rsplit("-", 2)[1]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class StagedVersion:
    """A version being written.

    Attributes:
        home: the model's folder.
        folder: where the version is written now.
    """

    home: Path
    folder: Path

    def publish(self) -> tuple[int, Path]:
        """Flush to disk and rename to the next free version number; returns (version, its folder)."""
        for path in sorted(self.folder.rglob("*")):
            _flush(path)
        _flush(self.folder)
        while True:
            version = max(versions(self.home), default=0) + 1
            target = self.home / str(version)
            try:
                self.folder.rename(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another trainer was faster
                    continue
                raise
            _flush(self.home)
            return version, target


def versions(home: Path | str) -> list[int]:
    """Version numbers in a model's folder, ascending; empty where there is no folder."""
    home = Path(home)
    if not home.is_dir():
        return []
    return sorted(int(path.name) for path in home.iterdir() if path.is_dir() and path.name.isdecimal())


def latest_version(models_folder: Path | str, model: str) -> Path:
    """Folder of a model's greatest version.

    Raises:
        ConfigurationError: there is none.
    """
    home = Path(models_folder) / model
    found = versions(home)
    if not found:
        raise ConfigurationError(f"Model {model} needs a version in {home}, but there is none: run `sameriver train`.")
    return home / str(found[-1])


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what made the model, and how good it is, beside it."""
    path = folder / SUMMARY
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_summary(version_folder: Path | str) -> dict[str, Any]:
    """The summary of an exported model.

    Raises:
        ConfigurationError: the folder has none, so it is no model of Sameriver's.
    """
    path = Path(version_folder) / SUMMARY
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"A model of Sameriver's has {SUMMARY}, but {path} cannot be read: train it with `sameriver train`."
        ) from error
    return summary


def write_saved_model(model: Any, rows: TrainingRows, folder: Path) -> None:
    """Write a Keras model of (numbers, texts) to logits as a SavedModel with the two signatures.

    Args:
        model: takes float32 [rows, numbers] and string [rows, texts], columns in the order of ``rows``; layers
            that look texts up have their tables in ``tables``.
        rows: names the features and carries fingerprint and definitions.
        folder: written into; must be empty.
    """
    import tensorflow as tf

    numbers, texts = rows.numbers, rows.texts

    def packed(columns: list[Any], any_column: Any, dtype: Any) -> Any:
        return tf.stack(columns, axis=1) if columns else tf.zeros([tf.shape(any_column)[0], 0], dtype)

    def predict(**features: Any) -> dict[str, Any]:
        any_column = next(iter(features.values()))
        for name, places in rows.lists.items():
            features |= dict(zip(places, tf.unstack(features.pop(name), num=len(places), axis=1), strict=True))
        packed_numbers = packed([features[name] for name in numbers], any_column, tf.float32)
        packed_texts = packed([features[name] for name in texts], any_column, tf.string)
        logits = model([packed_numbers, packed_texts], training=False)
        return {"probability": tf.cast(tf.reshape(tf.sigmoid(logits), [-1]), tf.float32)}

    listed = {place for places in rows.lists.values() for place in places}
    inputs = {name: tf.TensorSpec([None], tf.float32, name=name) for name in numbers if name not in listed}
    inputs |= {name: tf.TensorSpec([None, len(places)], tf.float32, name=name) for name, places in rows.lists.items()}
    inputs |= {name: tf.TensorSpec([None], tf.string, name=name) for name in texts}
    module = tf.Module()
    # What the functions use must be reachable from what is saved. Keras's own wrappers would be saved as copies:
    # a server that restores a session's variables would leave the ones that the functions read unset.
    module.weights = [variable.value for variable in model.variables]
    module.tables = [table for layer in model.layers for table in getattr(layer, "tables", [])]
    signatures = {
        "serving_default": tf.function(predict).get_concrete_function(**inputs),
        "describe": describing(rows),
    }
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise ConfigurationError(
            f"The model cannot be written to {folder.parent} ({error.message[:300]}): make room, and train again."
        ) from error


def describing(rows: TrainingRows) -> Any:
    """The signature ``describe``: fingerprint and definitions of the features that the rows were made of."""
    import tensorflow as tf

    fingerprint, definitions = rows.fingerprint, rows.definitions

    def describe() -> dict[str, Any]:
        return {
            "fingerprint": tf.identity(tf.constant([fingerprint])),
            "definitions": tf.identity(tf.constant([definitions])),
        }

    return tf.function(describe).get_concrete_function()


class SavedModel:
    """An exported model, loaded as a server loads it.

    Args:
        version_folder: as written by ``write_saved_model``.

    Raises:
        ConfigurationError: there is no SavedModel of ours, or it is damaged.
    """

    def __init__(self, version_folder: Path | str) -> None:
        import tensorflow as tf

        if not (Path(version_folder) / "saved_model.pb").is_file():
            raise ConfigurationError(f"A model needs saved_model.pb, but {version_folder} has none: train one first.")
        self._tensorflow = tf
        try:
            self._loaded = tf.saved_model.load(str(version_folder))
            self._predict = self._loaded.signatures["serving_default"]
            described = self._loaded.signatures["describe"]()
        except Exception as error:  # of many kinds: TensorFlow's, Protocol Buffers', the file system's
            said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            raise ConfigurationError(f"Model {version_folder} cannot be loaded ({said}): train it again.") from error
        self.fingerprint: str = described["fingerprint"].numpy()[0].decode()
        self.definitions: str = described["definitions"].numpy()[0].decode()
        inputs = self._predict.structured_input_signature[1]
        self.inputs: dict[str, str] = {name: one.dtype.name for name, one in sorted(inputs.items())}
        self._lists: dict[str, int] = {name: one.shape[1] for name, one in inputs.items() if one.shape.rank == 2}

    def probabilities(self, data: pa.Table | pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Predict rows with one column per feature (nulls allowed); float32 [rows].

        A list may come as a fixed-size list or spread, as `training.rows` has it.
        """
        parts = [np.empty(0, np.float32)]
        for start in range(0, data.num_rows, ROWS_PER_CALL):
            piece = data.slice(start, ROWS_PER_CALL)
            columns = spread({name: piece[name] for name in piece.schema.names})
            feed = {name: self._tensor(columns, name, dtype) for name, dtype in self.inputs.items()}
            parts.append(self._predict(**feed)["probability"].numpy())
        return np.concatenate(parts)

    def _tensor(self, columns: Mapping[str, pa.Array | pa.ChunkedArray], name: str, dtype: str) -> Any:
        if dtype == "string":
            texts = pc.fill_null(columns[name].cast(pa.string()), "").to_pylist()
            return self._tensorflow.constant(texts, self._tensorflow.string)
        if name in self._lists:
            places = [number_column(columns[f"{name}[{place}]"]) for place in range(self._lists[name])]
            numbers = np.stack(places, axis=1)
        else:
            numbers = number_column(columns[name])
        return self._tensorflow.constant(numbers, self._tensorflow.as_dtype(dtype))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
