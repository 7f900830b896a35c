"""`sameriver traindata | train`: from history to a model.

TensorFlow is loaded by a process of its own: it takes seconds and 600 MB, and stays out of whoever calls this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from commands import options, output
from commands.evaluate import trained_model
from commands.jobs import run_job
from commands.options import app_option, batch_runner_options, folder_option, json_option, model_option, span_option
from commands.submit import submit_option

if TYPE_CHECKING:
    from batch.splits import Splits
    from shared_features.app import App, Model


@click.command()
@app_option
@click.option(
    "--history",
    show_default="var/history/<app>",
    help="Folder of Parquet, here or at gs://; bq://project.dataset.table or a view; bq://project?query=SELECT …",
)
@click.option(
    "--out",
    metavar="FOLDER|URI",
    show_default="var/training/<app>",
    help="Folder of the training rows, gs://bucket/folder, or bq://project.dataset.table.",
)
@click.option("--validate-from", type=click.DateTime(), help="UTC; rows from there on validate.  [default: app's own]")
@click.option("--test-from", type=click.DateTime(), help="UTC; rows from there on test.  [default: app's own]")
@click.option("--since", type=click.DateTime(), help="UTC; rows before are left out, with --validate-from.")
@click.option("--shards", type=click.IntRange(1), show_default="by the rows", help="Into how many shards keys go.")
@span_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["parquet", "csv", "tfrecord"]),
    default="parquet",
    show_default=True,
    help="Of the files; `train` takes Parquet.",
)
@click.option(
    "--rows-per-file", default=100_000, show_default=True, type=click.IntRange(1), help="Of CSV and TFRecord."
)
@folder_option("--lateness", "an archive; its delays of arrival are given to a history that has none", "no delays")
@click.option("--lateness-report", is_flag=True, help="With --lateness: what the delays do to features and a model.")
@folder_option("--work", "rows on their way to gs:// or bq://, gone at the end", "var/training-work/<app>")
@batch_runner_options
@json_option
def traindata(
    app_name: str,
    history: str | None,
    out: str | None,
    validate_from: datetime | None,
    test_from: datetime | None,
    since: datetime | None,
    shards: int | None,
    span: int | None,
    file_format: Literal["parquet", "csv", "tfrecord"],
    rows_per_file: int,
    lateness: Path | None,
    lateness_report: bool,
    work: Path | None,
    runner: str,
    beam_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Training rows: features as of each event, with what then came to pass.

    Where the same rows are there already they are kept; a run that was cut off goes on where it was.
    Rows train, validate or test by event time. Where neither an option nor the app says from when on, the time that
    the history covers is divided: 70 %, 15 %, 15 %.
    """
    app = options.load(app_name)
    splits = _splits(app, validate_from, test_from, since)
    with output.progress("training rows") as tell:
        tell(0.0, "loading Beam")
        from batch.lateness import lateness_of
        from batch.traindata import make_training_rows
        from batch.training_out import put_training_rows

        delays = None if lateness is None else lateness_of(app, lateness)
        target = out or str(options.training_folder(app))
        source, elsewhere = history or str(options.history_folder(app)), target.startswith(("gs://", "bq://"))
        settings: dict[str, Any] = {"splits": splits, "shards": shards, "span": span}
        settings["runner_options"] = options.runner_options(runner, beam_options)
        more: dict[str, Any] = {"file_format": file_format, "rows_per_file": rows_per_file, "lateness": delays}
        if elsewhere:
            more["work"] = work or options.VAR / "training-work" / app.name
        summary = (put_training_rows if elsewhere else make_training_rows)(
            app, source, target, progress=tell, **settings, **more
        )
        report = None
        if lateness_report and delays is not None:
            from commands import lateness_report as reports

            report = reports.measure(app, source, delays, tell, **settings)
    if as_json:
        output.print_json(summary.as_dict() | ({} if report is None else {"lateness": report}))
        return
    found = "found" if summary.reused else f"written in {summary.seconds:.0f} s"
    click.echo(f"{summary.folder}: {found}, {summary.files} files, {summary.bytes / 1e6:.0f} MB")
    shares = summary.label_share
    lines = [[split, f"{rows:,}", f"{shares.get(split, 0):.1%}"] for split, rows in summary.rows.items()]
    output.print_table(["split", "rows", "label true"], lines)
    for what, left_out in (("events", summary.events_left_out), ("rows", summary.rows_left_out)):
        for reason, count in left_out.items():
            if count:
                click.echo(f"{what} left out, {reason.replace('_', ' ')}: {count:,}")
    for key, count in summary.without_key.items():
        click.echo(f"events whose {key} is null, not seen in its windows: {count:,}")
    if report is not None:
        reports.show(report)


@click.command()
@app_option
@folder_option("--rows", "training rows, which are then taken as they are", "var/training/<app>")
@folder_option("--models", "models, one folder each", "var/models/<app>")
@model_option
@click.option("--quick", is_flag=True, help="Fewer rows and epochs, for trying things out.")
@click.option("--seed", default=1, help="Of shuffling, weights and dropout.")
@click.option(
    "--keep-champion", is_flag=True, help="Promote nothing, also where the champion was made of other features."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="That trains.")
@click.option(
    "--beam",
    "beam_options",
    multiple=True,
    metavar="OPTION",
    help="Count vocabularies and quantiles by a Beam job, such as --runner=FlinkRunner, kept beside the rows.",
)
@folder_option("--tensorboard", "figures of the training as it goes on, for TensorBoard", "none")
@click.option("--reuse", is_flag=True, help="Where a version is made of the same (rows, options, seed), take it.")
@click.option("--workers", default=1, type=click.IntRange(1, 64), help="Processes here that train it together.")
@json_option
@submit_option
def train(
    app_name: str,
    rows: Path | None,
    models: Path | None,
    model_name: str | None,
    quick: bool,
    seed: int,
    keep_champion: bool,
    device: str,
    beam_options: tuple[str, ...],
    tensorboard: Path | None,
    reuse: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Train a model of the app and export it as the next version.

    Where no training rows of the app's present features are there, they are made first: from the history that the
    former rows were made from, or else from the app's own in var/history/<app>. Where TF_CONFIG describes a cluster,
    this is one of its workers: the first exports the model.
    """
    app = options.load(app_name)
    model = trained_model(app, model_name)
    if rows is None:
        rows = options.training_folder(app)
        ensure_rows(app, rows)
    if beam_options:
        from training.rows import open_rows
        from training.statistics_job import count_by_beam

        count_by_beam(open_rows(rows), beam_options)
    more = ["--seed", str(seed), "--device", device, *(["--reuse"] if reuse else []), *(["--quick"] if quick else [])]
    more += [] if tensorboard is None else ["--tensorboard", str(tensorboard)]
    trained = make_candidate(app, model, rows, models, more, keep_champion=keep_champion, workers=workers)
    if as_json:
        output.print_json(trained)
    elif "worker" in trained:
        click.echo(f"worker {trained['worker']} of {trained['workers']} has done its part; the first has the model")
    else:
        tell_candidate(trained)


def make_candidate(
    app: App,
    model: Model,
    rows: Path,
    models: Path | None,
    more: Sequence[str],
    *,
    keep_champion: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Train a model and export it as the next version; what came out, with the ``champion`` that predicts now.

    Of the workers of a cluster only the first has a version; the others return ``worker`` and ``workers``.

    Args:
        app, model: what is trained.
        rows, models: folders; the app's own models where None.
        more: arguments of ``python -m training.train``.
        keep_champion: promote nothing, see `_champion`.
        workers: processes on this machine that train it together.
    """
    home = (models or options.models_folder(app)) / model.name
    arguments = ["--rows", str(rows), "--models", str(home.parent), "--model", model.name]
    arguments += ["--fingerprint", app.fingerprint, "--options", json.dumps(model.options)]
    with output.progress(f"training {model.name}") as tell:
        several = ["--workers", str(workers)] if workers > 1 else []
        trained = run_job("training.several" if several else "training.train", [*several, *arguments, *more], tell)
    if "worker" in trained:
        return trained
    champion = trained["version"] if keep_champion else _champion(app, home, trained["version"])
    return {**trained, "champion": champion}


def tell_candidate(trained: Mapping[str, Any]) -> None:
    """A new version, for people."""
    test = trained["metrics"]["test"]
    made = f"version {trained['version']} of {trained['model']}, trained in {trained['duration_s']:.0f} s"
    click.echo(f"{trained['path']}: {made}; on the test split AUC {test['auc']:.4f}, log loss {test['log_loss']:.4f}")
    if trained["champion"] != trained["version"]:
        click.echo(f"version {trained['champion']} goes on predicting until another is promoted: `sameriver promote`")


def _splits(
    app: App, validate_from: datetime | None, test_from: datetime | None, since: datetime | None
) -> Splits | None:
    """As the options say, or as the app's own history says; None if nobody says anything."""
    from batch.splits import Splits
    from commands.examples import Examples
    from shared_features.errors import ConfigurationError

    if validate_from is None and test_from is None and since is None:
        return Examples(app).splits
    if validate_from is None or test_from is None:
        raise ConfigurationError(
            "--since, --validate-from and --test-from are given in part: wanted the last two together"
        )
    start = None if since is None else since.replace(tzinfo=UTC)
    return Splits(validate_from.replace(tzinfo=UTC), test_from.replace(tzinfo=UTC), start)


def ensure_rows(app: App, folder: Path) -> None:
    """Make training rows, and the example history, if there are none of the app's present features.

    Raises:
        HistoryError: there is no history to make them from.
    """
    from batch.traindata import made_from, make_training_rows
    from commands.examples import Examples

    before = made_from(app, folder)
    if before is not None and before.fits:
        return
    examples = Examples(app)
    history = str(options.history_folder(app)) if before is None else before.history
    click.echo(f"making training rows of {history} first: those in {folder} are missing or of other features", err=True)
    with output.progress("training rows") as tell:
        if examples.exist and Path(history) == options.history_folder(app):
            examples.write(Path(history), lambda done, step: tell(0.1 * done, step))
        splits = examples.splits if before is None else before.splits
        make_training_rows(
            app, history, folder, splits=splits, progress=lambda done, step: tell(0.1 + 0.9 * done, step)
        )


def _champion(app: App, home: Path, trained: int) -> int:
    """The version that predicts after a training.

    Where nothing was ever promoted it is the newest; a champion stays, unless it was made of other features than the
    app now has: then nobody could go live before the new one is promoted, and it is.
    """
    from commands.promote import set_stage
    from serving.promotion import read_promotion
    from training.export import read_summary

    present = read_promotion(home)
    if present is None:
        return trained
    if read_summary(home / str(present.champion))["fingerprint"] != app.fingerprint:
        set_stage(app, home, trained, "full", 0.0, None, "sameriver train: the champion has other features")
        return trained
    return present.champion
