"""What a person sees of the demo: stages, rates and latency, the latest flights and whether they came late."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from commands.demo_tally import Tally

NEW_YORK = ZoneInfo("America/New_York")
ADMIT_EVERY_S = 0.35
"""A flight enters the table at most this often, so that its landing can be watched."""

MOST_FLIGHTS = 14
WIDTH = 100
LINES_WITHOUT_FLIGHTS = 21
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass(slots=True)
class Stage:
    """One step of the demo.

    Attributes:
        name: what a person reads.
        detail: what came of it, or what it is doing.
        state: ``waiting``, ``running`` or ``done``.
        share: of it that is done, 0 to 1; None if that is not known.
        seconds: it took, or has taken so far.
    """

    name: str
    detail: str = ""
    state: str = "waiting"
    share: float | None = None
    began_s: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Flights:
    """The flights in the table: sampled, each for a while."""

    rows: list[int] = field(default_factory=list)
    """Rows of the replay, newest first."""
    admitted_s: float = 0.0

    def admit(self, tally: Tally, now_s: float) -> None:
        """Take the newest predicted flight in, if it is time for one."""
        if tally.predicted and now_s - self.admitted_s >= ADMIT_EVERY_S:
            newest = tally.predicted[-1]
            if newest not in self.rows:
                self.rows = [newest, *self.rows[: MOST_FLIGHTS - 1]]
                self.admitted_s = now_s


def bar(share: float, width: int) -> str:
    """A bar of eighths of a character: ``bar(0.5, 4)`` is ``██  ``."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks; the highest of them is full height."""
    shown = [value for value in values if value == value][-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BLOCKS[min(7, int(value / top * 7.999))] for value in shown)


class View:
    """The whole picture; `frame` renders it as it is now.

    Args:
        title: in the frame.
        stages: all of them, in order.
    """

    def __init__(self, title: str, stages: Sequence[Stage]) -> None:
        self.title, self.stages = title, list(stages)
        self.tally: Tally | None = None
        self.rate: tuple[float, float] = (0.0, 0.0)
        self.verdict: RenderableType | None = None
        self._flights = Flights()
        self._began_s = time.monotonic()
        self._rates: list[tuple[float, int, int]] = []

    def observe(self) -> None:
        """Keep the table of flights up to date; called often, whether or not anybody looks."""
        if self.tally is not None:
            self._flights.admit(self.tally, time.monotonic())

    def frame(self, height: int = 50) -> RenderableType:
        """All there is to see.

        Args:
            height: of the terminal in lines; what does not fit is left to the table of flights.
        """
        parts: list[RenderableType] = [self._stage_table()]
        if self.tally is not None:
            parts.append(self._figures(self.tally))
            places = min(MOST_FLIGHTS, height - LINES_WITHOUT_FLIGHTS)
            if places > 0 and self.verdict is None:
                parts.append(self._flight_table(self.tally, places))
        if self.verdict is not None:
            parts.append(self.verdict)
        return Panel(
            Group(*parts),
            title=f"[bold]{self.title}",
            subtitle=f"[dim]{time.monotonic() - self._began_s:.0f} s",
            width=WIDTH,
            border_style="cyan",
        )

    def _stage_table(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(width=16, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(width=7, justify="right")
        for stage in self.stages:
            mark, style = {"done": ("✓", "green"), "waiting": ("·", "dim")}.get(
                stage.state, (_SPINNER[int(time.monotonic() * 10) % len(_SPINNER)], "bold cyan")
            )
            took_s = stage.seconds if stage.state == "done" else time.monotonic() - stage.began_s
            detail = Text(stage.detail)
            if stage.state == "running" and stage.share is not None:
                detail = Text.assemble((bar(stage.share, 14), "cyan on grey23"), "  ", stage.detail)
            seconds = "" if stage.state == "waiting" else f"{took_s:.1f} s"
            table.add_row(Text(mark, style), Text(stage.name, style), detail, Text(seconds, "dim"))
        return table

    def _figures(self, tally: Tally) -> RenderableType:
        published, predicted = tally.published(), tally.predictions()
        per_s, predictions_per_s = self._rates_now(published, predicted)
        latency, seconds = tally.latency(), tally.latency_by_second()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(width=24)
        table.add_column(style="dim")
        table.add_column()
        clock = ""
        if tally.newest >= 0:
            moment = tally.replay.block.column("event_time")[tally.newest].as_py()
            clock = f"{moment.astimezone(NEW_YORK):%a %d %b %Y, %H:%M}"
        table.add_row(
            "New York time", clock, "latency p50", _latency_text([one.p50_ms for one in seconds], latency.p50_ms)
        )
        table.add_row(
            "published",
            f"{published:,} events, {per_s:,.0f}/s",
            "latency p99",
            _latency_text([one.p99_ms for one in seconds], latency.p99_ms),
        )
        judged = tally.right + tally.wrong
        accuracy = f"{tally.right / judged:.1%} of {judged:,} landed flights" if judged else "no flight has landed yet"
        table.add_row("predicted", f"{predicted:,} flights, {predictions_per_s:,.0f}/s", "right so far", accuracy)
        sent = tally.sent_ns >= 0
        late, again = int((tally.replay.late & sent).sum()), int((tally.replay.again & sent).sum())
        table.add_row(
            "on purpose",
            f"{late:,} late, {again:,} sent twice",
            "reactions",
            f"{tally.reactions:,} rebook alerts, {sum(tally.dead_letters.values()):,} dead letters",
        )
        return Panel(table, border_style="dim")

    def _rates_now(self, published: int, predicted: int) -> tuple[float, float]:
        """Events and predictions a second, over the last two."""
        now_s = time.monotonic()
        self._rates = [one for one in self._rates if now_s - one[0] <= 2.0] + [(now_s, published, predicted)]
        began_s, published_then, predicted_then = self._rates[0]
        took_s = max(now_s - began_s, 0.1)
        return (published - published_then) / took_s, (predicted - predicted_then) / took_s

    def _flight_table(self, tally: Tally, places: int) -> RenderableType:
        table = Table(expand=True, box=None, header_style="dim", padding=(0, 1))
        table.add_column("flight", no_wrap=True)
        table.add_column("way", no_wrap=True)
        table.add_column("scheduled", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        table.add_column("chance of ≥ 15 min late", no_wrap=True)
        table.add_column("arrived", justify="right", no_wrap=True)
        table.add_column("", width=1)
        rows = self._flights.rows[:places]
        for row in rows:
            table.add_row(*_flight(tally, row))
        for _ in range(places - len(rows)):
            table.add_row("")
        return table


def _latency_text(by_second: Sequence[float], overall_ms: float) -> Text:
    if overall_ms != overall_ms:
        return Text("measured at 255 events/s", "dim")
    return Text.assemble((f"{overall_ms:5.1f} ms  ", "bold"), (sparkline(by_second, 32), "cyan"))


def _flight(tally: Tally, row: int) -> list[RenderableType]:
    """The cells of one flight."""
    block, probability = tally.replay.block, float(tally.probability[row])

    def value(name: str) -> Any:
        return block.column(f"departed.{name}")[row].as_py()

    delay_min = value("departure_delay")
    scheduled = value("scheduled_at").astimezone(NEW_YORK)
    style = "red" if probability >= 0.5 else "yellow" if probability >= 0.25 else "green"
    arrived: RenderableType = Text("in the air", "dim")
    mark = Text("")
    if tally.has_landed(row):
        late = tally.outcome[row] == 1
        minutes = block.column("arrived.arrival_delay")[tally.outcome_row(row)].as_py()
        arrived = Text(_minutes(minutes), "red" if late else "green")
        right = (probability >= 0.5) == late
        mark = Text("✓", "bold green") if right else Text("✗", "bold red")
    return [
        Text(f"{value('carrier')}{value('flight_number')}", "bold"),
        f"{value('origin')}→{value('dest')}",
        f"{scheduled:%a %H:%M}",
        Text(_minutes(delay_min), "red" if delay_min >= 15 else ""),
        Text.assemble((bar(probability, 20), style), f" {probability:4.0%}"),
        arrived,
        mark,
    ]


def _minutes(minutes: float) -> str:
    return "on time" if minutes == 0 else f"{minutes:+.0f} min"


def export_svg(view: View, path: Path, title: str, height: int = 40) -> None:
    """One frame as a picture."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(view.frame(height))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever looks at the picture should not have to fetch fonts from somewhere.
    picture = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title=title), flags=re.DOTALL)
    path.write_text(picture, encoding="utf-8")
