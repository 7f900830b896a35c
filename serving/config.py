"""Model config files: ModelServerConfig in protocol-buffer text format, as TensorFlow Serving reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving import wire
from serving.metrics import PATH
from serving.status import invalid
from serving.versions import ModelSettings, VersionPolicy

PLATFORM = "tensorflow"


def read_config(path: Path) -> list[ModelSettings]:
    """The models that a file lists.

    Raises RefusalError with the real server's words, OSError if the file cannot be read.
    """
    return settings_of(_read(path, wire.ModelServerConfig()))


def read_metrics_path(path: Path) -> str | None:
    """Where a MonitoringConfig file wants Prometheus to find the metrics; None if nowhere. Raises as `read_config`."""
    config = _read(path, wire.MonitoringConfig()).prometheus_config
    return (config.path or PATH) if config.enable else None


def _read(path: Path, message: Any) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except UnicodeDecodeError:
        raise invalid(f"Invalid protobuf file: '{path}'") from None
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise invalid(f"Error parsing text-format {name}: {error} (Invalid protobuf file: '{path}')") from None


def settings_of(config: Any) -> list[ModelSettings]:
    """The models of a ModelServerConfig message; RefusalError if it cannot be served."""
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("ModelServer does not yet support custom model config.")
    found: dict[str, ModelSettings] = {}
    for one in config.model_config_list.config:
        if one.name in found:
            raise invalid(f"Illegal to list model {one.name} multiple times in config list")
        if not Path(one.base_path).is_absolute():
            raise invalid(f"Expected model {one.name} to have an absolute path or URI; got base_path()={one.base_path}")
        if one.model_platform not in ("", PLATFORM):
            raise invalid(f"Illegal setting ModelServerConfig::model_platform: {one.model_platform}.")
        found[one.name] = ModelSettings(
            one.name, Path(one.base_path), policy_of(one.model_version_policy), dict(one.version_labels)
        )
    return list(found.values())


def policy_of(policy: Any) -> VersionPolicy:
    """A ServableVersionPolicy message as a `VersionPolicy`."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        return VersionPolicy(latest=0, specific=frozenset(policy.specific.versions))
    return VersionPolicy(latest=max(1, policy.latest.num_versions))
