"""What flags change: the time of a REST request, how answers are written, which graph is loaded, what metrics say."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from serving.loading import Loader, LoadSettings
from serving.metrics import Metrics
from serving.status import Code
from serving.tensorflow_c import TensorFlowError
from tests.processes import Started, start, wait_until
from tests.serving_calls import ask, rest
from tests.serving_models import exported, put


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("flags")
    put("estimator", folder / "half", 1)
    put("estimator", folder / "half", 2)
    (folder / "models.config").write_text(
        f'model_config_list {{ config {{ name: "half" '
        f'base_path: "{folder}/half" model_version_policy {{ all {{ }} }} '
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } } }'
    )
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    started = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", f"--model_config_file={folder / 'models.config'}",
         "--enable_serialization_as_tensor_content=true", "--saved_model_tags=serve",
         f"--monitoring_config_file={folder / 'monitoring.config'}"],
        ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield started
    started.kill()


def test_answers_are_content_if_asked_for(server: Started) -> None:
    x = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        y = ask(channel, "Predict", 'model_spec { name: "half" }' + x).response["outputs"]["y"]
    assert y == {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "1"}]}, "tensor_content": "AAAgQA=="}
    assert json.loads(rest(server, "POST", "half:predict", {"instances": [1]})[1]) == {"predictions": [2.5]}


def test_status_and_metadata_by_version_and_label(server: Started) -> None:
    both = [("2", "AVAILABLE"), ("1", "AVAILABLE")]
    for path, versions in (("", both), ("/versions/1", both[1:]), ("/labels/stable", both)):
        status, text = rest(server, "GET", f"half{path}")
        found = [(one["version"], one["state"]) for one in json.loads(text)["model_version_status"]]
        assert (status, found) == (200, versions)
    for path, version in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1"), ("/labels/canary", "2")):
        status, text = rest(server, "GET", f"half{path}/metadata")
        assert (status, json.loads(text)["model_spec"]["version"]) == (200, version)
    assert rest(server, "GET", "half/labels/none/metadata") == (
        400, '{\n    "error": "Unrecognized servable version label: none"\n}',
    )  # fmt: skip
    assert rest(server, "GET", "none/metadata")[0] == 404


def test_a_graph_of_other_tags_is_not_found() -> None:
    with pytest.raises(TensorFlowError) as caught:
        Loader(LoadSettings(tags=("train",)), Metrics())("m", 1, exported() / "half_plus_two", None)
    assert caught.value.code == Code.NOT_FOUND
    assert "Could not find meta graph def matching supplied tags: { train }" in caught.value.message


def test_metrics_have_the_real_names_labels_and_buckets(server: Started) -> None:
    examples = {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert rest(server, "POST", "half:regress", examples)[0] == 200
    assert rest(server, "POST", "half:classify", {"examples": []})[0] == 400
    address = server.wait_for_line("REST API on").split()[-1]
    with urllib.request.urlopen(f"http://{address}/monitoring/prometheus/metrics", timeout=120) as reply:
        page = reply.read().decode()
    prefix = ":tensorflow:serving:"
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE))
    assert kinds == {
        f"{prefix}request_count": "counter",
        f"{prefix}request_latency": "histogram",
        f"{prefix}runtime_latency": "histogram",
        f"{prefix}request_example_counts": "histogram",
        f"{prefix}request_example_count_total": "counter",
        f"{prefix}batching_session:queuing_latency": "histogram",
        f"{prefix}model_warmup_latency": "histogram",
        f"{prefix}model_warmup_records_read": "counter",
        f"{prefix}request_log_count": "counter",
    }
    assert f'{prefix}request_example_count_total{{model="half"}} 2\n' in page
    assert f'{prefix}request_latency_count{{model_name="half",API="Regress",entrypoint="REST"}} 1\n' in page
    latency = re.findall(r'request_latency_bucket\{[^}]*API="Regress"[^}]*le="([^"]+)"\}', page)
    assert len(latency) == 34
    assert (latency[:3], latency[-1]) == (["10", "18", "32.4"], "+Inf")
    counts = re.findall(r'request_example_counts_bucket\{[^}]*le="([^"]+)"\} (\d+)', page)
    assert (counts[:3], len(counts)) == ([("1", "0"), ("2", "1"), ("4", "1")], 16)


def test_it_says_where_it_is_in_the_real_servers_words(server: Started) -> None:
    """Scripts wait for these lines."""
    rest_line = server.wait_for_line("Exporting HTTP/REST API at:")
    assert rest_line.split("at:")[1].split()[0] == server.wait_for_line("REST API on").split()[-1]
    assert f"Running gRPC ModelServer at {server.line.split()[-1]} ..." in server.wait_for_line("Running gRPC")


def test_no_models_are_models_to_come_and_a_rest_request_has_so_much_time(
    start_process: Callable[..., Started], tmp_path: Path
) -> None:
    config = tmp_path / "models.config"
    config.write_text("")
    flags = ["--port=0", "--rest_api_port=-1", f"--model_config_file={config}", "--rest_api_timeout_in_ms=400"]
    started = start_process(["-m", "serving.server", *flags], ready="listening on")
    with grpc.insecure_channel(started.line.split()[-1]) as channel:
        answer = ask(channel, "Predict", 'model_spec { name: "m" }')
        assert (answer.code, answer.details) == ("NOT_FOUND", "Servable not found for request: Latest(m)")
        put("slow", tmp_path / "m", 4)
        listed = f'config {{ model_config_list {{ config {{ name: "m" base_path: "{tmp_path}/m" }} }} }}'
        assert ask(channel, "HandleReloadConfigRequest", listed).code == "OK"
        assert ask(channel, "GetModelStatus", 'model_spec { name: "m" }').response["model_version_status"]
    status, text = rest(started, "POST", "m:predict", {"instances": [1e30]})
    assert (status, json.loads(text)) == (504, {"error": "Timed out waiting for notification"})
    wait_until(lambda: rest(started, "POST", "m:predict", {"instances": [3]})[0] == 200, what="an answer in time")
