"""Flink on this machine, from Maven's jars: what a team's own cluster replaces.

usage: python deploy/flink/local.py jars
       python deploy/flink/local.py job-server [--port 8099] [--flink-master HOST:PORT]
       python deploy/flink/local.py worker-pool [--port 50000]

`jars` fetches what pom.xml names into var/flink, once. `job-server` then runs Beam's job server; without
--flink-master it starts a small cluster inside itself for each job. `worker-pool` runs Beam's worker pool with this
Python: on each machine of a cluster, one beside its task manager. Needs Java 17 or newer, and Maven for the jars.
What cannot work is told in one sentence, with exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
JARS = HERE.parent.parent / "var" / "flink"
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
FIRST_JAVA = 17


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("jars", help="fetch the jars into var/flink")
    server = commands.add_parser("job-server", help="run Beam's job server until it is ended")
    server.add_argument("--port", type=int, default=8099, help="its port; 0 takes a free one")
    server.add_argument("--flink-master", default="[local]", help="host:port of a cluster; default: one of its own")
    pool = commands.add_parser("worker-pool", help="run Beam's worker pool until it is ended")
    pool.add_argument("--port", type=int, default=50000, help="its port; 0 takes a free one")
    given = parser.parse_args()
    if given.command == "worker-pool":
        run_worker_pool(given.port)
    try:
        java = find_java()
        fetch()
    except LookupError as error:
        print(error, file=sys.stderr)
        return 2
    if given.command == "job-server":
        options = [f"--job-port={given.port}", "--artifact-port=0", "--expansion-port=0", "--job-host=localhost"]
        arguments = [
            "-Xmx1g",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            f"{JARS}/*",
            JOB_SERVER,
            f"--flink-master={given.flink_master}",
            *options,
        ]
        os.execv(java, [java, *arguments])  # noqa: S606
    return 0


def run_worker_pool(port: int) -> NoReturn:
    """Become a worker pool; it starts ``python`` from PATH, so that must be this one."""
    folder = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    if port == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    print(f"worker pool on localhost:{port}", flush=True)
    module = "apache_beam.runners.worker.worker_pool_main"
    os.execve(sys.executable, [sys.executable, "-m", module, f"--service_port={port}"], environment)  # noqa: S606


def find_java() -> str:
    """The path of a Java that is new enough."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    said = "none was found"
    if java is not None:
        said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr.strip() or said
    version = re.search(r'version "(\d+)', said)
    if java is None or version is None or int(version[1]) < FIRST_JAVA:
        found = said.splitlines()[0]
        raise LookupError(f"Java {FIRST_JAVA} or newer is wanted, {found}: install one or set JAVA_HOME.")
    return java


def fetch() -> None:
    """Fill the folder of jars, unless it is what pom.xml asks for."""
    pom = HERE / "pom.xml"
    mark, wanted = JARS / "pom.sha256", hashlib.sha256(pom.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text("utf-8") == wanted:
        return
    maven = shutil.which("mvn")
    if maven is None:
        raise LookupError("Maven (mvn) is wanted to fetch Flink's jars, none was found: install it.")
    print(f"fetching Flink's jars into {JARS} (150 MB, once)", flush=True)
    shutil.rmtree(JARS, ignore_errors=True)
    JARS.mkdir(parents=True)
    command = [maven, "--batch-mode", "--quiet", "--file", os.fspath(pom), f"-Djars={JARS}", PLUGIN]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip() or "it said nothing").splitlines()[0]
        raise LookupError(f"Maven could not fetch Flink's jars: {said}")
    mark.write_text(wanted, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
