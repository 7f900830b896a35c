"""The processes that make an app live: broker, model server, streaming job and, if wanted, the gateway."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from commands.options import PROJECT
from commands.processes import Child, Record

START_S = 300.0
DRAIN_S = 120.0
STOP_S = 20.0


class Live:
    """Broker, model server, job and gateway of one app, started in the order in which they need each other.

    Args:
        app_name: as given to ``--app``.
        served: whether the app's model needs a server.
        logs: folder for what they say.
        on_exit: called with a child that ends, on a thread of its own; also when it was told to.
    """

    def __init__(
        self, app_name: str, *, served: bool, logs: Path, on_exit: Callable[[Child], None] | None = None
    ) -> None:
        self._app_name, self._served, self._logs, self._on_exit = app_name, served, logs, on_exit
        self.broker: Child | None = None
        self.model_server: Child | None = None
        self.job: Child | None = None
        self.gateway: Child | None = None
        self._models = Path()
        self._job_arguments: list[str] = []
        self._job_lives = 0

    def start_broker(self, port: int = 0, data: Path | None = None) -> None:
        """Start the broker; `broker_at` waits for it."""
        kept = ["--in-memory"] if data is None else ["--data", str(data)]
        self.broker = self._child("broker", ["broker", "--port", str(port), *kept])

    def start_model_server(self, models: Path, port: int = 0) -> None:
        """Start the model server, if the app's model needs one; `model_at` waits for it."""
        if self._served:
            arguments = ["serve", "--app", self._app_name, "--models", str(models), "--port", str(port)]
            self._models = models
            self.model_server = self._child("model server", arguments)

    def start_job(self, archive: Path, *, with_features: bool = False) -> None:
        """Start the job towards broker and model server, which must be ready; `job_ready` waits for it."""
        arguments = ["stream", "--app", self._app_name, "--archive", str(archive), "--emulator", self.broker_at()]
        arguments += ["--project", PROJECT]
        if self.model_server is not None:
            arguments += ["--model-server", self.model_at(), "--models", str(self._models)]
        elif self._served:
            arguments += ["--collect"]
        if with_features:
            arguments += ["--with-features"]
        self._job_arguments = arguments
        self._start_job()

    def kill_job(self, killed: Callable[[], None]) -> None:
        """End the job with SIGKILL, whatever it is doing, and start it again; `job_ready` waits for it.

        Args:
            killed: called when it is dead, before the next one starts.
        """
        assert self.job is not None
        self.job.kill()
        killed()
        self._start_job()

    def _start_job(self) -> None:
        self._job_lives += 1
        log = "streaming-job.log" if self._job_lives == 1 else f"streaming-job-{self._job_lives}.log"
        self.job = self._child("streaming job", self._job_arguments, log)

    def start_gateway(self, port: int = 0) -> None:
        """Start the gateway towards the broker, which must be ready; `gateway_at` waits for it."""
        arguments = ["gateway", "--app", self._app_name, "--emulator", self.broker_at(), "--project", PROJECT]
        self.gateway = self._child("gateway", [*arguments, "--port", str(port)])

    def broker_at(self) -> str:
        """``host:port`` of the broker, once it is ready. Raises ChildError."""
        assert self.broker is not None
        return str(self.broker.wait_ready(START_S)["host_port"])

    def model_at(self) -> str:
        """``host:port`` of the model server, once it is ready. Raises ChildError."""
        assert self.model_server is not None
        return str(self.model_server.wait_ready(START_S)["host_port"])

    def gateway_at(self) -> str:
        """The gateway's address, ``http://127.0.0.1:8600``, once it is ready. Raises ChildError."""
        assert self.gateway is not None
        return str(self.gateway.wait_ready(START_S)["url"])

    def job_ready(self) -> Record:
        """What the job said when it was ready. Raises ChildError."""
        assert self.job is not None
        return self.job.wait_ready(START_S)

    def drain(self) -> Record:
        """Let the job finish what it has pulled and end; its totals. Raises ChildError."""
        assert self.job is not None
        self.job.stop(DRAIN_S)
        return self.job.wait(10)

    def children(self) -> list[Child]:
        """What has been started: the gateway first, then the job, which drains through the two others, the broker last.

        Whoever waits for an answer gets it from a job that still runs.
        """
        order = (self.gateway, self.job, self.model_server, self.broker)
        return [child for child in order if child is not None]

    def stop(self) -> None:
        """Stop what runs, in the order of `children`."""
        with ExitStack() as stack:
            for child in reversed(self.children()):
                stack.callback(child.stop, DRAIN_S if child is self.job else STOP_S)

    def _child(self, name: str, arguments: list[str], log: str | None = None) -> Child:
        path = self._logs / (log or f"{name.replace(' ', '-')}.log")
        return Child(name, ["cli", *arguments, "--json"], path, on_exit=self._on_exit)
