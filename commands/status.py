"""`sameriver status`: what a running job says of itself, or what its archive says if it is not running."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option

if TYPE_CHECKING:
    from streaming.monitoring_access import Address

TIMEOUT_S = 3.0

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@app_option
@folder_option("--archive", "the job's archive", "var/archive/<app>")
@click.option("--url", help="Where the job answers; otherwise as it noted beside its archive.")
@click.option("--token-file", type=_FILE, help="File with the job's monitoring token, where --url is given.")
@click.option("--authority", type=_FILE, help="Certificate that the job's, or its authority's, must be.")
@json_option
@click.pass_context
def status(
    ctx: click.Context,
    app_name: str,
    archive: Path | None,
    url: str | None,
    token_file: Path | None,
    authority: Path | None,
    as_json: bool,
) -> None:
    """Say how a job is: ready or not, how every event that it received has ended, how far it is.

    Exit code 1 if the job does not run or is not ready; then the counts are those of its archive.
    """
    app = options.load(app_name)
    folder = archive or options.archive_folder(app)
    from streaming.monitoring_access import Address, read_address

    found = _running(read_address(folder) if url is None else Address(url, token_file, authority))
    found = {"running": False, **_archived(folder)} if found is None else {"running": True, **found}
    found["balanced"] = received_as_ended(found)
    if as_json:
        output.print_json(found)
    else:
        _tell(app.name, found)
    if not (found["running"] and found["ready"]):
        ctx.exit(1)


def received_as_ended(found: Mapping[str, Any]) -> bool:
    """Whether every event received has ended as exactly one thing, or is in flight (promise C6)."""
    from streaming.monitoring import ENDS

    ended: int = sum(found[end] for end in ENDS)
    return bool(found["received"] == ended + found["in_flight"])


def _running(address: Address | None) -> dict[str, Any] | None:
    if address is None:
        return None
    from shared_features.errors import ConfigurationError

    if not address.url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{address.url} is no URL: wanted http://HOST:PORT", param_hint="--url")
    try:
        tls = urllib.request.HTTPSHandler(context=address.context())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
        opener.addheaders = list(address.headers().items())
        with opener.open(f"{address.url.rstrip('/')}/status", timeout=TIMEOUT_S) as answer:
            found = json.loads(answer.read(1 << 20))
    except PermissionError as error:
        raise ConfigurationError(f"the job's token file {error.filename} cannot be read: ask as its owner") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        if getattr(error, "code", None) == 401:
            raise ConfigurationError(f"the job at {address.url} wants its token: give --token-file") from None
        return None
    return found if isinstance(found, dict) else None


def _archived(folder: Path) -> dict[str, Any]:
    """The counts of all commits, over all lives of the job."""
    from streaming.archive import read_counts
    from streaming.monitoring import ENDS

    found: dict[str, Any] = {"ready": False, "received": 0, "in_flight": 0, "commits": 0, **dict.fromkeys(ENDS, 0)}
    reasons: dict[str, int] = {}
    with output.progress("reading the archive") as tell:
        for counts in read_counts(folder):
            found["commits"] += 1
            found["received"] += counts["received"]
            found["duplicates"] += counts["duplicates"]
            for outcome, number in counts["outcomes"].items():
                found[outcome] += number
            for reason, number in counts["dead_letters"].items():
                found["dead_letters"] += number
                reasons[reason] = reasons.get(reason, 0) + number
            tell(0.5, f"{found['received']:,} events")
    return {**found, "dead_letter_reasons": reasons}


def _tell(name: str, found: Mapping[str, Any]) -> None:
    from streaming.monitoring import ENDS

    if not found["running"]:
        click.echo(f"{name}: no job answers; its archive says")
    else:
        parts = ("subscribed", "state_restored", "fingerprint_matched")
        missing = ", ".join(part.replace("_", " ") for part in parts if not found[part])
        how = "ready" if found["ready"] else f"not ready: wanted {missing or 'no failure'}"
        click.echo(f"{name}: {how}, running for {time.time() - found['started']:.0f} s")
    ends = [(end.replace("_", " "), f"{found[end]:,}") for end in ENDS if found[end]]
    lines = [("received", f"{found['received']:,}"), *ends, ("in flight", f"{found['in_flight']:,}")]
    lines += [(f"  {reason}", f"{number:,}") for reason, number in sorted(found["dead_letter_reasons"].items())]
    output.print_table(["events", "count"], lines)
    if not found["balanced"]:
        click.echo(
            "received is not the sum of the others" + ("" if not found["running"] else ": ask again, or report it")
        )
    if found["running"] and found["newest_event_time"]:
        newest = datetime.fromtimestamp(found["newest_event_time"], UTC)
        size = (
            f"newest checkpoint {found['checkpoint_bytes'] / 1e6:,.1f} MB; started from one {found['restarts']:,} times"
            if "checkpoint_bytes" in found
            else f"state {found['state_bytes'] / 1e6:,.1f} MB; {found['identities']:,} identities; "
            f"{found['held_messages']:,} messages held"
        )
        click.echo(f"newest event {newest:%Y-%m-%d %H:%M:%S} UTC; {size}")
