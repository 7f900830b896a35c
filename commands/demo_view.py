"""What a person sees of the demo: stages, rates and latency, the latest predictions and what came to pass."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from commands.demo_tally import Tally
from shared_features.app import App
from shared_features.columns import Evaluator
from shared_features.expressions import Field

ADMIT_EVERY_S = 0.35
"""A prediction enters the table at most this often, so that what then comes to pass can be watched."""

MOST_ROWS = 14
WIDTH = 100
LINES_WITHOUT_ROWS = 22
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
class Latest:
    """The predictions in the table: sampled, each for a while."""

    rows: list[int] = field(default_factory=list)
    """Rows of the replay, newest first."""
    admitted_s: float = 0.0

    def admit(self, tally: Tally, now_s: float) -> None:
        """Take the newest prediction in, if it is time for one."""
        if tally.predicted and now_s - self.admitted_s >= ADMIT_EVERY_S:
            newest = tally.predicted[-1]
            if newest not in self.rows:
                self.rows = [newest, *self.rows[: MOST_ROWS - 1]]
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
        self._latest = Latest()
        self._began_s = time.monotonic()
        self._rates: list[tuple[float, int, int]] = []

    def observe(self) -> None:
        """Keep the table of predictions up to date; called often, whether or not anybody looks."""
        if self.tally is not None:
            self._latest.admit(self.tally, time.monotonic())

    def frame(self, height: int = 50) -> RenderableType:
        """All there is to see.

        Args:
            height: of the terminal in lines; what does not fit is taken off the table of predictions.
        """
        parts: list[RenderableType] = [self._stage_table()]
        if self.tally is not None:
            parts.append(self._figures(self.tally))
            places = min(MOST_ROWS, height - LINES_WITHOUT_ROWS)
            if places > 0 and self.verdict is None:
                parts.append(self._prediction_table(self.tally, places))
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
            clock = f"{moment:%a %d %b %Y, %H:%M}"
        table.add_row(
            "event time, UTC", clock, "latency p50", _latency_text([one.p50_ms for one in seconds], latency.p50_ms)
        )
        table.add_row(
            "published",
            f"{published:,} events, {per_s:,.0f}/s",
            "latency p99",
            _latency_text([one.p99_ms for one in seconds], latency.p99_ms),
        )
        judged = tally.right + tally.wrong
        accuracy = f"{tally.right / judged:.1%} of {judged:,} known outcomes" if judged else "no outcome is known yet"
        table.add_row("predicted", f"{predicted:,} events, {predictions_per_s:,.0f}/s", "right so far", accuracy)
        sent = tally.sent_ns >= 0
        late, again = int((tally.replay.late & sent).sum()), int((tally.replay.again & sent).sum())
        table.add_row(
            "on purpose",
            f"{late:,} late, {again:,} sent twice",
            "reactions",
            f"{tally.reactions:,}, {sum(tally.dead_letters.values()):,} dead letters",
        )
        return Panel(table, border_style="dim")

    def _rates_now(self, published: int, predicted: int) -> tuple[float, float]:
        """Events and predictions a second, over the last two."""
        now_s = time.monotonic()
        self._rates = [one for one in self._rates if now_s - one[0] <= 2.0] + [(now_s, published, predicted)]
        began_s, published_then, predicted_then = self._rates[0]
        took_s = max(now_s - began_s, 0.1)
        return (published - published_then) / took_s, (predicted - predicted_then) / took_s

    def _prediction_table(self, tally: Tally, places: int) -> RenderableType:
        table = Table(expand=True, box=None, header_style="dim", padding=(0, 1))
        keys = key_names(tally.app)
        table.add_column("event time", no_wrap=True)
        table.add_column(" · ".join(keys) or "event", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("probability", no_wrap=True)
        table.add_column(", ".join(outcome_fields(tally.app)) or "came to pass", justify="right", no_wrap=True)
        table.add_column("", width=1)
        rows = self._latest.rows[:places]
        for row in rows:
            table.add_row(*_cells(tally, row))
        for _ in range(places - len(rows)):
            table.add_row("")
        return table


def _latency_text(by_second: Sequence[float], overall_ms: float) -> Text:
    if overall_ms != overall_ms:
        return Text("measured at 255 events/s", "dim")
    return Text.assemble((f"{overall_ms:5.1f} ms  ", "bold"), (sparkline(by_second, 32), "cyan"))


def key_names(app: App) -> list[str]:
    """The fields of the event predicted on that some feature groups by, each once."""
    parts = [part.field for key in app.keys for part in key.parts.get(app.predict_on.name, ())]
    return list(dict.fromkeys(parts))


def outcome_fields(app: App) -> list[str]:
    """The fields that the label reads."""
    nodes = app.label.value.walk() if app.label is not None else ()
    return list(dict.fromkeys(node.field for node in nodes if isinstance(node, Field)))


def _cells(tally: Tally, row: int) -> list[RenderableType]:
    """One prediction: when, of what, how probable, what came to pass."""
    app, block, probability = tally.app, tally.replay.block, float(tally.probability[row])
    asked = app.predict_on
    keys = [Evaluator(block.slice(row, 1)).array(asked.field(name))[0].as_py() for name in key_names(app)]
    what = " · ".join("–" if value is None else str(value) for value in keys) or block.column("event_id")[row].as_py()
    style = "red" if probability >= 0.5 else "yellow" if probability >= 0.25 else "green"
    known: RenderableType = Text("not known yet", "dim")
    mark = Text("")
    if tally.has_landed(row):
        positive = tally.outcome[row] == 1
        found = Evaluator(block.slice(tally.outcome_row(row), 1))
        told = app.event_types[app.label.event_type] if app.label is not None else asked
        values = [found.array(told.field(name))[0].as_py() for name in outcome_fields(app)]
        known = Text(", ".join(_shown(value) for value in values), "red" if positive else "green")
        right = (probability >= 0.5) == positive
        mark = Text("✓", "bold green") if right else Text("✗", "bold red")
    return [
        Text(f"{block.column('event_time')[row].as_py():%a %H:%M}"),
        Text(what, "bold"),
        Text.assemble((bar(probability, 20), style), f" {probability:4.0%}"),
        known,
        mark,
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def export_svg(view: View, path: Path, title: str, height: int = 40) -> None:
    """One frame as a picture."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(view.frame(height))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever looks at the picture should not have to fetch fonts from somewhere.
    picture = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title=title), flags=re.DOTALL)
    path.write_text(picture, encoding="utf-8")
