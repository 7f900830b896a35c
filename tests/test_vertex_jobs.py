"""`sameriver train|tune --submit vertex --dry-run` writes what Vertex AI's own types take, and what would run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf import json_format

import cli
from shared_features import load_app
from shared_features.errors import ConfigurationError
from tests import repository, training_rows
from training import vertex_trial
from training.options import WideAndDeepOptions
from training.vertex import VertexSettings, training_job, tuning_job

IMAGE = "europe-west4-docker.pkg.dev/my-project/images/sameriver:1.2"
WHERE: dict[str, Any] = {
    "project": "my-project",
    "region": "europe-west4",
    "image": IMAGE,
    "bucket": "gs://my-bucket/events",
}
GIVEN = [word for name, value in WHERE.items() for word in (f"--{name}", value)]


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.main, [*words, "--submit", "vertex"])


def request(command: str, path: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was said and what was written."""
    done = run(command, "--app", "flights", "--dry-run", *GIVEN, "--request", str(path), "--json", *words)
    assert done.exit_code == 0, done.output
    return json.loads(done.output.splitlines()[-1]), json.loads(path.read_text())


def test_a_training_on_several_machines(tmp_path: Path) -> None:
    from google.cloud.aiplatform_v1 import types  # 3 s

    said, written = request("train", tmp_path / "job.json", "--workers", "3", "--seed", "7")
    assert said["url"] == (
        "https://europe-west4-aiplatform.googleapis.com/v1/projects/my-project/locations/europe-west4/customJobs"
    )
    job = types.CustomJob.from_json(json.dumps(written))
    assert written == json_format.MessageToDict(types.CustomJob.pb(job))  # nothing was lost on the way
    pools = job.job_spec.worker_pool_specs
    assert [pool.replica_count for pool in pools] == [1, 2]
    assert job.job_spec.scheduling.restart_job_on_worker_restart
    assert job.job_spec.scheduling.timeout.total_seconds() == 24 * 3600
    assert job.labels["fingerprint"] == load_app("flights").fingerprint
    name, *words = pools[0].container_spec.args
    params = cli.main.commands[name].make_context(name, [*words]).params  # it can be given
    assert params["rows"] == Path("/gcs/my-bucket/events/training/flights")
    assert (params["seed"], params["workers"], params["submit"]) == (7, 1, None)


def test_a_search(tmp_path: Path) -> None:
    from google.cloud.aiplatform_v1 import types  # 3 s

    said, written = request("tune", tmp_path / "job.json", "--trials", "30", "--workers", "4", "--strategy", "random")
    assert said["url"].endswith("/hyperparameterTuningJobs")
    job = types.HyperparameterTuningJob.from_json(json.dumps(written))
    assert (job.max_trial_count, job.parallel_trial_count) == (30, 4)
    assert job.study_spec.algorithm == types.StudySpec.Algorithm.RANDOM_SEARCH
    assert job.study_spec.metrics[0].metric_id == "log_loss"
    (model,) = (model for model in load_app("flights").models if model.name == "wide_and_deep")
    assert {one.parameter_id for one in job.study_spec.parameters} == set(model.space)
    assert list(job.trial_job_spec.worker_pool_specs[0].container_spec.command) == [
        "python", "-m", "training.vertex_trial",
    ]  # fmt: skip


def test_a_space_in_the_words_of_vertex() -> None:
    space = {
        "units": [[32], [64, 64]],
        "buckets": {"low": 8, "high": 64, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "log": False},
    }
    job = tuning_job(VertexSettings(**WHERE), "search", {}, [], space, trials=3, parallel=9, strategy="bayesian")
    units, buckets, dropout = job["studySpec"]["parameters"]
    assert units["categoricalValueSpec"] == {"values": ["[32]", "[64, 64]"]}
    assert buckets["integerValueSpec"] == {"minValue": "8", "maxValue": "64"}
    assert buckets["scaleType"] == "UNIT_LOG_SCALE"
    assert dropout["doubleValueSpec"] == {"minValue": 0.0, "maxValue": 0.5}
    assert (job["parallelTrialCount"], "algorithm" in job["studySpec"]) == (3, False)
    tried = ["--units=[64, 64]", "--buckets=16.0", "--dropout=0.25"]
    read = vertex_trial._read(tried)
    assert read == {"units": [64, 64], "buckets": 16, "dropout": 0.25}
    assert WideAndDeepOptions.from_mapping(read, ["a"], [], "wide_and_deep").units == (64, 64)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"project": "My Project"}, "wants a project id such as my-project-1 for --project, got 'My Project'"),
        ({"region": "europe"}, "a region such as europe-west4"),
        ({"image": "sameriver"}, "an image with its tag"),
        ({"bucket": "my-bucket"}, "gs://bucket or gs://bucket/folder"),
        ({"bucket": "gs://my-bucket/../other"}, "gs://bucket or gs://bucket/folder"),
        ({"service_account": "me@example.org"}, "the e-mail address of a service account"),
        ({"accelerator": "NVIDIA_L4"}, "NVIDIA_L4 on machines of type g2-… only, got 'n2-standard-8'"),
        ({"accelerator": "ABACUS"}, "does not take this job: .*ABACUS"),
    ],
)
def test_what_cannot_be_is_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        training_job(VertexSettings(**{**WHERE, **changed}), "job", {}, [])


def test_nothing_is_sent(tmp_path: Path) -> None:
    done = run("train", "--app", "flights", *GIVEN, "--request", str(tmp_path / "job.json"))
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "writes jobs and sends none: add --dry-run" in done.output
    done = run("train", "--app", "flights", "--dry-run", *GIVEN[:2])
    assert "needs --region, --image, --bucket" in done.output


def test_a_trial_reports_its_score_as_vertex_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = training_rows.write(tmp_path / "rows")
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(tmp_path / "deep" / "output.metrics"))
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "4")
    given = ["--rows", str(rows), "--kind", "boosted_trees", "--options", '{"iterations": 5}', "--quick"]
    assert vertex_trial.main([*given, "--leaves=8.0"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["options"] == {"iterations": 5, "leaves": 8}
    (line,) = (tmp_path / "deep" / "output.metrics").read_text().splitlines()
    told = json.loads(line)
    assert (told["trial"], float(told["log_loss"])) == ("4", found["log_loss"])
    assert vertex_trial.main([*given, "--leaves"]) == 2
    assert "must be --NAME=JSON" in capsys.readouterr().out


def commands_of_the_guide() -> list[list[str]]:
    found = [block.code for block in repository.code_blocks("sh") if block.path == Path("docs/several-workers.md")]
    return [shlex.split(line) for code in found for line in code.splitlines()]


@pytest.mark.parametrize("words", commands_of_the_guide(), ids=" ".join)
def test_commands_of_the_guide(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be given; those that write a request write it."""
    name, *rest = words[1:]
    params = cli.main.commands[name].make_context(name, [*rest]).params
    assert params["app_name"] == "flights"
    if params.get("submit"):
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(cli.main, [name, *rest])
        assert done.exit_code == 0, done.output
        assert Path("var", "vertex", f"flights-{name}.json").is_file()
        assert "curl -X POST" in done.output
