"""Files of a folder, here or in a bucket of Google Cloud Storage (``gs://bucket/folder``), by the same few verbs.

A bucket is reached with the default credentials, or at the emulator that ``STORAGE_EMULATOR_HOST`` names.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol, cast

from shared_features.errors import ConfigurationError, HistoryError

EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"

CHUNK_BYTES = 8 << 20
"""Of an upload or a download: what it holds in memory."""

DEADLINE_S = 60.0

_BUCKET = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(?P<folder>.*))?")


class Files(Protocol):
    """The files below one folder, by their paths in it."""

    def names(self, below: str = "") -> list[str]:
        """Paths of all files whose path begins with ``below``, sorted; none if there is no folder."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file for reading at any place."""
        ...

    def create(self, name: str) -> IO[bytes]:
        """A new file, there and durable once it is closed."""
        ...

    def publish(self, name: str, final: str) -> bool:
        """Give a file its final name; durable on return. False, and nothing changes, if that name is taken."""
        ...

    def checksum(self, name: str) -> str | None:
        """Of the content of a file; None if there is no such file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        ...

    def remove_older(self, below: str, seconds: float) -> None:
        """Remove what nobody has written for so long."""
        ...


def open_files(uri: str) -> Files:
    """The files of a folder, which need not exist.

    Raises:
        ConfigurationError: it is at ``gs://``, but not by a bucket's name.
    """
    if not uri.startswith("gs://"):
        return LocalFiles(Path(uri))
    match = _BUCKET.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"a folder of Google Cloud Storage is named gs://bucket/folder, got {uri!r}")
    return GoogleFiles(uri, match["bucket"], (match["folder"] or "").strip("/"))


class LocalFiles:
    """Files of a folder on this machine, or on a file system that it sees."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, below: str = "") -> list[str]:
        found = (path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(below))

    def open(self, name: str) -> IO[bytes]:
        with told(f"reading {self._root / name}"):
            return (self._root / name).open("rb")

    def create(self, name: str) -> IO[bytes]:
        with told(f"writing {self._root / name}"):
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")

    def publish(self, name: str, final: str) -> bool:
        source, target = self._root / name, self._root / final
        with told(f"writing {target}"):
            with source.open("rb") as file:
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                return False
            for folder in (target.parent, *target.parent.parents):
                _sync(folder)
                if folder == self._root:
                    break
            source.unlink()
        return True

    def checksum(self, name: str) -> str | None:
        try:
            file = (self._root / name).open("rb")
        except FileNotFoundError:
            return None
        found = 0
        with file:
            while chunk := file.read(CHUNK_BYTES):
                found = zlib.crc32(chunk, found)
        return f"{found:08x}"

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def remove_older(self, below: str, seconds: float) -> None:
        for name in self.names(below):
            path = self._root / name
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink(missing_ok=True)


@cache
def _client(emulator: str | None) -> Any:
    """One for the process: connections are kept, and it may be used by several threads."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    return Client(project="sameriver", credentials=AnonymousCredentials()) if emulator else Client()


class GoogleFiles:
    """Objects of a bucket whose names begin with a folder's; written by resumable uploads of `CHUNK_BYTES`."""

    def __init__(self, uri: str, bucket: str, folder: str) -> None:
        self._uri, self._prefix = uri, f"{folder}/" if folder else ""
        with told(f"opening {uri}"):
            self._bucket: Any = _client(os.environ.get(EMULATOR_VARIABLE)).bucket(bucket)

    def names(self, below: str = "") -> list[str]:
        return sorted(blob.name.removeprefix(self._prefix) for blob in self._blobs(below))

    def _blobs(self, below: str) -> list[Any]:
        from google.cloud.storage.retry import DEFAULT_RETRY

        patience = DEFAULT_RETRY.with_timeout(DEADLINE_S)
        with told(f"listing {self._uri}"):
            return list(self._bucket.list_blobs(prefix=self._prefix + below, timeout=DEADLINE_S, retry=patience))

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + name, chunk_size=CHUNK_BYTES)

    def open(self, name: str) -> IO[bytes]:
        with told(f"reading {self._uri}/{name}"):
            return cast("IO[bytes]", self._blob(name).open("rb", chunk_size=CHUNK_BYTES))

    def create(self, name: str) -> IO[bytes]:
        with told(f"writing {self._uri}/{name}"):
            return cast("IO[bytes]", self._blob(name).open("wb", chunk_size=CHUNK_BYTES, ignore_flush=True))

    def publish(self, name: str, final: str) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        with told(f"writing {self._uri}/{final}"):
            target, source, token = self._blob(final), self._blob(name), None
            if target.exists(timeout=DEADLINE_S):  # an emulator may not know preconditions
                return False
            try:
                while True:
                    token, _, _ = target.rewrite(source, token=token, if_generation_match=0, timeout=DEADLINE_S)
                    if token is None:
                        break
            except PreconditionFailed:
                return False
        self.remove(name)
        return True

    def checksum(self, name: str) -> str | None:
        with told(f"reading {self._uri}/{name}"):
            found = self._bucket.get_blob(self._prefix + name, timeout=DEADLINE_S)
        return None if found is None else str(found.crc32c)

    def remove(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        with told(f"removing {self._uri}/{name}"):
            try:
                self._blob(name).delete(timeout=DEADLINE_S)
            except NotFound:
                return

    def remove_older(self, below: str, seconds: float) -> None:
        for blob in self._blobs(below):
            if blob.updated is not None and blob.updated.timestamp() < time.time() - seconds:
                self.remove(blob.name.removeprefix(self._prefix))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn what a file system or Google's client raises into one sentence."""
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except NotFound as error:
        raise HistoryError(f"{doing} failed: no such bucket or object ({_one_line(error)})") from error
    except Forbidden as error:
        raise HistoryError(f"{doing} is not permitted ({_one_line(error)}): ask for access to the bucket") from error
    except GoogleAuthError as error:
        raise HistoryError(
            f"{doing} needs Google credentials, and none were found ({_one_line(error)}); run `gcloud auth "
            f"application-default login`, or name an emulator by {EMULATOR_VARIABLE}"
        ) from error
    except (GoogleAPIError, OSError) as error:
        raise HistoryError(f"{doing} failed ({_one_line(error)}): check that it can be reached and written") from error


def _one_line(error: BaseException) -> str:
    text = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]
