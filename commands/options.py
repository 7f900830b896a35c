"""Options that several commands share, and the folders and ports that they stand for where they are left out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from shared_features.app import App
    from streaming.topics import Endpoint

Command = TypeVar("Command", bound=Callable[..., Any])

BROKER_PORT = 8085
"""The port that Google's own Pub/Sub emulator has."""

MODEL_PORT = 8500
"""The port that TensorFlow Serving's gRPC API has."""

GATEWAY_PORT = 8600
"""The port of the REST API for events."""

PROJECT = "sameriver"
VAR = Path("var")


def app_option(command: Command) -> Command:
    """``--app``, the name of a bundled app or the path of one."""
    return click.option("--app", "app_name", default="flights", help="Bundled app, or path of a folder with app.py.")(
        command
    )


def json_option(command: Command) -> Command:
    """``--json``: the last line of standard output is one JSON object."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object, the last line.")(
        command
    )


def traces_option(command: Command) -> Command:
    """``--traces``: where OpenTelemetry spans go."""
    return click.option(
        "--traces",
        metavar="URL|FILE",
        help="Send OpenTelemetry spans to http://HOST:PORT of a collector (OTLP), or write them to a file.",
    )(command)


def folder_option(name: str, what: str, default: str) -> Callable[[Command], Command]:
    """An option that names a folder; None stands for ``default``, which may depend on the app."""
    return click.option(
        name, type=click.Path(path_type=Path, file_okay=False), show_default=default, help=f"Folder of {what}."
    )


def follow_options(every_s: float) -> Callable[[Command], Command]:
    """``--follow`` and ``--every``, as ``follow`` and ``every_s``: one look, or one after the other."""

    def added(command: Command) -> Command:
        command = click.option(
            "--every",
            "every_s",
            default=every_s,
            type=click.FloatRange(0.05),
            help="Seconds between two looks while following.",
        )(command)
        return click.option("--follow", is_flag=True, help="Go on with what a live job commits, until Ctrl-C.")(command)

    return added


def pubsub_options(command: Command) -> Command:
    """``--project`` and ``--emulator``: where the topics are."""
    command = click.option(
        "--emulator",
        envvar="PUBSUB_EMULATOR_HOST",
        metavar="HOST:PORT",
        help="Broker or emulator to use; without it Google's Pub/Sub.  [env: PUBSUB_EMULATOR_HOST]",
    )(command)
    return click.option(
        "--project",
        default=PROJECT,
        envvar=["PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"],
        help="Project of the topics; brokers take any.  [env: PUBSUB_PROJECT_ID]",
    )(command)


def load(app_name: str) -> App:
    """The app; ConfigurationError if there is none, or where a line of its file is no Python or raises an error."""
    from shared_features import load_app
    from shared_features.errors import ConfigurationError, SameriverError

    try:
        return load_app(app_name)
    except SameriverError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        given = Path(app_name).resolve()
        if file is None or Path(file).resolve() not in (given, given / "app.py"):
            raise  # not of the app's own lines
        said = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigurationError(f"{file}, line {line}: {type(error).__name__}: {said}") from error


def endpoint(project: str, emulator: str | None) -> Endpoint:
    """Where the topics are, as the options say."""
    from streaming.topics import Endpoint

    return Endpoint(project, emulator)


@contextmanager
def reaching(where: Endpoint) -> Iterator[None]:
    """Say what to do where topics cannot be reached.

    Raises:
        ConfigurationError: in place of a `TopicError`.
    """
    from shared_features.errors import ConfigurationError
    from streaming.topics import TopicError

    try:
        yield
    except TopicError as error:
        if error.code.name == "NOT_FOUND":
            what, todo = "a topic is missing", "start the job, which makes it (`sameriver up` or `sameriver stream`)"
        elif where.host_port is None:
            what, todo = "Google's Pub/Sub refuses", "check project and permissions, or give --emulator"
        else:
            what, todo = "no broker answers", "start one (`sameriver up`) or correct PUBSUB_EMULATOR_HOST"
        raise ConfigurationError(f"{what} in {where}: {todo} ({str(error).rstrip('.')})") from error


model_option = click.option(
    "--model", "model_name", metavar="NAME", show_default="the app's first", help="Which of the app's models."
)


def served_models(app: App) -> list[str]:
    """Names of the models that a server must serve for ``app``: all that are no rules."""
    from shared_features.app import Rule

    return [model.name for model in app.models if not isinstance(model, Rule)]


def history_folder(app: App) -> Path:
    """Where the history of ``app`` is unless an option says otherwise."""
    return VAR / "history" / app.name


def training_folder(app: App) -> Path:
    """Where its training rows are."""
    return VAR / "training" / app.name


def models_folder(app: App) -> Path:
    """Where its models are, one folder each."""
    return VAR / "models" / app.name


def tuning_folder(app: App) -> Path:
    """Where searches for better options of its models are, one folder a model."""
    return VAR / "tuning" / app.name


def archive_folder(app: App) -> Path:
    """Where its streaming job writes its archive."""
    return VAR / "archive" / app.name


def reports_folder(app: App) -> Path:
    """Where reports on its models are."""
    return VAR / "reports" / app.name


_ON_FLINK = (
    "--runner=PortableRunner",
    "--job_endpoint=localhost:8099",
    "--environment_type=EXTERNAL",
    "--environment_config=localhost:50000",
    "--parallelism=2",
)
"""A cluster as `deploy.flink.cluster` starts it; of options that are given again Beam takes the last."""


span_option = click.option(
    "--span",
    type=click.IntRange(1),
    show_default="a shard's days in turn",
    help="Days of a shard folded side by side with those that follow.",
)


def batch_runner_options(command: Command) -> Command:
    """``--runner`` and ``--beam``: what runs a batch job's steps."""
    command = click.option("--beam", "beam_options", multiple=True, metavar="OPTION", help="Further option of Beam's.")(
        command
    )
    return click.option(
        "--runner",
        type=click.Choice(["in-process", "flink", "dataflow"]),
        default="in-process",
        help="What runs the steps.",
    )(command)


def runner_options(runner: str, further: Sequence[str]) -> list[str]:
    """Beam's options for a runner by its short name, and those that the user adds; none for the one in this process.

    Raises:
        ConfigurationError: they name a job server that does not answer; Beam itself would wait for minutes.
    """
    chosen = {"flink": list(_ON_FLINK), "dataflow": ["--runner=DataflowRunner"]}.get(runner, [])
    chosen += further
    servers = [option.partition("=")[2] for option in chosen if option.startswith("--job_endpoint=")]
    if servers:
        from streaming.flink_rest import connect

        connect(servers[-1])
    return chosen
