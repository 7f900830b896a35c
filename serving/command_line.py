"""``python -m serving.server``: from flags to a running server, and one sentence where a setting cannot work."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from serving import logs
from serving.access import Token, address
from serving.batch_parameters import BatchingParameters, read_batching
from serving.config import read_config, read_metrics_path
from serving.flags import WITHOUT_EFFECT, channel_arguments, parser
from serving.loading import LoadSettings
from serving.server import ModelServer
from serving.signals import StopSignals
from serving.status import RefusalError
from serving.tensorflow_c import library
from serving.tls import Tls
from serving.versions import ModelSettings

log = logging.getLogger("sameriver.serving")


class FlagsError(Exception):
    """Flags, or a file that they name, that cannot be used; the text is the sentence to print."""


def _models(options: argparse.Namespace, serving: Collection[str] = ()) -> list[ModelSettings]:
    if options.model_config_file is None:
        return [ModelSettings(options.model_name, options.model_base_path)]
    return read_config(options.model_config_file, serving)


def _check(options: argparse.Namespace) -> None:
    if (options.model_base_path is None) == (options.model_config_file is None):
        raise FlagsError("Give either --model_base_path or --model_config_file, so that there is a model to serve.")
    if options.batching_parameters_file is not None and not options.enable_batching:
        raise FlagsError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true: "
            "add --enable_batching."
        )
    both = options.tensorflow_session_parallelism
    if both > 0 and options.tensorflow_intra_op_parallelism > 0 and options.tensorflow_inter_op_parallelism > 0:
        raise FlagsError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if options.use_alts_credentials:
        raise FlagsError("--use_alts_credentials is not supported: give --ssl_config_file instead.")
    if options.monitoring_config_file is not None and not options.rest_api_port:
        log.warning("--monitoring_config_file has no effect without --rest_api_port")


def _loading(options: argparse.Namespace) -> LoadSettings:
    both = options.tensorflow_session_parallelism
    batching: BatchingParameters | None = None
    if options.enable_batching:
        path = options.batching_parameters_file
        batching = BatchingParameters() if path is None else read_batching(path)
    return LoadSettings(
        tags=tuple(filter(None, options.saved_model_tags.split(","))),
        intra_op_threads=options.tensorflow_intra_op_parallelism or both,
        inter_op_threads=options.tensorflow_inter_op_parallelism or both,
        answer_as_content=options.enable_serialization_as_tensor_content,
        warm_up=options.enable_model_warmup,
        warm_up_iterations=max(1, options.num_request_iterations_for_warmup),
        check_operations=options.check_operations,
        allowed_operations=tuple(filter(None, options.allowed_ops.split(","))),
        check_method_names=options.enable_signature_method_name_check,
        batching=batching,
        batching_per_model=options.enable_per_model_batching_parameters,
    )


def _server(options: argparse.Namespace, models: list[ModelSettings]) -> ModelServer:
    try:
        arguments = channel_arguments(options.grpc_channel_arguments)
    except ValueError as error:
        raise FlagsError(f"--grpc_channel_arguments needs key=value, not {str(error)!r}.") from None
    metrics_path = None
    if options.monitoring_config_file is not None:
        metrics_path = read_metrics_path(options.monitoring_config_file)
    return ModelServer(
        models,
        port=options.port,
        host=options.host,
        allow_remote=options.allow_remote,
        socket_path=options.grpc_socket_path,
        poll_s=options.file_system_poll_wait_seconds,
        threads=options.grpc_max_threads,
        loading=_loading(options),
        retries=options.max_num_load_retries,
        retry_s=options.load_retry_interval_micros / 1e6,
        labels_anywhere=options.allow_version_labels_for_unavailable_models,
        message_limit_bytes=options.max_message_bytes,
        channel_arguments=arguments,
        rest_port=max(options.rest_api_port, 0) if options.rest_api_port else None,
        rest_timeout_s=options.rest_api_timeout_in_ms / 1000,
        rest_cors=options.rest_api_enable_cors_support,
        rest_tls=options.rest_api_enable_ssl,
        metrics_path=metrics_path,
        health=options.enable_grpc_healthcheck_service,
        tls=None if options.ssl_config_file is None else Tls(options.ssl_config_file),
        token=None if options.auth_token_file is None else Token(options.auth_token_file),
    )


def prepare(options: argparse.Namespace) -> tuple[ModelServer, list[ModelSettings]]:
    """The server that flags describe, not yet started, and its models. FlagsError if they cannot be used."""
    try:
        _check(options)
        models = _models(options)
        server = _server(options, models)
    except (RefusalError, OSError) as error:
        raise FlagsError(f"A config file cannot be used: {error}") from error
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(options, name) is not None:
            log.info("--%s has no effect here: %s", name, reason)
    return server, models


def stay(
    server: ModelServer, options: argparse.Namespace, models: list[ModelSettings], wait: Callable[[float | None], bool]
) -> None:
    """Read the model config file again and again, if flags say so, until `wait` returns True."""
    pause_s = options.model_config_file_poll_wait_seconds
    if options.model_config_file is not None and pause_s > 0:
        while not wait(pause_s):
            models = _read_again(server, options, models)
    else:
        while not wait(None):
            pass


def _read_again(server: ModelServer, options: argparse.Namespace, current: list[ModelSettings]) -> list[ModelSettings]:
    """Serve what the config file says now; a file that cannot be used changes nothing, and is said once."""
    try:
        wanted = _models(options, server.models.names())
        if wanted != current:
            server.models.replace(wanted)
            log.info("model config file read again: %d models", len(wanted))
    except (RefusalError, OSError) as error:
        if str(error) != server.config_complaint:
            log.error("the model config file cannot be used, the models stay as they are: %s", error)
        server.config_complaint = str(error)
        return current
    server.config_complaint = ""
    return wanted


@contextlib.contextmanager
def _standard_error_kept() -> Iterator[None]:
    """TensorFlow's libraries write lines about CUDA and oneDNN as they load, whatever the log level is."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def print_version() -> None:
    """As the real server does."""
    from importlib.metadata import version

    with _standard_error_kept():
        tensorflow = library().version().decode()
    print(f"TensorFlow ModelServer: {tensorflow} (sameriver {version('sameriver')})\nTensorFlow Library: {tensorflow}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit code 0, or 2 with one sentence if a setting cannot work."""
    options = parser().parse_args(arguments)
    if options.version:
        print_version()
        return 0
    logs.set_up(options.log_format == "json")
    stop_signals = StopSignals()
    try:
        server, models = prepare(options)
    except FlagsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with _standard_error_kept():
            library()
        server.start()
    except Exception as error:
        from shared_features.errors import SameriverError

        if not isinstance(error, SameriverError):
            raise
        print(error, file=sys.stderr)
        return 2
    if options.grpc_socket_path is not None:
        print(f"gRPC on {server.socket_address}")
    if server.rest_port is not None:
        print(f"REST API on {address(options.host, server.rest_port)}")
    print(f"listening on {address(options.host, server.port)}", flush=True)
    stay(server, options, models, stop_signals.wait)
    server.stop()
    return 0
