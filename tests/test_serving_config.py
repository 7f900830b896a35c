"""Model config files: policies, labels, what is refused, and folders of versions: with models that are only names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from serving import wire
from serving.config import read_config, read_metrics_path, settings_of
from serving.models import Models
from serving.status import Code, RefusalError
from serving.tensorflow_c import TensorFlowError
from serving.versions import ModelSettings, find_versions
from serving.wire import State


class Loaded:
    """Stands in for a Servable."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.closed = False

    def latest_requests(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.closed = True


def fake_load(_name: str, version: int, folder: Path, _before: Any) -> Any:
    if (folder / "broken").exists():
        raise TensorFlowError(Code.INTERNAL, "it is broken")
    return Loaded(version)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for version in ("1", "2", "00000003", "5"):
        (tmp_path / "m" / version).mkdir(parents=True)
    return tmp_path / "m"


def parsed(*configs: str, serving: tuple[str, ...] = ()) -> list[ModelSettings]:
    listed = " ".join(f"config {{ {one} }}" for one in configs)
    message = text_format.Parse(f"model_config_list {{ {listed} }}", wire.ModelServerConfig())
    return settings_of(message, serving)


def model(base: Path, more: str = "", name: str = "m") -> str:
    return f'name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more}'


def watched(*settings: ModelSettings, **options: Any) -> Models:
    models = Models(list(settings), fake_load, poll_s=0, **options)
    models.start()
    return models


def spec(text: str) -> Any:
    return text_format.Parse(text, wire.ModelSpec())


def answering(models: Models, text: str) -> int:
    with models.use(spec(text)) as servable:
        return servable.version


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [5]),
        ("model_version_policy { }", [5]),
        ("model_version_policy { latest { } }", [5]),
        ("model_version_policy { latest { num_versions: 2 } }", [5, 3]),
        ("model_version_policy { latest { num_versions: 9 } }", [5, 3, 2, 1]),
        ("model_version_policy { all { } }", [5, 3, 2, 1]),
        ("model_version_policy { specific { versions: 2 versions: 3 versions: 8 } }", [3, 2]),
    ],
)
def test_policies_choose_versions(base: Path, policy: str, versions: list[int]) -> None:
    models = watched(*parsed(model(base, policy)))
    assert models.available("m") == versions
    assert answering(models, 'name: "m"') == versions[0]
    models.stop()


def test_names_of_folders_are_numbers_of_64_bits(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("03", "3x", " 4", "9223372036854775808", "-7", "tmp"):
        (base / name).mkdir()
    (base / "6").write_text("no folder")
    with caplog.at_level(logging.WARNING, "sameriver.serving"):
        found = find_versions(base)
    assert {number: path.name for number, path in found.items()} == {1: "1", 2: "2", 3: "03", 5: "5", -7: "-7"}
    assert "duplicate version folders: version 3 is loaded from 03, 00000003 is ignored" in caplog.text


STABLE = 'model_version_policy { all { } } version_labels { key: "stable" value: 3 }'


def test_labels_move_only_to_versions_that_answer(base: Path) -> None:
    models = watched(*parsed(model(base, STABLE)))
    models.check_labels()
    assert answering(models, 'name: "m" version_label: "stable"') == 3
    models.replace(parsed(model(base, STABLE.replace("value: 3", "value: 5"))))
    assert answering(models, 'name: "m" version_label: "stable"') == 5
    with pytest.raises(RefusalError) as caught:
        models.replace(parsed(model(base, STABLE.replace("value: 3", "value: 7"))))
    assert caught.value.code == Code.FAILED_PRECONDITION
    assert caught.value.text == (
        "Request to assign label to version 7 of model m, which is not currently available for inference"
    )
    assert answering(models, 'name: "m" version_label: "stable"') == 5
    models.replace(parsed(model(base, "model_version_policy { all { } }")))  # all of what is wanted: no label is left
    with pytest.raises(RefusalError, match="Unrecognized servable version label: stable"):
        answering(models, 'name: "m" version_label: "stable"')
    models.stop()


def test_labels_may_come_before_their_versions_but_not_move_there(base: Path) -> None:
    early = 'model_version_policy { all { } } version_labels { key: "canary" value: 7 }'
    models = watched(*parsed(model(base, early)), labels_anywhere=True)
    models.check_labels()
    with pytest.raises(RefusalError, match=r"Servable not found for request: Specific\(m, 7\)"):
        answering(models, 'name: "m" version_label: "canary"')
    with pytest.raises(RefusalError, match="Request to assign label to version 8 of model m"):
        models.replace(parsed(model(base, early.replace("7", "8"))))
    (base / "7").mkdir()
    models.poll()
    assert answering(models, 'name: "m" version_label: "canary"') == 7
    models.stop()


def test_a_change_of_policy_loads_before_it_unloads(base: Path) -> None:
    models = watched(*parsed(model(base)))
    with models.use(spec('name: "m"')) as five:
        pass
    models.replace(parsed(model(base, "model_version_policy { specific { versions: [1, 2] } }")))
    models.poll()
    assert models.available("m") == [2, 1]
    assert five.closed  # type: ignore[attr-defined]
    assert {one.version: State(one.state).name for one in models.states("m")} == {
        5: "END", 2: "AVAILABLE", 1: "AVAILABLE",
    }  # fmt: skip
    models.stop()


def test_what_cannot_be_had_leaves_all_as_it_was(base: Path, tmp_path: Path) -> None:
    models = watched(*parsed(model(base)))
    broken = tmp_path / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "1" / "broken").touch()
    with pytest.raises(RefusalError) as caught:
        models.replace(parsed(model(broken, name="b"), model(base, "model_version_policy { all { } }")))
    assert caught.value.text == (
        "1 servable(s) did not become available: {{name: b version: 1} due to error: it is broken}"
    )
    assert (models.names(), models.available("m")[0]) == (["m"], 5)
    models.replace([])
    assert models.names() == []
    with pytest.raises(RefusalError, match=r"Servable not found for request: Latest\(m\)"):
        answering(models, 'name: "m"')
    models.stop()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "twice": (
        lambda: parsed(model(Path("/p")), model(Path("/q"))),
        "Illegal to list model m multiple times in config list",
    ),
    "relative": (
        lambda: parsed(model(Path("p"))),
        "Expected model m to have an absolute path or URI; got base_path()=p",
    ),
    "platform": (
        lambda: parsed('name: "m" base_path: "/p" model_platform: "caffe"'),
        "Illegal setting ModelServerConfig::model_platform: caffe.",
    ),
    "another platform": (
        lambda: parsed('name: "m" base_path: "/p" model_platform: "caffe"', serving=("m",)),
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is caffe",
    ),
    "custom": (
        lambda: settings_of(text_format.Parse("custom_model_config { }", wire.ModelServerConfig())),
        "ModelServer does not yet support custom model config.",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_configs_that_cannot_be_served(name: str) -> None:
    configure, text = REFUSED[name]
    with pytest.raises(RefusalError) as caught:
        configure()
    assert (caught.value.code, caught.value.text) == (Code.INVALID_ARGUMENT, text)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    for content in (b"improper_field { }", b"\xff\xfe", b"model_config_list { config { name: 1 } }"):
        path.write_bytes(content)
        with pytest.raises(RefusalError) as caught:
            read_config(path)
        assert f"Invalid protobuf file: '{path}'" in caught.value.text
    path.write_text("")
    assert read_config(path) == []


def test_where_prometheus_asks(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.config"
    for text, where in (
        ("", None),
        ("prometheus_config { }", None),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
    ):
        path.write_text(text)
        assert read_metrics_path(path) == where
