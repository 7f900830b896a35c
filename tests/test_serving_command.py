"""`sameriver serve` takes a command line of tensorflow_model_server as it is."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

from serving.flags import WITHOUT_EFFECT, channel_arguments, parser
from tests.processes import Started
from tests.serving_models import put

# From tensorflow_serving/model_servers/main.cc.
REAL_FLAGS = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support
enable_batching allow_version_labels_for_unavailable_models batching_parameters_file
enable_per_model_batching_parameters model_config_file model_config_file_poll_wait_seconds model_name model_base_path
num_load_threads num_unload_threads max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds
flush_filesystem_caches tensorflow_session_parallelism tensorflow_session_config_file tensorflow_intra_op_parallelism
tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file platform_config_file
per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
num_request_iterations_for_warmup version monitoring_config_file remove_unused_fields_from_bundle_metagraph
prefer_tflite_model num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check
xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file
mixed_precision skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""


def test_every_flag_of_the_real_server_is_known() -> None:
    known = {option for action in parser()._actions for option in action.option_strings}
    assert [name for name in REAL_FLAGS.split() if f"--{name}" not in known] == []
    assert all(f"--{name}" in known for name in WITHOUT_EFFECT)


def test_switches_can_be_given_in_every_form() -> None:
    for text, value in (("", True), ("=true", True), ("=1", True), ("=false", False), ("=0", False)):
        assert parser().parse_args([f"--enable_batching{text}"]).enable_batching is value


def test_channel_arguments() -> None:
    assert channel_arguments("") == []
    assert channel_arguments("a=1,b=-2,c=x,d=") == [("a", 1), ("b", -2), ("c", "x"), ("d", "")]


def test_a_command_line_is_moved_over_unchanged(start_process: Callable[..., Started], tmp_path: Path) -> None:
    put("half_plus_two", tmp_path / "half", 1)
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 }")
    server = start_process(
        ["-m", "cli", "--log-level=info", "serve", "--json", "--port=0", "--rest_api_port=-1", "--model_name=half",
         f"--model_base_path={tmp_path / 'half'}", "--enable_batching=true", f"--batching_parameters_file={batching}",
         "--flush_filesystem_caches=false"], ready='"ready"',
    )  # fmt: skip
    ready = json.loads(server.line)
    assert (ready["model"], ready["versions"]) == ("half", [1])
    assert any("--flush_filesystem_caches has no effect here" in line for line in server.lines)
    connection = http.client.HTTPConnection(ready["rest"], timeout=120)
    connection.request("POST", "/v1/models/half:predict", json.dumps({"instances": [1.0] * 9}))
    reply = connection.getresponse()
    assert reply.status == 400
    assert "Task size 9 is larger than maximum input batch size 8" in reply.read().decode()
    connection.close()
    assert server.stop() == 0
    assert json.loads(server.lines[-1]) == {"stopped": True}, server.lines


def test_what_cannot_work_is_one_sentence(start_process: Callable[..., Started], tmp_path: Path) -> None:
    server = start_process(["-m", "cli", "serve", f"--model_base_path={tmp_path}", "--use_alts_credentials"])
    assert server.wait() == 2
    assert server.lines == ["error: --use_alts_credentials is not supported: give --ssl_config_file instead."]
