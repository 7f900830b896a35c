"""The repository's files as tests see them: tracked, or new and not ignored."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Folders whose Python is ours, by import name.
PACKAGES = ("shared_features", "batch", "streaming", "serving", "training", "apps", "commands")

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """All files of the repository, or those with one of these suffixes, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = sorted(Path(name) for name in listed.split("\0") if name)
    return tuple(path for path in paths if (ROOT / path).is_file() and (not suffixes or path.suffix in suffixes))


@cache
def text(path: Path) -> str:
    """A file's text; bytes that are no UTF-8 are replaced."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


@cache
def tree(path: Path) -> ast.Module:
    """A Python file's syntax tree."""
    return ast.parse(text(path), filename=str(path))


def python_files(*packages: str) -> Iterator[Path]:
    """The Python files of these top-level folders, of all if none is named."""
    for path in files(".py"):
        if not packages or path.parts[0] in packages:
            yield path


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of a Markdown file."""

    path: Path
    line: int
    language: str
    code: str
    before: str  # the last line of text before the fence

    @property
    def label(self) -> str:
        return f"{self.path}:{self.line}"


def code_blocks(language: str) -> Iterator[CodeBlock]:
    """Every fenced block in that language in the Markdown files."""
    for path in files(".md"):
        content = text(path)
        for match in _FENCE.finditer(content):
            if match.group(1) == language:
                above = content[: match.start()]
                before = above.rstrip().rpartition("\n")[2]
                yield CodeBlock(path, above.count("\n") + 1, language, match.group(2), before)
