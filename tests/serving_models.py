"""Small SavedModels for serving tests, exported once a run by a process of its own (TensorFlow stays out of ours).

half_plus_two, half_plus_three   y = 0.5 x + 2 (+ 3)
flights       one number and one string; `describe` says fingerprint and definitions; two outputs more, one a string
meters_1 to meters_4   y = 0.5 x + 100, 200, 300, 400: which version answered is seen; described as `flights` is
two_inputs    as half_plus_two, but takes x and w
picky         refuses a negative x (INVALID_ARGUMENT, the whole block)
logarithm     log x: -inf at 0, NaN below
whole         an int64 input
mood          a text in; how it sounds, and (1, how many of its words are known); refuses tabulators
slow          counts to x in a loop on one thread
sleeps        waits 25 ms and takes no processor time; its operations have to be allowed (SLEEPS)
estimator     TF 1 style: several signatures, tf.Example inputs (see saved_model_half_plus_two of TensorFlow Serving)
broken        a SavedModel whose graph is cut short
types, misfits   see tests/serving_odd_models.py
reads_files, writes_files, saves, runs_python, prints_to_file   what a model must not do
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from tests import processes, serving_odd_models

FINGERPRINT = "f" * 32
DEFINITIONS = '{"features": {"x": 1}}'
SLEEPS = "TensorDataset,ExperimentalSleepDataset,SleepDataset,DatasetToSingleElement"


@functools.cache
def exported() -> Path:
    """Folder with one SavedModel a name; kept for the run."""
    return processes.once_a_run("models", _export)


def _export(folder: Path) -> None:
    folder.mkdir()
    exporter = processes.start(["-m", "tests.serving_models", folder], env={"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert exporter.wait() == 0, exporter.tail()


def put(name: str, base_path: Path, version: int | str) -> Path:
    """Publish an exported model as a version: written aside first, then renamed, as a careful exporter does."""
    target = base_path / str(version)
    base_path.mkdir(parents=True, exist_ok=True)
    aside = base_path / f"new-{version}"
    shutil.copytree(exported() / name, aside)
    return aside.rename(target)


def main(folder: Path) -> None:
    import tensorflow as tf

    def spec(dtype: Any, name: str) -> Any:
        return tf.TensorSpec([None], dtype, name=name)

    def line(slope: float, offset: float) -> Any:
        module = tf.Module()
        module.slope, module.offset = tf.Variable(slope), tf.Variable(offset)
        return module

    def save(name: str, module: Any, **functions: Any) -> None:
        tf.saved_model.save(module, str(folder / name), signatures=functions)

    def signature(function: Any, **inputs: Any) -> Any:
        specs = {name: spec(dtype, name) for name, dtype in inputs.items()}
        return tf.function(function).get_concrete_function(**specs)

    for name, offset in (("half_plus_two", 2.0), ("half_plus_three", 3.0)):
        half = line(0.5, offset)
        save(name, half, serving_default=signature(lambda x, m=half: {"y": m.slope * x + m.offset}, x=tf.float32))

    both = line(0.5, 2.0)
    two = signature(lambda x, w: {"y": both.slope * x + both.offset + 0.0 * w}, x=tf.float32, w=tf.float32)
    save("two_inputs", both, serving_default=two)

    flights = tf.Module()
    flights.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(["UA", "AA", ""], [0.1, 0.2, 0.9]), 0.5
    )

    def predict(delay: Any, carrier: Any) -> dict[str, Any]:
        known = tf.where(tf.math.is_nan(delay), 0.0, delay)
        return {
            "probability": flights.table.lookup(carrier) + known / 1000.0,
            "copy": tf.strings.join([carrier, "!"]),
            "pair": tf.stack([known, known + 1.0], axis=1),
        }

    def describe() -> dict[str, Any]:
        return {"fingerprint": tf.constant([FINGERPRINT]), "definitions": tf.constant([DEFINITIONS])}

    save(
        "flights",
        flights,
        serving_default=signature(predict, delay=tf.float32, carrier=tf.string),
        describe=signature(describe),
    )

    for version in (1, 2, 3, 4):
        meters = line(0.5, 100.0 * version)
        save(
            f"meters_{version}",
            meters,
            serving_default=signature(
                lambda x, m=meters: {"y": m.slope * tf.cast(x, tf.float32) + m.offset}, x=tf.int64
            ),
            describe=signature(describe),
        )

    def picky(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x below 0")]):
            return {"y": tf.sqrt(x)}

    save("picky", tf.Module(), serving_default=signature(picky, x=tf.float32))
    save("logarithm", tf.Module(), serving_default=signature(lambda x: {"y": tf.math.log(x)}, x=tf.float32))
    save("whole", tf.Module(), serving_default=signature(lambda n: {"y": tf.cast(n * 2, tf.float64)}, n=tf.int64))

    weights = {"good": 1.0, "great": 2.0, "love": 2.0, "bad": -1.0, "cold": -1.0, "awful": -3.0}
    lexicon = tf.Module()
    lexicon.weights = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([*weights], [*weights.values()]), 0.0
    )

    def mood(text: Any) -> dict[str, Any]:
        plain = tf.logical_not(tf.strings.regex_full_match(text, r".*\t.*"))
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(plain), ["a tabulator"])]):
            words = tf.strings.split(tf.strings.lower(text))
        rows, found = words.value_rowids(), lexicon.weights.lookup(words.flat_values)
        total = tf.math.unsorted_segment_sum(found, rows, words.nrows())
        known = tf.math.unsorted_segment_sum(tf.cast(found != 0.0, tf.float32), rows, words.nrows())
        return {"score": tf.sigmoid(total), "pair": tf.stack([tf.ones_like(known), known], axis=1)}

    save("mood", lexicon, serving_default=signature(mood, text=tf.string))

    def slow(x: Any) -> dict[str, Any]:
        count = tf.while_loop(lambda i: i < x[0], lambda i: (i + 1.0,), (0.0,), parallel_iterations=1)[0]
        return {"y": tf.reshape(count, [1])}

    save("slow", tf.Module(), serving_default=signature(slow, x=tf.float32))

    def sleeps(x: Any) -> dict[str, Any]:  # twice: it also looks whether there is a second element
        shape = {"output_types": [tf.float32], "output_shapes": [[None]]}
        rows = tf.raw_ops.TensorDataset(components=[x], output_shapes=[[None]])
        late = tf.raw_ops.SleepDataset(input_dataset=rows, sleep_microseconds=tf.constant(12_500, tf.int64), **shape)
        return {"y": tf.raw_ops.DatasetToSingleElement(dataset=late, **shape)[0]}

    save("sleeps", tf.Module(), serving_default=signature(sleeps, x=tf.float32))
    _estimator(tf, folder / "estimator")
    serving_odd_models.export_types(tf, folder / "types")
    serving_odd_models.export_misfits(tf, folder / "misfits")
    _dangerous(tf, save, signature)

    shutil.copytree(folder / "half_plus_two", folder / "broken")
    graph = folder / "broken" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-200])


def _dangerous(tf: Any, save: Any, signature: Any) -> None:
    def writes(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.io.write_file("canary", "x")]):
            return {"y": tf.identity(x)}

    def saves(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.raw_ops.SaveV2(
            prefix="canary", tensor_names=["x"], shape_and_slices=[""], tensors=[x])]):  # fmt: skip
            return {"y": tf.identity(x)}

    def prints(x: Any) -> dict[str, Any]:
        tf.print(x, output_stream="file://canary")
        return {"y": tf.identity(x)}

    def python(x: Any) -> dict[str, Any]:
        return {"y": tf.reshape(tf.py_function(lambda value: value, [x], tf.float32), [-1])}

    save("reads_files", tf.Module(), serving_default=signature(lambda p: {"y": tf.io.read_file(p[0])}, p=tf.string))
    for name, function in {
        "writes_files": writes,
        "saves": saves,
        "prints_to_file": prints,
        "runs_python": python,
    }.items():
        save(name, tf.Module(), serving_default=signature(function, x=tf.float32))


def _estimator(tf: Any, folder: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = v1.get_variable("a", initializer=0.5), v1.get_variable("b", initializer=2.0)
        c = v1.get_variable("c", initializer=3.0)
        serialized = v1.placeholder(tf.string, name="tf_example")
        parsed = v1.parse_example(
            serialized,
            {"x": tf.io.FixedLenFeature([1], tf.float32), "x2": tf.io.FixedLenFeature([1], tf.float32, [0.0])},
        )
        x = tf.identity(parsed["x"], name="x")
        y, y2 = tf.add(a * x, b, name="y"), tf.add(a * x, c, name="y2")
        y3 = tf.add(a * parsed["x2"], c, name="y3")
        info = v1.saved_model.utils.build_tensor_info
        methods = v1.saved_model.signature_constants

        def built(inputs: Any, outputs: Any, method: str) -> Any:
            return v1.saved_model.signature_def_utils.build_signature_def(inputs, outputs, method)

        examples = {"inputs": info(serialized)}
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            [v1.saved_model.tag_constants.SERVING],
            {
                "serving_default": built({"x": info(x)}, {"y": info(y)}, methods.PREDICT_METHOD_NAME),
                "regress_x_to_y": built(examples, {"outputs": info(y)}, methods.REGRESS_METHOD_NAME),
                "regress_x_to_y2": built(examples, {"outputs": info(y2)}, methods.REGRESS_METHOD_NAME),
                "regress_x2_to_y3": built(examples, {"outputs": info(y3)}, methods.REGRESS_METHOD_NAME),
                "classify_x_to_y": built(examples, {"scores": info(y)}, methods.CLASSIFY_METHOD_NAME),
                "odd_method": built({"x": info(x)}, {"y": info(y)}, "somebody/elses"),
            },
        )
        builder.save()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
