"""A monitoring port that other machines reach: said out loud, and with a token; TLS where it is given."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from cli import main
from shared_features.errors import ConfigurationError
from streaming.monitoring import Monitoring
from streaming.monitoring_access import MonitoringAccess, read_address, write_address
from streaming.monitoring_server import MonitoringServer
from tests.certificates import Authority

EVERYWHERE = ".".join("0000")
TOKEN = "a-token-of-24-characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def access(tmp_path: Path) -> MonitoringAccess:
    certificate, key = (Path(name) for name in Authority().pair("job").write(tmp_path, "job"))
    key.chmod(0o600)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return MonitoringAccess(allow_remote=True, token_file=token, certificate=certificate, key=key)


@pytest.fixture
def server(access: MonitoringAccess) -> Iterator[MonitoringServer]:
    server = MonitoringServer(Monitoring("shop", "f" * 64), EVERYWHERE, access=access)
    yield server
    server.close()


def client(server: MonitoringServer, access: MonitoringAccess) -> httpx.Client:
    context = ssl.create_default_context(cafile=access.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context, timeout=120)


@pytest.mark.parametrize(
    ("host", "given", "said"),
    [
        (EVERYWHERE, MonitoringAccess(), "can be reached from other machines: say --monitoring-allow-remote"),
        ("10.1.2.3", MonitoringAccess(token_file=Path("x")), "say --monitoring-allow-remote"),
        ("job.example", MonitoringAccess(), "say --monitoring-allow-remote"),
        (EVERYWHERE, MonitoringAccess(allow_remote=True), "give a --monitoring-token-file"),
        ("127.0.0.1", MonitoringAccess(certificate=Path("x")), "only one of them: give both"),
        ("127.0.0.1", MonitoringAccess(token_file=Path("none")), "monitoring token cannot be used"),
        ("127.0.0.1", MonitoringAccess(certificate=Path("x"), key=Path("x")), "TLS files cannot be used"),
    ],
)
def test_what_would_let_everybody_ask_is_refused(host: str, given: MonitoringAccess, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MonitoringServer(Monitoring("shop", "f" * 64), host, access=given)


def test_a_token_is_wanted_for_all_but_the_probes(server: MonitoringServer, access: MonitoringAccess) -> None:
    with client(server, access) as asking:
        for path in ("/metrics", "/status", "/other"):
            for headers in ({}, {"Authorization": "Bearer another-token-of-ours"}, {"Authorization": TOKEN}):
                answer = asking.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert "shop" not in answer.text
        assert asking.get("/metrics", headers=BEARER).status_code == 200
        assert asking.get("/status", headers={**BEARER, "Host": "job.example"}).json()["received"] == 0
        assert asking.get("/healthz").status_code == 200
        assert asking.get("/readyz", headers={"Host": "job.example"}).status_code == 503
        assert access.token_file is not None
        access.token_file.write_text("a-newer-token-of-ours")
        assert asking.get("/metrics", headers={"Authorization": "Bearer a-newer-token-of-ours"}).status_code == 200
        assert asking.get("/metrics", headers=BEARER).status_code == 401


def test_plain_http_is_not_answered_where_tls_is_spoken(server: MonitoringServer) -> None:
    with httpx.Client(timeout=120) as asking:
        for _ in range(40):  # more than connections are allowed at a time: none is lost
            with pytest.raises(httpx.TransportError):
                asking.get(f"http://127.0.0.1:{server.port}/healthz", timeout=120)


def test_a_key_that_others_can_read_is_refused(access: MonitoringAccess) -> None:
    assert access.key is not None
    access.key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        MonitoringServer(Monitoring("shop", "f" * 64), access=access)


def test_status_knows_by_itself_how_to_ask(server: MonitoringServer, access: MonitoringAccess, tmp_path: Path) -> None:
    write_address(tmp_path, server.url, access)
    assert TOKEN not in (tmp_path / "monitoring.json").read_text()
    noted = read_address(tmp_path)
    assert noted is not None
    assert noted.url == f"https://{EVERYWHERE}:{server.port}"
    words = ["status", "--app", "tests/shop", "--archive", str(tmp_path)]
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (found["running"], found["ready"]) == (True, False)
    url = [*words, "--url", f"https://127.0.0.1:{server.port}", "--authority", str(access.certificate)]
    assert json.loads(CliRunner().invoke(main, [*url, "--token-file", str(access.token_file), "--json"]).stdout)[
        "running"
    ]
    refused = CliRunner().invoke(main, url)
    assert refused.exit_code == 2
    assert "wants its token: give --token-file" in refused.stderr
