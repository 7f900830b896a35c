"""Vertex AI's contract for custom containers: its variables are all that the server is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.cloud.storage as storage
import httpx
import pytest
from google.auth.credentials import AnonymousCredentials

from commands.vertex import fetch_model
from serving.http import Answer
from serving.vertex import VertexServer, VertexSettings, vertex_settings
from shared_features.errors import ConfigurationError
from tests.processes import Started, free_port
from tests.serving_models import exported, put
from tests.storage_server import BUCKET

VARIABLES = {"AIP_HEALTH_ROUTE": "/v1/endpoints/7/deployedModels/8", "AIP_PREDICT_ROUTE": "/v1/endpoints/7:predict"}


def test_the_model_in_cloud_storage_is_served_on_the_routes(
    start_process: Callable[..., Started],
    storage_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    client_of: Any = storage.Client  # not typed as strictly as we are
    bucket = client_of(project="sameriver", credentials=AnonymousCredentials()).bucket(BUCKET)
    model = exported() / "half_plus_two"
    for path in (path for path in model.rglob("*") if path.is_file()):
        bucket.blob(f"vertex/{path.relative_to(model).as_posix()}").upload_from_filename(path)
    port = free_port()
    given = {"AIP_HTTP_PORT": str(port), "AIP_STORAGE_URI": f"gs://{BUCKET}/vertex", **VARIABLES}
    server = start_process(["-m", "cli", "serve", "--port", "0"], ready="model server ready", env=given)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Host": "anything.internal"}, timeout=120
    ) as client:
        assert client.get(VARIABLES["AIP_HEALTH_ROUTE"]).status_code == 200
        answer = client.post(VARIABLES["AIP_PREDICT_ROUTE"], json={"instances": [1.0, 5.0], "parameters": {}})
        assert (answer.status_code, answer.json()) == (200, {"predictions": [2.5, 4.5]})
        asked = {"instances": [1.0], "parameters": {"signature_name": "none"}}
        assert client.post(VARIABLES["AIP_PREDICT_ROUTE"], json=asked).status_code == 400
        assert client.post(VARIABLES["AIP_PREDICT_ROUTE"], content=b"{").status_code == 400
        for other in ("/v1/models/default", "/v1/models/default:predict", "/"):
            assert client.get(other).status_code == client.post(other, json={}).status_code == 404
    assert server.stop() == 0


def test_health_follows_the_model() -> None:
    ready: list[bool] = []

    def rest(method: str, path: str, headers: object, body: bytes) -> Answer:
        del headers
        return Answer(200, json.dumps([method, path, body.decode()]).encode())

    settings = VertexSettings(free_port(), "/healthy", "/predict", "")
    server = VertexServer(settings, "wide and deep", lambda: bool(ready), rest, host="127.0.0.1")
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=120) as client:
            assert client.get("/healthy").status_code == 503
            ready.append(True)
            assert client.get("/healthy").status_code == 200
            assert client.post("/predict", content=b"{}").json() == [
                "POST",
                "/v1/models/wide%20and%20deep:predict",
                "{}",
            ]
        with pytest.raises(ConfigurationError, match=r"AIP_HTTP_PORT.*another in containerSpec\.ports"):
            VertexServer(settings, "m", lambda: True, rest, host="127.0.0.1")
    finally:
        server.stop()


def test_settings_are_vertexs_own_words() -> None:
    assert vertex_settings({"AIP_STORAGE_URI": "gs://a/b"}) is None
    assert vertex_settings({"AIP_HTTP_PORT": "8080"}) == VertexSettings(8080, "/health", "/predict", "")
    with pytest.raises(ConfigurationError, match="AIP_HTTP_PORT must be a port"):
        vertex_settings({"AIP_HTTP_PORT": "eighty"})
    with pytest.raises(ConfigurationError, match="AIP_HEALTH_ROUTE must be a path"):
        vertex_settings({"AIP_HTTP_PORT": "80", "AIP_HEALTH_ROUTE": "health"})


def test_the_newest_of_numbered_versions_is_fetched(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        put("half_plus_two", tmp_path / "models", version)
    base = fetch_model(str(tmp_path / "models"), tmp_path / "fetched")
    assert [path.name for path in base.iterdir()] == ["10"]
    assert (base / "10" / "variables" / "variables.index").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"must hold saved_model\.pb or numbered folders"):
        fetch_model(str(tmp_path / "empty"), tmp_path / "other")
