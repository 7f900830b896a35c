"""Model config files: ModelServerConfig in protocol-buffer text format, as TensorFlow Serving reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving import wire
from serving.metrics import PATH
from serving.request_log import LogSettings
from serving.status import invalid
from serving.versions import ModelSettings, VersionPolicy

PLATFORM = "tensorflow"


def read_config(path: Path, serving: Collection[str] = ()) -> list[ModelSettings]:
    """The models that a file lists; `serving` are the names of those that are served already.

    Raises RefusalError with the real server's words, OSError if the file cannot be read.
    """
    return settings_of(read_text(path, wire.ModelServerConfig()), serving)


def read_metrics_path(path: Path) -> str | None:
    """Where a MonitoringConfig file wants Prometheus to find the metrics; None if nowhere. Raises as `read_config`."""
    config = read_text(path, wire.MonitoringConfig()).prometheus_config
    return (config.path or PATH) if config.enable else None


def read_text(path: Path, message: Any) -> Any:
    """A message from a file in text format. RefusalError with the real server's words, OSError if it is not there."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except UnicodeDecodeError:
        raise invalid(f"Invalid protobuf file: '{path}'") from None
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise invalid(f"Error parsing text-format {name}: {error} (Invalid protobuf file: '{path}')") from None


def settings_of(config: Any, serving: Collection[str] = ()) -> list[ModelSettings]:
    """The models of a ModelServerConfig message; `serving` as above. RefusalError if it cannot be served."""
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("ModelServer does not yet support custom model config.")
    found: dict[str, ModelSettings] = {}
    for one in config.model_config_list.config:
        if one.name in found:
            raise invalid(f"Illegal to list model {one.name} multiple times in config list")
        if not Path(one.base_path).is_absolute():
            raise invalid(f"Expected model {one.name} to have an absolute path or URI; got base_path()={one.base_path}")
        if one.model_platform not in ("", PLATFORM):
            if one.name in serving:
                raise invalid(
                    f"Illegal to change a model's platform. For model {one.name} platform was {PLATFORM} and new "
                    f"platform requested is {one.model_platform}"
                )
            raise invalid(f"Illegal setting ModelServerConfig::model_platform: {one.model_platform}.")
        found[one.name] = ModelSettings(
            one.name,
            Path(one.base_path),
            policy_of(one.model_version_policy),
            dict(one.version_labels),
            _logging_of(one) if one.HasField("logging_config") else None,
        )
    return list(found.values())


def _logging_of(model: Any) -> LogSettings | None:
    collector = model.logging_config.log_collector_config
    rate = model.logging_config.sampling_config.sampling_rate
    if collector.type not in ("", "tfrecord"):
        raise invalid(f"Cannot find LogCollector::Factory for type: {collector.type}")
    if not Path(collector.filename_prefix).is_absolute():
        raise invalid(
            f"Expected model {model.name} to have an absolute filename_prefix; got {collector.filename_prefix}"
        )
    if not 0 <= rate <= 1:
        raise invalid(f"Expected a sampling_rate from 0 to 1 for model {model.name}; got {rate:g}")
    return LogSettings(collector.filename_prefix, rate) if rate else None


def policy_of(policy: Any) -> VersionPolicy:
    """A ServableVersionPolicy message as a `VersionPolicy`."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        return VersionPolicy(latest=0, specific=frozenset(policy.specific.versions))
    return VersionPolicy(latest=max(1, policy.latest.num_versions))
