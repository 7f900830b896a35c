"""Who may ask the gateway, how much and how slowly; and that secrets stay where they are."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from commands.gateway import check_reach, read_tls, read_token
from serving.gateway import server as gateway_server
from serving.gateway import web as gateway_web
from serving.gateway.server import Tls
from shared_features.errors import ConfigurationError
from tests.certificates import DAY, Authority, Pair
from tests.gateway_kit import Running, running
from tests.processes import wait_until

TOKEN = "correct-horse-battery-staple"
SALE = {"amount": 9.0}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with running(token=TOKEN, body_bytes=10_000) as started:
        yield started


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"]
)
def test_without_the_token_only_health_is_told(gateway: Running, given: str | None) -> None:
    headers = {} if given is None else {b"Authorization": given.encode("latin-1")}
    for path in ("/openapi.json", "/docs", f"/v1/predictions/{'a' * 32}", "/nowhere"):
        answer = gateway.client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert gateway.post(SALE, headers=headers).status_code == 401
    assert gateway.client.get("/healthz", headers=headers).status_code == 200
    assert gateway.client.get("/readyz", headers=headers).status_code == 200
    assert gateway.topics.published == []


def test_with_the_token_all_is(gateway: Running) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert gateway.post(SALE, headers=headers).status_code == 200
    described = gateway.client.get("/openapi.json", headers=headers).json()
    assert described["security"] == [{"token": []}]
    gateway.topics.published.clear()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "a@b"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_a_name_that_only_points_here_is_refused(gateway: Running, method: str, host: str) -> None:
    answer = gateway.client.request(method, "/healthz", headers={"Host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1"])
def test_pages_of_other_origins_are_refused(gateway: Running, origin: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": origin}
    assert gateway.post(SALE, headers=headers).status_code == 403
    answer = gateway.client.get("/healthz", headers=headers)
    assert "access-control-allow-origin" not in answer.headers


def test_answers_bear_no_script_and_are_not_guessed_at(gateway: Running) -> None:
    answer = gateway.client.get("/healthz")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


def test_a_body_that_is_too_long_is_not_read(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert gateway.post(b" " * 10_001, headers=headers).status_code == 413

    def chunks() -> Iterator[bytes]:
        while True:
            yield b" " * 5_000

    url = "/v1/apps/shop/events"
    try:
        status = gateway.client.post(url, content=chunks(), headers=headers).status_code
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # it hangs up on who goes on
        status = 413
    assert status == 413
    head = f"POST {url} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    for length in ("-1", "1e3", "9" * 30):
        assert raw(gateway, f"{head}Content-Length: {length}\r\n\r\n") in ("400", "413")
    assert gateway.post(b"x", headers={**headers, "Content-Encoding": "gzip"}).status_code == 415
    monkeypatch.setattr(gateway_web, "READ_S", 0.1)
    assert raw(gateway, f"{head}Content-Length: 100\r\n\r\n{{") == "408"


def raw(gateway: Running, text: str) -> str:
    """The status that the answer to these bytes has; "" if it is a closed connection."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=120) as connection:
        connection.sendall(text.encode())
        return connection.recv(100).decode().partition(" ")[2][:3]


def test_who_never_ends_the_headers_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as gateway:
        assert gateway.post(SALE).status_code == 200
        monkeypatch.setattr(gateway_server, "HEADERS_S", 0.2)  # of connections that are made from now on
        sockets = [socket.create_connection(("127.0.0.1", gateway.port), timeout=120) for _ in range(50)]
        for one in sockets[:25]:
            one.sendall(b"POST /v1/apps/shop/events HTTP/1.1\r\nHost: local")
        assert gateway.post(SALE).status_code == 200  # others are served meanwhile
        for one in sockets:
            assert one.recv(10) == b""
            one.close()
        assert gateway.post(SALE).status_code == 200  # an idle connection that has asked before is kept


def test_secrets_are_in_no_log_and_no_answer(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    shown = [
        gateway.client.get("/docs", headers=headers).text,
        gateway.client.get("/openapi.json", headers=headers).text,
        gateway.post(b"{", headers=headers).text,
        gateway.client.get("/readyz", headers={"Authorization": f"Bearer {TOKEN}\x01"}).text,
    ]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any(TOKEN in text for text in [*shown, *ours])


@pytest.mark.parametrize(
    ("host", "allow_remote", "has_token", "has_tls", "said"),
    [
        ("127.0.0.1", False, False, False, None),
        ("localhost", False, False, False, None),
        ("192.0.2.1", False, True, True, "--allow-remote"),
        ("127.0.0.1", True, False, False, "--token-file"),
        ("192.0.2.1", True, False, False, "--token-file"),
        ("192.0.2.1", True, True, False, None),
        ("192.0.2.1", True, False, True, None),
    ],
)
def test_wider_than_loopback_needs_a_flag_and_a_lock(
    host: str, allow_remote: bool, has_token: bool, has_tls: bool, said: str | None
) -> None:
    tls = Tls(Path("c"), Path("k")) if has_tls else None
    if said is None:
        check_reach(host, allow_remote, has_token, tls)
        return
    with pytest.raises(ConfigurationError, match=said):
        check_reach(host, allow_remote, has_token, tls)


def test_a_token_is_a_file_with_a_long_word(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    for text in ("", "short", "two words of some length"):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match="at least 16 characters"):
            read_token(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="give both"):
        read_tls(file, None, None)
    assert read_tls(None, None, None) is None


# TLS


def write(pair: Pair, folder: Path, name: str) -> tuple[Path, Path]:
    """Files of a certificate and its key, the key for its owner alone."""
    certificate, key = map(Path, pair.write(folder, name))
    key.chmod(0o600)
    return certificate, key


def authority_file(authority: Authority, folder: Path, name: str) -> Path:
    file = folder / f"{name}.pem"
    file.write_text(authority.pem)
    return file


def client_context(authority: Path, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def test_tls_asks_for_the_right_certificates_and_takes_up_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_server, "ROTATION_S", 0.05)
    ours, others = Authority("ours"), Authority("others")
    known, unknown = authority_file(ours, tmp_path, "ours"), authority_file(others, tmp_path, "others")
    certificate, key = write(ours.pair("server"), tmp_path, "server")
    good = write(ours.pair("client"), tmp_path, "client")
    expired = write(ours.pair("client", -DAY), tmp_path, "old")
    strange = write(others.pair("client"), tmp_path, "stranger")
    with running(tls=Tls(certificate, key, known), client={"verify": client_context(known, good)}) as gateway:
        assert gateway.post(SALE).status_code == 200
        url = f"https://127.0.0.1:{gateway.port}/healthz"
        for context in (
            client_context(known),  # no certificate
            client_context(known, strange),
            client_context(known, expired),
            client_context(unknown, good),  # does not know the server's authority
        ):
            with pytest.raises(httpx.TransportError):
                httpx.get(url, verify=context, timeout=120)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), timeout=120)  # plain text
        write(ours.pair("server"), tmp_path, "server")
        os.utime(certificate, (1, 1 + time.time()))
        serial = _serial(certificate)
        wait_until(lambda: _served_serial(gateway.port, client_context(known, good)) == serial, what="rotation")


def _serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def _served_serial(port: int, context: ssl.SSLContext) -> int:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=120) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        certificate = secured.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def test_tls_files_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    certificate, key = write(Authority().pair("server"), tmp_path, "server")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Tls(tmp_path / "none", key).context()
    certificate.chmod(0o600)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Tls(key, certificate).context()  # the two mixed up
    key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Tls(certificate, key).context()
