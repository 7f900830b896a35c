"""`sameriver deadletters`: what could not be used, looked at, mended and sent again."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.group import CommandError
from commands.options import app_option, json_option, pubsub_options
from commands.tail import printable

if TYPE_CHECKING:
    from shared_features.app import App
    from streaming.dead_letter_store import DeadLetterStore, KeptLetter

_FOLDED = {"prediction_failed", "export_refused"}
"""Reasons of events that were folded already: sent again they would be duplicates."""


_SECONDS = click.FloatRange(0.1)


@dataclass(frozen=True)
class Selection:
    """Which dead letters a command is about: the options that all of them take."""

    app_name: str
    project: str
    emulator: str | None
    reasons: tuple[str, ...]
    event_type: str | None
    since: datetime | None
    until: datetime | None
    quiet_s: float


def _selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Selection`, and hand them to it as one."""
    names = [field.name for field in fields(Selection)]

    @functools.wraps(command)
    def selected(**given: Any) -> None:
        command(Selection(**{name: given.pop(name) for name in names}), **given)

    for option in (
        click.option("--quiet", "quiet_s", default=1.0, type=_SECONDS, help="End after so many seconds without news."),
        click.option("--until", type=click.DateTime(), help="Published before this moment, UTC."),
        click.option("--since", type=click.DateTime(), help="Published at this moment or later, UTC."),
        click.option("--type", "event_type", help="Of this event type only."),
        click.option("--reason", "reasons", multiple=True, help="With this reason only; may be given several times."),
    ):  # fmt: skip
        selected = option(selected)
    return pubsub_options(app_option(selected))


@click.group()
def deadletters() -> None:
    """Look at messages that could not be used, mend them and send them again.

    The job keeps them in a subscription of its own (Google's Pub/Sub for 7 days); looking takes nothing away.
    """


@deadletters.command("list")
@_selecting
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="Write them to this file, to be mended.")
@json_option
def list_letters(
    selection: Selection,
    to: Path | None,
    as_json: bool,
) -> None:
    """List dead letters, oldest first; --to writes them as JSON lines, whose `data` can be edited and replayed."""
    app = options.load(selection.app_name)
    with _opened(app, selection) as store:
        letters = _chosen(store, selection)
    if to is not None:
        lines = [json.dumps(_record(one), ensure_ascii=False) for one in letters]
        to.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    counted: dict[str, int] = {}
    for one in letters:
        counted[one.letter.reason] = counted.get(one.letter.reason, 0) + 1
    if as_json:
        output.print_json(
            {"count": len(letters), "reasons": counted, "dead_letters": [_record(one) for one in letters]}
        )
        return
    for one in letters:
        letter = one.letter
        when = f"{datetime.fromtimestamp(letter.publish_time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}"
        click.echo(
            f"{one.letter_id}  {when}  {letter.reason:22}  {printable(one.event_type):12}  {printable(letter.detail)}"
        )
    click.echo(f"{len(letters):,} dead letters" + (f", written to {to}" if to is not None else ""), err=True)


@deadletters.command("show")
@click.argument("letter_id", metavar="ID", help="As `list` gives it.")
@_selecting
@json_option
def show_letter(
    selection: Selection,
    letter_id: str,
    as_json: bool,
) -> None:
    """Show one dead letter whole."""
    app = options.load(selection.app_name)
    with _opened(app, selection) as store:
        letters = _chosen(store, selection)
    found = next((one for one in letters if one.letter_id == letter_id), None)
    if found is None:
        raise CommandError(f"dead letter {letter_id} was not found among {len(letters):,}: `list` gives their ids", 2)
    record = _record(found)
    if as_json:
        output.print_json(record)
        return
    for name, value in record.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:16}  {printable(shown)}")


@deadletters.command()
@_selecting
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Mended file that `list --to` wrote.",
)
@click.option("--id", "ids", multiple=True, help="Of these only; may be given several times.")
@click.option("--no-check", is_flag=True, help="Send what the job would refuse again, too.")
@json_option
def replay(
    selection: Selection,
    source: Path | None,
    ids: tuple[str, ...],
    no_check: bool,
    as_json: bool,
) -> None:
    """Send dead letters again, as they came or as mended in a file, and let go of those that were sent.

    Each is checked first as the job will check it. What the job would refuse again stays, and the exit code is 2.
    An event keeps its identity, so that it is never folded twice; `prediction_failed` and `export_refused` were folded
    already and stay.
    """  # fmt: skip
    app = options.load(selection.app_name)
    from shared_features.kernel import out_of_range
    from shared_features.plan import make_plan
    from streaming.intake import Intake
    from streaming.naming import topic
    from streaming.topics import Message, OutgoingMessage, Publisher

    mended = None if source is None else _mended(source)
    endpoint = options.endpoint(selection.project, selection.emulator)
    sent: list[KeptLetter] = []
    refused: list[tuple[KeptLetter, str]] = []
    with _opened(app, selection) as store:
        letters = _chosen(store, selection)
        wanted = set(ids) or (None if mended is None else set(mended))
        letters = [one for one in letters if wanted is None or one.letter_id in wanted]
        plan = make_plan(app)
        intake, messages = Intake(app.event_types), list[OutgoingMessage]()
        for one in letters:
            again = one.letter.replay()
            data, attributes = (mended or {}).get(one.letter_id, (again.data, again.attributes))
            attributes = {**attributes, **{k: v for k, v in again.attributes.items() if k == "event_id"}}
            checked = intake.take([Message(data, attributes, one.letter.message_id, time.time_ns() // 1000)])
            faults = [f"{bad.reason}: {bad.detail}" for bad in checked.refused]
            faults += [f"out_of_range: {why}" for why in out_of_range(plan, checked.block).values()]
            if one.letter.reason in _FOLDED:
                refused.append((one, "it was folded already, and would be a duplicate"))
            elif faults and not no_check:
                refused.append((one, faults[0]))
            else:
                messages.append(OutgoingMessage(data, attributes, one.letter.ordering_key))
                sent.append(one)
        if messages:
            publisher = Publisher(endpoint, deadline_s=30.0)
            try:
                with options.reaching(endpoint):
                    publisher.publish(topic(app.name, "events"), messages)
            finally:
                publisher.close()
            store.done(sent)
    for one, why in refused:
        click.echo(f"{one.letter_id}: {printable(why)}", err=True)
    missing = sorted((wanted or set()) - {one.letter_id for one in letters})
    if as_json:
        output.print_json({"sent": len(sent), "refused": len(refused), "missing": missing})
    else:
        click.echo(f"{len(sent):,} sent again")
    if refused or missing:
        gone = f", {len(missing):,} are not there" if missing else ""
        raise CommandError(f"{len(refused):,} dead letters were not sent{gone}: mend them with list --to and --from", 2)


@contextmanager
def _opened(app: App, selection: Selection) -> Iterator[DeadLetterStore]:
    from streaming.dead_letter_store import DeadLetterStore
    from streaming.naming import dead_letters_of

    endpoint = options.endpoint(selection.project, selection.emulator)
    with options.reaching(endpoint):
        store = DeadLetterStore(endpoint, dead_letters_of(app), quiet_s=selection.quiet_s)
        try:
            yield store
        finally:
            store.close()


def _chosen(store: DeadLetterStore, selection: Selection) -> list[KeptLetter]:
    from streaming.dead_letters import REASONS

    for reason in selection.reasons:
        if reason not in REASONS:
            raise CommandError(f"--reason {reason} is none: wanted one of {', '.join(REASONS)}", 2)
    bounds = (selection.since, selection.until)
    since_us, until_us = (None if at is None else at.replace(tzinfo=UTC).timestamp() * 1e6 for at in bounds)
    with output.progress("reading dead letters") as tell:
        letters = store.letters(lambda count: tell(0.5, f"{count:,} messages"))
    return [
        one
        for one in letters
        if (not selection.reasons or one.letter.reason in selection.reasons)
        and selection.event_type in (None, one.event_type)
        and (since_us is None or one.letter.publish_time_us >= since_us)
        and (until_us is None or one.letter.publish_time_us < until_us)
    ]


def _record(one: KeptLetter) -> dict[str, Any]:
    """For files and screens; ``data`` is text, or ``data_base64`` where it is none."""
    letter = one.letter
    again = letter.replay()
    record: dict[str, Any] = {
        "id": one.letter_id,
        "reason": letter.reason,
        "detail": letter.detail,
        "message_id": letter.message_id,
        "publish_time_us": letter.publish_time_us,
        "copies": one.copies,
        "attributes": again.attributes,
    }
    try:
        return {**record, "data": letter.data.decode("utf-8")}
    except UnicodeDecodeError:
        return {**record, "data_base64": base64.b64encode(letter.data).decode("ascii")}


def _mended(path: Path) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Id to data and attributes, from a file that `list --to` wrote; ``data`` may be a JSON object, too."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            data = record.get("data")
            if data is None:
                raw = base64.b64decode(record["data_base64"], validate=True)
            else:
                raw = (data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)).encode()
            attributes = {str(name): str(value) for name, value in record["attributes"].items()}
            found[str(record["id"])] = (raw, attributes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(
                f"{path}:{number} is no dead letter ({error!r}): wanted a line that `list --to` wrote", 2
            ) from None
    return found
