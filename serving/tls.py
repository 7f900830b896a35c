"""TLS for gRPC and REST from one SSLConfig file in text format, mutual if it says so, taken up again when it changes.

Source: tensorflow_serving/config/ssl_config.proto. Keys and certificates stand in the file itself, as PEM. Nothing
of it is ever logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from serving import wire
from serving.config import read_text
from serving.status import RefusalError, invalid
from serving.watched import WatchedFile

log = logging.getLogger("sameriver.serving")


class Tls:
    """The certificates of a server.

    Attributes:
        client_verify: clients need a certificate that ``custom_ca`` signed.

    Args:
        path: SSLConfig in text format. RefusalError, without a word of its content, if it cannot be used; OSError
            if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file: WatchedFile[tuple[Any, ssl.SSLContext]] = WatchedFile(path, _read)
        self._given = self._file.value()[0]
        self.client_verify: bool = self._given.client_verify

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port: asks for the latest certificate at each handshake."""

        def latest() -> Any:  # None leaves it as it is
            config = self._file.value()[0]
            if config is self._given:
                return None
            self._given = config
            return _configuration(config)

        return grpc.dynamic_ssl_server_credentials(_configuration(self._given), latest, self.client_verify)

    def context(self) -> ssl.SSLContext:
        """For an HTTP connection."""
        return self._file.value()[1]


def _configuration(config: Any) -> grpc.ServerCertificateConfiguration:
    pair = (config.server_key.encode(), config.server_cert.encode())
    return grpc.ssl_server_certificate_configuration([pair], config.custom_ca.encode() or None)


def _read(path: Path) -> tuple[Any, ssl.SSLContext]:
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise invalid(f"'{path}' holds a private key and can be written by others: chmod 600 it")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s holds a private key and can be read by others: chmod 600 it", path)
    try:
        config = read_text(path, wire.SSLConfig())
    except RefusalError:  # its words could quote the key
        raise invalid(f"Invalid protobuf file: '{path}' is no SSLConfig in text format") from None
    if not (config.server_key and config.server_cert):
        raise invalid(f"Invalid protobuf file: '{path}' lacks server_key or server_cert")
    if config.client_verify and not config.custom_ca:
        raise invalid(f"Invalid protobuf file: '{path}' wants clients verified and lacks custom_ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        with _private_file(config.server_cert, config.server_key) as both:
            context.load_cert_chain(both)
        if config.client_verify:
            context.load_verify_locations(cadata=config.custom_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise invalid(f"'{path}' holds certificates that cannot be used ({reason})") from None
    return config, context


@contextlib.contextmanager
def _private_file(*parts: str) -> Iterator[str]:
    """A file that only we can read, for as long as the block runs: OpenSSL takes keys from files alone."""
    handle, name = tempfile.mkstemp(prefix="sameriver-")
    try:
        with os.fdopen(handle, "w", encoding="ascii", errors="replace") as file:
            file.write("\n".join(parts))
        yield name
    finally:
        os.unlink(name)
