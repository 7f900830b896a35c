"""Manifests: built by kustomize, valid by Kubernetes' published schemas, pointing at what the programs really have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.vertex import EVERYWHERE
from tests import deployed, repository
from tests.repository import ROOT

FOLDERS = ("deploy/kubernetes/base", "deploy/kubernetes/flink", "deploy/monitoring")
VALIDATE = [str(deployed.python_of_tools()), "-m", "kubernetes_validate", "--strict", "--quiet", "-k", "1.37"]
OPERATORS = {"FlinkDeployment", "PodMonitor"}  # kinds that Kubernetes itself does not have
ADAPTER = yaml.safe_load(repository.text(Path("deploy/monitoring/adapter.yaml")))


@cache
def built(folder: str) -> list[dict[str, Any]]:
    """The objects that kustomize makes of a folder; without kubectl, those of its files, with generated settings."""
    if shutil.which("kubectl") is not None:
        command = ["kubectl", "kustomize", str(ROOT / folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]
    made = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())
    texts = [(ROOT / folder / name).read_text() for name in made["resources"] if name.endswith(".yaml")]
    found = [one for text in texts for one in yaml.safe_load_all(text) if one]
    for given in made.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in given.get("literals", []))
        name = {"name": f"{given['name']}-0"}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data})
    return found


def one(kind: str, name: str, folder: str = FOLDERS[0]) -> dict[str, Any]:
    (found,) = [it for it in built(folder) if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and specs of all pods; those that Flink's folder has of its own, or changes, begin with ``flink``."""
    base = built(FOLDERS[0])
    for it in [*base, *(it for it in built(FOLDERS[1]) if it not in base)]:
        name = it["metadata"]["name"] if it in base else f"flink's {it['metadata']['name']}"
        if it["kind"] in ("Deployment", "StatefulSet"):
            yield name, it["spec"]["template"]["spec"]
        if it["kind"] == "FlinkDeployment":
            for part in ("jobManager", "taskManager"):
                yield f"{name}, {part}", it["spec"][part]["podTemplate"]["spec"]


PODS = list(pods())
CONTAINERS = [
    (name, it, spec) for name, spec in PODS for it in spec["containers"] if it.get("image", "").startswith("sameriver")
]


def test_every_object_is_valid_by_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    objects = [it for folder in FOLDERS for it in built(folder) if it["kind"] not in OPERATORS]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    done = subprocess.run([*VALIDATE, str(tmp_path / "all.yaml")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_wrong_object_is_found(tmp_path: Path) -> None:
    """The check above does check."""
    wrong = one("HorizontalPodAutoscaler", "model-server") | {"spec": {"maxReplica": 3}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert subprocess.run([*VALIDATE, str(tmp_path / "wrong.yaml")], capture_output=True, timeout=120).returncode == 1


@pytest.mark.parametrize(("name", "container", "spec"), CONTAINERS, ids=[name for name, _, _ in CONTAINERS])
def test_pods_give_up_what_they_do_not_need(name: str, container: dict[str, Any], spec: dict[str, Any]) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert name.startswith("flink's flink") or spec["automountServiceAccountToken"] is False
    assert {"requests", "limits"} <= set(container["resources"])
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/var/lib/sameriver"} <= set(mounted)
    claims = {"archive"} if name == "job" else set()
    assert set(mounted.values()) <= {volume["name"] for volume in spec["volumes"]} | claims


@pytest.mark.parametrize(("name", "container", "spec"), CONTAINERS, ids=[name for name, _, _ in CONTAINERS])
def test_commands_are_as_the_program_wants_them(
    name: str, container: dict[str, Any], spec: dict[str, Any], tmp_path: Path
) -> None:
    del name, spec
    if "args" not in container:
        python, program, option = container["command"]
        assert (python, option) == ("python", "--port=50000")
        assert program.removeprefix("/opt/sameriver/") in repository.text(Path("deploy/Dockerfile"))
        return
    cli = __import__("cli")
    (tmp_path / "token").write_text("0123456789abcdef")
    first, *words = [word.replace("/secrets", str(tmp_path)) for word in container["args"]]
    command = cli.main.commands[first]
    context = command.make_context(first, words)  # UsageError where they do not fit
    if first == "serve":
        from serving.flags import parser

        given = parser().parse_args(context.params["flags"])
        assert (given.host, given.allow_remote) == (EVERYWHERE, True)
        assert given.enable_grpc_healthcheck_service
    (settings,) = [it["data"] for it in built(FOLDERS[0]) if it["metadata"]["name"].startswith("settings-")]
    known = {f"SAMERIVER_{first.upper()}_{parameter.name.upper()}" for parameter in command.params if parameter.name}
    known |= {parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str)}
    names = {variable for variable in settings if variable.startswith(f"SAMERIVER_{first.upper()}_")}
    names |= {given["name"] for given in container.get("env", []) if given["name"].startswith("SAMERIVER_")}
    assert names <= known


def test_probes_follow_the_model_and_the_job() -> None:
    (server,) = one("Deployment", "model-server")["spec"]["template"]["spec"]["containers"]
    assert server["readinessProbe"]["grpc"] == server["startupProbe"]["grpc"] == {"port": 8500}
    job, _ = one("StatefulSet", "job")["spec"]["template"]["spec"]["containers"]
    assert [job[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")] == [
        "/readyz", "/readyz", "/healthz",
    ]  # fmt: skip


def test_the_autoscaler_watches_a_metric_that_is_made_of_one_that_is_exported() -> None:
    (metric,) = one("HorizontalPodAutoscaler", "model-server")["spec"]["metrics"]
    (rule,) = ADAPTER["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="sameriver"')
    named = deployed.metrics_named([query, rule["seriesQuery"]])
    for names in named.values():
        assert set(names) <= deployed.exported()["model-server"]


def test_what_one_asks_for_is_there() -> None:
    """Services, claims, secrets and ports that are named somewhere."""
    base = built(FOLDERS[0])
    ports = {port["name"] for _, spec in pods() for it in spec["containers"] for port in it.get("ports", [])}
    for folder in (FOLDERS[0], FOLDERS[2]):
        for it in built(folder):
            for port in it["spec"]["podMetricsEndpoints"] if it["kind"] == "PodMonitor" else []:
                assert port["port"] in ports
            for rule in it["spec"].get("ingress", []) if it["kind"] == "NetworkPolicy" else []:
                assert {port["port"] for port in rule["ports"]} <= ports
    services = {it["metadata"]["name"] for it in base if it["kind"] == "Service"}
    (job,) = [it for it in one("StatefulSet", "job")["spec"]["template"]["spec"]["containers"] if it["name"] == "job"]
    (asked,) = [word for word in job["args"] if word.startswith("--model-server=")]
    match = re.fullmatch(r"--model-server=dns:///([\w-]+):8500", asked)
    assert match is not None
    assert match.group(1) in services
    assert one("Service", match.group(1))["spec"]["clusterIP"] == "None"
    budgets = {
        it["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for it in base
        if it["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {"model-server", "gateway"}


@pytest.mark.parametrize(("name", "spec"), PODS, ids=[name for name, _ in PODS])
def test_every_container_is_one_that_the_restricted_standard_takes(name: str, spec: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, which the namespace enforces."""
    (namespace,) = [it for it in built(FOLDERS[0]) if it["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert spec["securityContext"]["runAsNonRoot"] is True, name
    assert spec["securityContext"]["runAsUser"] > 0, "an image may begin as root"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


patched = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which patches, is not on this machine")


@patched
def test_flinks_processes_share_what_they_must() -> None:
    """The operator merges lists of templates by place, so each is whole; savepoints and checkpoints are everyone's."""
    (cluster,) = [it["spec"] for it in built(FOLDERS[1]) if it["kind"] == "FlinkDeployment"]
    assert "podTemplate" not in cluster
    assert cluster["flinkConfiguration"]["taskmanager.numberOfTaskSlots"] == "1"
    templates = [cluster[part]["podTemplate"] for part in ("jobManager", "taskManager")]
    job = one("StatefulSet", "job", FOLDERS[1])["spec"]
    assert "volumeClaimTemplates" not in job or job["volumeClaimTemplates"] == []
    shared = []
    for template in [*templates, job["template"]]:
        mounts = {it["name"]: it["mountPath"] for it in template["spec"]["containers"][0]["volumeMounts"]}
        user = [template["spec"]["securityContext"][of] for of in ("runAsUser", "fsGroup")]
        shared.append((mounts["archive"], mounts["checkpoints"], *user))
        assert set(mounts) <= {volume["name"] for volume in template["spec"]["volumes"]}
    assert len(set(shared)) == 1
    allowed = one("NetworkPolicy", "model-server-from-flink", FOLDERS[1])["spec"]["ingress"][0]["from"][0][
        "podSelector"
    ]
    for template in templates:
        assert template["metadata"]["labels"] == allowed["matchLabels"]


@patched
def test_the_job_on_flink_is_pointed_at_what_is_there() -> None:
    job, follower = one("StatefulSet", "job", FOLDERS[1])["spec"]["template"]["spec"]["containers"]
    assert follower["name"] == "verify"
    given = dict(word.split("=", 1) for word in job["args"] if "=" in word)
    (cluster,) = [it for it in built(FOLDERS[1]) if it["kind"] == "FlinkDeployment"]
    assert given["--flink-rest"] == f"{cluster['metadata']['name']}-rest:8081"  # the operator's service
    (server,) = one("Deployment", "job-server", FOLDERS[1])["spec"]["template"]["spec"]["containers"]
    assert f"--flink-master={given['--flink-rest']}" in server["args"]
    (port,) = one("Service", "job-server", FOLDERS[1])["spec"]["ports"]
    assert given["--job-endpoint"] == f"job-server:{port['port']}"
    assert f"--job-port={port['port']}" in server["args"]
    (settings,) = [it for it in built(FOLDERS[1]) if it["metadata"]["name"].startswith("job-server-")]
    from deploy.flink.local import JOB_SETTINGS

    assert settings["data"] == {"config.yaml": JOB_SETTINGS}


def test_a_name_with_several_addresses_is_asked_in_turn() -> None:
    from serving import channels

    assert ("grpc.lb_policy_name", "round_robin") in channels._options("dns:///model-server:8500")
    assert "grpc.lb_policy_name" not in dict(channels._options("127.0.0.1:8500"))
