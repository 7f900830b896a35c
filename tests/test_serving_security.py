"""Who may ask a model server and what may be served: TLS, tokens, addresses, sockets, operations."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from serving.access import Token
from serving.graph_check import check_operations
from serving.server import ModelServer
from serving.status import RefusalError
from serving.tensorflow_c import TensorFlowError
from serving.tls import Tls
from serving.versions import ModelSettings
from shared_features.errors import ConfigurationError
from tests.certificates import DAY, Authority, Pair
from tests.processes import Started, start
from tests.serving_calls import ask
from tests.serving_models import exported, put

TOKEN = "planted-secret-4f6a"
EVERYWHERE = ".".join("0000")
PREDICT = (
    'model_spec { name: "half" } '
    'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'
)
RELOAD = 'config { model_config_list { config { name: "half" base_path: "/nowhere" } } }'


def ssl_config(server: Pair, authority: str = "", client_verify: bool = False) -> str:
    text = f"server_key: {json.dumps(server.key)}\nserver_cert: {json.dumps(server.certificate)}\n"
    if authority:
        text += f"custom_ca: {json.dumps(authority)}\n"
    return text + f"client_verify: {str(client_verify).lower()}\n"


def private(path: Path, text: str) -> Path:
    """Written whole, in place of what was there, for its owner alone."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.chmod(0o600)
    aside.rename(path)
    return path


@dataclass(frozen=True)
class Served:
    process: Started
    folder: Path
    authority: Authority
    good: Pair

    @property
    def target(self) -> str:
        return self.process.line.split()[-1]

    @property
    def rest_port(self) -> int:
        return int(self.process.wait_for_line("REST API on").rpartition(":")[2])

    def grpc_code(self, pair: Pair | None, authority: str | None = None, target: str = "") -> str:
        credentials = grpc.ssl_channel_credentials(
            (authority or self.authority.pem).encode(),
            pair.key.encode() if pair else None,
            pair.certificate.encode() if pair else None,
        )
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(target or self.target, credentials, options) as channel:
            return ask(channel, "Predict", PREDICT).code

    def https(self, pair: Pair | None, authority: str | None = None) -> int:
        context = ssl.create_default_context(cadata=authority or self.authority.pem)
        if pair is not None:
            context.load_cert_chain(*pair.write(self.folder, "client"))
        connection = http.client.HTTPSConnection("localhost", self.rest_port, timeout=120, context=context)
        try:
            connection.request("POST", "/v1/models/half:predict", '{"instances": [1]}')
            reply = connection.getresponse()
            reply.read()
            return reply.status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    put("half_plus_two", folder / "half", 1)
    authority = Authority()
    config = private(folder / "ssl.config", ssl_config(authority.pair("server"), authority.pem, True))
    process = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=half", "--log_format=json",
         f"--model_base_path={folder / 'half'}", f"--ssl_config_file={config}",
         f"--grpc_socket_path={folder / 'socket'}", "--grpc_channel_arguments=grpc.max_connection_age_ms=600000",
         "--num_load_threads=2"], ready="listening on 127.0.0.1:",
    )  # fmt: skip
    yield Served(process, folder, authority, authority.pair("client"))
    process.kill()


def test_a_client_with_a_good_certificate_is_answered(mutual: Served) -> None:
    assert mutual.grpc_code(mutual.good) == "OK"
    assert mutual.https(mutual.good) == 200


def test_every_other_client_is_refused(mutual: Served) -> None:
    strangers = {
        "no certificate": None,
        "another authority": Authority("another").pair("client"),
        "expired": mutual.authority.pair("client", -DAY),
    }
    for what, pair in strangers.items():
        assert mutual.grpc_code(pair) == "UNAVAILABLE", what
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mutual.https(pair)
    with grpc.insecure_channel(mutual.target) as channel:
        assert ask(channel, "Predict", PREDICT).code == "UNAVAILABLE"
    plain = http.client.HTTPConnection("127.0.0.1", mutual.rest_port, timeout=120)
    plain.request("GET", "/v1/models/half")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.getresponse()
    plain.close()
    assert mutual.grpc_code(mutual.good) == "OK"
    assert mutual.https(mutual.good) == 200


def test_a_server_of_another_authority_is_not_trusted(mutual: Served) -> None:
    stranger = Authority("stranger").pem
    assert mutual.grpc_code(mutual.good, stranger) == "UNAVAILABLE"
    with pytest.raises(ssl.SSLCertVerificationError):
        mutual.https(mutual.good, stranger)


def test_old_protocols_are_refused(mutual: Served) -> None:
    context = ssl.create_default_context(cadata=mutual.authority.pem)
    context.load_cert_chain(*mutual.good.write(mutual.folder, "old"))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", mutual.rest_port), timeout=120) as raw, pytest.raises(OSError):
        context.wrap_socket(raw, server_hostname="localhost")


def test_certificates_are_taken_up_without_a_restart_and_bad_ones_are_not(mutual: Served) -> None:
    config = mutual.folder / "ssl.config"
    before = config.read_text()
    second = Authority("second")
    private(config, "server_key: 'half of it")
    assert mutual.grpc_code(mutual.good) == "OK"  # what cannot be used changes nothing
    private(config, ssl_config(second.pair("server"), second.pem, True))
    try:
        pair = second.pair("client")
        assert mutual.https(pair, second.pem) == 200
        assert mutual.grpc_code(pair, second.pem) == "OK"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mutual.https(mutual.good, second.pem)
    finally:
        private(config, before)
    assert mutual.grpc_code(mutual.good) == "OK"
    line = mutual.process.wait_for_line("cannot be used, what it said before stays")
    assert "half of it" not in line


def test_a_socket_is_served_for_its_owner_alone(mutual: Served) -> None:
    path = mutual.folder / "socket"
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert mutual.grpc_code(mutual.good, target=f"unix:{path}") == "OK"


def test_log_lines_are_json_and_flags_without_effect_are_said(mutual: Served) -> None:
    line = json.loads(mutual.process.wait_for_line("--num_load_threads has no effect here"))
    assert sorted(line) == ["level", "logger", "message", "time"]
    assert line["level"] == "INFO"
    assert "PRIVATE KEY" not in "\n".join(mutual.process.lines)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("remote")
    put("half_plus_two", folder / "half", 1)
    config = folder / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    started = start(
        ["-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=half",
         f"--model_base_path={folder / 'half'}", f"--host={EVERYWHERE}", "--allow_remote",
         f"--auth_token_file={private(folder / 'token', TOKEN)}", f"--monitoring_config_file={config}",
         "--enable_grpc_healthcheck_service"], ready=f"listening on {EVERYWHERE}:",
    )  # fmt: skip
    yield started
    started.kill()


def test_a_token_is_asked_for(remote: Started) -> None:
    port = remote.line.rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert ask(channel, "Predict", PREDICT, TOKEN).code == "OK"
        for wrong in ("", TOKEN[:-1], TOKEN + "x"):
            answer = ask(channel, "Predict", PREDICT, wrong)
            assert (answer.code, answer.details) == ("UNAUTHENTICATED", "A valid bearer token is needed")
        assert ask(channel, "HandleReloadConfigRequest", RELOAD).code == "UNAUTHENTICATED"
        health = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        assert health(b"", timeout=120) == b"\x08\x01"  # for load balancers, which have none
    rest_port = int(remote.wait_for_line("REST API on").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", rest_port, timeout=120)
    answers = []
    for path in ("/v1/models/half", "/monitoring/prometheus/metrics"):
        for headers in ({}, {"Authorization": "Bearer no"}, {"authorization": f"Bearer {TOKEN}", "Host": "a.example"}):
            connection.request("GET", path, headers=headers)
            reply = connection.getresponse()
            reply.read()
            answers.append(reply.status)
    connection.close()
    assert answers == [401, 401, 200] * 2
    assert TOKEN not in "\n".join(remote.lines)
    assert "cross the network in the clear" in "\n".join(remote.lines)


def test_nothing_is_open_to_anybody(tmp_path: Path) -> None:
    models = [ModelSettings("half", tmp_path)]
    with pytest.raises(ConfigurationError, match="add --allow_remote"):
        ModelServer(models, host=EVERYWHERE).start()
    with pytest.raises(ConfigurationError, match="needs TLS"):
        ModelServer(models, host=EVERYWHERE, allow_remote=True).start()
    with pytest.raises(RefusalError, match="no token of at least 16"):
        Token(private(tmp_path / "short", "abc"))


def test_files_of_keys_that_cannot_be_used_are_refused_without_quoting_them(tmp_path: Path) -> None:
    authority = Authority()
    pair, other = authority.pair("server"), authority.pair("server")
    mixed = ssl_config(Pair(pair.certificate, other.key))
    for text, said in {
        mixed: "certificates that cannot be used (KEY_VALUES_MISMATCH)",
        'server_key: "half of it': "is no SSLConfig in text format",
        'server_key: "x"': "lacks server_key or server_cert",
        ssl_config(pair, "", True): "lacks custom_ca",
    }.items():
        with pytest.raises(RefusalError) as caught:
            Tls(private(tmp_path / "ssl.config", text))
        assert said in caught.value.text
        assert "half of it" not in caught.value.text
    path = private(tmp_path / "ssl.config", ssl_config(pair))
    path.chmod(0o620)
    with pytest.raises(RefusalError, match="can be written by others"):
        Tls(path)


def test_flags_that_cannot_go_together_are_one_sentence(start_process: Callable[..., Started], tmp_path: Path) -> None:
    server = start_process(
        ["-m", "serving.server", f"--model_base_path={tmp_path}", f"--batching_parameters_file={tmp_path / 'b'}"]
    )
    assert server.wait() == 2
    assert len(server.lines) == 1
    assert "is set without setting server_options.enable_batching to true" in server.lines[0]


def test_it_listens_where_it_says(remote: Started, mutual: Served) -> None:
    listening = psutil.Process(mutual.process.process.pid).net_connections(kind="inet")
    addresses = {one.laddr.ip.removeprefix("::ffff:") for one in listening if one.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "operation"),
    [("reads_files", "ReadFile"), ("writes_files", "WriteFile"), ("saves", "SaveV2 within a signature"),
     ("runs_python", "EagerPyFunc"), ("prints_to_file", "PrintV2 to a file")],
)  # fmt: skip
def test_models_that_do_more_than_compute_are_refused(name: str, operation: str) -> None:
    with pytest.raises(TensorFlowError) as caught:
        check_operations(exported() / name)
    assert caught.value.code == 7
    assert f"uses the operation {operation}, which" in caught.value.message
    if " " not in operation:
        check_operations(exported() / name, [operation])


def test_such_a_version_never_serves(start_process: Callable[..., Started], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    put("half_plus_two", tmp_path / "half", 1)
    put("writes_files", tmp_path / "half", 2)
    (tmp_path / "half" / "3").mkdir()
    for name in ("model.keras", "model.h5", "saved_model.pkl"):  # never looked at, whatever is in them
        shutil.copy(__file__, tmp_path / "half" / "3" / name)
    config = f'config {{ name: "half" base_path: "{tmp_path / "half"}" model_version_policy {{ all {{ }} }} }}'
    (tmp_path / "models.config").write_text(f"model_config_list {{ {config} }}")
    server = start_process(
        [
            "-m",
            "serving.server",
            "--port=0",
            "--max_num_load_retries=0",
            f"--model_config_file={tmp_path / 'models.config'}",
        ],
        ready="listening on",
    )
    assert "WriteFile" in server.wait_for_line("half version 2 cannot be loaded")
    assert "Could not find SavedModel" in server.wait_for_line("half version 3 cannot be loaded")
    with grpc.insecure_channel(server.line.split()[-1]) as channel:
        assert ask(channel, "Predict", PREDICT).code == "OK"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["half_plus_two", "flights", "estimator", "picky", "slow"])
def test_models_that_compute_are_not_refused(name: str) -> None:
    check_operations(exported() / name)
