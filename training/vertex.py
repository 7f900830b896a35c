"""A training or a search as a job of Vertex AI: the request that would be sent, checked against Google's own types.

    POST https://<region>-aiplatform.googleapis.com/v1/projects/<project>/locations/<region>/customJobs

What runs is the project's image (deploy/Dockerfile). Rows and models are in a bucket, which Vertex AI mounts at
``/gcs``; `sameriver traindata --out gs://…` puts the rows there. Several workers find each other by TF_CONFIG, which
Vertex AI sets (see `training.together`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_features.errors import ConfigurationError

SCORE = "log_loss"

_RULES: Mapping[str, tuple[str, str]] = {
    "project": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project id such as my-project-1"),
    "region": (r"[a-z]+-[a-z]+\d{1,2}", "a region such as europe-west4"),
    "image": (r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+(:[\w.-]{1,128}|@sha256:[0-9a-f]{64})", "an image with its tag"),
    "bucket": (r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/(?!\.)[\w.=-]+)*", "gs://bucket or gs://bucket/folder"),
    "machine_type": (r"[a-z][a-z0-9]*-[a-z0-9-]+", "a machine type such as n2-standard-8"),
    "service_account": (r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com", "the e-mail address of a service account"),
}

_MACHINES = {"NVIDIA_L4": "g2", "NVIDIA_TESLA_T4": "n1", "NVIDIA_TESLA_V100": "n1", "NVIDIA_TESLA_A100": "a2"}
"""Which family of machines an accelerator comes with."""


@dataclass(frozen=True, slots=True)
class VertexSettings:
    """Where and on what a job runs.

    Attributes:
        project, region: of Google Cloud.
        image: of the container, with a tag or digest.
        bucket: ``gs://bucket/folder`` with ``training/<app>`` and ``models/<app>``.
        machine_type: of each worker.
        accelerator: such as ``NVIDIA_L4``, one a worker; None for none.
        service_account: that the job runs as; None for the project's own.
        hours: after which the job is ended.

    Raises:
        ConfigurationError: one of them cannot be what it is.
    """

    project: str
    region: str
    image: str
    bucket: str
    machine_type: str = "n2-standard-8"
    accelerator: str | None = None
    service_account: str | None = None
    hours: int = 24

    def __post_init__(self) -> None:
        for name, (pattern, wanted) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                option = "--" + name.replace("_", "-")
                raise ConfigurationError(f"Vertex AI wants {wanted} for {option}, got {value!r}: correct it.")
        family = _MACHINES.get(self.accelerator or "")
        if family is not None and not self.machine_type.startswith(f"{family}-"):
            raise ConfigurationError(
                f"Vertex AI has {self.accelerator} on machines of type {family}-… only, got {self.machine_type!r}: "
                "correct --machine-type."
            )

    @property
    def parent(self) -> str:
        """What the job belongs to."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def mounted(self) -> str:
        """The bucket's folder as the container sees it."""
        return "/gcs/" + self.bucket.removeprefix("gs://")


def training_job(
    settings: VertexSettings, name: str, labels: Mapping[str, str], arguments: Sequence[str], workers: int = 1
) -> dict[str, Any]:
    """A CustomJob that runs ``sameriver <arguments>``, as the JSON of Vertex AI's REST API.

    Args:
        settings: where.
        name: that people see.
        labels: by which it is found.
        arguments: of `sameriver`.
        workers: machines that train together; where there are several, all start again if one does.
    """
    container = {"imageUri": settings.image, "args": list(arguments)}
    job = {"displayName": name, "labels": dict(labels), "jobSpec": _job_spec(settings, container, workers)}
    _check("CustomJob", job)
    return job


def tuning_job(
    settings: VertexSettings,
    name: str,
    labels: Mapping[str, str],
    arguments: Sequence[str],
    space: Mapping[str, Any],
    *,
    trials: int,
    parallel: int,
    strategy: str,
) -> dict[str, Any]:
    """A HyperparameterTuningJob of which each trial runs ``python -m training.vertex_trial <arguments>``.

    Args:
        settings, name, labels: as for `training_job`.
        arguments: of each trial; Vertex AI adds the options it tries.
        space: what may be tried, see `shared_features.space`.
        trials, parallel: how many, and how many at a time.
        strategy: ``bayesian`` or ``random``.
    """
    container = {
        "imageUri": settings.image,
        "command": ["python", "-m", "training.vertex_trial"],
        "args": list(arguments),
    }
    study: dict[str, Any] = {
        "metrics": [{"metricId": SCORE, "goal": "MINIMIZE"}],
        "parameters": [_parameter(option, tried) for option, tried in space.items()],
    }
    if strategy == "random":  # unnamed is Bayesian
        study["algorithm"] = "RANDOM_SEARCH"
    job = {
        "displayName": name,
        "labels": dict(labels),
        "studySpec": study,
        "maxTrialCount": trials,
        "parallelTrialCount": min(parallel, trials),
        "trialJobSpec": _job_spec(settings, container, 1),
    }
    _check("HyperparameterTuningJob", job)
    return job


def _job_spec(settings: VertexSettings, container: Mapping[str, Any], workers: int) -> dict[str, Any]:
    machine: dict[str, Any] = {"machineType": settings.machine_type}
    if settings.accelerator is not None:
        machine |= {"acceleratorType": settings.accelerator, "acceleratorCount": 1}
    pool = {"machineSpec": machine, "containerSpec": dict(container)}
    spec: dict[str, Any] = {
        "workerPoolSpecs": [{**pool, "replicaCount": "1"}],
        "scheduling": {"timeout": f"{settings.hours * 3600}s"},
        "baseOutputDirectory": {"outputUriPrefix": f"{settings.bucket}/vertex"},
    }
    if workers > 1:
        spec["workerPoolSpecs"].append({**pool, "replicaCount": str(workers - 1)})
        spec["scheduling"]["restartJobOnWorkerRestart"] = True
    if settings.service_account is not None:
        spec["serviceAccount"] = settings.service_account
    return spec


def _parameter(option: str, tried: Any) -> dict[str, Any]:
    """One option of a space; a list's values are told as JSON, which the trial reads back."""
    if isinstance(tried, list):
        return {"parameterId": option, "categoricalValueSpec": {"values": [json.dumps(value) for value in tried]}}
    whole = type(tried["low"]) is int and type(tried["high"]) is int
    ends = {"minValue": tried["low"], "maxValue": tried["high"]}
    if whole:
        ends = {name: str(value) for name, value in ends.items()}  # JSON's form of int64
    scale = "UNIT_LOG_SCALE" if tried["log"] else "UNIT_LINEAR_SCALE"
    return {"parameterId": option, "integerValueSpec" if whole else "doubleValueSpec": ends, "scaleType": scale}


def _check(kind: str, job: Mapping[str, Any]) -> None:
    """Hold a job against the message that Vertex AI takes: no field that it does not have, no value of another type.

    Raises:
        ConfigurationError: names what does not fit.
    """
    from google.cloud.aiplatform_v1 import types  # 3 s
    from google.protobuf import json_format

    try:
        json_format.ParseDict(dict(job), getattr(types, kind).pb(getattr(types, kind)()))
    except json_format.ParseError as error:
        raise ConfigurationError(f"Vertex AI's {kind} does not take this job: {error}.") from error
