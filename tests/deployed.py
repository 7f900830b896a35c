"""What is deployed, read from the files that say so, and the metrics that the programs really have."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import yaml

from tests import repository
from tests.bigquery_server import ENVIRONMENT
from tests.repository import ROOT

if TYPE_CHECKING:
    from batch.follow import FollowMonitoring
    from batch.monitor_metrics import MonitorMonitoring
    from streaming.flink_monitoring import FlinkMonitoring

COMPOSE: dict[str, Any] = yaml.safe_load(repository.text(Path("docker-compose.yml")))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARD = Path("deploy/monitoring/dashboards/sameriver.json")
ALERTS = Path("deploy/monitoring/alerts.yml")
PROMETHEUS = Path("deploy/monitoring/prometheus.yml")

# Runs where promql-parser is: prints the metrics that expressions name, or fails with the first that is no PromQL.
_NAMES = """
import json, sys, promql_parser
def walk(node):
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or next(m.value for m in node.matchers.matchers if m.name == "__name__")
    for name in ("expr", "vector_selector", "lhs", "rhs", "param"):
        child = getattr(node, name, None)
        if child is not None:
            yield from walk(child)
    args = getattr(node, "args", None)
    for child in args if isinstance(args, list) else getattr(args, "args", None) or []:
        yield from walk(child)
found = {text: sorted(set(walk(promql_parser.parse(text)))) for text in json.load(sys.stdin)}
json.dump(found, sys.stdout)
"""


def python_of_tools() -> Path:
    """The Python of the environment with what only tests need."""
    program = ENVIRONMENT / "bin" / "python"
    if not program.exists():
        raise AssertionError(f"{program} is missing: run `make bigquery`, which installs what tests need")
    return program


def metrics_named(expressions: Sequence[str]) -> dict[str, list[str]]:
    """The metrics that each PromQL expression names; AssertionError if one cannot be parsed."""
    asked = json.dumps(list(expressions))
    command = [str(python_of_tools()), "-c", _NAMES]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def dashboard_expressions() -> Iterator[str]:
    """Of every panel."""
    for panel in json.loads(repository.text(DASHBOARD))["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def alert_expressions() -> Iterator[str]:
    """Of every alert."""
    for group in yaml.safe_load(repository.text(ALERTS))["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def series(page: str) -> set[str]:
    """Names of the series that a page in Prometheus' format has, those without a sample yet included."""
    found = set()
    for line in page.splitlines():
        typed = re.match(r"# TYPE (\S+) (\w+)", line)
        if typed is not None:
            name, kind = typed.groups()
            suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}.get(kind, ("",))
            found |= {name + suffix for suffix in suffixes}
        elif line and not line.startswith("#"):
            found.add(re.split(r"[{ ]", line, maxsplit=1)[0])
    return found


def following(mismatch: str | None = None) -> FollowMonitoring:
    """What `sameriver verify --follow` says, having caught up, and found this to differ."""
    from batch.follow import FollowMonitoring
    from batch.verify import VerifyReport

    app = SimpleNamespace(name="shop", fingerprint="f" * 64)
    report = VerifyReport(first_mismatch=mismatch)
    follower = SimpleNamespace(app=app, report=report, commits=0, caught_up=True, compared_s=0.0)
    return FollowMonitoring(cast(Any, follower))


def on_flink() -> FlinkMonitoring:
    """What `sameriver stream --runner flink` says before the first row."""
    from streaming.flink_monitoring import FlinkMonitoring
    from streaming.flink_rest import FlinkRest
    from tests.shop.app import app

    return FlinkMonitoring(app, Path("none"), 0, FlinkRest("localhost:8081"))


def monitoring() -> MonitorMonitoring:
    """What `sameriver monitor` says before the first row."""
    from batch.monitor import Monitor
    from batch.monitor_metrics import MonitorMonitoring
    from tests.shop.app import app

    follower = SimpleNamespace(rows=0, revision=-1)
    return MonitorMonitoring(Monitor(app, lambda *_: None, 1), cast(Any, follower))


@cache
def exported() -> dict[str, set[str]]:
    """The series of each program that Prometheus asks, by the name of its job there."""
    from serving.gateway.metrics import Metrics as GatewayMetrics
    from serving.metrics import Metrics
    from streaming.monitoring import Monitoring

    job = Monitoring("shop", "f" * 64)
    times = pa.array([1], pa.int64()).view(pa.timestamp("us", "UTC"))
    columns = {
        "event_time": times,
        "publish_time": times,
        "version.m": pa.array([3]),
        "prediction.m.p": pa.array([0.5]),
    }
    counts = {"duplicates": 0, "dead_letters": {"not_finite": 1}, "outcomes": {"predicted": 1}}
    job.committed(counts, [pa.RecordBatch.from_pydict(columns)])
    desk = SimpleNamespace(in_flight=0, trouble=lambda: "")
    gateway = GatewayMetrics(cast(Any, desk))
    return {
        "job": series(job.metrics().decode()),
        "job on Flink": series(on_flink().metrics().decode()),
        "verify": series(following().metrics().decode()),
        "monitor": series(monitoring().metrics().decode()),
        "gateway": series(gateway.text().decode()),
        "model-server": series(Metrics().page()),
    }


def mounted_files(service: dict[str, Any]) -> Iterator[Path]:
    """Files and folders of this repository that a service has mounted."""
    for volume in service.get("volumes", []):
        if volume.startswith("./"):
            yield ROOT / volume.split(":")[0]
