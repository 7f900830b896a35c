"""Which device trains: what was asked for, or one sentence on why not."""

from __future__ import annotations

from shared_features.errors import ConfigurationError

DEVICES = ("auto", "cpu", "gpu")


def use_device(device: str) -> None:
    """Let TensorFlow see the device that was asked for; loads TensorFlow.

    What is exported names no device: a model that was trained on a GPU predicts on a CPU.

    Args:
        device: ``cpu``, ``gpu`` (the first one), or ``auto``: a GPU where there is one.

    Raises:
        ConfigurationError: there is no such device.
    """
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not found:
        raise ConfigurationError(
            "A GPU was asked for, but TensorFlow sees none on this machine: give --device=cpu, or install "
            "tensorflow[and-cuda] and the driver."
        )
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif found:
        tf.config.set_visible_devices(found[:1], "GPU")
