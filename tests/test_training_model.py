"""The wide & deep model from rows to a served artefact, trained by the command that people run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import training_rows
from tests.trained import GATES, OPTIONS, Trained, check_slices_and_gates, check_the_page, end, logged, start
from training.export import SavedModel, read_summary, versions
from training.rows import number_column, open_rows
from training.sketches import read_reference

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_it_tells_how_far_it_is_and_what_came_out(trained: Trained) -> None:
    *progress, result = trained.lines[0]
    done = [line["progress"]["done"] for line in progress]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, 1.0)
    assert {line["progress"]["stage"] for line in progress} == {"read", "train", "export", "measure"}
    assert (result["version"], result["path"]) == (1, str(trained.version))
    assert result["fingerprint"] == training_rows.FINGERPRINT
    assert result["metrics"]["test"]["auc"] > 0.8
    assert result["metrics"]["test"]["rows"] == 2_000
    best = min(one["validate_log_loss"] for one in result["epochs"])  # of averaged weights, which are exported
    assert result["metrics"]["validate"]["log_loss"] == pytest.approx(best, abs=1e-6)


def test_the_same_command_gives_the_same_model(trained: Trained) -> None:
    first, second = (lines[-1] for lines in trained.lines)
    for name in ("metrics", "epochs"):
        assert first[name] == second[name]
    other = SavedModel(trained.homes[1] / "wide_and_deep" / "1")
    np.testing.assert_array_equal(trained.model.probabilities(trained.test), other.probabilities(trained.test))


def test_the_summary_tells_what_made_the_model(trained: Trained) -> None:
    summary = read_summary(trained.version)
    assert summary["app"] == "shop"
    assert summary["fingerprint"] == training_rows.FINGERPRINT
    assert summary["definitions"] == json.loads(training_rows.DEFINITIONS)
    assert [feature["name"] for feature in summary["features"]] == list(training_rows.FEATURES)
    assert summary["metrics"] == trained.lines[0][-1]["metrics"]
    assert summary["seed"] == 3
    assert summary["data"]["train"]["rows"] == 6_000
    assert summary["data"]["test"]["from"].startswith("2013-")
    assert summary["options"]["crosses"] == [["shop", "carrier"]]
    assert summary["statistics"]["numbers"]["busy"]["missing"] > 0
    assert set(summary["libraries"]) == {"keras", "numpy", "pyarrow", "python", "scikit-learn", "tensorflow"}
    reference = read_reference(trained.version)
    delays = number_column(trained.rows.table("train")["delay"])
    assert reference["numbers"]["delay"]["sketch"].n == np.isfinite(delays).sum()
    assert reference["numbers"]["delay"]["sketch"].get_rank(float(np.nanmedian(delays))) == pytest.approx(0.5, abs=0.01)
    assert reference["predictions"]["probability"]["sketch"].n == 3_500  # validate and test
    assert not list(trained.version.rglob("*.keras")) + list(trained.version.rglob("*.h5"))


def test_signatures_are_the_contract(trained: Trained) -> None:
    assert trained.model.inputs == {
        "busy": "float32",
        "carrier": "string",
        "delay": "float32",
        "hour": "float32",
        "shop": "string",
    }
    assert trained.model.fingerprint == training_rows.FINGERPRINT
    assert trained.model.definitions == training_rows.DEFINITIONS

    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((trained.version / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    served, described = signatures["serving_default"], signatures["describe"]
    for name, one in served.inputs.items():
        assert [size.size for size in one.tensor_shape.dim] == [-1], name
    assert list(served.outputs) == ["probability"]
    assert [size.size for size in served.outputs["probability"].tensor_shape.dim] == [-1]
    assert not described.inputs
    assert {name: [size.size for size in one.tensor_shape.dim] for name, one in described.outputs.items()} == {
        "definitions": [1],
        "fingerprint": [1],
    }


def test_no_device_is_pinned_in_what_predicts(trained: Trained) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((trained.version / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    pending = [name for name in functions if "signature_wrapper" in name]
    assert pending
    seen, devices = set(), set()
    while pending:
        name = pending.pop()
        seen.add(name)
        for node in functions[name].node_def:
            devices.add(node.device)
            called = [value.func.name for value in node.attr.values() if value.func.name]
            pending += [one for one in called if one in functions and one not in seen]
    assert len(seen) > 2
    assert devices == {""}


def test_it_loads_as_tensorflow_serving_loads_it(trained: Trained) -> None:
    """By running the graph's restore and initialisation in a session, not by rebuilding Python objects."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(trained.version))
        served, described = (loaded.signature_def[name] for name in ("serving_default", "describe"))
        feeds = {}
        for name, one in served.inputs.items():
            column = trained.test[name]
            feeds[one.name] = (
                number_column(column) if name in trained.rows.numbers else column.fill_null("").to_pylist()
            )
        probabilities = session.run(served.outputs["probability"].name, feeds)
        assert session.run(described.outputs["fingerprint"].name).tolist() == [training_rows.FINGERPRINT.encode()]
    np.testing.assert_allclose(probabilities, trained.model.probabilities(trained.test), atol=1e-6)


def test_missing_and_unseen_values_are_predicted(trained: Trained) -> None:
    row = trained.test.slice(0, 1)

    def predicted(**changed: Any) -> float:
        columns = {name: pa.array(changed.get(name, row[name].to_pylist())) for name in training_rows.FEATURES}
        for name in changed:
            columns[name] = columns[name].cast(row.schema.field(name).type)
        return float(trained.model.probabilities(pa.table(columns))[0])

    for name in training_rows.FEATURES:
        assert 0 < predicted(**{name: [None]}) < 1, name
    assert predicted(shop=["moon"]) == predicted(shop=["mars"])
    assert predicted(shop=[""]) == predicted(shop=[None]) != predicted(shop=["moon"])
    # Flat outside the range of training, and no number is too large.
    assert predicted(delay=[1e30]) == predicted(delay=[1e6])
    assert predicted(delay=[float("inf")]) == predicted(delay=[None])
    assert predicted(delay=[60.0]) > predicted(delay=[-5.0])


def test_a_row_alone_is_predicted_as_in_its_block(trained: Trained) -> None:
    block = trained.test.slice(0, 50)
    alone = np.concatenate([trained.model.probabilities(block.slice(row, 1)) for row in range(50)])
    np.testing.assert_allclose(alone, trained.model.probabilities(block), atol=1e-6, rtol=0)
    assert trained.model.probabilities(block.slice(0, 0)).shape == (0,)


def test_the_report_sets_the_model_beside_its_baselines(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from sklearn.metrics import log_loss, roc_auc_score

    from training import evaluate

    rule = pa.table(
        {"event_id": trained.test["event_id"], "late already": pa.array(number_column(trained.test["delay"]) > 15)}
    )
    rules = tmp_path / "rules.parquet"
    pq.write_table(rule.take(np.arange(len(rule))[::-1].copy()), rules)  # in another order: joined by identity
    arguments: list[str | Path] = ["--rows", trained.rows_folder, "--version", trained.version]
    arguments += ["--champion", trained.homes[1] / "wide_and_deep" / "1", "--gates", GATES]
    arguments += ["--baseline-feature", "delay", "--miss", "4", "--purpose", "Parcels & their <delays>."]
    arguments += ["--rules", rules, "--out", tmp_path / "report", "--resamples", "100", "--json"]
    assert evaluate.main([str(one) for one in arguments]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    report = lines[-1]
    done = [line["progress"]["done"] for line in lines[:-1]]
    assert (done[0], done[-1], done) == (0.0, 0.95, sorted(done))
    names = [one["name"] for one in report["models"]]
    assert names == ["wide_and_deep", "champion, version 1", "delay alone", "HistGradientBoosting", "late already"]

    labels = number_column(trained.test["label"])
    probabilities = trained.model.probabilities(trained.test)
    assert report["auc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)
    assert report["log_loss"] == pytest.approx(log_loss(labels, probabilities.astype(float)), abs=1e-6)
    assert report["auc_baseline"] == report["models"][3]["auc"]
    assert report["auc"] > report["auc_baseline"] - 0.02
    assert 0 < report["calibration_error"] < 0.1
    alone = np.nan_to_num(number_column(trained.test["delay"]), nan=np.nanmedian(number_column(trained.test["delay"])))
    assert report["models"][2]["auc"] == pytest.approx(roc_auc_score(labels, alone), abs=0.01)
    assert report["models"][2]["log_loss"] < 0.69
    against = {one["against"]: one for one in report["differences"]}
    assert against["delay alone"]["low"] > 0
    assert against["delay alone"]["excludes_zero"]
    assert against["late already"]["low"] < against["late already"]["auc"] < against["late already"]["high"]
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text()) == report
    assert (tmp_path / "report" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    check_the_page((tmp_path / "report" / "evaluation.html").read_text(), report)
    check_slices_and_gates(report)
    assert report["importance"][0]["feature"] == "delay"
    assert {one["feature"] for one in report["importance"]} == set(training_rows.FEATURES)
    assert report["costs"]["threshold"] == 0.2
    assert report["costs"]["best_cost"] <= report["costs"]["cost"] < min(report["costs"]["never"], 1000)


def test_what_was_exported_is_what_was_trained(tmp_path: Path, trained: Trained) -> None:
    import keras
    import tensorflow as tf

    from training import wide_and_deep
    from training.export import write_saved_model
    from training.options import WideAndDeepOptions
    from training.statistics import compute_statistics

    keras.utils.set_random_seed(1)
    options = WideAndDeepOptions(crosses=(("shop", "carrier"), ("hour", "carrier")), cross_hash_buckets=7)
    model = wide_and_deep.build(compute_statistics(trained.rows), options)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.1))
    write_saved_model(model, trained.rows, tmp_path)
    numbers, texts, _ = trained.rows.packed(trained.test).take(np.arange(len(trained.test)))
    logits = model([tf.constant(numbers), tf.constant(texts.tolist())]).numpy()[:, 0]
    expected = tf.sigmoid(logits).numpy()
    np.testing.assert_allclose(SavedModel(tmp_path).probabilities(trained.test), expected, atol=1e-6)
    assert expected.std() > 0.05


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_an_app_may_have_numbers_only_or_texts_only(kind: str, tmp_path: Path) -> None:
    from training.export import write_saved_model
    from training.options import WideAndDeepOptions
    from training.statistics import compute_statistics
    from training.wide_and_deep import build

    dropped = ["shop", "carrier"] if kind == "numbers" else ["delay", "hour", "busy"]
    few = training_rows.table(60, 1).drop(dropped)
    rows = open_rows(training_rows.write(tmp_path / "rows", {"train": few, "validate": few, "test": few}))
    model = build(compute_statistics(rows, min_rows=1_000), WideAndDeepOptions(units=(4,)))
    write_saved_model(model, rows, tmp_path / "model")
    probabilities = SavedModel(tmp_path / "model").probabilities(few)
    assert probabilities.shape == (60,)
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (
            "training.train",
            ["--models", "{new}", "--model", "forest"],
            "must be one of wide_and_deep, .*, but is 'forest'",
        ),
        ("training.train", ["--models", "{new}", "--options", '{"depth": 9}'], "no option 'depth'"),
        ("training.train", ["--models", "{new}", "--options", "depth"], "--options must be a JSON object"),
        ("training.train", ["--models", "{new}", "--fingerprint", "0" * 32], "run `sameriver traindata` again"),
        ("training.evaluate", ["--version", "{new}"], "cannot be read: train it"),
        ("training.evaluate", ["--version", "{version}", "--rows", "{other}"], "train again on these rows"),
        ("training.evaluate", ["--version", "{version}", "--out", "{file}"], "a folder that can be written"),
        ("training.evaluate", ["--version", "{version}", "--baseline-feature", "shop"], "needs a number, but 'shop'"),
    ],
)
def test_expected_errors_are_one_sentence_and_exit_code_2(
    trained: Trained, tmp_path: Path, module: str, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from training import evaluate, train

    (tmp_path / "file").write_text("")
    places = {"{new}": tmp_path / "new", "{version}": trained.version, "{file}": tmp_path / "file"}
    if "{other}" in arguments:
        few = training_rows.table(20, 1)
        splits = {"train": few, "validate": few, "test": few}
        places["{other}"] = training_rows.write(tmp_path / "other", splits, fingerprint="0" * 32)
    filled = [str(places.get(one, one)) for one in arguments]
    given = ["--rows", str(trained.rows_folder), *filled, "--json"]
    assert (train if module == "training.train" else evaluate).main(given) == 2
    output, complaints = capfd.readouterr()
    last = json.loads(output.splitlines()[-1])
    assert re.search(said, last["error"])
    assert f"error: {last['error']}" in complaints
    assert versions(tmp_path / "new" / "wide_and_deep") == []


def test_rows_of_one_outcome_teach_nothing(tmp_path: Path) -> None:
    from shared_features.errors import HistoryError
    from training.train import train

    few = training_rows.table(50, 1)
    few = few.set_column(few.column_names.index("label"), "label", pa.array([False] * 50))
    rows = training_rows.write(tmp_path / "rows", {"train": few, "validate": few, "test": few})
    with pytest.raises(HistoryError, match=r"all 50 labels in .*train are the same"):
        train(rows, tmp_path / "models")
    assert list((tmp_path / "models" / "wide_and_deep").iterdir()) == []


def test_two_million_rows_train_in_a_part_of_the_memory_and_an_end_leaves_nothing_behind(tmp_path: Path) -> None:
    """22 million rows are allowed 3 GB, of which TensorFlow takes 0.6; the long test is in test_training_batches."""
    rows = training_rows.write_often(tmp_path / "rows", training_rows.table(100_000, 1), times=20)
    options = json.dumps({"epochs": 900, "batch_rows": 16_384, "units": [8]})
    process = start("training.train", "--rows", rows, "--models", tmp_path / "models", "--options", options)
    home = tmp_path / "models" / "wide_and_deep"
    assert process.stdout is not None
    try:
        while not json.loads(process.stdout.readline())["progress"]["detail"].startswith("epoch 1 of 900: validation"):
            pass
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert {path.name[0] for path in home.iterdir()} == {"."}
        process.terminate()
    finally:
        code, _, complaints = end(process)
    assert code == 143, complaints
    assert [path.name for path in home.iterdir() if not path.name.startswith(".checkpoint-")] == []
    assert peak is not None
    assert int(peak[1]) * 1024 < 1_200_000_000


def test_tensorflow_reads_the_records_that_traindata_writes(tmp_path: Path) -> None:
    import tensorflow as tf

    from tests.test_traindata_formats import ROWS, converted

    features = {
        "seats": tf.io.FixedLenFeature([], tf.int64, default_value=-5),
        "delay": tf.io.VarLenFeature(tf.float32),
        "event_id": tf.io.FixedLenFeature([], tf.string, default_value="none"),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    records = tf.data.TFRecordDataset([str(path) for path in converted(tmp_path, "tfrecord", 2)])
    rows = [tf.io.parse_single_example(one, features) for one in records]
    assert [int(row["seats"]) for row in rows] == [-5 if one is None else one for one in ROWS["seats"].to_pylist()]
    assert [bool(row["label"]) for row in rows] == ROWS["label"].to_pylist()
    ids = ["none" if one is None else one for one in ROWS["event_id"].to_pylist()]
    assert [row["event_id"].numpy().decode() for row in rows] == ids
    delays = [tf.sparse.to_dense(row["delay"]).numpy().tolist() for row in rows]
    assert delays == [[] if one is None else [float(np.float32(one))] for one in ROWS["delay"].to_pylist()]


def test_a_training_that_is_killed_goes_on_where_it_was(trained: Trained) -> None:
    """The second run was killed with -9 after its first epoch; that it ends as the first is tested above."""
    assert trained.left == {".staged", ".checkpoint"}
    assert "going on after epoch 1 of 3" in [line["progress"]["detail"] for line in trained.lines[1][:-1]]
    home = trained.homes[1] / "wide_and_deep"
    assert [path.name for path in home.iterdir()] == ["1"]

    from training.train import train

    again = train(trained.rows_folder, home.parent, options=json.loads(OPTIONS), seed=3, reuse=True)
    assert (again.reused, again.version) == (True, 1)
    assert again.metrics == trained.lines[1][-1]["metrics"]


def test_tensorboard_finds_every_epoch_also_of_a_training_that_was_killed(trained: Trained) -> None:
    whole, resumed = map(logged, trained.homes)
    assert [step for step, _ in whole["epoch/validate_log_loss"]] == [6, 12, 18]
    said = [one["validate_log_loss"] for one in trained.lines[0][-1]["epochs"]]
    assert [value for _, value in whole["epoch/validate_log_loss"]] == pytest.approx(said)
    assert whole["epoch/validate_auc"] == resumed["epoch/validate_auc"]  # two files: before the kill, and after


@pytest.mark.parametrize(("kind", "refused"), [("deep", "crosses"), ("logistic", "units")])
def test_the_parts_of_the_model_are_models(trained: Trained, tmp_path: Path, kind: str, refused: str) -> None:
    from shared_features.errors import ConfigurationError
    from training.options import WideAndDeepOptions
    from training.statistics import compute_statistics
    from training.wide_and_deep import build

    options = WideAndDeepOptions.from_mapping({"epochs": 1}, trained.rows.numbers, trained.rows.texts, kind)
    model = build(compute_statistics(trained.rows), options, kind)
    weights = {variable.path.partition("/")[0] for variable in model.trainable_variables}
    assert any(name.startswith("wide") for name in weights) == (kind == "logistic")
    assert any(name.startswith("embedding") for name in weights) == (kind == "deep")
    numbers, texts, labels = trained.rows.packed(trained.test).take(np.arange(len(trained.test)))
    import tensorflow as tf

    said = tf.sigmoid(model([tf.constant(numbers), tf.constant(texts.tolist())])).numpy()
    assert np.isfinite(said).all()
    if kind == "logistic":  # all weights are 0 before training: it starts at the share of positives
        assert said == pytest.approx(labels.mean(), abs=0.03)
    with pytest.raises(ConfigurationError, match=f"Model {kind} has no option {refused!r}"):
        WideAndDeepOptions.from_mapping({refused: []}, trained.rows.numbers, trained.rows.texts, kind)


def test_a_device_that_is_not_there_is_refused(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf

    from training import train

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    given = ["--rows", str(trained.rows_folder), "--models", str(tmp_path), "--device", "gpu"]
    assert train.main(given) == 2
    assert "error: A GPU was asked for, but TensorFlow sees none on this machine" in capfd.readouterr().err
    assert versions(tmp_path / "wide_and_deep") == []
