"""Beam's worker pool for several task managers on one machine, with workers that start at once.

usage: python deploy/flink/worker_pool.py --port 50000

Beam's own pool starts each worker as a new Python, which imports for seconds, and knows workers by numbers that are
unique within one task manager only, so that it ends one for another. Here a process that has imported everything is
forked for each worker, and a worker ends itself when its task manager lets go of it, or ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
STATE_CACHE_BYTES = 1 << 18
"""Enough for the heads of all shards, which each bundle reads; bags are read once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=50000, help="where task managers ask for workers")
    parser.add_argument("--forks", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path[0] = os.fspath(ROOT)
    if given.forks:
        fork_workers()
    else:
        serve(given.port)


def serve(port: int) -> None:
    """Take requests for workers until the process ends; the one that is forked ends with it."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    from apache_beam.utils import thread_pool_executor

    command = [sys.executable, __file__, "--forks"]
    forked = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert forked.stdin is not None
    assert forked.stdout is not None
    asks = forked.stdin

    class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def StartWorker(self, request: Any, _context: Any) -> Any:  # noqa: N802
            with self._lock:
                asks.write(json.dumps([request.control_endpoint.url, request.worker_id]) + "\n")
                asks.flush()
            return beam_fn_api_pb2.StartWorkerResponse()

        def StopWorker(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return beam_fn_api_pb2.StopWorkerResponse()

    if not forked.stdout.readline():  # it has imported everything
        sys.exit("the process that workers are forked of has ended")
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(Pool(), server)
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print(f"worker pool on localhost:{port}", flush=True)
    forked.wait()


def fork_workers() -> None:
    """Fork a worker for each line; nothing before the fork may start a thread or a connection."""
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    import streaming.cluster_steps  # noqa: F401
    from shared_features import load_app
    from shared_features.plan import make_plan
    from streaming.cluster_worker import load_machine_code
    from streaming.runner import without_sampling

    app = load_app("flights")  # any: most of the machine code is that of all apps
    load_machine_code(app, make_plan(app))
    without_sampling()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        endpoint, worker_id = json.loads(line)
        if os.fork():
            continue
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            harness = SdkHarness(
                endpoint, worker_id=worker_id, state_cache_size=STATE_CACHE_BYTES, data_buffer_time_limit_ms=-1
            )
            harness.run()
            code = 0
        except Exception as error:  # the usual end: the task manager has closed the connection
            print(f"worker {os.getpid()} ends: {error}".replace("\n", " ")[:300], file=sys.stderr)
        finally:
            os._exit(code)


if __name__ == "__main__":
    main()
