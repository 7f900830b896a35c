"""`sameriver stream`: the streaming job, until it is told to stop."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.ask import external_options
from commands.config_view import show_config
from commands.dataflow import dataflow_options, run_on_dataflow
from commands.flink_options import flink_options, flink_settings
from commands.monitoring_options import monitoring_options, monitoring_settings
from commands.options import app_option, folder_option, json_option, pubsub_options, traces_option
from commands.signals import stop_signal

if TYPE_CHECKING:
    from shared_features.app import App
    from streaming.job import JobSettings


_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@app_option
@pubsub_options
@folder_option("--archive", "the job's archive, from which it comes back", "var/archive/<app>")
@click.option(
    "--model-server",
    default=f"127.0.0.1:{options.MODEL_PORT}",
    metavar="HOST:PORT,…",
    help="TF Serving's gRPC API; several are asked in turn.",
)
@folder_option("--models", "models, where promotions stand", "var/models/<app>")
@click.option("--model-tls", is_flag=True, help="Speak TLS to it; also said by any of the certificates.")
@click.option("--model-authority", type=_FILE, help="Certificate of the authority that signed its certificate.")
@click.option("--model-certificate", type=_FILE, help="Certificate to show it.")
@click.option("--model-key", type=_FILE, help="The key of that certificate.")
@click.option("--model-token-file", type=_FILE, help="File with the token to show it.")
@external_options
@click.option("--collect", is_flag=True, help="No model: compute, archive and publish features only.")
@click.option("--with-features", is_flag=True, help="Put the features into prediction messages.")
@click.option("--prediction-blocks", is_flag=True, help="Publish predictions as Arrow blocks, not one by one.")
@click.option("--horizon", "horizon_s", default=7 * 86_400, help="Deduplication horizon, seconds of event time.")
@click.option("--max-future", "max_future_s", default=600, help="Seconds an event may lie after its publish time.")
@click.option("--streams", default=1, type=click.IntRange(1, 100), help="Of messages: Google's give 10 MB/s each.")
@click.option("--max-messages", default=1_000, type=click.IntRange(1), help="Messages of one pull: the largest block.")
@click.option(
    "--schemas",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of schemas that events were written with, <revision>.avsc; then the Schema service is asked.",
)
@monitoring_options
@traces_option
@click.option(
    "--runner",
    type=click.Choice(["in-process", "flink", "dataflow"]),
    default="in-process",
    help="What runs the steps.",
)
@flink_options
@dataflow_options
@click.option(
    "--snapshot",
    type=_FILE,
    help="What a new archive begins with, made by `sameriver snapshot`; the subscription goes back to its cut.",
)
@click.option("--subscription", metavar="NAME", help="What to pull.  [default: <app>-events-sameriver]")
@click.option("--print-config", is_flag=True, help="Print every setting and where it comes from, and end.")
@json_option
@click.pass_context
def stream(
    ctx: click.Context,
    /,
    app_name: str,
    project: str,
    emulator: str | None,
    archive: Path | None,
    model_server: str,
    models: Path | None,
    model_tls: bool,
    model_authority: Path | None,
    model_certificate: Path | None,
    model_key: Path | None,
    model_token_file: Path | None,
    external: tuple[str, ...],
    external_tokens: tuple[str, ...],
    collect: bool,
    with_features: bool,
    prediction_blocks: bool,
    horizon_s: int,
    max_future_s: int,
    streams: int,
    max_messages: int,
    schemas: Path | None,
    traces: str | None,
    runner: str,
    snapshot: Path | None,
    subscription: str | None,
    print_config: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Run the streaming job: events in, predictions and reactions out.

    Ctrl-C and SIGTERM drain: what was pulled is predicted, published and acknowledged, then the job ends; on Flink
    with a savepoint, from which it goes on.
    """
    if print_config:
        show_config(ctx, as_json=as_json)
        return
    app = options.load(app_name)
    with stop_signal() as stop:
        from serving.client_access import ClientAccess
        from shared_features.errors import ConfigurationError
        from streaming.job import JobSettings, StreamingJob

        if (model_certificate is None) != (model_key is None):
            raise ConfigurationError("--model-certificate and --model-key belong together, got one of them: give both")
        collect = collect or not app.models
        settings = JobSettings(
            endpoint=options.endpoint(project, emulator),
            archive=archive or options.archive_folder(app),
            model_server=None if collect or not options.served_models(app) else model_server,
            models=models or options.models_folder(app),
            model_access=ClientAccess(model_authority, model_certificate, model_key, model_token_file, tls=model_tls),
            external=external,
            external_tokens=external_tokens,
            collect=collect,
            with_features=with_features,
            prediction_blocks=prediction_blocks,
            horizon_s=horizon_s,
            max_future_s=max_future_s,
            streams=streams,
            max_messages=max_messages,
            schemas=schemas,
            traces=traces,
            snapshot=snapshot,
            subscription=subscription,
            **monitoring_settings(others),
        )
        if runner == "dataflow":
            run_on_dataflow(app, settings, others, as_json=as_json)
            return
        if runner == "flink":
            from streaming.flink import FlinkJob

            on_flink = FlinkJob(app, settings, flink_settings(others))
            run, stop.drain, watched, recovered = on_flink.run, on_flink.stop, on_flink.monitoring_url, None
        else:
            job = StreamingJob(app, settings)
            run, stop.drain, watched, recovered = job.run, job.stop, job.monitoring_url, job.recovered.rows
        _tell_ready(app, settings, recovered, watched, as_json)
        started_s = time.monotonic()
        done = run()
        totals = asdict(done)
        totals["seconds"] = round(time.monotonic() - started_s, 3)
        if as_json:
            output.print_json(totals)
        else:
            _tell_totals(totals)


def _tell_totals(totals: dict[str, Any]) -> None:
    outcomes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(totals["outcomes"].items()))
    click.echo(
        f"drained after {totals['seconds']:.0f} s: received {totals['received']:,}: {outcomes or 'no event folded'}, "
        f"{totals['duplicates']:,} duplicates, {totals['dead_letters']:,} dead letters"
    )


def _tell_ready(app: App, settings: JobSettings, recovered: int | None, watched: str | None, as_json: bool) -> None:
    from streaming.naming import subscription_of, topics_of

    model = "no model: collecting features" if settings.collect else ", ".join(one.name for one in app.models)
    if settings.model_server is not None:
        model += f" at {settings.model_server}"
    where = settings.endpoint.host_port or "Google's Pub/Sub"
    if as_json:
        output.print_json(
            {
                "ready": True,
                "app": app.name,
                "fingerprint": app.fingerprint,
                "model": model,
                "recovered_rows": recovered,
                "subscription": settings.subscription or subscription_of(app),
                "topics": topics_of(app),
                "monitoring": watched,
            }
        )
        return
    at = "" if watched is None else f"; {watched}/metrics"
    again = f", {recovered:,} events recovered" if recovered else ""
    click.echo(
        f"streaming {app.name}: {topics_of(app)['events']} at {where}, project {settings.endpoint.project}; {model}; "
        f"archive {settings.archive}{again}{at}; Ctrl-C drains and ends"
    )
