"""TLS of the servers that take certificate and key as files of their own: the gateway and a job's monitoring port.

Apart from `serving.tls`, which reads the real model server's one file, and from whatever a model server imports:
the project's errors come with Numba.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from shared_features.errors import ConfigurationError


def server_context(whose: str, certificate: Path, key: Path, client_authority: Path | None = None) -> ssl.SSLContext:
    """What a server's connections are made with: TLS 1.2 or later, with files in PEM.

    Args:
        whose: the server, in the message of an error.
        certificate, key: the server's own.
        client_authority: clients need a certificate that it signed.

    Raises:
        ConfigurationError: a file cannot be used, or others than its owner may read the key.
    """
    try:
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(f"key file {key} can be read by others than its owner: chmod 600 it")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{whose} TLS files cannot be used ({error}): give a certificate and its key in PEM"
        ) from error
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
