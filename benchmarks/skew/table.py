"""The result for people: one table, ✓ ✗ and –, with the reason of every ✗ and – below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.skew.grade import FAIL, NOT_APPLICABLE, PASS
from shared_features.errors import ConfigurationError

MARKS = {PASS: "✓", FAIL: "✗", NOT_APPLICABLE: "–"}
COLORS = {PASS: "green", FAIL: "red", NOT_APPLICABLE: "dim"}
SIDES = ("batch", "stream", "agree")
BEGIN, END = "<!-- skew -->", "<!-- /skew -->"

INTRODUCTION = (
    "✓ right by the definition in batch or live; under *agree*: both give the same bits. "
    "✗ wrong. – the system has no such thing."
)


def columns(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(system, side) of each column; what only computes over tables has the one."""
    return [
        (name, side) for name, found in result["systems"].items() for side in (SIDES if found["streams"] else SIDES[:1])
    ]


def notes(result: dict[str, Any]) -> dict[str, int]:
    """Each reason for a ✗ or a –, and the number that stands beside it."""
    numbers: dict[str, int] = {}
    for case in result["cases"]:
        for system, side in columns(result):
            verdict = result["systems"][system][side][case["name"]]
            if verdict["verdict"] != PASS:
                numbers.setdefault(note_of(verdict), len(numbers) + 1)
    return numbers


def note_of(verdict: dict[str, Any]) -> str:
    """The known reason, or else what was seen."""
    return str(verdict["note"] or verdict.get("seen", ""))


def markdown(result: dict[str, Any]) -> str:
    """The table and its notes as Markdown."""
    numbers, shown = notes(result), columns(result)
    heads = [f"{system}: {side}" if result["systems"][system]["streams"] else system for system, side in shown]
    lines = ["| " + " | ".join(["case", *heads]) + " |", "| --- |" + " :-: |" * len(heads)]
    for case in result["cases"]:
        cells = []
        for system, side in shown:
            verdict = result["systems"][system][side][case["name"]]
            note = "" if verdict["verdict"] == PASS else f" <sup>{numbers[note_of(verdict)]}</sup>"
            cells.append(MARKS[verdict["verdict"]] + note)
        lines.append("| " + " | ".join([case["title"], *cells]) + " |")
    lines.append("| " + " | ".join(["**✓ of those that apply**", *(_score(result, *one) for one in shown)]) + " |")
    listed = [f"{number}. {text}" for text, number in numbers.items()]
    return "\n".join([*lines, "", INTRODUCTION, "", *listed]) + "\n"


def _score(result: dict[str, Any], system: str, side: str) -> str:
    counts = result["systems"][system]["counts"][side]
    return f"{counts[PASS]} / {counts[PASS] + counts[FAIL]}"


def report(result: dict[str, Any]) -> None:
    """Print the table, the notes and the versions."""
    numbers, shown = notes(result), columns(result)
    table = Table(title="Training-serving skew: who passes what")
    table.add_column("case", no_wrap=True)
    for system, side in shown:
        table.add_column(f"{system}\n{side}", justify="center")
    for case in result["cases"]:
        cells = []
        for system, side in shown:
            verdict = result["systems"][system][side][case["name"]]
            mark, color = MARKS[verdict["verdict"]], COLORS[verdict["verdict"]]
            note = "" if verdict["verdict"] == PASS else f" {numbers[note_of(verdict)]}"
            cells.append(f"[{color}]{mark}[/]{note}")
        table.add_row(escape(case["title"]), *cells)
    table.add_section()
    table.add_row("✓ of those that apply", *(_score(result, *one) for one in shown))
    console = Console()
    console.print(table)
    console.print(INTRODUCTION.replace("*", ""))
    for text, number in numbers.items():
        console.print(f"{number:3}. {text}", markup=False, highlight=False)
    known = {package: version for found in result["systems"].values() for package, version in found["versions"].items()}
    versions = [f"{package} {version}, " for package, version in known.items()]
    console.print("".join(versions) + f"{result['seconds']} s.", highlight=False)


def write(result: dict[str, Any], path: Path) -> None:
    """Put the table between the marks of a Markdown file.

    Raises:
        ConfigurationError: the file has no marks.
    """
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigurationError(f"{path} has no place for the table: wanted the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{markdown(result)}{END}{after}", "utf-8")


def written(path: Path) -> str | None:
    """The table that stands in a Markdown file, or None where there are no marks."""
    _, begin, rest = path.read_text("utf-8").partition(BEGIN)
    table, end, _ = rest.partition(END)
    return table.removeprefix("\n") if begin and end else None
