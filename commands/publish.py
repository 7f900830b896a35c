"""`sameriver publish`: events from a file to the app's topic, checked before they are sent."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import click

from commands import options, output
from commands.group import CommandError
from commands.options import app_option, json_option, pubsub_options, traces_option
from streaming.naming import topic

SHOWN = 20
WAITS_S = 1.0
"""How long rows of standard input wait for others of their block."""


@click.command()
@click.argument("file", metavar="FILE|-", help="Path, or - for standard input.")
@app_option
@pubsub_options
@click.option("--type", "event_type", help="Event type of every row; otherwise the row's own event_type.")
@click.option(
    "--format",
    "file_format",
    metavar="FORMAT",
    show_default="by the file's ending; jsonl for -",
    help="jsonl, csv, avro, parquet, or one of the app's own.",
)
@click.option("--nmea", is_flag=True, help="The same as --format nmea: AIS sentences, for the app vessels.")
@click.option("--no-check", is_flag=True, help="Send bad rows too; the job dead-letters them.")
@click.option(
    "--block-events",
    type=click.IntRange(1, 20_000),
    show_default="one event a message",
    help="Send blocks of so many events of one type.",
)
@click.option(
    "--compression",
    type=click.Choice(["gzip", "lz4", "zstd"]),
    show_default="none",
    help="Of each block.",
)
@traces_option
@click.option("--wait", "wait_s", default=10.0, type=click.FloatRange(0), help="Seconds to try to reach the topic.")
@json_option
def publish(
    file: str,
    app_name: str,
    project: str,
    emulator: str | None,
    event_type: str | None,
    file_format: str | None,
    nmea: bool,
    no_check: bool,
    block_events: int | None,
    compression: str | None,
    traces: str | None,
    wait_s: float,
    as_json: bool,
) -> None:
    """Publish the events of a file: JSON lines, CSV, an Avro container, Parquet (a history too), or AIS sentences.

    Each row is checked first, as the job will check it. Bad rows are named with their line and not sent; the good
    ones are, and the exit code is 2. Blocks cost a hundredth per event: events of one type that stand near each other
    in the file go in one message.
    """
    app = options.load(app_name)
    from commands.event_blocks import as_blocks
    from commands.event_files import CHUNK, BadRow, EventFile, check_rows, chunks
    from shared_features.decode import Decoder
    from streaming.topics import Publisher
    from streaming.tracing import Tracing

    events = EventFile(app, file, file_format="nmea" if nmea else file_format, event_type=event_type)
    decoder = Decoder(app.event_types)
    target = topic(app.name, "events")
    published, bad = 0, list[BadRow]()
    endpoint = options.endpoint(project, emulator)
    publisher = Publisher(endpoint, deadline_s=wait_s)
    tracing = None if traces is None else Tracing(traces, "sameriver-publish")
    size = Path(file).stat().st_size if file != "-" and Path(file).is_file() else 0
    read, stopped = 0, False
    try:
        with options.reaching(endpoint), output.progress(f"publishing to {target}") as tell:
            most_s = WAITS_S if file == "-" else math.inf
            for chunk in chunks(events.rows(sys.stdin.buffer), block_events or CHUNK, most_s):
                now_us = time.time_ns() // 1_000
                good, refused = check_rows(decoder, chunk, now_us)
                bad += refused
                sent = chunk if no_check else good
                if block_events is None:
                    messages = [row.message for row in sent]
                else:
                    kept = {row.number for row in good}
                    messages = as_blocks(app.event_types, decoder, good, now_us, compression)
                    messages += [row.message for row in sent if row.number not in kept]
                if messages and tracing is not None:
                    with tracing.publishing(target, messages) as traced:
                        publisher.publish(target, traced)
                elif messages:
                    publisher.publish(target, messages)
                published += len(sent)
                read += sum(len(row.message.data) for row in chunk)
                tell(min(0.99, read / size) if size else 0.0, f"{published:,} published, {len(bad):,} refused")
    except SystemExit:  # by Ctrl-C or SIGTERM: so a feed ends that never does
        stopped = True
    finally:
        publisher.close()
        if tracing is not None:
            tracing.close()
    for one in bad[:SHOWN]:
        click.echo(f"{file}:{one.number}: {one.reason}: {one.detail}", err=True)
    if len(bad) > SHOWN:
        click.echo(f"{file}: {len(bad) - SHOWN:,} more bad rows", err=True)
    if as_json:
        output.print_json(
            {
                "topic": target,
                "published": published,
                "refused": 0 if no_check else len(bad),
                "bad": len(bad),
                "bad_rows": [{"line": one.number, "reason": one.reason, "detail": one.detail} for one in bad[:SHOWN]],
            }
        )
    else:
        click.echo(f"{published:,} events published to {target}")
    if bad and not no_check:
        total = published + len(bad)
        raise CommandError(f"{len(bad):,} of {total:,} rows of {file} were not sent: mend the rows named above", 2)
    if stopped:
        raise SystemExit(130)
