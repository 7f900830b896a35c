"""SavedModels that answer in every type, and some whose signatures over tf.Example do not hold together.

Exported by `tests.serving_models`, in its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TYPES = ("half", "double", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")


def export_types(tf: Any, folder: Path) -> None:
    """x as every type (``serving_default``), and answers that REST cannot write."""

    def every_type(x: Any) -> dict[str, Any]:
        rows = tf.shape(x)[0]
        answers = {name: tf.cast(x, name) for name in TYPES}
        answers["bool"] = x > 1
        answers["text"] = tf.fill([rows], tf.constant('"\\/\n\x1f\u00e9'))
        answers["some_bytes"] = tf.fill([rows, 1], tf.constant(b"\xff\x00"))
        return answers

    x = tf.TensorSpec([None], tf.float32, name="x")
    half = tf.TensorSpec([None], tf.float16, name="h")
    functions: dict[str, tuple[Any, Any]] = {
        "serving_default": (every_type, x),
        "bytes_only": (lambda x: {"the_bytes": tf.fill([tf.shape(x)[0]], tf.constant(b"hi"))}, x),
        "complex": (lambda x: {"c": tf.complex(x, x)}, x),
        "scalar": (lambda x: {"s": tf.reduce_sum(x)}, x),
        "unequal": (lambda x: {"a": x, "b": tf.concat([x, x], 0)}, x),
        "takes_half": (lambda h: {"y": tf.cast(h, tf.float32)}, half),
    }
    signatures = {name: tf.function(made).get_concrete_function(spec) for name, (made, spec) in functions.items()}
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)


def export_misfits(tf: Any, folder: Path) -> None:
    """A TF 1 graph whose classify and regress signatures promise what their tensors do not keep."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        one, other = (v1.placeholder(tf.string, [None], name=name) for name in ("one", "other"))
        rows = tf.shape(one)[0]
        flat = tf.ones([rows])
        wide = tf.ones([rows, 2])
        three = tf.ones([rows, 3])
        labels = tf.fill([rows, 2], "label")
        whole = tf.ones([rows, 2], tf.int64)
        more = tf.ones([rows + 1, 2])
        info = v1.saved_model.utils.build_tensor_info
        examples = {"inputs": one}
        classify = {
            "good": (examples, {"classes": labels, "scores": wide}),
            "labels_only": (examples, {"classes": labels}),
            "flat_scores": (examples, {"scores": flat}),
            "whole_scores": (examples, {"scores": whole}),
            "number_classes": (examples, {"classes": wide}),
            "more_scores": (examples, {"scores": more}),
            "uneven": (examples, {"classes": labels, "scores": three}),
            "two_inputs": ({"inputs": one, "more": other}, {"scores": wide}),
            "no_inputs_alias": ({"examples": one}, {"scores": wide}),
            "three_outputs": (examples, {"classes": labels, "scores": wide, "more": wide}),
            "no_scores_alias": (examples, {"y": wide}),
            "other_input": ({"inputs": other}, {"scores": wide}),
        }
        regress = {
            "regress": (examples, {"outputs": flat}),
            "regress_wide": (examples, {"outputs": wide}),
            "regress_more": (examples, {"outputs": more[:, :1]}),
            "regress_whole": (examples, {"outputs": whole[:, 0]}),
            "regress_two_outputs": (examples, {"outputs": flat, "more": flat}),
            "regress_no_outputs_alias": (examples, {"y": flat}),
            "regress_no_inputs_alias": ({"examples": one}, {"outputs": flat}),
        }

        def built(method: str, inputs: Any, outputs: Any) -> Any:
            named = [{alias: info(tensor) for alias, tensor in given.items()} for given in (inputs, outputs)]
            return v1.saved_model.signature_def_utils.build_signature_def(*named, f"tensorflow/serving/{method}")

        signatures = {name: built("classify", *given) for name, given in classify.items()}
        signatures |= {name: built("regress", *given) for name, given in regress.items()}
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, [v1.saved_model.tag_constants.SERVING], signatures)
        builder.save()
