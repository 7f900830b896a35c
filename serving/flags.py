"""The model server's command line: names and defaults of flags are those of tensorflow_model_server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line; names and defaults of flags are the real server's."""
    found = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve SavedModels by TensorFlow Serving's API, on this machine only.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--port", type=int, default=8500, help="gRPC port; 0 takes a free one (default %(default)s)")
    add("--rest_api_port", type=int, default=0, metavar="PORT",
        help="port of the REST API; 0 serves none, -1 takes a free one (default %(default)s)")  # fmt: skip
    add("--rest_api_timeout_in_ms", type=int, default=30_000, metavar="MS",
        help="of one REST request (default %(default)s)")  # fmt: skip
    add("--rest_api_enable_cors_support", nargs="?", const=True, default=False, type=_boolean,
        help="let web pages of any origin ask and read")  # fmt: skip
    add("--monitoring_config_file", type=Path, metavar="FILE",
        help="MonitoringConfig in text format: metrics for Prometheus on the port of the REST API")  # fmt: skip
    add("--enable_grpc_healthcheck_service", nargs="?", const=True, default=False, type=_boolean,
        help="answer grpc.health.v1.Health, too")  # fmt: skip
    add("--model_name", default="default", help="name of the model (default %(default)s)")
    add("--model_base_path", type=Path, help="folder with one folder per version, named by number")
    add("--model_config_file", type=Path, metavar="FILE",
        help="ModelServerConfig in text format: models, policies, labels; instead of the two above")  # fmt: skip
    add("--model_config_file_poll_wait_seconds", type=float, default=0.0, metavar="S",
        help="between readings of that file; 0 reads it once (default %(default)g)")  # fmt: skip
    add("--allow_version_labels_for_unavailable_models", nargs="?", const=True, default=False, type=_boolean,
        help="labels may stand on versions that are not loaded")  # fmt: skip
    add("--file_system_poll_wait_seconds", type=float, default=1.0, metavar="S",
        help="between looks for new versions; 0 looks once, at the start (default %(default)g)")  # fmt: skip
    add("--max_num_load_retries", type=int, default=5, metavar="N",
        help="to load a version that failed (default %(default)s)")  # fmt: skip
    add("--load_retry_interval_micros", type=int, default=60_000_000, metavar="US",
        help="between these (default %(default)s)")  # fmt: skip
    add("--tensorflow_session_parallelism", type=int, default=0, metavar="N",
        help="threads in and between operations, 0 for one a core (default %(default)s)")  # fmt: skip
    add("--tensorflow_intra_op_parallelism", type=int, default=0, metavar="N",
        help="threads of one operation (default %(default)s)")  # fmt: skip
    add("--tensorflow_inter_op_parallelism", type=int, default=0, metavar="N",
        help="operations at once (default %(default)s)")  # fmt: skip
    add("--grpc_max_threads", type=int, default=4 * (os.cpu_count() or 4), metavar="N",
        help="requests worked on at once (default 4 a core: %(default)s)")  # fmt: skip
    add("--enable_serialization_as_tensor_content", nargs="?", const=True, default=False, type=_boolean,
        help="answer in tensor_content instead of typed fields")  # fmt: skip
    return found


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "false", "0"):
        return text.lower() in ("true", "1")
    raise argparse.ArgumentTypeError(f"true or false was wanted, {text!r} was given")
