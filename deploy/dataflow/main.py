"""What the Flex Template's launcher starts: its parameters become options of `sameriver stream`, all others Beam's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import main

PARAMETERS = Path(__file__).with_name("metadata.json")


def arguments(given: Sequence[str]) -> list[str]:
    """The command line of the job.

    Args:
        given: ``--name=value`` each, as the launcher passes them; an empty value is one left out.
    """
    ours = {one["name"] for one in json.loads(PARAMETERS.read_text(encoding="utf-8"))["parameters"]} | {"project"}
    made = ["stream", "--runner=dataflow"]
    for option in given:
        name, _, value = option.removeprefix("--").partition("=")
        if name not in ours:
            made.append(f"--beam={option}")
        elif value:
            made.append(f"--{name.replace('_', '-')}={value}")
    return made


if __name__ == "__main__":
    main(arguments(sys.argv[1:]))
