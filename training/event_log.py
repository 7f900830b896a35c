"""Figures of a training as it goes on, in the files that TensorBoard reads: `tensorboard --logdir FOLDER` shows them.

TensorFlow writes them by itself; TensorBoard need not be installed where a model is trained.

Importing this module does not load TensorFlow; writing does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventLog:
    """Takes figures by step; writes nothing where there is no folder.

    Args:
        folder: of one run; made when the first figures come. A run that goes on adds a file of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write scalars by name, and flush."""
        if self._folder is None:
            return
        import tensorflow as tf
        from tensorflow.core.framework import summary_pb2

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)  # an OSError says what is wrong, TensorFlow's error less
            self._writer = tf.summary.create_file_writer(str(self._folder))
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
        scalar = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_SCALAR)
        with self._writer.as_default():
            for name, value in figures.items():
                tf.summary.write(name, tf.cast(value, tf.float32), step=step, metadata=scalar)
        self._writer.flush()


UNLOGGED = EventLog()
