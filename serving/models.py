"""The models of a server: loaded, replaced without a gap, unloaded.

A version goes START, LOADING, AVAILABLE, UNLOADING, END. A new version is loaded before the old one goes (the real
server's AvailabilityPreservingPolicy); one that cannot be loaded is logged and the old one goes on serving.
Requests take a lock only to look their version up: nothing that takes time is done under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.background import in_background
from serving.request_log import LogSettings
from serving.servable import Servable
from serving.status import Code, RefusalError, failed_precondition, invalid, not_found
from serving.tensorflow_c import TensorFlowError
from serving.versions import ModelSettings, find_versions, leaving_link, stamp
from serving.wire import State

log = logging.getLogger("sameriver.serving")


@dataclass(slots=True)
class _Version:
    """One version's life."""

    folder: Path
    state: Any = State.START
    code: Code = Code.OK
    message: str = ""
    servable: Servable | None = None
    users: int = 0
    failures: int = 0
    failed_at: float = 0.0
    failed_stamp: object = None


@dataclass(slots=True)
class _Model:
    settings: ModelSettings
    versions: dict[int, _Version] = field(default_factory=dict)
    complaint: str = ""  # said once about the base path


@dataclass(frozen=True, slots=True)
class VersionState:
    """What GetModelStatus says of a version."""

    version: int
    state: int
    code: int
    message: str


class Models:
    """Watches the base paths and serves what it finds there.

    Args:
        settings: of each model.
        load: makes a Servable from (name, version, folder, the version that it follows or None).
        poll_s: seconds between looks at the file system; 0 looks once, below 0 never.
        retries: after the first failure to load a version, with `retry_s` between; a change of its files starts
            anew at once.
        retry_s: see above.
        labels_anywhere: a new label may stand on a version that is not loaded.
    """

    def __init__(
        self,
        settings: list[ModelSettings],
        load: Callable[[str, int, Path, Servable | None], Servable],
        *,
        poll_s: float = 1.0,
        retries: int = 5,
        retry_s: float = 60.0,
        labels_anywhere: bool = False,
    ) -> None:
        self._labels_anywhere = labels_anywhere
        self._load = load
        self._poll_s = poll_s
        self._retries = retries
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)
        self._models = {one.name: _Model(one) for one in settings}
        self._loading = threading.Lock()  # one look at the file system at a time
        self._stopped = threading.Event()
        self._started = False
        self._poller: threading.Thread | None = None

    def start(self) -> None:
        """Load what is there (returns when that is done) and watch from now on."""
        self.poll()
        self._started = True
        if self._poll_s > 0:
            self._poller = threading.Thread(target=self._watch, name="model versions", daemon=True)
            self._poller.start()

    def stop(self) -> None:
        """Stop watching and free every model once its last request has ended."""
        self._stopped.set()
        if self._poller is not None:
            self._poller.join()
        with self._loading:
            for model in self._models.values():
                for number in list(model.versions):
                    self._unload(model, number)

    @contextlib.contextmanager
    def use(self, spec: Any) -> Iterator[Servable]:
        """The version that a ModelSpec asks for, kept in memory while the block runs. RefusalError if none such."""
        version = self._acquire(spec)
        try:
            assert version.servable is not None
            yield version.servable
        finally:
            with self._lock:
                version.users -= 1
                if not version.users and version.state != State.AVAILABLE:
                    self._unused.notify_all()

    def _acquire(self, spec: Any) -> _Version:
        name = spec.name
        if not name:
            raise invalid("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        with self._lock:
            model = self._models.get(name)
            number: int | None = None
            if choice == "version_label" and spec.version_label:
                number = model.settings.labels.get(spec.version_label) if model else None
                if number is None:
                    raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            elif choice == "version":
                number = spec.version.value
            found: _Version | None = None
            if model is not None:
                if number is None:
                    available = [n for n, one in model.versions.items() if one.state == State.AVAILABLE]
                    found = model.versions[max(available)] if available else None
                else:
                    found = model.versions.get(number)
            if found is None or found.state != State.AVAILABLE:
                wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise not_found(f"Servable not found for request: {wanted}")
            found.users += 1
            return found

    def check_labels(self) -> None:
        """RefusalError if a label stands on a version that is not loaded and may not."""
        for model in list(self._models.values()):
            self._check_labels(model, None)

    def replace(self, settings: list[ModelSettings]) -> None:
        """Serve these models, all of them and no others: new ones are loaded before those no longer listed go.

        Raises RefusalError if a new model does not become available or a label stands on a version that is not;
        then everything is as before.
        """
        with self._loading:
            with self._lock:
                before = {name: model.settings for name, model in self._models.items()}
            staged = {one.name: self._models.get(one.name) or _Model(one) for one in settings}
            added = [model for name, model in staged.items() if name not in before]
            try:
                for one in settings:
                    self._set_settings(staged[one.name], one)
                    self._poll_model(staged[one.name], unload=False)
                missing = [model for model in added if not _available(model)]
                if missing:
                    raise RefusalError(Code.UNKNOWN, _not_available(missing))
                for one in settings:
                    self._check_labels(staged[one.name], before.get(one.name))
            except RefusalError:
                for name, old in before.items():
                    self._set_settings(self._models[name], old)
                for model in added:
                    for number in list(model.versions):
                        self._unload(model, number)
                raise
            with self._lock:
                removed = [model for name, model in self._models.items() if name not in staged]
                self._models = staged
            for model in removed:
                for number in list(model.versions):
                    self._unload(model, number)

    def _set_settings(self, model: _Model, settings: ModelSettings) -> None:
        with self._lock:
            model.settings = settings

    def _check_labels(self, model: _Model, before: ModelSettings | None) -> None:
        name = model.settings.name
        for label, number in model.settings.labels.items():
            in_use = before is not None and label in before.labels
            if number not in _available(model) and (in_use or not self._labels_anywhere):
                raise failed_precondition(
                    f"Request to assign label to version {number} of model {name}, which is not currently available "
                    f"for inference"
                )

    def states(self, name: str, version: int | None = None) -> list[VersionState]:
        """States of all versions known, highest first, or of one. RefusalError if there is none."""
        with self._lock:
            model = self._models.get(name)
            known = model.versions if model else {}
            states = [
                VersionState(number, int(one.state), int(one.code), one.message)
                for number, one in sorted(known.items(), reverse=True)
                if version is None or number == version
            ]
        if not states:
            what = "any versions" if version is None else f"version {version}"
            raise not_found(f"Could not find {what} of model {name}")
        return states

    def names(self) -> list[str]:
        """Of the models, whether or not a version of them answers."""
        with self._lock:
            return list(self._models)

    def logging(self, name: str) -> LogSettings | None:
        """What is logged of a model's requests."""
        with self._lock:
            model = self._models.get(name)
            return model.settings.logging if model else None

    def available(self, name: str) -> list[int]:
        """Versions that answer, highest first."""
        with self._lock:
            model = self._models.get(name)
            return _available(model) if model else []

    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        with self._lock:
            return all(_available(model) for model in self._models.values())

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.poll()
            except Exception:
                log.exception("looking for model versions failed")

    def poll(self) -> None:
        """Look at the file system once; load and unload accordingly."""
        with self._loading:
            for model in list(self._models.values()):
                self._poll_model(model)

    def _poll_model(self, model: _Model, unload: bool = True) -> None:
        settings = model.settings
        try:
            found = find_versions(settings.base_path)
        except OSError as error:
            # The folder may be back at the next look: nothing is unloaded for it.
            self._complain(model, f"cannot read {settings.base_path} ({error.strerror})")
            return
        aspired = settings.policy.choose(found)
        self._complain(model, "" if aspired else f"no version to serve under {settings.base_path}")
        for number, folder in sorted(aspired.items()):
            if not self._stopped.is_set():
                self._load_if_due(model, number, folder)
        with self._lock:
            for number, version in model.versions.items():
                if number not in aspired and version.state in (State.START, State.LOADING):
                    version.state = State.END  # failed, and nobody wants it any more
            serving = [n for n, one in model.versions.items() if one.state == State.AVAILABLE]
        if unload and (not aspired or any(number in aspired for number in serving)):
            for number in sorted(serving):
                if number not in aspired:
                    self._unload(model, number)

    def _complain(self, model: _Model, complaint: str) -> None:
        if complaint and complaint != model.complaint:
            log.warning(
                "model %s: %s; folders of versions are named by numbers, like 1", model.settings.name, complaint
            )
        model.complaint = complaint

    def _load_if_due(self, model: _Model, number: int, folder: Path) -> None:
        with self._lock:
            version = model.versions.get(number)
            if version is not None and version.state == State.AVAILABLE:
                return
            if version is None or (version.state == State.END and not version.failures):
                version = model.versions[number] = _Version(folder)
        if version.failures:
            due = version.failures <= self._retries and time.monotonic() - version.failed_at >= self._retry_s
            if not due and stamp(folder) == version.failed_stamp:
                return
            if not due:
                version.failures = 0
        name = model.settings.name
        self._set(version, State.LOADING)
        files = stamp(folder)
        began = time.monotonic()
        try:
            link = leaving_link(folder, model.settings.base_path)
            if link is not None:
                raise TensorFlowError(Code.PERMISSION_DENIED, f"{link} leads out of the model's folder")
            if self._started:  # requests are being answered meanwhile, and must not feel it
                before = self._latest(model)
                servable = in_background(lambda: self._load(name, number, folder, before), f"load {name} {number}")
            else:
                servable = self._load(name, number, folder, None)
        except TensorFlowError as error:
            version.failures += 1
            version.failed_at, version.failed_stamp = time.monotonic(), files
            again = version.failures <= self._retries
            self._set(version, State.LOADING if again else State.END, Code(error.code), error.message)
            others = [n for n in self.available(name) if n != number]
            log.error(
                "model %s version %d cannot be loaded from %s (%s: %s): %s",
                name, number, folder, Code(error.code).name, error.message,
                f"version {others[0]} goes on serving" if others else "no version of it serves",
            )  # fmt: skip
            return
        with self._lock:
            version.servable = servable
            version.failures = 0
            version.state, version.code, version.message = State.AVAILABLE, Code.OK, ""
        log.info("model %s version %d serves after %.2f s", name, number, time.monotonic() - began)

    def _latest(self, model: _Model) -> Servable | None:
        with self._lock:
            available = _available(model)
            return model.versions[available[0]].servable if available else None

    def _unload(self, model: _Model, number: int) -> None:
        version = model.versions[number]
        with self._lock:
            if version.state != State.AVAILABLE:
                return
            version.state = State.UNLOADING
            while version.users:
                self._unused.wait()
            servable, version.servable = version.servable, None
        if servable is not None:
            in_background(servable.close, f"unload {model.settings.name} {number}")
        self._set(version, State.END)
        log.info("model %s version %d is unloaded", model.settings.name, number)

    def _set(self, version: _Version, state: Any, code: Code = Code.OK, message: str = "") -> None:
        with self._lock:
            version.state, version.code, version.message = state, code, message


def _available(model: _Model) -> list[int]:
    return sorted((n for n, one in model.versions.items() if one.state == State.AVAILABLE), reverse=True)


def _not_available(models: list[_Model]) -> str:
    said = []
    for model in models:
        if model.versions:
            number, version = max(model.versions.items())
            said.append(f"{{name: {model.settings.name} version: {number}}} due to error: {version.message}")
        else:
            said.append(f"{{name: {model.settings.name}}} due to error: {model.complaint}")
    return f"{len(said)} servable(s) did not become available: {{{', '.join(said)}}}"
