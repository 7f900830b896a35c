"""The README's app goes live as it stands; its publisher and its consumer meet through `sameriver up`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import repository
from tests.processes import Started

Start = Callable[..., Started]
README = repository.text(Path("README.md"))


def block(language: str, word: str) -> str:
    """The README's block in that language with that word in it."""
    found = [one for one in re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if word in one]
    assert len(found) == 1, f"{len(found)} blocks of {language} with {word!r}"
    return str(found[0])


def start_up(start_process: Start, folder: Path, *arguments: str) -> tuple[Started, dict[str, Any], dict[str, str]]:
    """`sameriver up` on free ports: the process, what it said, and the environment that points clients at it."""
    command = ["-m", "cli", "up", "--json", "--broker-port", "0", "--model-port", "0"]
    command += ["--gateway-port", "0", *arguments]
    process = start_process(command, ready='"ready"', cwd=folder)
    ready = json.loads(process.line)
    return process, ready, {"PUBSUB_EMULATOR_HOST": ready["pubsub_emulator_host"]}


def test_the_app_of_the_readme_goes_live(start_process: Start, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "app.py").write_text(block("python", 'name="cards"'))
    (tmp_path / "cards" / "payment.avsc").write_text(block("json", "Payment"))
    assert len(block("python", 'name="cards"').splitlines()) <= 22
    process, ready, environment = start_up(start_process, tmp_path, "--app", str(tmp_path / "cards"))
    tail = ["-m", "cli", "tail", "reactions", "--app", str(tmp_path / "cards"), "--json", "--max", "1"]
    asked = start_process(tail, ready="tailing", env=environment)
    payments = tmp_path / "payments.csv"
    rows = [f"p{number},{1_700_000_000_000_000 + number},c,{amount}" for number, amount in enumerate((10, 12, 14, 99))]
    payments.write_text("event_id,paid_at,card,amount\n" + "\n".join(rows))
    command = ["-m", "cli", "publish", str(payments), "--app", str(tmp_path / "cards")]
    assert start_process(command, env=environment).wait() == 0
    assert asked.wait() == 0
    reaction = json.loads(asked.lines[-1])
    assert (reaction["event_id"], reaction["payload"]) == ("p3", {"card": "c", "usual": 12.0})
    assert ready["model_server"] is None
    assert process.stop() == 0


def test_the_short_table_of_the_skew_suite_says_what_the_long_one_says() -> None:
    """Scores by system; tests/test_skew.py holds the long table against a run."""
    (totals,) = re.findall(r"^\| \*\*✓ of those that apply\*\* (.*)\|$", README, re.MULTILINE)
    (short,) = re.findall(r"^\| system \| batch .*\n\| ---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    scores = [cell.strip() for row in short.splitlines() for cell in row.split("|")[2:-1] if cell.strip()]
    assert scores == [cell.strip() for cell in totals.split("|") if cell.strip()]
