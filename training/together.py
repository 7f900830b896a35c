"""Workers that train one model together: each takes its share of every batch, and all add up their gradients.

After each batch every worker has the same weights as the others, and what one worker alone would have but for the order
in which numbers were added. There are two ways to add up:

* Workers that `training.several` has started on one machine speak over a socket in a folder of their own, which nobody
  else may open. The first adds up in the order of the workers, so the same command gives the same bits.
* Workers of a cluster, one for each machine, that TF_CONFIG describes (Vertex AI and Kubeflow set it), add up by
  TensorFlow's collective operations (`tf.distribute.MultiWorkerMirroredStrategy`). TensorFlow's server then listens on
  every interface and runs what it is sent by anyone: the machines' network must be their own.

Model and optimizer know of none of this: Keras 3 has no `model.fit` for several TensorFlow workers, and needs none.
A worker that ends takes the others' call down with it; all are started again, and go on from the last checkpoint.

Importing this module does not load TensorFlow.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError

PLACE = "SAMERIVER_TRAINING_WORKER"
"""Set by `training.several` for its workers: ``{"rank": 0, "workers": 2, "socket": "/…"}``."""

CONNECT_S = 120.0
SILENCE_S = 600.0
LOST = 75
"""Exit code of a worker that has lost another one: EX_TEMPFAIL of sysexits.h."""

Vector = npt.NDArray[np.float32]


class WorkerLostError(Exception):
    """Another worker has ended or says nothing any more."""


class Together(Protocol):
    """The workers of one training.

    Attributes:
        rank: of this one; the first, 0, writes checkpoints and the model.
        workers: how many.
    """

    rank: int
    workers: int

    def add_up(self, vector: Any) -> Any:
        """The sum of all workers' float32 vectors of one length, for each worker; also inside of a `tf.function`."""
        ...


class Alone:
    """One worker."""

    rank, workers = 0, 1

    def add_up(self, vector: Any) -> Any:
        """The vector."""
        return vector


class OneMachine:
    """Workers on one machine: the first one's socket, by which each sends its vector and gets the sum.

    Args:
        rank, workers: see `Together`.
        socket: its path, in a folder that others may not enter.

    Raises:
        WorkerLostError: the others are not there in time.
    """

    def __init__(self, rank: int, workers: int, socket: str) -> None:
        self.rank, self.workers = rank, workers
        self._others: list[Connection] = []
        if rank > 0:
            self._others = [_connected(socket)]
            self._others[0].send_bytes(bytes([rank]))
            return
        by_rank: dict[int, Connection] = {}
        with Listener(socket, "AF_UNIX", backlog=workers) as listener:
            while len(by_rank) < workers - 1:
                connection = listener.accept()
                by_rank[connection.recv_bytes(1)[0]] = connection
        self._others = [by_rank[other] for other in sorted(by_rank)]

    def add_up(self, vector: Any) -> Any:
        """See `Together`."""
        import tensorflow as tf

        total = tf.numpy_function(self._add_up, [vector], tf.float32)
        total.set_shape(vector.shape)
        return total

    def _add_up(self, vector: Vector) -> Vector:
        try:
            if self.rank > 0:
                self._others[0].send_bytes(vector.tobytes())
                return self._received(self._others[0], len(vector))
            total = vector.copy()
            for other in self._others:
                total += self._received(other, len(vector))
            for other in self._others:
                other.send_bytes(total.tobytes())
        except (EOFError, OSError) as error:
            raise WorkerLostError(str(error) or type(error).__name__) from error
        return total

    @staticmethod
    def _received(other: Connection, length: int) -> Vector:
        if not other.poll(SILENCE_S):
            raise WorkerLostError(f"nothing came for {SILENCE_S:.0f} s")
        return np.frombuffer(other.recv_bytes(4 * length), np.float32)


class Cluster:
    """Workers on machines of a cluster, as TF_CONFIG says. Must be made before anything else of TensorFlow's."""

    def __init__(self) -> None:
        import tensorflow as tf

        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.workers = int(self._strategy.num_replicas_in_sync)
        self.rank = int(self._strategy.cluster_resolver.task_id or 0)

    def add_up(self, vector: Any) -> Any:
        """See `Together`."""
        import tensorflow as tf

        def inside(own: Any) -> Any:  # an identity, so that the collective operation knows the device
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(own))

        return self._strategy.run(inside, args=(vector,))


def place() -> tuple[int, int]:
    """Rank of this process and the number of workers, without connecting them.

    Raises:
        ConfigurationError: TF_CONFIG is not what this takes.
    """
    if PLACE in os.environ:
        told = json.loads(os.environ[PLACE])
        return told["rank"], told["workers"]
    if not os.environ.get("TF_CONFIG"):
        return 0, 1
    try:
        told = json.loads(os.environ["TF_CONFIG"])
        cluster, task = told.get("cluster", {}), told.get("task", {})
        # Vertex AI calls the first worker "chief", which comes before the others.
        roles = [(role, index) for role in ("chief", "worker") for index in range(len(cluster.get(role, ())))]
        rank = roles.index((task.get("type"), int(task.get("index", 0)))) if len(roles) > 1 else 0
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            "TF_CONFIG must name the cluster's workers and which of them this is, "
            f'{{"cluster": {{"worker": ["host:port", …]}}, "task": {{"type": "worker", "index": 0}}}}: {error}'
        ) from None
    return rank, max(1, len(roles))


def together() -> Together:
    """The other workers, as the environment says; waits for them.

    Raises:
        ConfigurationError: TF_CONFIG is not what this takes.
        WorkerLostError: others are not there in time.
    """
    rank, workers = place()
    if PLACE not in os.environ:
        if workers == 1:
            return Alone()
        found = Cluster()
        found.rank = rank
        return found
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return OneMachine(rank, workers, json.loads(os.environ[PLACE])["socket"])


def _connected(socket: str) -> Connection:
    until_s = time.monotonic() + CONNECT_S
    while True:
        try:
            return Client(socket, "AF_UNIX")
        except OSError as error:
            if time.monotonic() > until_s:
                raise WorkerLostError(f"the first worker is not there after {CONNECT_S:.0f} s") from error
            time.sleep(0.05)


def _end_with_parent() -> None:
    """Whoever has started this process holds the other end of its standard input."""
    sys.stdin.read()
    os._exit(LOST)
