"""A version promoted by stages under a running job and model server, and back: nothing is restarted or lost.

The model says which version it is: y = x / 2 + 100 version. An answer under another version's name would be seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

import cli
from commands.retrain import Retraining
from serving.promotion import Promotion, Stage, change, read_history, read_promotion, server_config
from shared_features.errors import ConfigurationError
from streaming.archive import read_commits
from tests.faults.flow import flow
from tests.faults.jobs import Jobs
from tests.faults.model_server import FILE, offset, put
from tests.faults.rig import Rig
from tests.faults.served import app
from tests.processes import Started, start, wait_until
from training.export import write_summary


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2 and 3 of the app's model, and a 4 that was made of other features."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3, 4):
        put(folder / "half", version)
        made_of = {"fingerprint": app.fingerprint, "definitions": app.definitions}
        if version == 4:
            made_of = {"fingerprint": "0" * 32, "definitions": {**app.definitions, "features": {"x": 1}}}
        write_summary(folder / "half" / str(version), made_of)
    return folder


def run(models: Path, command: str, *arguments: str) -> Result:
    given = [command, "--app", FILE, "--models", str(models), "--json", *arguments]
    return CliRunner().invoke(cli.main, given)


def told(models: Path, command: str, *arguments: str) -> dict[str, Any]:
    result = run(models, command, *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return found


def promote(models: Path, version: int, stage: str, *arguments: str) -> Promotion:
    promoted = told(models, "promote", "--version", str(version), "--stage", stage, "--without-gate", *arguments)
    return Promotion(**promoted["promotion"])


def rollback(models: Path) -> Promotion:
    return Promotion(**told(models, "rollback")["promotion"])


# The file


def test_a_share_of_keys_goes_to_the_candidate_and_a_larger_share_only_adds() -> None:
    keys = pa.array([f"N{number}" for number in range(20_000)] + [None])
    small, large = (Promotion(1, 1, "canary", 2, share).to_candidate(keys) for share in (0.1, 0.3))
    assert small.mean() == pytest.approx(0.1, abs=0.01)
    assert large.mean() == pytest.approx(0.3, abs=0.01)
    assert not (small & ~large).any()
    assert not large[-1]
    other = Promotion(1, 1, "canary", 3, 0.1).to_candidate(keys)
    assert (small & other).mean() == pytest.approx(0.01, abs=0.004)  # another candidate gets other keys
    assert Promotion(1, 1, "canary", 2, 1.0).to_candidate(keys)[:-1].all()
    assert not Promotion(1, 1, "shadow", 2).to_candidate(keys).any()
    # As it was decided in every version of this package, on every machine.
    assert np.flatnonzero(small)[:5].tolist() == [42, 57, 93, 103, 107]


def test_stages_of_a_promotion(tmp_path: Path, models: Path) -> None:
    home = tmp_path / "half"
    home.mkdir()
    for version in (1, 2, 3):
        (home / str(version)).symlink_to(models / "half" / str(version))
    assert told(tmp_path, "promote", "--show")["promotion"] is None
    assert "version_labels" not in server_config(tmp_path, ["half"])

    shadow = promote(tmp_path, 2, "shadow")  # of versions never promoted the one before predicts
    assert (shadow.champion, shadow.candidate, shadow.stage, shadow.revision) == (1, 2, "shadow", 1)
    assert 'versions: 1 versions: 2 } }\n    version_labels { key: "stable" value: 1 }' in server_config(
        tmp_path, ["half"]
    )
    canary = promote(tmp_path, 2, "canary", "--share", "0.25")
    assert (canary.share, canary.by, canary.labels) == (0.25, "meter", {"stable": 1, "canary": 2})
    assert promote(tmp_path, 2, "canary", "--share", "0.25") == canary  # nothing changed
    assert rollback(tmp_path).labels == {"stable": 1}
    assert promote(tmp_path, 2, "canary", "--by", "event").by == ""
    full = promote(tmp_path, 2, "full")
    assert (full.champion, full.candidate, full.previous, full.versions) == (2, None, 1, [1, 2])
    assert promote(tmp_path, 3, "shadow").champion == 2
    assert rollback(tmp_path).champion == 2  # ends the trial
    again = promote(tmp_path, 2, "full", "--show")
    assert again.previous is None
    assert promote(tmp_path, 3, "full").previous == 2
    assert rollback(tmp_path).champion == 2
    assert [one.revision for one in read_history(home)] == list(range(1, 10))
    assert (tmp_path / "models.config").read_text() == server_config(tmp_path, ["half"])


def test_a_retraining_takes_no_step_back_and_no_rollback_for_a_mistake(tmp_path: Path) -> None:
    home = tmp_path / "half"
    for version in ("1", "2"):
        (home / version).mkdir(parents=True)
    change(home, Promotion(0, 1))

    def retrained(stage: Stage, share: float = 0.1) -> tuple[str, Stage, bool]:
        run = Retraining(app, app.models[0], "", tmp_path, home, tmp_path, tmp_path, [], accept_data=False, version=2)
        outcome, _ = run._promote(stage, share)
        present = read_promotion(home)
        assert present is not None
        return outcome, present.stage, run.promoted

    assert retrained("shadow") == ("done", "shadow", True)
    assert retrained("shadow") == ("found", "shadow", True)
    assert retrained("canary", 0.2) == ("done", "canary", True)
    assert retrained("canary", 0.1) == retrained("shadow") == ("found", "canary", True)
    assert retrained("full") == ("done", "full", True)
    assert rollback(tmp_path).champion == 1
    assert retrained("shadow") == ("refused", "full", False)
    change(home, Promotion(0, 1, "canary", 2, 0.1, why="sameriver promote"))  # somebody wants it after all
    assert retrained("full") == ("done", "full", True)


def test_training_promotes_only_over_a_champion_of_other_features(tmp_path: Path, models: Path) -> None:
    from commands.training import _champion

    home = tmp_path / "half"
    home.mkdir()
    for version in (1, 2, 4):
        (home / str(version)).symlink_to(models / "half" / str(version))
    assert _champion(app, home, 2) == 2  # nothing was ever promoted: the newest predicts
    change(home, Promotion(0, 1))
    assert _champion(app, home, 2) == 1
    change(home, Promotion(0, 4))  # made of other features
    assert _champion(app, home, 2) == 2
    assert read_history(home)[-1].labels == {"stable": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "--version", "9"], "model 'half' has no version 9"),
        (["promote", "--version", "4"], "feature 'x' differs from the one that version 4 of model 'half' was made"),
        (["promote", "--version", "1", "--stage", "shadow"], "is the champion and cannot be on trial at stage shadow"),
        (
            ["promote", "--version", "2", "--stage", "canary", "--by", "plane"],
            "has no key 'plane': wanted one of meter, event",
        ),
        (["promote", "--version", "3"], "version 3 of model 'half' in "),
        (["rollback"], "has no version to go back to"),
        (["evaluate", "--version", "9"], ", it has 1, 2, 3, 4: name another"),
        (["evaluate", "--champion", "9"], "model 'half' has no version 9"),
    ],
)
def test_what_cannot_be_promoted_is_said_in_one_sentence(
    tmp_path: Path, models: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "half").mkdir()
    for version in (1, 2, 4):
        (tmp_path / "half" / str(version)).symlink_to(models / "half" / str(version))
    shutil.copytree(models / "half" / "3", tmp_path / "half" / "3")
    (tmp_path / "half" / "3" / "saved_model.pb").write_bytes(b"damaged")
    change(tmp_path / "half", Promotion(0, 1))
    if arguments[0] == "promote":
        arguments = [*arguments, "--without-gate"]
    result = run(tmp_path, *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert read_history(tmp_path / "half")[-1].revision == 1


def test_where_there_is_no_version_nothing_predicts(tmp_path: Path) -> None:
    result = run(tmp_path, "promote", "--show")
    assert result.exit_code == 2
    assert "but there is none: run `sameriver train`" in result.output


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "promotion.json").write_text('{"history": [{"moon": 1}]}')
    with pytest.raises(ConfigurationError, match="restore it, or remove it"):
        read_promotion(tmp_path)


# Under a running job


@pytest.fixture(scope="module")
def broker() -> Iterator[Started]:
    process = start(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    yield process
    assert process.stop() == 0, process.tail()


@pytest.fixture
def rig(warm_jobs: Jobs, broker: Started, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(warm_jobs, broker.line.rpartition(" ")[2], tmp_path, app=app, file=FILE)
    yield made
    made.close()


@pytest.fixture
def server(models: Path) -> Iterator[Started]:
    command = ["-m", "cli", "serve", "--app", FILE, "--models", str(models), "--port", "0", "--json"]
    process = start(command, ready='"ready"')
    yield process
    process.kill()


def versions_by_meter(rig: Rig, last: int) -> dict[str, set[int]]:
    """Which versions answered for each meter, of the predictions that came last."""
    found: dict[str, set[int]] = {}
    for ways in list(rig.predictions.by_event.values())[-last:]:
        record = json.loads(next(iter(ways))[1])
        version = record["model_version"]
        assert record["outputs"] == {"y": rig.x[record["event_id"]] / 2 + offset(version)}, f"seed {rig.seed}"
        found.setdefault(rig.meter[record["event_id"]], set()).add(version)
    return found


@pytest.mark.tensorflow
def test_shadow_canary_full_and_back_under_traffic(rig: Rig, models: Path, server: Started) -> None:
    def wait_for(what: str, meters: dict[str, set[int]]) -> None:
        wait_until(lambda: versions_by_meter(rig, 40) == meters, what=f"{what} (seed {rig.seed})")

    promote(models, 1, "full")
    host_port = json.loads(server.line)["host_port"]
    options = ["--model-server", host_port, "--models", str(models)]
    job = rig.start_job(*options)
    meters = "abcdefgh"
    everywhere = {version: {key: {version} for key in meters} for version in (1, 2)}
    with flow(rig, 1_000_000):
        wait_for("version 1 answers", everywhere[1])
        promote(models, 2, "shadow")
        wait_until(lambda: shadowed(rig) > 50, what="the shadow predicts")
        wait_for("version 1 answers still", everywhere[1])
        canary = promote(models, 2, "canary", "--share", "0.5")
        mine = dict(zip(meters, canary.to_candidate(pa.array(list(meters))).tolist(), strict=True))
        assert 0 < sum(mine.values()) < 8
        shared = {meter: {2 if mine[meter] else 1} for meter in meters}
        wait_for("the canary has its keys", shared)
        job.kill()
        job = rig.start_job(*options)
        wait_for("and the same ones after a kill", shared)
        promote(models, 2, "full")
        wait_for("version 2 answers all", everywhere[2])
        rollback(models)
        wait_for("version 1 does again", everywhere[1])
        promote(models, 2, "shadow")  # so that the server holds it, and can be asked again below
        before = shadowed(rig)
        wait_until(lambda: shadowed(rig) > before, what="the shadow predicts again")
    rig.wait_predicted()
    job.drain()
    assert not rig.dead_letters.by_event
    report = rig.check(*options)
    assert report["predictions"] == len(rig.published)
    assert (report["prediction_mismatches"], report["route_mismatches"], report["predictions_unchecked"]) == (0, 0, 0)
    assert report["routes"] + report["routes_aside"] == report["predictions"]
    assert report["routes"] > 0  # how many are aside depends on how long the server is behind
    assert server.stop() == 0


def shadowed(rig: Rig) -> int:
    """Rows in the archive for which the candidate was asked in the shadow: each says what version 2 says."""
    count = 0
    for commit in read_commits(rig.archive):
        if "shadow.half" not in commit.block.schema.names:
            continue
        rows = commit.block.column("shadow.half").is_valid()
        block = commit.block.filter(rows)
        x = np.array([rig.x[event_id] for event_id in block.column("event_id").to_pylist()])
        np.testing.assert_array_equal(block.column("shadow.half.y").to_numpy(), x / 2 + offset(2))
        assert set(block.column("shadow.half").to_pylist()) <= {2}
        count += block.num_rows
    return count
