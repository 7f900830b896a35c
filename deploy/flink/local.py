"""Flink on this machine, from Maven's jars: what a team's own cluster replaces.

usage: python deploy/flink/local.py jars
       python deploy/flink/local.py job-server [--port 8099] [--flink-master localhost:8081]
       python deploy/flink/local.py job-manager [--port 6123] [--rest-port 8081]
       python deploy/flink/local.py task-manager [--job-manager localhost:6123]

`jars` fetches what pom.xml names into var/flink, once. A cluster is one `job-manager`, some `task-manager`, Beam's
`job-server`, and beside the task managers a worker pool (worker_pool.py); `python -m deploy.flink.cluster` starts
one of each and two task managers. Needs Java 17 or newer, and Maven for the jars.
What cannot work is told in one sentence, with exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
JARS = HERE.parent.parent / "var" / "flink"
CHECKPOINTS = (JARS.parent / "flink-checkpoints").as_uri()
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
TASK_MANAGER_SETTINGS = {
    "taskmanager.host": "localhost",
    "taskmanager.numberOfTaskSlots": 1,
    "taskmanager.cpu.cores": 1.0,
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.network.sort-shuffle.min-buffers": 64,
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
JOB_SETTINGS = "execution.buffer-timeout.interval: 0 ms"
"""What goes from step to step is sent at once: it is blocks, few; Flink's default waits 100 ms for more."""
FIRST_JAVA = 17


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("jars", help="fetch the jars into var/flink")
    server = commands.add_parser("job-server", help="run Beam's job server until it is ended")
    server.add_argument("--port", type=int, default=8099, help="its port; 0 takes a free one")
    server.add_argument("--flink-master", default="localhost:8081", help="REST API of the job manager")
    manager = commands.add_parser("job-manager", help="run a cluster's job manager until it is ended")
    manager.add_argument("--port", type=int, default=6123, help="where task managers find it")
    manager.add_argument("--rest-port", type=int, default=8081, help="where jobs are submitted, and its web page is")
    manager.add_argument("--checkpoints", default=CHECKPOINTS, help="URI of the folder of checkpoints")
    task = commands.add_parser("task-manager", help="run one task manager, with one slot, until it is ended")
    task.add_argument("--job-manager", default="localhost:6123", help="host:port of the job manager")
    task.add_argument("--checkpoints", default=CHECKPOINTS, help="URI of the folder of checkpoints")
    given = parser.parse_args()
    try:
        java = find_java()
        fetch()
    except LookupError as error:
        print(error, file=sys.stderr)
        return 2
    if given.command == "job-manager":
        mine = {"rest.port": given.rest_port, "state.checkpoints.dir": given.checkpoints}
        run(java, 384, JOB_MANAGER, *settings("localhost", given.port, mine))
    if given.command == "task-manager":
        host, _, port = given.job_manager.rpartition(":")
        mine = TASK_MANAGER_SETTINGS | {"state.checkpoints.dir": given.checkpoints}
        run(java, 384, TASK_MANAGER, *settings(host, port, mine))
    if given.command == "job-server":
        options = [f"--job-port={given.port}", "--artifact-port=0", "--expansion-port=0", "--job-host=localhost"]
        options.append(f"--flink-conf-dir={settings_folder()}")
        run(java, 256, JOB_SERVER, f"--flink-master={given.flink_master}", *options)
    return 0


def run(java: str, heap_mb: int, main_class: str, *options: str) -> NoReturn:
    """Become a Java process; one that starts fast rather than one that runs fast after minutes."""
    flags = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    os.execv(java, [java, *flags, "-cp", f"{JARS}/*", main_class, *options])  # noqa: S606


def settings(host: str, port: object, more: Mapping[str, object]) -> list[str]:
    """Flink's settings as arguments."""
    common = {"jobmanager.rpc.address": host, "jobmanager.rpc.port": port, "rest.address": "localhost"}
    common |= {"jobmanager.memory.process.size": "1024m", "heartbeat.timeout": 6_000, "heartbeat.interval": 1_000}
    common |= {"restart-strategy.type": "fixed-delay", "restart-strategy.fixed-delay.attempts": 1_000_000}
    common |= {"restart-strategy.fixed-delay.delay": "500ms", "state.checkpoint-storage": "filesystem"}
    common |= {"state.checkpoints.num-retained": 3, "cluster.registration.error-delay": 500}
    given = [part for name, value in {**common, **more}.items() for part in ("-D", f"{name}={value}")]
    return ["--configDir", os.fspath(settings_folder()), *given]


def settings_folder() -> Path:
    """The folder of what the job server gives each job; all other settings are arguments."""
    folder = JARS / "conf"
    folder.mkdir(exist_ok=True)
    file, wanted = folder / "config.yaml", f"{JOB_SETTINGS}\n"
    if not file.exists() or file.read_text("utf-8") != wanted:
        temporary = folder / f"config.{os.getpid()}"
        temporary.write_text(wanted, "utf-8")
        temporary.replace(file)
    return folder


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
