"""A model server that speaks TensorFlow Serving's API, from the same command line.

    python -m serving.server --port 8500 --model_name flights --model_base_path /models/flights

Or in a program::

    with ModelServer([ModelSettings("flights", Path("/models/flights"))], port=0) as server:
        ModelClient(f"127.0.0.1:{server.port}", "flights")

It listens on this machine only. The one line on standard output, ``listening on 127.0.0.1:PORT``, comes when every
model answers; the log goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from serving import health as health_service
from serving.config import read_config, read_metrics_path
from serving.flags import parser
from serving.http import HttpServer, port_is_free
from serving.metrics import Metrics
from serving.models import Models
from serving.rest import Rest
from serving.rpc import Services, handlers
from serving.servable import Servable
from serving.signals import StopSignals
from serving.status import RefusalError
from serving.tensorflow_c import LoadedModel, TensorFlowError, library
from serving.versions import ModelSettings, find_versions

if TYPE_CHECKING:
    from shared_features.errors import ConfigurationError

log = logging.getLogger("sameriver.serving")

LOOPBACK = "127.0.0.1"
MESSAGE_LIMIT_BYTES = 256 * 1024 * 1024
STOP_GRACE_S = 5.0


class ModelServer:
    """Serves models over gRPC from `start` to `stop`; a context manager does both.

    Attributes:
        port: that gRPC listens on, known after `start`.
        rest_port: that the REST API listens on, the same.
        models: states and versions of what is served.
        config_complaint: what was last found wrong with a changed model config file.

    Args:
        models: what to serve.
        port: 0 takes a free one.
        host: a loopback address.
        poll_s: seconds between looks for new versions; 0 looks once.
        threads: requests worked on at once.
        intra_op_threads: threads of one TensorFlow operation, 0 for one a core; the first server of a process decides.
        inter_op_threads: TensorFlow operations at once, the same.
        answer_as_content: answer in ``tensor_content`` instead of typed fields.
        retries: to load a version, after the first failure.
        retry_s: seconds between these.
        message_limit_bytes: of a request.
        labels_anywhere: version labels may stand on versions that are not loaded.
        rest_port: of the REST API; 0 takes a free one, None serves none.
        rest_timeout_s: of one REST request.
        rest_cors: let web pages of any origin ask and read.
        metrics_path: of the metrics, on the port of the REST API; None serves none.
        health: answer grpc.health.v1, too.

    `start` raises ConfigurationError, in one sentence, if the port is taken, or a model is missing or cannot be
    loaded.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        *,
        port: int = 0,
        host: str = LOOPBACK,
        poll_s: float = 1.0,
        threads: int = 16,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
        answer_as_content: bool = False,
        retries: int = 5,
        retry_s: float = 60.0,
        message_limit_bytes: int = MESSAGE_LIMIT_BYTES,
        labels_anywhere: bool = False,
        rest_port: int | None = None,
        rest_timeout_s: float = 30.0,
        rest_cors: bool = False,
        metrics_path: str | None = None,
        health: bool = False,
    ) -> None:
        self._settings = list(models)
        self._host = host
        self.port = port
        self._threads = threads
        self._message_limit_bytes = message_limit_bytes
        self._server: grpc.Server | None = None
        self.rest_port = rest_port
        self._rest_timeout_s = rest_timeout_s
        self._rest_cors = rest_cors
        self._metrics_path = metrics_path
        self._metrics = Metrics()
        self._health = health
        self._http: HttpServer | None = None
        self._stopping = threading.Lock()
        self.config_complaint = ""

        def load(name: str, version: int, folder: Path) -> Servable:
            model = LoadedModel(folder, ("serve",), intra_op_threads, inter_op_threads)
            return Servable(name, version, model, answer_as_content, self._metrics)

        self.models = Models(
            self._settings, load, poll_s=poll_s, retries=retries, retry_s=retry_s, labels_anywhere=labels_anywhere
        )

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Load the models, then listen: whoever can connect gets answers."""
        self._check_ports()
        self._check_models()
        try:
            library()
        except TensorFlowError as error:
            raise _configuration_error(f"Serving needs TensorFlow's libraries: {error.message}.") from error
        self.models.start()
        try:
            for one in self._settings:
                if not self.models.available(one.name):
                    state = self.models.states(one.name)[0]
                    raise _configuration_error(
                        f"Model {one.name!r} cannot be served: version {state.version} under {one.base_path} does "
                        f"not load ({state.message.splitlines()[0]}); export it again."
                    )
            self._check_labels()
            self._listen()
        except BaseException:
            if self._http is not None:
                self._http.stop()
            self.models.stop()
            raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Take no more requests, let those under way end within `grace_s`, free the models."""
        with self._stopping:
            server, self._server = self._server, None
            if server is None:
                return
            if self._http is not None:
                self._http.stop()
            server.stop(grace_s).wait()
            self.models.stop()

    def _listen(self) -> None:
        services = Services(self.models, self._metrics)
        if self.rest_port is not None:
            rest = Rest(services, self._rest_timeout_s, self._rest_cors, self._metrics_path)
            try:
                self._http = HttpServer(self._host, self.rest_port, rest)
            except OSError as error:
                raise self._port_error(self.rest_port) from error
            self.rest_port = self._http.port
        server = grpc.server(
            ThreadPoolExecutor(self._threads, thread_name_prefix="predict"),
            handlers=handlers(services) + ([health_service.handler(self.models.ready)] if self._health else []),
            options=[
                ("grpc.so_reuseport", 0),  # a second server on a port must fail, not share it
                ("grpc.max_receive_message_length", self._message_limit_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        try:
            port = server.add_insecure_port(f"{self._host}:{self.port}")
        except RuntimeError as error:
            raise self._port_error(self.port) from error
        if not port:
            raise self._port_error(self.port)
        self.port = port
        server.start()
        self._server = server
        if self._http is not None:
            self._http.start()

    def _check_ports(self) -> None:
        # gRPC says nothing useful about a port that is taken, and only after the models have been loaded.
        for port in (self.port, self.rest_port):
            if port is not None and not port_is_free(self._host, port):
                raise self._port_error(port)

    def _port_error(self, port: int) -> ConfigurationError:
        return _configuration_error(
            f"The model server needs port {port} on {self._host}, which another program uses: stop that one, "
            f"or give another port (0 takes a free one)."
        )

    def _check_labels(self) -> None:
        try:
            self.models.check_labels()
        except RefusalError as error:
            raise _configuration_error(f"The labels of the models cannot be served: {error}.") from error

    def _check_models(self) -> None:
        for one in self._settings:
            try:
                found = one.policy.choose(find_versions(one.base_path))
            except OSError:
                raise _configuration_error(
                    f"Model {one.name!r} needs the folder {one.base_path}, which does not exist or cannot be read: "
                    f"train a model first, or give the folder that holds its versions."
                ) from None
            if not found:
                raise _configuration_error(
                    f"Model {one.name!r} needs a folder per version, named by a number like 1, under "
                    f"{one.base_path}, which has none to serve: train a model first, or give its parent folder."
                )


def _configuration_error(message: str) -> ConfigurationError:
    from shared_features.errors import ConfigurationError  # loads the whole feature library: not before it is needed

    return ConfigurationError(message)


def _models(options: argparse.Namespace) -> list[ModelSettings]:
    if options.model_config_file is None:
        return [ModelSettings(options.model_name, options.model_base_path)]
    return read_config(options.model_config_file)


def _read_again(server: ModelServer, options: argparse.Namespace, current: list[ModelSettings]) -> list[ModelSettings]:
    """Serve what the config file says now; a file that cannot be used changes nothing, and is said once."""
    try:
        wanted = _models(options)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit code 0, or 2 with one sentence if a setting cannot work."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop_signals = StopSignals()
    both = options.tensorflow_session_parallelism
    if (options.model_base_path is None) == (options.model_config_file is None):
        print(
            "Give either --model_base_path or --model_config_file, so that there is a model to serve.", file=sys.stderr
        )
        return 2
    try:
        models = _models(options)
        metrics_path = read_metrics_path(options.monitoring_config_file) if options.monitoring_config_file else None
    except (RefusalError, OSError) as error:
        print(f"A config file cannot be used: {error}", file=sys.stderr)
        return 2
    server = ModelServer(
        models,
        port=options.port,
        poll_s=options.file_system_poll_wait_seconds,
        threads=options.grpc_max_threads,
        intra_op_threads=options.tensorflow_intra_op_parallelism or both,
        inter_op_threads=options.tensorflow_inter_op_parallelism or both,
        answer_as_content=options.enable_serialization_as_tensor_content,
        retries=options.max_num_load_retries,
        retry_s=options.load_retry_interval_micros / 1e6,
        labels_anywhere=options.allow_version_labels_for_unavailable_models,
        rest_port=max(options.rest_api_port, 0) if options.rest_api_port else None,
        rest_timeout_s=options.rest_api_timeout_in_ms / 1000,
        rest_cors=options.rest_api_enable_cors_support,
        metrics_path=metrics_path,
        health=options.enable_grpc_healthcheck_service,
    )
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
    if server.rest_port is not None:
        print(f"REST API on {LOOPBACK}:{server.rest_port}")
    print(f"listening on {LOOPBACK}:{server.port}", flush=True)
    if options.model_config_file is not None and options.model_config_file_poll_wait_seconds > 0:
        while not stop_signals.wait(options.model_config_file_poll_wait_seconds):
            models = _read_again(server, options, models)
    stop_signals.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
