"""How a client proves who it is to model servers, and how it knows them: certificates and a token, from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class ClientAccess:
    """Files that a client of model servers needs; the counterparts of the server's TLS and token flags.

    Attributes:
        authority: certificate of the authority that signed the servers' certificates; None trusts gRPC's own list.
        certificate, key: the client's own, for servers that ask for one (``client_verify``); both or neither.
        token_file: holds the token to show with every call (``--auth_token_file``); read again for each call.
        tls: whether to speak TLS; implied by any of the certificates.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    tls: bool = False

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For the channel; None speaks plaintext.

        Raises:
            ValueError: only one of certificate and key was given.
            OSError: a file cannot be read.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("A client's certificate needs its key and the key its certificate: give both.")
        if not (self.tls or self.authority or self.certificate):
            return None
        found: grpc.ChannelCredentials = grpc.ssl_channel_credentials(
            *(None if path is None else path.read_bytes() for path in (self.authority, self.key, self.certificate))
        )
        return found

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with every call.

        Raises:
            OSError: the file cannot be read.
        """
        if self.token_file is None:
            return ()
        return (("authorization", f"Bearer {self.token_file.read_text(encoding='ascii').strip()}"),)
