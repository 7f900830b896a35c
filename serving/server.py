"""A model server that speaks TensorFlow Serving's API, from the same command line.

    python -m serving.server --port 8500 --model_name flights --model_base_path /models/flights

Or in a program::

    with ModelServer([ModelSettings("flights", Path("/models/flights"))], port=0) as server:
        ModelClient(f"127.0.0.1:{server.port}", "flights")

It listens on this machine only, unless a flag and TLS or a token say otherwise. The line on standard output,
``listening on 127.0.0.1:PORT``, comes when every model answers; the log goes to standard error.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from serving import health as health_service
from serving.access import Token, address, is_loopback
from serving.http import HttpServer, port_is_free
from serving.loading import Loader, LoadSettings
from serving.metrics import Metrics
from serving.models import Models
from serving.request_log import RequestLog
from serving.rest import Rest
from serving.rpc import Services, handlers
from serving.servable import Servable
from serving.status import RefusalError
from serving.tensorflow_c import TensorFlowError, library
from serving.tls import Tls
from serving.versions import ModelSettings, find_versions

if TYPE_CHECKING:
    from shared_features.errors import ConfigurationError

log = logging.getLogger("sameriver.serving")

LOOPBACK = "127.0.0.1"
MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
STOP_GRACE_S = 5.0
# A thread whose request waits in a batch does nothing: so many requests can wait.
THREADS_WITH_BATCHING = 256
# Of one connection, and of all: more than any client needs, few enough that they cannot fill the memory.
STREAMS = 1024
CALLS = 4096


class ModelServer:
    """Serves models over gRPC from `start` to `stop`; a context manager does both.

    Attributes:
        port: that gRPC listens on, known after `start`.
        rest_port: that the REST API listens on, the same.
        models: states and versions of what is served.
        services: what answers, known after `start`.
        config_complaint: what was last found wrong with a changed model config file.

    Args:
        models: what to serve.
        port: 0 takes a free one.
        host: address to listen on.
        allow_remote: it may be another than loopback, if there is `tls` or a `token`.
        socket_path: of a Unix socket for gRPC besides the port.
        poll_s: seconds between looks for new versions; 0 looks once.
        threads: requests worked on at once (at least 256 with batching, where they wait for each other).
        loading: how versions are loaded and run.
        retries: to load a version, after the first failure.
        retry_s: seconds between these.
        message_limit_bytes: of a request over gRPC or REST, compressed or not.
        channel_arguments: of the gRPC server, the last word.
        labels_anywhere: version labels may stand on versions that are not loaded.
        rest_port: of the REST API; 0 takes a free one, None serves none.
        rest_timeout_s: of one REST request.
        rest_cors: let web pages of any origin ask and read.
        rest_tls: speak TLS there, too, if there is `tls`.
        metrics_path: of the metrics, on the port of the REST API; None serves none.
        health: answer grpc.health.v1, too.
        tls: certificates.
        token: that every request must show, except for health.

    `start` raises ConfigurationError, in one sentence, if the port is taken, an address would be open to anybody, or
    a model is missing or cannot be loaded.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        *,
        port: int = 0,
        host: str = LOOPBACK,
        allow_remote: bool = False,
        socket_path: Path | None = None,
        poll_s: float = 1.0,
        threads: int = 16,
        loading: LoadSettings | None = None,
        retries: int = 5,
        retry_s: float = 60.0,
        message_limit_bytes: int = MESSAGE_LIMIT_BYTES,
        channel_arguments: Sequence[tuple[str, int | str]] = (),
        labels_anywhere: bool = False,
        rest_port: int | None = None,
        rest_timeout_s: float = 30.0,
        rest_cors: bool = False,
        rest_tls: bool = True,
        metrics_path: str | None = None,
        health: bool = False,
        tls: Tls | None = None,
        token: Token | None = None,
    ) -> None:
        self._settings = list(models)
        self._host = host.strip("[]")
        self._allow_remote = allow_remote
        self._socket_path = socket_path
        self.port = port
        loading = loading or LoadSettings()
        self._threads = max(threads, THREADS_WITH_BATCHING) if loading.batching else threads
        self._message_limit_bytes = message_limit_bytes
        self._channel_arguments = list(channel_arguments)
        self._server: grpc.Server | None = None
        self.rest_port = rest_port
        self._rest_timeout_s = rest_timeout_s
        self._rest_cors = rest_cors
        self._rest_tls = tls if rest_tls else None
        self._metrics_path = metrics_path
        self._metrics = Metrics()
        self._request_log = RequestLog(self._metrics)
        self._health = health
        if health:
            self._threads += health_service.WATCHERS
        self._tls = tls
        self._token = token
        self._http: HttpServer | None = None
        self.services: Services | None = None
        self._ending = threading.Event()
        self._stopping = threading.Lock()
        self.config_complaint = ""
        self._loading = loading
        self._loader: Loader | None = None
        self.models = Models(
            self._settings, self._load, poll_s=poll_s, retries=retries, retry_s=retry_s,
            labels_anywhere=labels_anywhere,
        )  # fmt: skip

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def socket_address(self) -> str:
        """Of the Unix socket, as gRPC's clients take it; "" if there is none."""
        return "" if self._socket_path is None else f"unix:{self._socket_path}"

    def start(self) -> None:
        """Load the models, then listen: whoever can connect gets answers."""
        self._check_openness()
        self._check_ports()
        self._check_models()
        try:
            library()
        except TensorFlowError as error:
            raise _configuration_error(f"Serving needs TensorFlow's libraries: {error.message}.") from error
        self._loader = Loader(self._loading, self._metrics)
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
            self._loader.stop()
            raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Take no more requests, let those under way end within `grace_s`, free the models."""
        with self._stopping:
            server, self._server = self._server, None
            if server is None:
                return
            self._ending.set()
            if self._http is not None:
                self._http.stop()
            server.stop(grace_s).wait()
            self.models.stop()
            assert self._loader is not None
            self._loader.stop()
            self._request_log.stop()

    def _load(self, name: str, version: int, folder: Path, before: Servable | None) -> Servable:
        assert self._loader is not None
        return self._loader(name, version, folder, before)

    def _listen(self) -> None:
        closed = (
            is_loopback(self._host) or self._token is not None or (self._tls is not None and self._tls.client_verify)
        )
        services = Services(self.models, self._metrics, self._request_log, may_reload=closed)
        self.services = services
        if self.rest_port is not None:
            rest = Rest(services, self._rest_timeout_s, self._rest_cors, self._metrics_path, self._token)
            try:
                self._http = HttpServer(
                    self._host,
                    self.rest_port,
                    rest,
                    body_limit_bytes=self._message_limit_bytes,
                    tls=None if self._rest_tls is None else self._rest_tls.context,
                    any_host=not is_loopback(self._host),
                )
            except OSError as error:
                raise self._port_error(self.rest_port) from error
            self.rest_port = self._http.port
        health = [health_service.handler(self.models.ready, self._ending)] if self._health else []
        server = grpc.server(
            ThreadPoolExecutor(self._threads, thread_name_prefix="predict"),
            handlers=handlers(services, self._token) + health,
            maximum_concurrent_rpcs=CALLS,
            options=[
                ("grpc.so_reuseport", 0),  # a second server on a port must fail, not share it
                ("grpc.max_receive_message_length", self._message_limit_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", STREAMS),
                *self._channel_arguments,
            ],
        )
        try:
            port = self._add_port(server, address(self._host, self.port))
        except RuntimeError as error:
            raise self._port_error(self.port) from error
        if not port:
            raise self._port_error(self.port)
        self.port = port
        if self._socket_path is not None:
            self._add_socket(server, self._socket_path)
        server.start()
        self._server = server
        log.info("Running gRPC ModelServer at %s ...", address(self._host, self.port))
        if self._http is not None and self.rest_port is not None:
            self._http.start()
            log.info("Exporting HTTP/REST API at:%s ...", address(self._host, self.rest_port))

    def _add_port(self, server: grpc.Server, where: str) -> int:
        if self._tls is None:
            return server.add_insecure_port(where)
        return server.add_secure_port(where, self._tls.grpc_credentials())

    def _add_socket(self, server: grpc.Server, path: Path) -> None:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise _configuration_error(f"--grpc_socket_path {path} is there already and is no socket: give another.")
        mask = os.umask(0o177)  # nobody else may connect, from the first moment on
        try:
            port = self._add_port(server, self.socket_address)
        except RuntimeError:
            port = 0
        finally:
            os.umask(mask)
        if not port:
            raise _configuration_error(f"The socket {path} cannot be made: give a path in a folder of your own.")

    def _check_openness(self) -> None:
        if is_loopback(self._host):
            return
        if not self._allow_remote:
            raise _configuration_error(
                f"Listening on {self._host} lets other machines ask: add --allow_remote, with --ssl_config_file or "
                f"--auth_token_file, or stay with 127.0.0.1."
            )
        if self._tls is None and self._token is None:
            raise _configuration_error(
                f"Listening on {self._host} needs TLS (--ssl_config_file) or a token (--auth_token_file), so that "
                f"not just anybody can ask."
            )
        if self._tls is None:
            log.warning("without --ssl_config_file the token and all data cross the network in the clear")
        elif self._token is None and not self._tls.client_verify:
            log.warning("without --auth_token_file or client_verify anybody who can reach %s may ask", self._host)

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


if __name__ == "__main__":
    from serving.command_line import main

    sys.exit(main())
