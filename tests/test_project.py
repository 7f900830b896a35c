"""What cannot be left to memory: documents, versions, packaging and the lock file say the same as the code."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests import repository
from tests.repository import ROOT, CodeBlock

MAX_LINES = 400
LONGER = {"README.md": "it shows every skew case and a whole program in each language"}

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHON_BLOCKS = list(repository.code_blocks("python"))


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)\b", repository.text(Path("CHANGELOG.md")), re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def _without_code(markdown: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)


@pytest.mark.parametrize("path", repository.files(".md"), ids=str)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"!?\[[^]]*\]\(<?([^)\s>]+)", _without_code(repository.text(path))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (ROOT / path.parent / name).resolve() if name else ROOT / path
        if not place.exists() or not place.is_relative_to(ROOT):
            broken.append(target)
        elif anchor and place.suffix == ".md":
            headings = re.findall(r"^#+ +(.*)$", place.read_text(), re.MULTILINE)
            if anchor not in {_slug(heading) for heading in headings}:
                broken.append(target)
    assert broken == []


def test_files_stay_small() -> None:
    lines = {str(path): repository.text(path).count("\n") for path in repository.files(".py", ".md", ".yml")}
    long = {path: count for path, count in lines.items() if count > MAX_LINES and path not in LONGER}
    assert long == {}, f"more than {MAX_LINES} lines: split by idea"
    needless = [path for path in LONGER if lines.get(path, 0) <= MAX_LINES]
    assert needless == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/")
    found = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path in repository.files()
        for number, line in enumerate(repository.text(path).splitlines(), 1)
        if places.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("lock", ["requirements.lock", "tests/requirements-bqemulator.lock"])
def test_lock_files_pin_with_hashes_and_name_no_address(lock: str) -> None:
    text = repository.text(Path(lock))
    assert "://" not in text
    assert not re.search(r"^\s*-{1,2}(index|extra|find|trusted)", text, re.MULTILINE)
    requirements = re.split(r"\n(?=\w)", text)[1:]
    assert len(requirements) > 50
    for requirement in requirements:
        assert re.match(r"[\w.-]+==[\w.!+]+", requirement), requirement[:60]
        assert "--hash=sha256:" in requirement, requirement[:60]


def test_the_lock_file_holds_every_dependency() -> None:
    locked = set(re.findall(r"^([\w.-]+)==", repository.text(Path("requirements.lock")), re.MULTILINE))
    declared = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in declared}
    assert names <= locked


def test_a_wheel_holds_every_package_the_command_and_the_schemas(tmp_path: Path) -> None:
    for path in repository.files():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "source" / path)
    command = [sys.executable, "-I", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("sameriver-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        (entry_points,) = (name for name in packed if name.endswith("entry_points.txt"))
        assert "sameriver = cli:main" in archive.read(entry_points).decode()
    wanted = {str(path) for path in repository.python_files(*repository.PACKAGES, "benchmarks")}
    wanted |= {str(path) for path in repository.files(".avsc") if path.parts[0] in repository.PACKAGES}
    wanted |= {str(path) for path in repository.files() if str(path) == "cli.py"}
    assert wanted - packed == set()
    ours = {name.split("/")[0] for name in packed if not name.startswith("sameriver-")}
    assert ours <= {*repository.PACKAGES, "benchmarks", "cli.py"}  # no tests


@pytest.mark.parametrize("path", list(repository.python_files("shared_features")), ids=str)
def test_the_feature_library_is_documented(path: Path) -> None:
    """Modules, functions, classes and methods; a method may have its base's docstring."""
    module = importlib.import_module(path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"))
    missing = [] if module.__doc__ else ["the module"]
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if isinstance(thing, type):
            members = {f"{name}.{key}": getattr(thing, key) for key in vars(thing) if not key.startswith("_")}
            documented = {key: value for key, value in members.items() if _has_code(value)}
            missing += [key for key, value in documented.items() if not inspect.getdoc(value)]
        if (isinstance(thing, type) or _has_code(thing)) and not thing.__doc__:
            missing.append(name)
    assert missing == []


def _has_code(thing: object) -> bool:
    return isinstance(thing, property) or inspect.isroutine(thing) or hasattr(thing, "py_func")


@pytest.mark.skipif(not (ROOT / "cli.py").exists(), reason="the command does not exist yet")
def test_every_command_is_in_the_readme_and_has_help() -> None:
    cli = __import__("cli")
    readme = repository.text(Path("README.md"))
    commands = {name: command for name, command in cli.main.commands.items() if not command.hidden}
    assert commands
    assert [name for name in commands if not re.search(rf"\bsameriver {re.escape(name)}\b", readme)] == []
    assert [name for name, command in commands.items() if not command.help] == []
    for name, command in commands.items():
        silent = [option.name for option in command.params if not getattr(option, "help", "argument")]
        assert silent == [], f"sameriver {name}: options without help"


def test_ci_runs_the_commands_that_the_readme_gives() -> None:
    script = repository.text(Path(".ci/run"))
    commands = re.findall(r"^step (make \w+)$", script, re.MULTILINE)
    assert commands[1:] == ["make setup", "make check", "make test"]
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
    if (ROOT / "README.md").exists():
        readme = repository.text(Path("README.md"))
        assert [command for command in commands[1:] if command not in readme] == []


def test_make_lists_its_targets_when_it_is_asked_for_nothing() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^  ([a-z]+) ", shown, re.MULTILINE))
    assert {"setup", "demo", "test", "check", "bench", "soak", "clean"} <= targets


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.label)
def test_python_in_documents_runs(block: CodeBlock, tmp_path: Path) -> None:
    """A block runs as it stands, by itself, unless the line before it says who runs it, or why nobody can."""
    compile(block.code, block.label, "exec")
    marker = re.search(r"<!-- (run by|not run:) (.+?) -->", block.before)
    if marker is not None:
        if marker.group(1) == "run by":
            assert (ROOT / marker.group(2)).is_file(), f"{block.label}: {marker.group(2)} is not there"
        return
    script = tmp_path / "block.py"
    script.write_text(block.code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{block.label}\n{done.stderr}"
