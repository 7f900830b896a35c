"""What is deployed says the same as the code: images pinned, nothing open to other machines, nobody root."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import config, flags
from serving.vertex import EVERYWHERE
from tests import deployed, repository
from tests.deployed import SERVICES
from tests.repository import ROOT

DOCKERFILE = repository.text(Path("deploy/Dockerfile"))
OURS = [name for name, service in SERVICES.items() if service["image"] == "sameriver"]
# What Compose calls `services`' keys, of those in use: a wrong name would be found on a machine with Docker only.
KEYS = {
    "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "ports",
    "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    assert service["image"] == "sameriver" or re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"])


def test_one_image_is_built_once_for_all_that_is_ours() -> None:
    assert [name for name in SERVICES if "build" in SERVICES[name]] == ["secrets"]
    assert set(OURS) == {"secrets", "job", "gateway", "verify", "monitor", "export"}


def test_the_model_server_has_the_version_that_the_models_are_made_with() -> None:
    (version,) = re.findall(r"^tensorflow==([\d.]+)", repository.text(Path("requirements.lock")), re.MULTILINE)
    assert SERVICES["model-server"]["image"] == f"tensorflow/serving:{version}"


def test_our_model_server_takes_the_flags_of_the_real_one() -> None:
    service = SERVICES["model-server"]
    given = flags.parser().parse_args(shlex.split(service["command"]))
    mounted = {volume.split(":")[1]: ROOT / volume.split(":")[0] for volume in service["volumes"][1:]}
    jobs = {job["job_name"]: job for job in yaml.safe_load(repository.text(deployed.PROMETHEUS))["scrape_configs"]}
    path = config.read_metrics_path(mounted[str(given.monitoring_config_file)])
    assert path == jobs["model-server"]["metrics_path"]
    from serving.batch_parameters import read_batching

    assert given.enable_batching
    assert read_batching(mounted[str(given.batching_parameters_file)]).num_batch_threads == 2


@pytest.mark.parametrize("name", [*OURS, "prometheus", "grafana"])
def test_services_give_up_what_they_do_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_told_to_compose_in_its_own_words(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    depends = service.get("depends_on", {})
    for other in depends:
        assert other in SERVICES
        if isinstance(depends, dict):
            assert depends[other]["condition"] in CONDITIONS
            assert depends[other]["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source.startswith(("./", "${")) or source in deployed.COMPOSE["volumes"]
    for path in deployed.mounted_files(service):
        assert path.exists()


def test_services_are_pointed_at_each_other() -> None:
    pointed = []
    for service in SERVICES.values():
        words = shlex.split(service.get("command") or "") if isinstance(service.get("command"), str) else []
        if "--model-server" in words:
            pointed.append(words[words.index("--model-server") + 1])
        for name, value in service.get("environment", {}).items():
            if name in ("PUBSUB_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_GRPC_ENDPOINT"):
                pointed.append(value.removeprefix("http://"))
    jobs = yaml.safe_load(repository.text(deployed.PROMETHEUS))["scrape_configs"]
    pointed += [target for job in jobs for one in job["static_configs"] for target in one["targets"]]
    assert len(pointed) == 12
    assert {where.split(":")[0] for where in pointed} <= set(SERVICES)


@pytest.mark.parametrize("name", [name for name in OURS if name != "secrets"])
def test_commands_are_as_the_program_wants_them(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cli = __import__("cli")
    (tmp_path / "token").write_text("0123456789abcdef")
    for variable, value in SERVICES[name].get("environment", {}).items():
        monkeypatch.setenv(variable, value.replace("/secrets", str(tmp_path)))
    command, words = cli.main, shlex.split(SERVICES[name]["command"])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    prefix = f"SAMERIVER_{command.name.upper()}"
    context = command.make_context(command.name, words, auto_envvar_prefix=prefix)  # UsageError where they do not fit
    if name in ("job", "verify", "monitor"):
        assert (context.params["monitoring_port"], context.params["monitoring_host"]) == (9100, EVERYWHERE)
    known = {f"{prefix}_{parameter.name.upper()}" for parameter in command.params if parameter.name}
    assert {variable for variable in os.environ if variable.startswith(f"{prefix}_")} <= known


def test_compose_itself_takes_the_file() -> None:
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True)
    command = ["docker", "compose"] if plugin and plugin.returncode == 0 else ["docker-compose"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is on this machine")
    done = subprocess.run([*command, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_metric_on_dashboard_and_alerts_is_exported() -> None:
    expressions = [*deployed.dashboard_expressions(), *deployed.alert_expressions()]
    named = deployed.metrics_named(expressions)
    exported = set().union(*deployed.exported().values())
    assert {expression: set(names) - exported for expression, names in named.items() if set(names) - exported} == {}
    wanted = {
        "sameriver_events_received_total", "sameriver_latency_seconds_bucket", "sameriver_newest_event_time_seconds",
        "sameriver_events_in_flight", "sameriver_verify_mismatches_total", "sameriver_prediction_mean",
        "sameriver_predictions_total", ":tensorflow:serving:request_latency_sum", "sameriver_gateway_requests_total",
    }  # fmt: skip
    assert wanted <= {name for names in named.values() for name in names}


def test_the_metrics_in_the_documents_are_those_that_are_exported() -> None:
    programs = deployed.exported()
    pages = {"job": "docs/operations.md", "verify": "docs/verify.md", "monitor": "docs/monitoring.md"}
    pages["job on Flink"] = "docs/flink.md"
    for program, page in pages.items():
        begin = "sameriver_flink_" if "Flink" in program else "sameriver_"  # on Flink: what it has besides
        documented = set(re.findall(rf"`({begin}\w+)(?:{{[\w,]+}})?`", repository.text(Path(page))))
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in programs[program] if name.startswith(begin)}
        assert {name for name in documented if name not in plain} == set()
        assert {name for name in plain if name not in documented and not name.endswith("_created")} == set()


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    provider = yaml.safe_load(repository.text(Path("deploy/monitoring/provisioning/dashboards/sameriver.yml")))
    (source,) = yaml.safe_load(repository.text(Path("deploy/monitoring/provisioning/datasources/prometheus.yml")))[
        "datasources"
    ]
    folder = provider["providers"][0]["options"]["path"]
    grafana = SERVICES["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}
    assert (ROOT / mounted[folder] / "sameriver.json").is_file()
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/sameriver.json"
    assert source["url"].split("//")[1].split(":")[0] in SERVICES
    dashboard: dict[str, Any] = json.loads(repository.text(deployed.DASHBOARD))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_prometheus_takes_its_files() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on this machine")
    done = subprocess.run(["promtool", "check", "rules", ROOT / deployed.ALERTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_explained() -> None:
    groups = yaml.safe_load(repository.text(deployed.ALERTS))["groups"]
    explained = repository.text(Path("docs/deployment.md"))
    for rule in groups[0]["rules"]:
        assert f"`{rule['alert']}`" in explained


def test_the_image_runs_as_nobody_in_particular_and_installs_what_is_locked() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    assert len(stages) == 3  # the comment, the build, what is run
    assert re.search(r"^USER [1-9]\d*$", stages[-1], re.MULTILINE)
    assert "requirements.lock" in DOCKERFILE
    assert "pip install" not in re.sub(r"--no-index", "", stages[-1])
    assert "HEALTHCHECK" in stages[-1]


def test_the_image_is_built_from_files_that_are_there_and_not_ignored() -> None:
    ignored = [line.rstrip("/") for line in repository.text(Path(".dockerignore")).splitlines() if line]
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists()
            assert source.split("/")[0] not in ignored
    needed = {*repository.PACKAGES, "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "cli.py", "deploy"}
    assert needed.isdisjoint(ignored)
    for name in re.findall(r"deploy/(\w+\.py)", DOCKERFILE):
        assert (ROOT / "deploy" / name).is_file()


def test_a_token_is_made_once(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "deploy" / "token.py", tmp_path / "token"], check=True)
        made.append((tmp_path / "token").read_text())
    assert re.fullmatch(r"[0-9a-f]{64}\n", made[0])
    assert made[0] == made[1]
