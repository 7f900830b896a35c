"""Who may ask a job's monitoring port: this machine alone, or whoever shows a token."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.access import Token, is_loopback
from serving.certificates import server_context
from serving.status import RefusalError
from shared_features.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class MonitoringAccess:
    """What the port asks for.

    Attributes:
        allow_remote: other machines may connect; only with a token.
        token_file: holds the token that ``/metrics`` and ``/status`` want; read again when it changes.
        certificate, key: in PEM: HTTPS instead of HTTP; both or neither.
    """

    allow_remote: bool = False
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def check(self, host: str) -> None:
        """Refuse what would let others ask and nobody check them.

        Raises:
            ConfigurationError: the host can be reached from other machines, and that was not said, or there is no
                token; a certificate lacks its key.
        """
        if not is_loopback(host) and not self.allow_remote:
            raise ConfigurationError(
                f"monitoring host {host} can be reached from other machines: say --monitoring-allow-remote if that is "
                "meant, or leave --monitoring-host out"
            )
        if self.allow_remote and self.token_file is None:
            raise ConfigurationError(
                "--monitoring-allow-remote lets other machines connect: give a --monitoring-token-file, so that not "
                "everybody can ask"
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError(
                "TLS needs --monitoring-certificate and --monitoring-key, got only one of them: give both"
            )

    def token(self) -> Token | None:
        """What requests are held against. Raises ConfigurationError if the file holds no token."""
        if self.token_file is None:
            return None
        try:
            return Token(self.token_file)
        except (RefusalError, OSError) as error:
            said = error.text if isinstance(error, RefusalError) else f"{self.token_file}: {error.strerror}"
            raise ConfigurationError(f"monitoring token cannot be used ({said}): give another file") from None

    def context(self) -> ssl.SSLContext | None:
        """What connections are made with; None for plain HTTP. Raises ConfigurationError if a file cannot be used."""
        if self.certificate is None or self.key is None:
            return None
        return server_context("monitoring's", self.certificate, self.key)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a job answers, and the files that a client on this machine needs for it; what is in them is not noted.

    Attributes:
        url: without a path.
        token_file: holds the token to show.
        certificate: the server's own, or of the authority that signed it.
    """

    url: str
    token_file: Path | None = None
    certificate: Path | None = None

    def headers(self) -> Mapping[str, str]:
        """What to send along. Raises OSError if the token cannot be read."""
        if self.token_file is None:
            return {}
        return {"Authorization": f"Bearer {self.token_file.read_text(encoding='ascii').strip()}"}

    def context(self) -> ssl.SSLContext:
        """Trusts the noted certificate and nothing else, under any name; without one, whom this machine trusts."""
        context = ssl.create_default_context(cafile=self.certificate)
        if self.certificate is not None:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


def write_address(archive: Path, url: str, access: MonitoringAccess | None = None) -> None:
    """Note beside the archive where its job answers, for `sameriver status`."""
    access = access or MonitoringAccess()
    files = {"token_file": access.token_file, "certificate": access.certificate}
    known = {name: str(path.resolve()) for name, path in files.items() if path is not None}
    temporary = archive / "monitoring.json.new"
    temporary.write_text(json.dumps({"url": url, **known}), encoding="utf-8")
    os.replace(temporary, archive / "monitoring.json")


def read_address(archive: Path) -> Address | None:
    """Where the archive's job answers, if it is running; None if it never said."""
    try:
        known = json.loads((archive / "monitoring.json").read_text(encoding="utf-8"))
        url, token_file, certificate = known["url"], known.get("token_file"), known.get("certificate")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        return None
    return Address(url, *(Path(name) if isinstance(name, str) else None for name in (token_file, certificate)))
