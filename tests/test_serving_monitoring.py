"""What load balancers and Prometheus ask."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pyarrow as pa
import pytest

from serving import wire
from serving.client import ModelClient
from serving.metrics import Counter, Histogram
from serving.model_error import ModelError
from tests.processes import Started
from tests.serving_models import put


@pytest.fixture
def server(start_process: Callable[..., Started], tmp_path: Path) -> Started:
    put("half_plus_two", tmp_path / "half", 1)
    config = tmp_path / "monitoring.config"
    config.write_text('prometheus_config { enable: true path: "/metrics" }')
    return start_process(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=half",
         f"--model_base_path={tmp_path / 'half'}", f"--monitoring_config_file={config}",
         "--enable_grpc_healthcheck_service"], ready="listening on 127.0.0.1:",
    )  # fmt: skip


def test_health_is_told_by_service(server: Started) -> None:
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            wire.HealthCheckRequest.SerializeToString,
            wire.HealthCheckResponse.FromString,
        )
        for service in ("", "ModelService", "PredictionService", "tensorflow.serving.PredictionService"):
            assert check(wire.HealthCheckRequest(service=service), timeout=120).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(wire.HealthCheckRequest(service="another"), timeout=120)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_requests_are_counted_under_the_real_names(server: Started) -> None:
    with ModelClient(server.line.split()[-1], "half") as model:
        for _ in range(3):
            model.predict(pa.record_batch({"x": [1.0]})).result(120)
    with ModelClient(server.line.split()[-1], 'a"b') as model, pytest.raises(ModelError):
        model.describe()
    address = server.wait_for_line("REST API on").split()[-1]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=120) as reply:
        assert reply.headers["Content-Type"] == "text/plain"
        page = reply.read().decode()
    assert "# TYPE :tensorflow:serving:request_count counter\n" in page
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"} 3\n' in page
    assert ':tensorflow:serving:request_count{model_name="a\\"b",status="NOT_FOUND"} 1\n' in page
    latency = ':tensorflow:serving:request_latency_count{model_name="half",API="Predict",entrypoint="GRPC"} 3\n'
    assert latency in page
    runtime = ':tensorflow:serving:runtime_latency_bucket{model_name="half",API="Predict",runtime="TF1",le="+Inf"} 3\n'
    assert runtime in page
    for line in page.splitlines():
        assert re.fullmatch(r'# TYPE \S+ \w+|[:\w]+\{(\w+="(\\.|[^"\\])*",?)+\} [0-9.e+]+', line), line


def test_buckets_are_cumulative_and_bounds_inclusive() -> None:
    histogram = Histogram("h", ("m",), [1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.add("x", value=value)
    assert histogram.lines() == [
        'h_bucket{m="x",le="1"} 2',
        'h_bucket{m="x",le="2"} 3',
        'h_bucket{m="x",le="+Inf"} 4',
        'h_sum{m="x"} 6',
        'h_count{m="x"} 4',
    ]


def test_names_made_up_by_callers_do_not_fill_the_memory() -> None:
    counter = Counter("c", ("model_name", "status"))
    for number in range(5000):
        counter.add(f"model {number}", "NOT_FOUND")
    assert len(counter.lines()) == 1001
    assert 'c{model_name="(other)",status="NOT_FOUND"} 4000' in counter.lines()
