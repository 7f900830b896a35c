"""`sameriver profile`: what a table holds, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, json_option

if TYPE_CHECKING:
    from batch.profile import FieldProfile, Profile


@click.command()
@click.argument("uri", required=False, metavar="[URI]", help="Of the table.")
@app_option
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file, too.")
@json_option
def profile(uri: str | None, app_name: str, html: Path | None, as_json: bool) -> None:
    """Count nulls, ranges, frequent values and outliers of each field of a table.

    URI is a Parquet file, a folder of them, or bq://project.dataset.table; without one it is the app's history.
    """
    from batch.profile import profile as look

    uri = uri or str(options.history_folder(options.load(app_name)))
    with output.progress(f"profile of {uri}") as tell:
        found = look(uri, tell)
    if html is not None:
        _write(found, html)
    if as_json:
        output.print_json(found.as_dict())
    else:
        _tell(found)


def _write(found: Profile, path: Path) -> None:
    from batch.profile_html import to_html
    from shared_features.errors import ConfigurationError

    try:
        path.write_text(to_html(found), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): name another file for --html") from None


def _tell(found: Profile) -> None:
    from batch.profile_html import shown

    click.echo(f"{found.uri}: {found.rows:,} rows")
    headings = ["field", "type", "nulls", "distinct", "least", "greatest", "mean", "outliers", "most frequent"]
    output.print_table(headings, [_line(one) for one in found.fields])
    for one in found.fields:
        if one.suspects:
            click.echo(f"{one.field}: {', '.join(map(shown, one.suspects))} looks like a placeholder (see Clean)")


def _line(one: FieldProfile) -> list[str]:
    from batch.profile_html import shown

    nulls = f"{one.nulls / one.rows:.1%}" if one.rows else ""
    most = f"{shown(one.top[0][0])} {one.top[0][1] / (one.rows - one.nulls):.0%}" if one.top else ""
    values = ["" if value is None else shown(value) for value in (one.low, one.high, one.mean)]
    outliers = "" if one.fences is None else f"{one.outliers:,}"
    return [one.field, one.type.partition("[")[0], nulls, f"{one.distinct:,}", *values, outliers, most]
