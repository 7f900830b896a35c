"""A profile as one HTML file that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

from batch.profile import FieldProfile, Profile

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin: 0 0 .4rem } h2 small { color: #57606a; font-weight: 400 }
section { border: 1px solid #d0d7de; border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0 }
section { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem } h2 { grid-column: 1 / 3 }
table { border-collapse: collapse } td { padding: .05rem .8rem .05rem 0; vertical-align: top }
td + td { text-align: right; font-variant-numeric: tabular-nums } .bar { background: #54aeff; height: .8rem }
td.bar-cell { width: 9rem; text-align: left } .suspect { background: #fff1c2; padding: .2rem .5rem; grid-column: 1 / 3 }
svg { width: 100%; height: 7rem } rect { fill: #54aeff }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } .suspect { color: #1b1f24 } }
"""


def to_html(profile: Profile) -> str:
    """The whole file."""
    parts = [_section(one) for one in profile.fields]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Profile of {escape(profile.uri)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(profile.uri)}</h1><p>{profile.rows:,} rows, {len(profile.fields)} fields</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(one: FieldProfile) -> str:
    of = f", on rows of {one.of}" if one.of else ""
    lines = [("rows", f"{one.rows:,}"), ("nulls", f"{one.nulls:,} ({_share(one.nulls, one.rows)})")]
    lines.append(("different values, about", f"{one.distinct:,}"))
    for name, value in (("least", one.low), ("greatest", one.high), ("mean", one.mean), ("deviation", one.std)):
        if value is not None:
            lines.append((name, shown(value)))
    lines += [(f"quantile {level}", shown(value)) for level, value in one.quantiles.items()]
    if one.fences is not None:
        lines.append((f"beyond {shown(one.fences[0])} and {shown(one.fences[1])}", f"{one.outliers:,}"))
    if one.not_finite:
        lines.append(("NaN or infinite", f"{one.not_finite:,}"))
    if one.spaces:
        lines.append(("with spaces around", f"{one.spaces:,}"))
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in lines)
    suspects = ", ".join(escape(shown(value)) for value in one.suspects)
    warning = f'<p class="suspect">looks like a placeholder: {suspects}</p>' if one.suspects else ""
    return (
        f"<section><h2>{escape(one.field)} <small>{escape(one.type)}{escape(of)}</small></h2>"
        f"<table>{table}</table><div>{_histogram(one)}{_top(one)}</div>{warning}</section>"
    )


def _histogram(one: FieldProfile) -> str:
    if one.histogram is None:
        return ""
    edges, counts = one.histogram
    most = max([*counts, 1])
    bars = "".join(
        f'<rect x="{place * 10}" y="{100 - 100 * count / most:.2f}" width="9" height="{100 * count / most:.2f}">'
        f"<title>{escape(shown(edges[place]))} to {escape(shown(edges[place + 1]))}: {count:,}</title></rect>"
        for place, count in enumerate(counts)
    )
    width = 10 * len(counts)
    return (
        f'<svg viewBox="0 0 {width} 100" preserveAspectRatio="none" role="img">{bars}</svg>'
        f"<table><tr><td>{escape(shown(edges[0]))}</td><td>{escape(shown(edges[-1]))}</td></tr></table>"
    )


def _top(one: FieldProfile) -> str:
    if not one.top:
        return ""
    most = one.top[0][1]
    rows = "".join(
        f"<tr><td>{escape(shown(value))}</td><td>{count:,}</td>"
        f'<td class="bar-cell"><div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for value, count in one.top
    )
    return f"<table>{rows}</table>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def shown(value: Any) -> str:
    """A value for people: short, on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:39] + "…")
    return str(value)
