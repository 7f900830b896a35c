"""A model server that can be killed, and versions of a model that says which of them answered."""

from __future__ import annotations

from pathlib import Path

from tests import serving_models
from tests.faults.served import app
from tests.processes import Started, free_port, start

FILE = str(Path(__file__).parent / "served.py")
MODELS = 4
"""Different models: y = x / 2 + 100, … + 400; more versions repeat them."""


def offset(version: int) -> int:
    """What a version adds."""
    return 100 * (1 + (version - 1) % MODELS)


def put(base_path: Path, version: int) -> None:
    """A version of the model, made for this app: its fingerprint is as long as the one it was exported with."""
    aside = base_path.parent / "aside"
    serving_models.put(f"meters_{1 + (version - 1) % MODELS}", aside, version)
    file = aside / str(version) / "saved_model.pb"
    data = file.read_bytes()
    ours, theirs = app.fingerprint.encode(), serving_models.FINGERPRINT.encode()
    assert len(ours) == len(theirs)
    assert data.count(theirs) > 0
    file.write_bytes(data.replace(theirs, ours))
    base_path.mkdir(exist_ok=True)
    (aside / str(version)).rename(base_path / str(version))


class ModelServer:
    """Serves ``half`` from a folder of versions, on the same port after each kill."""

    def __init__(self, models: Path) -> None:
        self.models, self.port = models, free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.process = self._start()

    def _start(self) -> Started:
        options = ["--model_name=half", f"--model_base_path={self.models}", "--file_system_poll_wait_seconds=0.05"]
        return start(["-m", "serving.server", f"--port={self.port}", *options], ready="listening on 127.0.0.1:")

    def newest(self) -> int:
        """The highest version in the folder."""
        return max(int(path.name) for path in self.models.iterdir())

    def kill_and_start(self) -> None:
        self.process.kill()
        self.process = self._start()
