"""A small HTTP/1.1 server for the REST API: bounded in connections, sizes and time, quiet about itself."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

log = logging.getLogger("sameriver.serving")

BODY_LIMIT_BYTES = 64 * 1024 * 1024
CONNECTIONS = 1024
IDLE_S = 30.0
REQUEST_S = 60.0
HANDSHAKE_S = 10.0
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Answer(NamedTuple):
    """What goes back: status, body, content type, further headers."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}


Handler = Callable[[str, str, Mapping[str, str], bytes], Answer]


class HttpServer:
    """Serves one handler, a function of method, path, headers and body.

    Args:
        host: loopback address to listen on.
        port: 0 takes a free one; OSError if it is taken.
        handler: called on many threads; whatever it raises is logged and answered 500 without details.
        body_limit_bytes: of a request, before and after decompression; beyond it 413.
        connections: at once; further ones are closed.
        idle_s: after which a connection that sends or takes nothing is closed.
        request_s: in which a request must have arrived whole, from its first byte on.
        tls: gives the context for a new connection; None speaks plain HTTP.
        any_host: answer whatever the Host header says. Else one that is not this machine is refused (403): a web
            page that had its name point here could ask with the browser's help.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handler: Handler,
        *,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        connections: int = CONNECTIONS,
        idle_s: float = IDLE_S,
        request_s: float = REQUEST_S,
        tls: Callable[[], ssl.SSLContext] | None = None,
        any_host: bool = False,
    ) -> None:
        class Requests(_Requests):
            timeout = idle_s
            answer_to = staticmethod(handler)
            limit_bytes = body_limit_bytes
            time_s = request_s
            check_names = not any_host

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), Requests, connections, tls)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and end."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        connections: int,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self._tls = tls
        self._free = threading.BoundedSemaphore(connections)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self._tls is not None:  # here, not where connections are accepted: a slow client delays nobody else
                request.settimeout(HANDSHAKE_S)
                try:
                    request = self._tls().wrap_socket(request, server_side=True)
                except (OSError, ValueError) as error:
                    log.debug("a TLS handshake failed: %s", error)
                    self.shutdown_request(request)
                    return
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("an HTTP connection ended early")  # the other side went away: nobody's fault


class _Clocked(io.RawIOBase):
    """A socket's bytes, while there is time: one byte every few seconds must not hold a connection for ever."""

    def __init__(self, connection: socket.socket, idle_s: float) -> None:
        self._connection = connection
        self._idle_s = idle_s
        self.request_s: float | None = None
        self.deadline: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wait_s = self._idle_s
        if self.deadline is not None:
            wait_s = min(wait_s, self.deadline - time.monotonic())
            if wait_s <= 0:
                raise TimeoutError("the request takes too long to arrive")
            self._connection.settimeout(wait_s)
        count = self._connection.recv_into(buffer)
        if self.deadline is None and self.request_s is not None:
            self.deadline = time.monotonic() + self.request_s
        elif self.deadline is not None:
            self._connection.settimeout(self._idle_s)
        return count


class _RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "sameriver"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    answer_to: Handler
    limit_bytes: int
    time_s: float
    check_names: bool

    def setup(self) -> None:
        """Read through a clock."""
        super().setup()
        self._clocked = _Clocked(self.connection, float(self.timeout or IDLE_S))
        self.rfile = io.BufferedReader(self._clocked, 65536)

    def handle_one_request(self) -> None:
        """Give the request its time from its first byte on."""
        self._clocked.request_s = self.time_s
        try:
            super().handle_one_request()
        finally:
            self._clocked.request_s = None
            self._clocked.deadline = None

    def handle_expect_100(self) -> bool:
        """Ask for the body at once: clients such as curl wait a second for it."""
        found = super().handle_expect_100()
        self.wfile.flush()
        return found

    def _serve(self) -> None:
        try:
            self._check_host()
            body = self._body()
        except _RefusedError as refused:
            self.close_connection = True
            self._send(Answer(refused.status))
            return
        try:
            answer = type(self).answer_to(self.command, self.path.partition("?")[0], dict(self.headers), body)
        except Exception:
            log.exception("an HTTP request failed")
            answer = Answer(500, b'{"error": "Internal error; the server\'s log has it whole"}')
        self._send(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = _serve  # noqa: N815

    def _check_host(self) -> None:
        if not self.check_names:
            return
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in _LOCAL_HOSTS:
            raise _RefusedError(403)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = self._chunks()
        else:
            length = self.headers.get("Content-Length", "0")
            if not (length.isascii() and length.isdigit()):
                raise _RefusedError(400)
            if len(length) > 18 or int(length) > self.limit_bytes:
                raise _RefusedError(413)
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                raise ConnectionError("the body is cut short")
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        if encoding == "gzip":
            return self._inflated(body)
        if encoding != "identity":
            raise _RefusedError(415)
        return body

    def _chunks(self) -> bytes:
        parts, total = [], 0
        while True:
            size_text = self.rfile.readline(64).partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise _RefusedError(400) from None
            total += size
            if size < 0 or total > self.limit_bytes:
                raise _RefusedError(413)
            if not size:
                break
            parts.append(self.rfile.read(size))
            self.rfile.readline(8)
        while self.rfile.readline(1024).strip():  # trailers
            pass
        return b"".join(parts)

    def _inflated(self, body: bytes) -> bytes:
        unzip = zlib.decompressobj(wbits=31)
        try:
            found = unzip.decompress(body, self.limit_bytes + 1)
        except zlib.error:
            raise _RefusedError(400) from None
        if len(found) > self.limit_bytes:
            raise _RefusedError(413)
        return found

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.body:
            self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        with contextlib.suppress(OSError):
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("http: %s", format % args)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
