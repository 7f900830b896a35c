"""`sameriver new` as its users meet it: a wheel installed elsewhere, in a folder with their own `batch` and `tests`.

One installation and one demo serve all tests here, in the order of docs/first-hour.md, which is run as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from commands import new
from shared_features import machine_code
from tests import repository
from tests.processes import Started
from tests.repository import ROOT

Start = Callable[..., Started]
GUIDE = repository.text(Path("docs/first-hour.md"))
SLOW_S = 900
"""On a machine with better things to do; alone it is a minute and a half for all tests together."""

pytestmark = pytest.mark.timeout(2 * SLOW_S)

THEIRS = ("apps", "batch", "commands", "serving", "shared_features", "streaming", "tests", "training")


@dataclass(frozen=True)
class Workshop:
    """A user's folder, and the command that the wheel installed.

    Attributes:
        folder: where the user works; it holds folders called like our packages, which fail when imported.
        bin: of an environment that has the wheel and what it needs, and knows nothing of the checkout.
    """

    folder: Path
    bin: Path

    def environment(self, **more: str) -> dict[str, str]:
        """As a user has it; quick, on free ports, and with a PYTHONPATH that looks into the working folder first."""
        ours = ("SAMERIVER_", "PUBSUB_", "GOOGLE_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        quick = {"SAMERIVER_DEMO_QUICK": "1", "SAMERIVER_DEMO_STEADY": "3", "SAMERIVER_TRAIN_QUICK": "1"}
        ports = {"SAMERIVER_UP_BROKER_PORT": "0", "SAMERIVER_UP_MODEL_PORT": "0", "SAMERIVER_UP_NO_GATEWAY": "1"}
        path = f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**kept, **quick, **ports, "PATH": path, "PYTHONPATH": ".", **more}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in the user's folder."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SLOW_S,
        )


def build_wheel(folder: Path) -> Path:
    """The wheel of the files as they are now."""
    for path in repository.files():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "source" / path)
    command = [sys.executable, "-I", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("sameriver-*.whl")
    return wheel


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The wheel installed by pip, with this environment's packages, but without the checkout."""
    home = tmp_path_factory.mktemp("installed")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(home / "venv")
    python = home / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(build_wheel(home))]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, capture_output=True)
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    # A line in a .pth file puts a folder on the path, but reads no .pth files there: none leads to the checkout.
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    for path in machine_code.FOLDER.glob("*.o"):  # of the same source: it need not be compiled again
        (packages / "shared_features" / "__pycache__").mkdir(exist_ok=True)
        shutil.copy2(path, packages / "shared_features" / "__pycache__")
    folder = tmp_path_factory.mktemp("user")
    for name in THEIRS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            f"raise RuntimeError('the folder {name} of the user was imported')\n"
        )
    return Workshop(folder, home / "venv" / "bin")


@pytest.fixture(scope="module")
def project(workshop: Workshop) -> Path:
    """The project that the guide begins with."""
    done = workshop.run(*shell("sameriver new")[0].split(), "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])
    assert written["app"] == "parcels"
    found = [path.relative_to(workshop.folder).as_posix() for path in (workshop.folder / "parcels").rglob("*")]
    assert sorted(written["files"]) == sorted(path for path in found if "." in path.rpartition("/")[2])
    return workshop.folder / "parcels"


@pytest.fixture(scope="module")
def demo(workshop: Workshop, project: Path) -> dict[str, Any]:
    """What the demo of the project said."""
    done = workshop.run(*shell("sameriver demo")[0].split(), "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def shell(word: str) -> list[str]:
    """The guide's commands with that word in them."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    found = [line for block in blocks for line in block.splitlines() if word in line]
    assert found, word
    return found


def block(language: str) -> str:
    """The guide's one block in that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_template_is_in_the_wheel_whole(workshop: Workshop, project: Path) -> None:
    wanted = {path.relative_to("commands/template") for path in repository.files() if path.parts[1:2] == ("template",)}
    assert {path.relative_to(project) for path in project.rglob("*") if path.is_file()} == wanted
    assert len(wanted) == 7
    assert "seven files" in GUIDE
    for path in wanted:
        assert new.PLACEHOLDER not in (project / path).read_text()
    assert 'name="parcels"' in (project / "app.py").read_text()


def test_the_project_is_tidy(project: Path) -> None:
    """By ruff's own defaults, and by the rules of this repository."""
    for settings in (["--isolated", "--line-length=120"], [f"--config={ROOT / 'pyproject.toml'}"]):
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--no-cache", *settings, project], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


def test_the_tests_of_the_project_pass(workshop: Workshop, project: Path) -> None:
    command = shell("pytest parcels")[0].split()  # pytest's script, too, leaves the working folder off the path
    done = workshop.run("python", "-P", "-m", *command, "-q", "-p", "no:cacheprovider", PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_demo_of_the_project_loses_nothing_and_nothing_differs(demo: dict[str, Any]) -> None:
    assert (demo["lost"], demo["mismatches"], demo["training_mismatches"], demo["dead_letters"]) == (0, 0, 0, 0)
    assert demo["predictions"] == demo["to_predict"] > 3_000
    assert demo["verify"]["training_compared"] > 1_000
    assert demo["duplicates"] >= demo["sent_twice"] > 0  # what was archived and not yet acknowledged at the kill, too
    assert 0.85 < demo["auc"] < 0.99  # there is something to learn, and chance is left


def test_the_first_hour(workshop: Workshop, project: Path, demo: dict[str, Any], start_process: Start) -> None:
    """From the new feature on: the refusal, the one command that it names, and the feature in `tail`."""
    app = project / "app.py"
    above, added = (line[1:] + "\n" for line in block("diff").splitlines())
    assert above in app.read_text()
    app.write_text(app.read_text().replace(above, above + added))

    refused = workshop.run(*shell("sameriver up --app ./parcels")[0].split())
    assert refused.returncode == 2
    message = block("text").strip()
    assert message in refused.stderr
    assert not (workshop.folder / "var" / "archive").exists()
    (command,) = re.findall("`(sameriver [^`]*)`", message)
    assert command in shell("sameriver train")

    trained = workshop.run(*command.split(), "--json")
    assert trained.returncode == 0, trained.stderr
    assert "are missing or of other features" in trained.stderr
    assert json.loads(trained.stdout.splitlines()[-1])["version"] == 2

    def start(line: str, ready: str, **environment: str) -> Started:
        name, *arguments = line.split()
        variables: dict[str, str | None] = {**workshop.environment(**environment)}
        return start_process([workshop.bin / name, *arguments], ready=ready, cwd=workshop.folder, env=variables)

    up = start(shell("--with-features")[0] + " --json", '"ready"')
    where = {"PUBSUB_EMULATOR_HOST": json.loads(up.line)["pubsub_emulator_host"]}
    tail = start(shell("sameriver tail")[0] + " --max 2", "tailing", **where)
    published = workshop.run(*shell("sameriver publish")[0].split(), **where)
    assert published.returncode == 0, published.stderr
    assert tail.wait() == 0
    shown = re.findall(r"zone_late_share_24h=\S+", "\n".join(tail.lines))
    assert shown == ["zone_late_share_24h=None", "zone_late_share_24h=1.0"]
    assert [one in GUIDE for one in shown] == [True, True]
    assert up.stop() == 0


def test_a_name_or_folder_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "file").touch()
    names = ["Parcels", "a/b", "../x", "", "1st", "label", "flights", "mine", "file"]
    for name in names:
        shown = CliRunner().invoke(cli.main, ["new", name])
        assert shown.exit_code == 2, name
        assert len(shown.stderr.strip().splitlines()) == 1, shown.stderr
        assert repr(name) in shown.stderr or name in shown.stderr
        assert "wanted" in shown.stderr or "give another name" in shown.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "notes.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    shown = CliRunner().invoke(cli.main, ["new", "mine"])
    assert shown.exit_code == 0
    assert (tmp_path / "mine" / "app.py").is_file()
    assert "sameriver demo --app ./mine" in shown.stdout
