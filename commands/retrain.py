"""`sameriver retrain`: from the history to a promoted model, in steps that are done once.

Every step leaves something that says what it was made of: training rows their history's digests, a model its recipe, a
report what it compared, a promotion its versions. A run that was killed is simply run again: it finds what is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.evaluate import evaluate_version, tell_gate, trained_model
from commands.jobs import alone
from commands.options import app_option, folder_option, json_option, model_option
from commands.processes import Child
from commands.promote import ROLLBACK, set_stage
from commands.retrain_triggers import FILE, Triggers
from commands.signals import stop_signal

if TYPE_CHECKING:
    from serving.promotion import Stage
    from shared_features.app import App, Model

DONE_FILE, DATA_FILE = "retrain.json", "data.json"


@click.command()
@app_option
@click.option("--history", show_default="var/history/<app>", help="Folder of Parquet, or bq://project.dataset.table.")
@folder_option("--rows", "the training rows", "var/training/<app>")
@folder_option("--models", "models, one folder each", "var/models/<app>")
@folder_option("--reports", "reports, one folder for each version", "var/reports/<app>")
@model_option
@click.option("--quick", is_flag=True, help="Fewer rows and epochs, for trying things out.")
@click.option("--seed", default=1, help="Of shuffling, weights and dropout.")
@click.option(
    "--stage", type=click.Choice(["shadow", "canary", "full"]), default="full", help="As for `sameriver promote`."
)
@click.option("--share", default=0.1, type=click.FloatRange(0, 1, min_open=True), help="Of the keys, for a canary.")
@click.option("--accept-data", is_flag=True, help="Train on the history whatever its checks say.")
@click.option("--recent", help="Train on the last part of the history only, such as 60d.  [default: all of it]")
@click.option("--every", help="Only if the last retraining is so long ago, such as 7d.")
@click.option(
    "--on", "kinds", multiple=True, type=click.Choice(["drift", "quality", "kpi"]), help="Or on such an alarm."
)
@click.option("--again", help="With --on: again after so long, if the alarm still stands.")
@folder_option("--alarms", "the tables of `sameriver monitor`", "var/monitor/<app>")
@click.option("--watch", is_flag=True, help="Wait for --every and --on, again and again, until Ctrl-C.")
@click.option("--look-every", "look_s", default=10.0, type=click.FloatRange(0.05), help="Seconds between two looks.")
@json_option
@click.pass_context
def retrain(
    ctx: click.Context,
    app_name: str,
    history: str | None,
    rows: Path | None,
    models: Path | None,
    reports: Path | None,
    model_name: str | None,
    quick: bool,
    seed: int,
    stage: Stage,
    share: float,
    accept_data: bool,
    recent: str | None,
    every: str | None,
    kinds: tuple[str, ...],
    again: str | None,
    alarms: Path | None,
    watch: bool,
    look_s: float,
    as_json: bool,
) -> None:
    """Check the data, make training rows, train, evaluate, ask the gates, promote.

    What is done is not done again: run it as often as you like, also after a kill. Exit code 1 if a gate is broken, or
    if what would be promoted was rolled back; then the present champion goes on. --every and --on say when it is called
    for; otherwise it is now.
    """
    if (watch or again) and not (every or kinds):
        raise click.UsageError("--watch and --again go with --every or --on: say when a retraining is called for")
    app = options.load(app_name)
    model = trained_model(app, model_name)
    home = (models or options.models_folder(app)) / model.name
    reports = reports or options.reports_folder(app)
    home.mkdir(parents=True, exist_ok=True)
    triggers = Triggers(
        model=model.name,
        alarms=(alarms or options.VAR / "monitor" / app.name) / "alarms.parquet",
        answered=reports / model.name / FILE,
        kinds=kinds,
        every=_duration(every, "--every"),
        again=_duration(again, "--again"),
    )

    recently = _duration(recent, "--recent")

    def once() -> bool:
        """One retraining; whether what it made was promoted."""
        run = Retraining(
            app=app,
            model=model,
            history=history or str(options.history_folder(app)),
            rows=rows or options.training_folder(app),
            home=home,
            reports=reports,
            logs=options.VAR / "log" / app.name,
            training=[*(["--quick"] if quick else []), "--seed", str(seed)],
            accept_data=accept_data,
            recent=recently,
        )
        standing = triggers.standing()
        with (
            alone(home / ".retrain.lock", f"model {model.name!r} is being retrained"),
            output.progress(f"retraining {model.name}") as tell,
        ):
            gate = run.steps(tell, stage, share)
        triggers.answer(standing, datetime.now(UTC))
        _tell(run, gate, as_json=as_json)
        return run.promoted

    if not (every or kinds):
        ctx.exit(0 if once() else 1)
    if kinds and not triggers.alarms.is_file():
        click.echo(f"no alarms in {triggers.alarms} so far: `sameriver monitor` writes them", err=True)
    with stop_signal() as stop:
        reasons = list[str]()

        def drain() -> None:
            if reasons:
                click.echo("stopping once this retraining has ended; Ctrl-C again stops at once", err=True)

        stop.drain = drain
        while not stop.asked.is_set():
            reasons = triggers.due(datetime.now(UTC))
            if reasons:
                click.echo(f"retraining: {'; '.join(reasons)}", err=True)
            passed = once() if reasons else True
            if not watch:
                if not reasons:
                    _tell_idle(model.name, as_json=as_json)
                ctx.exit(0 if passed else 1)
            reasons = []
            stop.pause(look_s)


def _duration(text: str | None, option: str) -> timedelta | None:
    from shared_features.aggregates import duration_us

    return None if text is None else timedelta(microseconds=duration_us(text, option))


def _tell(run: Retraining, gate: dict[str, Any] | None, *, as_json: bool) -> None:
    if as_json:
        found = {"model": run.model.name, "steps": [asdict(step) for step in run.done], "gate": gate}
        output.print_json({**found, "promoted": run.promoted, "version": run.version, "champion": run.champion})
        return
    lines = [[step.step, step.outcome, f"{step.seconds:.1f}", step.detail] for step in run.done]
    output.print_table(["step", "outcome", "seconds", ""], lines)
    tell_gate(gate or {"rules": []})


def _tell_idle(model: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"model": model, "steps": [], "gate": None, "promoted": False})
    else:
        click.echo(f"nothing calls for a retraining of {model}")


@dataclass(slots=True)
class Step:
    """What became of a step: ``done`` now, ``found`` done before, or ``refused`` by a gate."""

    step: str
    outcome: str
    seconds: float
    detail: str


@dataclass(slots=True)
class Retraining:
    """One run over all steps; see `retrain`.

    Attributes:
        newest: time of the history's newest event to predict on, as the data step found it.
        done: what became of each step so far.
        version: the candidate's.
        recent: how much of the history's end is trained on; None: all of it.
        champion: that predicts when all is done.
        promoted: whether the candidate is now at the wanted stage.
    """

    app: App
    model: Model
    history: str
    rows: Path
    home: Path
    reports: Path
    logs: Path
    training: Sequence[str]
    accept_data: bool
    recent: timedelta | None = None
    newest: str | None = None
    done: list[Step] = field(default_factory=list)
    version: int = 0
    champion: int | None = None
    promoted: bool = False

    def steps(self, tell: output.Progress, stage: Stage, share: float) -> dict[str, Any] | None:
        """All of them; the gates' verdict, None where the candidate is the champion already."""
        tell(0.0, "data")
        self._step("data", self._data)
        tell(0.1, "training rows")
        self._step("traindata", self._rows)
        self._step("champion", self._pin)
        tell(0.3, "model")
        self._step("train", self._train)
        if self.champion == self.version:
            self.promoted = True
            self.done.append(Step("promote", "found", 0.0, f"version {self.version} predicts already"))
            return None
        report: dict[str, Any] = {}
        self._step("evaluate", lambda: self._evaluate(report, lambda done, said: tell(0.6 + 0.35 * done, said)))
        gate: dict[str, Any] = report["gate"]
        rules = len(gate["rules"])
        broken = sum(not one["passed"] for one in gate["rules"])
        detail = f"{broken} of {rules} rules broken" if broken else f"{rules} rules kept"
        self.done.append(Step("gate", "done" if gate["passed"] else "refused", 0.0, detail))
        if gate["passed"]:
            self._step("promote", lambda: self._promote(stage, share))
        return gate

    def _step(self, name: str, work: Callable[[], tuple[str, str]]) -> None:
        began = time.monotonic()
        outcome, detail = work()
        self.done.append(Step(name, outcome, round(time.monotonic() - began, 3), detail))

    def _data(self) -> tuple[str, str]:
        from batch.history_check import accept_history

        found, known = accept_history(self.app, self.history, self.reports / DATA_FILE, anyway=self.accept_data)
        self.newest = found["types"][self.app.predict_on.name]["last"]
        events = sum(one["events"] for one in found["types"].values())
        last = max((one["last"] for one in found["types"].values() if one["last"]), default="never")
        return "found" if known else "done", f"{events:,} events up to {last[:19]}"

    def _rows(self) -> tuple[str, str]:
        arguments = ["traindata", "--app", self.app.spec, "--history", self.history, "--out", str(self.rows)]
        told = self._run("traindata", [*arguments, *self._splits()])
        return "found" if told["reused"] else "done", f"{sum(told['rows'].values()):,} rows in {self.rows}"

    def _splits(self) -> list[str]:
        """Of what is recent the last shares validate and test, as they do of a whole history."""
        from batch.splits import TRAIN_SHARE, VALIDATE_SHARE

        if self.recent is None or self.newest is None:
            return []
        end = datetime.fromisoformat(self.newest).astimezone(UTC)
        shares = {"--since": 0.0, "--validate-from": TRAIN_SHARE, "--test-from": TRAIN_SHARE + VALIDATE_SHARE}
        return [f"{option}={end - (1 - share) * self.recent:%Y-%m-%dT%H:%M:%S}" for option, share in shares.items()]

    def _pin(self) -> tuple[str, str]:
        """Where the newest version predicts, it stays: the one that is now trained must not until the gates say so."""
        from serving.promotion import Promotion, change, read_promotion, write_server_config
        from training.export import versions

        present, known = read_promotion(self.home), versions(self.home)
        if present is None and known:
            present = change(self.home, Promotion(0, known[-1], why="sameriver retrain: the newest version so far"))
            write_server_config(self.home.parent, options.served_models(self.app))
            self.champion = present.champion
            return "done", f"version {self.champion} predicts until a better one is promoted"
        self.champion = None if present is None else present.champion
        return "found", "there is none" if present is None else f"version {self.champion} predicts"

    def _train(self) -> tuple[str, str]:
        arguments = ["--app", self.app.spec, "--rows", str(self.rows), "--models", str(self.home.parent)]
        arguments += ["--model", self.model.name, "--reuse", "--keep-champion", *self.training]
        trained = self._run("train", ["train", *arguments])
        self.version = trained["version"]
        auc = trained["metrics"]["test"]["auc"]
        return "found" if trained["reused"] else "done", f"version {self.version}, test AUC {auc:.4f}"

    def _evaluate(self, report: dict[str, Any], tell: output.Progress) -> tuple[str, str]:
        from shared_features.whole_files import replace_text
        from training.export import read_summary

        candidate = self.home / str(self.version)
        champion = None if self.champion is None else self.home / str(self.champion)
        out = self.reports / self.model.name / str(self.version)
        made_of = {
            "recipe": read_summary(candidate).get("recipe"),
            "champion": self.champion,
            "gates": [gate.definition for gate in self.app.gates],
        }
        mark, written = out / DONE_FILE, out / "evaluation.json"
        before = _known(written) if _known(mark) == made_of else None
        if before is not None:
            report.update(before)
        else:
            report.update(evaluate_version(self.app, self.model, self.rows, candidate, champion, out, tell))
            replace_text(mark, json.dumps(made_of))
        against = report["champion"]
        change = ""
        if against is not None and "differences" in against:
            one = against["differences"]["auc"]
            change = f", champion's {one['value']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
        return "found" if before else "done", f"AUC {report['auc']:.4f}{change}; {out / 'evaluation.html'}"

    def _promote(self, stage: Stage, share: float) -> tuple[str, str]:
        """Forwards only: what somebody has rolled back or let further stays so."""
        from serving.promotion import STAGES, read_history

        history = read_history(self.home)
        before = history[-1] if history else None
        places = [place for place, one in enumerate(history) if self.version in (one.champion, one.candidate)]
        ended = history[places[-1] + 1 :][:1] if places else []
        if ended and ended[0].why == ROLLBACK:
            again = f"`sameriver promote --app {self.app.spec} --version {self.version}` promotes it all the same"
            return "refused", f"version {self.version} was rolled back at {ended[0].changed_at}: {again}"
        self.promoted = True
        if before is not None and before.candidate == self.version:
            wanted = STAGES.index(stage), share if stage == "canary" else 0.0
            if (STAGES.index(before.stage), before.share) >= wanted:
                return "found", f"version {self.version}: {before.stage}, revision {before.revision}"
        after = set_stage(self.app, self.home, self.version, stage, share, None, "sameriver retrain")
        self.champion = after.champion
        said = f"version {self.version}: {stage if self.champion != self.version else 'full'}"
        return "found" if after == before else "done", f"{said}, revision {after.revision}"

    def _run(self, name: str, arguments: list[str]) -> dict[str, Any]:
        child = Child(name, ["cli", *arguments, "--json"], self.logs / f"retrain-{name}.log")
        try:
            return child.wait()
        finally:
            child.stop(5)


def _known(file: Path) -> Any:
    """What a step has left in a file of JSON; None where there is none, or a damaged one: it is done again."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
