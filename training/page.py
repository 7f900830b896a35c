"""Reports as HTML pages that need nothing else: plots inside, no script, no address."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared_features.whole_files import replace_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 68em; padding: 0 1em; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f6f6f6 }
th { border-bottom: 2px solid #ccc } img { max-width: 100% } .no { color: #b00020; font-weight: bold }
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of ``parts``, which are HTML; the file is there whole or not at all."""
    head = f'<meta charset="utf-8"><title>{text(title)}</title><style>{STYLE}</style>'
    replace_text(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n')


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image(png: bytes) -> str:
    """A picture, inside the page."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def text(value: object) -> str:
    """Whatever it says, as text."""
    return html.escape(str(value))
