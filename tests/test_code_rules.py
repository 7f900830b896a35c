"""Rules of the code that no linter knows: who may import what, and what may never be called."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import repository

# The feature library runs inside every worker: it stays small and fast to import (h3 is loaded where it is used).
FEATURE_LIBRARY_MAY_IMPORT = {"numpy", "pyarrow", "numba", "llvmlite", "fastavro", "orjson", "tzdata", "h3"}
FEATURE_LIBRARY_MAY_IMPORT.add("shared_features")

# Whoever can write the bytes that these read runs code of their choice (or, for numpy, objects).
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval": "runs what it is given",
    "exec": "runs what it is given",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "pandas.read_pickle": "unpickles",
    "pd.read_pickle": "unpickles",
    "yaml.load": "makes objects of any class: yaml.safe_load",
    "yaml.unsafe_load": "makes objects of any class: yaml.safe_load",
    "keras.models.load_model": "runs code in the file: models are loaded as SavedModel",
    "tf.keras.models.load_model": "runs code in the file: models are loaded as SavedModel",
}
FORBIDDEN_KEYWORDS = {("allow_pickle", True), ("shell", True), ("safe_mode", False)}
EVERY_INTERFACE = {"0.0.0.0", "::", "[::]"}  # noqa: S104

# (file, rule): reason. Tests that forge attacks, and nothing else, belong here.
ALLOWED: dict[tuple[str, str], str] = {
    ("tests/test_code_rules.py", "every interface"): "names what is forbidden",
    (
        "serving/vertex.py",
        "every interface",
    ): "the contract wants it: two routes, in a container that only Vertex AI reaches",
}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports when it runs."""
    pending: list[ast.AST] = [repository.tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", list(repository.python_files("shared_features")), ids=str)
def test_the_feature_library_imports_little(path: Path) -> None:
    allowed = FEATURE_LIBRARY_MAY_IMPORT | sys.stdlib_module_names
    strange = [(line, name) for line, name in _imports(path) if name.lstrip(".").split(".")[0] not in allowed]
    assert strange == []


def test_what_is_imported_is_declared() -> None:
    """What happens to be there through another package may be gone, or another version, tomorrow."""
    declared = {
        re.split(r"[\[<>=!~; ]", requirement)[0].lower()
        for requirement in tomllib.loads(repository.text(Path("pyproject.toml")))["project"]["dependencies"]
    }
    declared |= {"google-api-core", "google-auth", "protobuf"}  # the base of every Google client
    providers = importlib.metadata.packages_distributions()
    ours = {*repository.PACKAGES, "benchmarks", "cli"}
    found = set()
    for path in repository.python_files(*repository.PACKAGES, "cli.py"):
        for line, name in _imports(path):
            top = name.split(".")[0]
            if not top or top in ours or top in sys.stdlib_module_names or top == "google":
                continue
            if not declared & {provider.lower().replace("_", "-") for provider in providers.get(top, [])}:
                found.add(f"{path}:{line}: {name}")
    assert found == set()


@pytest.mark.parametrize("package", repository.PACKAGES)
def test_packages_never_import_the_command_the_tests_or_the_tooling(package: str) -> None:
    above = {"cli", "tests", "deploy"} | ({"benchmarks"} if package != "commands" else set())  # `sameriver bench`
    found = [
        f"{path}:{line}: {name}"
        for path in repository.python_files(package)
        for line, name in _imports(path)
        if name.split(".")[0] in above
    ]
    assert found == []


def _violations(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, rule and what breaks it."""
    for line, name in _imports(path):
        if name.split(".")[0] in UNPICKLERS:
            yield line, "unpickling", f"import {name}"
    for node in ast.walk(repository.tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield node.lineno, called, FORBIDDEN_CALLS[called]
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in FORBIDDEN_KEYWORDS:
                    yield node.lineno, str(keyword.arg), f"{keyword.arg}={value!r}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            host = node.value.rpartition(":")[0] if node.value.rpartition(":")[2].isdigit() else node.value
            if host in EVERY_INTERFACE or node.value in EVERY_INTERFACE:
                yield node.lineno, "every interface", repr(node.value)


@pytest.mark.parametrize("path", list(repository.python_files()), ids=str)
def test_nothing_dangerous_is_called(path: Path) -> None:
    found = [(line, rule, what) for line, rule, what in _violations(path) if (path.as_posix(), rule) not in ALLOWED]
    assert found == []


def test_the_list_of_exceptions_is_not_longer_than_needed() -> None:
    used = {(path.as_posix(), rule) for path in repository.python_files() for _, rule, _ in _violations(path)}
    assert set(ALLOWED) - used == set()


def test_the_rules_notice_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle\nfrom joblib import load\neval('1')\nyaml.load(f)\nnp.load(f, allow_pickle=True)\n"
        "run('x', shell=True)\nserver.bind('0.0.0.0:80')\nserver.bind('[::]:0')\nos.system('x')\n"
    )
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    assert sorted(line for line, _, _ in _violations(Path("bad.py"))) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
