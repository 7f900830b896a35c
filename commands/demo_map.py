"""A map of a demo in the browser, for apps whose events have a place.

Such an app has ``map.py`` beside its ``app.py``:

    PAGE                      folder of static files, index.html among them
    KEY, LATITUDE, LONGITUDE  fields of the event predicted on: whose place it is, and where
    shapes()                  GeoJSON that is drawn below
    picture(positions, path)  optional: writes a picture of all positions, returns figures

The page asks this process for ``/state`` and for the files; nothing comes from elsewhere, nothing leaves this machine.
"""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from commands.demo_tally import NEVER, Tally
from serving.http import Answer, HttpServer
from shared_features.app import App, load_beside
from shared_features.columns import Evaluator
from shared_features.errors import ConfigurationError

MODULE = "map"
ALERTS_SHOWN = 20
"""Of each reaction: the frequent ones must not push out the others."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class DemoMap:
    """Serves the page of one app's map.

    Args:
        app: the app; `DemoMap.of` says whether it has a map.
        module: its ``map.py``.
        port: on 127.0.0.1; 0 takes a free one.

    Raises:
        ConfigurationError: the port is taken.
    """

    def __init__(self, app: App, module: ModuleType, port: int = 0) -> None:
        self._app, self._module = app, module
        self._files = {path.relative_to(module.PAGE).as_posix(): path for path in _files(module.PAGE)}
        self._positions: _Positions | None = None
        self._lock = threading.Lock()
        self.over = ""
        try:
            self._server = HttpServer("127.0.0.1", port, self._answer)
        except OSError as error:
            raise ConfigurationError(
                f"the map cannot listen on 127.0.0.1:{port} ({error.strerror}): give another --map-port"
            ) from None
        self._server.start()

    @staticmethod
    def of(app: App, port: int = 0) -> DemoMap | None:
        """The app's map; None if it has none."""
        module = load_beside(app.spec, MODULE)
        return None if module is None else DemoMap(app, module, port)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.port}/"

    def follow(self, tally: Tally) -> None:
        """Show what a replay sends and gets from now on."""
        with self._lock:
            self._positions = _Positions(self._app, self._module, tally)

    def picture(self, path: Path) -> dict[str, Any]:
        """Write the app's picture of all that was predicted; figures of it. Empty if the app has none."""
        if self._positions is None or not hasattr(self._module, "picture"):
            return {}
        drawn: dict[str, Any] = self._module.picture(self._positions.table(), path)
        return {**drawn, "picture": str(path)}

    def stop(self) -> None:
        """Answer no more."""
        self._server.stop()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:  # noqa: ARG002
        name = path.partition("?")[0].removeprefix("/") or "index.html"
        if method != "GET":
            return Answer(405, b'{"error": "The map answers GET only."}')
        if name == "state":
            return _json(self._state())
        if name == "shapes":
            return _json(self._module.shapes())
        file = self._files.get(name)  # only what was there at the start: no path of a request is ever opened
        if file is None:
            return Answer(404, b'{"error": "The map has no such page."}')
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return Answer(200, file.read_bytes(), kind, HEADERS)

    def _state(self) -> dict[str, Any]:
        with self._lock:
            nothing = {"time": "waiting for the first position", "vessels": [], "alerts": [], "predictions": 0}
            found = nothing if self._positions is None else self._positions.state()
        return {**found, "over": self.over}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), headers=HEADERS)


class _Positions:
    """The places of a replay's events, and which is the latest that was predicted on, of each key."""

    def __init__(self, app: App, module: ModuleType, tally: Tally) -> None:
        self._tally = tally
        evaluator = Evaluator(tally.replay.block)
        field = app.predict_on.field
        self._keys = evaluator.array(field(module.KEY))
        places = (evaluator.array(field(name)) for name in (module.LATITUDE, module.LONGITUDE))
        self._latitude, self._longitude = (place.cast(pa.float64()).to_numpy(zero_copy_only=False) for place in places)
        self._times = tally.replay.block.column("event_time").cast(pa.int64()).to_numpy()
        shown = tally.asked & np.isfinite(self._latitude) & np.isfinite(self._longitude)
        self._codes = pc.fill_null(self._keys.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        order = np.lexsort((self._times, self._codes))
        self._order = order[shown[order]]

    def state(self) -> dict[str, Any]:
        """What the page shows: the latest position of each vessel, and the latest alerts."""
        tally = self._tally
        rows = self._order[tally.received_ns[self._order] != NEVER]
        last = rows[np.append(self._codes[rows][1:] != self._codes[rows][:-1], True)] if len(rows) else rows
        probability = np.nan_to_num(tally.probability[last])
        vessels = [
            [self._keys[row].as_py(), round(float(self._latitude[row]), 4), round(float(self._longitude[row]), 4), one]
            for row, one in zip(last.tolist(), probability.round(4).tolist(), strict=True)
        ]
        alerts = [self._alert(*alert) for alert in tally.alerts(ALERTS_SHOWN)]
        newest = pa.scalar(int(self._times[rows].max()), pa.timestamp("us", "UTC")).as_py() if len(rows) else None
        time = "waiting for the first position" if newest is None else f"{newest:%a %d %b %Y, %H:%M UTC}"
        return {"time": time, "vessels": vessels, "alerts": alerts, "predictions": tally.predictions()}

    def _alert(self, reaction: str, row: int, started: bool | None) -> dict[str, Any]:
        at = pa.scalar(int(self._times[row]), pa.timestamp("us", "UTC")).as_py()
        place = [float(value) if np.isfinite(value) else None for value in (self._latitude[row], self._longitude[row])]
        key = self._keys[row].as_py()
        return {
            "reaction": reaction,
            "started": started,
            "vessel": key,
            "time": f"{at:%d %b, %H:%M}",
            "latitude": place[0],
            "longitude": place[1],
        }

    def table(self) -> pa.Table:
        """Every position that was predicted on, once."""
        rows = self._order[self._tally.received_ns[self._order] != NEVER]
        return pa.table(
            {
                "key": self._keys.take(pa.array(rows)),
                "time_us": self._times[rows],
                "latitude": self._latitude[rows],
                "longitude": self._longitude[rows],
                "probability": pa.array(self._tally.probability[rows], from_pandas=True),
            }
        )
