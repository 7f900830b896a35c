"""The model server's command line: names, units and defaults of flags are those of tensorflow_model_server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

CPUS = os.cpu_count() or 4

# Flags of the real server that change nothing here, and why.
WITHOUT_EFFECT = {
    "rest_api_num_threads": "each connection has a thread of its own, 1024 at most",
    "num_load_threads": "versions load in a thread of their own",
    "num_unload_threads": "versions unload in a thread of their own",
    "flush_filesystem_caches": "the system decides what it caches",
    "tensorflow_session_config_file": "threads are set by the flags of their own",
    "platform_config_file": "TensorFlow is the only platform",
    "per_process_gpu_memory_fraction": "models run on the processor",
    "prefer_tflite_model": "saved_model.pb is what is served",
    "num_tflite_pools": "saved_model.pb is what is served",
    "num_tflite_interpreters_per_pool": "saved_model.pb is what is served",
    "remove_unused_fields_from_bundle_metagraph": "unused fields are never kept",
    "xla_cpu_compilation_enabled": "models run uncompiled",
    "xla_gpu_compilation_enabled": "models run on the processor",
    "enable_profiler": "there is no profiler service",
    "thread_pool_factory_config_file": "threads are set by the flags of their own",
    "mixed_precision": "models run as they were exported",
    "skip_initialize_tpu": "there is no TPU",
    "enforce_session_run_timeout": "the caller's deadline always holds",
}


def parser() -> argparse.ArgumentParser:
    """The command line; names and defaults of flags are the real server's."""
    found = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve SavedModels by TensorFlow Serving's API, on this machine only unless told otherwise.",
        allow_abbrev=False,
    )
    add = found.add_argument
    switch = {"nargs": "?", "const": True, "type": _boolean, "metavar": "BOOL"}

    def on_off(name: str, default: bool, text: str) -> None:
        options: dict[str, Any] = {**switch, "default": default}
        add(name, help=f"{text} (default {str(default).lower()})", **options)

    # Where it listens.
    add("--port", type=int, default=8500, help="gRPC port; 0 takes a free one (default %(default)s)")
    add("--grpc_socket_path", type=Path, metavar="PATH", help="a Unix socket for gRPC besides the port")
    add("--grpc_channel_arguments", default="", metavar="K=V,…",
        help="arguments of the gRPC server, such as grpc.max_connection_age_ms=2000")  # fmt: skip
    add("--grpc_max_threads", type=int, default=4 * CPUS, metavar="N",
        help="requests worked on at once (default 4 a core: %(default)s; with batching at least 256)")  # fmt: skip
    add("--rest_api_port", type=int, default=0, metavar="PORT",
        help="port of the REST API; 0 serves none, -1 takes a free one (default %(default)s)")  # fmt: skip
    add("--rest_api_timeout_in_ms", type=int, default=30_000, metavar="MS",
        help="of one REST request (default %(default)s)")  # fmt: skip
    on_off("--rest_api_enable_cors_support", False, "let web pages of any origin ask and read")
    add("--monitoring_config_file", type=Path, metavar="FILE",
        help="MonitoringConfig in text format: metrics for Prometheus on the port of the REST API")  # fmt: skip
    on_off("--enable_grpc_healthcheck_service", False, "answer grpc.health.v1.Health, too")
    # What it serves.
    add("--model_name", default="default", help="name of the model (default %(default)s)")
    add("--model_base_path", type=Path, help="folder with one folder per version, named by number")
    add("--model_config_file", type=Path, metavar="FILE",
        help="ModelServerConfig in text format: models, policies, labels; instead of the two above")  # fmt: skip
    add("--model_config_file_poll_wait_seconds", type=float, default=0.0, metavar="S",
        help="between readings of that file; 0 reads it once (default %(default)g)")  # fmt: skip
    on_off("--allow_version_labels_for_unavailable_models", False, "labels may stand on versions that are not loaded")
    add("--file_system_poll_wait_seconds", type=float, default=1.0, metavar="S",
        help="between looks for new versions; 0 looks once, at the start (default %(default)g)")  # fmt: skip
    add("--max_num_load_retries", type=int, default=5, metavar="N",
        help="to load a version that failed (default %(default)s)")  # fmt: skip
    add("--load_retry_interval_micros", type=int, default=60_000_000, metavar="US",
        help="between these (default %(default)s)")  # fmt: skip
    add("--saved_model_tags", default="serve", metavar="TAG,…", help="of the graph to load (default %(default)s)")
    on_off("--enable_model_warmup", True, "answer assets.extra/tf_serving_warmup_requests before a version serves")
    add("--num_request_iterations_for_warmup", type=int, default=1, metavar="N",
        help="times that each of them is answered (default %(default)s)")  # fmt: skip
    on_off("--enable_signature_method_name_check", False, "refuse signatures whose method_name is not the call's")
    # How it computes.
    on_off("--enable_batching", False, "put requests that arrive together into one run")
    add("--batching_parameters_file", type=Path, metavar="FILE", help="BatchingParameters in text format")
    on_off("--enable_per_model_batching_parameters", False,
        "a version's own batching_params.pbtxt says how it is batched, or that it is not")  # fmt: skip
    add("--tensorflow_session_parallelism", type=int, default=0, metavar="N",
        help="threads in and between operations, 0 for one a core (default %(default)s)")  # fmt: skip
    add("--tensorflow_intra_op_parallelism", type=int, default=0, metavar="N",
        help="threads of one operation (default %(default)s)")  # fmt: skip
    add("--tensorflow_inter_op_parallelism", type=int, default=0, metavar="N",
        help="operations at once (default %(default)s)")  # fmt: skip
    on_off("--enable_serialization_as_tensor_content", False, "answer in tensor_content instead of typed fields")
    on_off("--version", False, "print the version and end")
    # Who may ask.
    add("--ssl_config_file", type=Path, metavar="FILE",
        help="SSLConfig in text format: TLS on gRPC and REST, read again when it changes")  # fmt: skip
    on_off("--use_alts_credentials", False, "not supported")
    _add_own(found, on_off)
    ignored = found.add_argument_group("flags of the real server that have no effect here")
    for name, reason in WITHOUT_EFFECT.items():
        ignored.add_argument(f"--{name}", nargs="?", const="true", metavar="VALUE", help=reason)
    return found


def _add_own(found: argparse.ArgumentParser, on_off: Any) -> None:
    """Flags that the real server lacks."""
    add = found.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="to listen on; another than loopback needs --allow_remote (default %(default)s)")  # fmt: skip
    on_off("--allow_remote", False, "let other machines ask; needs --ssl_config_file or --auth_token_file")
    add("--auth_token_file", type=Path, metavar="FILE",
        help="a token that callers must show as 'authorization: Bearer …'; read again when it changes")  # fmt: skip
    on_off("--rest_api_enable_ssl", True, "with --ssl_config_file: TLS on REST, too (the real server has none there)")
    add("--max_message_bytes", type=int, default=64 * 2**20, metavar="N",
        help="of one request, compressed or not (default %(default)s)")  # fmt: skip
    on_off("--check_operations", True, "refuse models whose operations do more than compute")
    add("--allowed_ops", default="", metavar="OP,…", help="operations that models may use besides, such as ReadFile")
    add("--log_format", choices=["text", "json"], default="text", help="of the log on standard error")


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Arguments of gRPC from ``k=v,k=v``: whole numbers are numbers. ValueError if a part has no ``=``.

    >>> channel_arguments("grpc.max_connection_age_ms=2000,grpc.lb=x")
    [('grpc.max_connection_age_ms', 2000), ('grpc.lb', 'x')]
    """
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(part)
        number = value.lstrip("+-")
        found.append((key, int(value) if number.isascii() and number.isdigit() and len(number) < 10 else value))
    return found


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "false", "0"):
        return text.lower() in ("true", "1")
    raise argparse.ArgumentTypeError(f"true or false was wanted, {text!r} was given")
