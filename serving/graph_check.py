"""Which operations a SavedModel is made of, read before TensorFlow loads it.

A SavedModel is a program. TensorFlow runs whatever stands in it, so a file-reading or Python-calling operation is
refused here, by name, unless the operator of the server says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from serving import wire
from serving.allowed_ops import CHECKPOINT, COMPUTING
from serving.status import Code
from serving.tensorflow_c import TensorFlowError

GRAPH_LIMIT_BYTES = 2**31 - 1


def check_operations(folder: Path, extra: Iterable[str] = ()) -> None:
    """TensorFlowError (PERMISSION_DENIED) that names the operation if a version may not be served.

    Args:
        folder: with ``saved_model.pb``. One that cannot be read is left for TensorFlow to refuse, in its own words.
        extra: operations allowed besides.
    """
    model = _read(folder)
    if model is None:
        return
    allowed = COMPUTING | frozenset(extra)
    for meta_graph in model.meta_graphs:
        functions = {function.signature.name: function for function in meta_graph.graph_def.library.function}
        nodes = list(meta_graph.graph_def.node)
        for function in functions.values():
            nodes += function.node_def
        for node in nodes:
            if node.op not in allowed and node.op not in CHECKPOINT and node.op not in functions:
                raise _refusal(node.op)
            if node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"):
                raise _refusal("PrintV2 to a file")
        reached = _reached(meta_graph, functions)
        forbidden = sorted((reached & CHECKPOINT) - allowed)
        if forbidden:
            raise _refusal(f"{forbidden[0]} within a signature")


def _refusal(what: str) -> TensorFlowError:
    return TensorFlowError(
        Code.PERMISSION_DENIED,
        f"the model uses the operation {what}, which is not on the list of operations that only compute; if you trust "
        "the model, name the operation in --allowed_ops",
    )


def _read(folder: Path) -> Any:
    binary, text = folder / "saved_model.pb", folder / "saved_model.pbtxt"
    if any(folder.glob("saved_model.cpb")):
        raise TensorFlowError(
            Code.PERMISSION_DENIED, "a SavedModel in pieces (.cpb) cannot be checked: export it whole"
        )
    try:
        if binary.is_file():
            if binary.stat().st_size > GRAPH_LIMIT_BYTES:
                raise TensorFlowError(Code.INVALID_ARGUMENT, f"{binary} is larger than 2 GiB")
            return wire.ScannedModel.FromString(binary.read_bytes())
        if text.is_file():
            return text_format.Parse(text.read_text("utf-8"), wire.ScannedModel(), allow_unknown_field=True)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, OSError):
        return None
    return None


def _reached(meta_graph: Any, functions: dict[str, Any]) -> set[str]:
    """Operations that the signatures compute, in functions that they call, too."""
    by_name = {node.name: node for node in meta_graph.graph_def.node}
    pending = [
        info.name.partition(":")[0]
        for signature in meta_graph.signature_def.values()
        if signature.method_name  # what loads the model has none
        for info in signature.outputs.values()
    ]
    seen: set[str] = set()
    found: set[str] = set()
    called: list[str] = []
    while pending:
        name = pending.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        node = by_name[name]
        found.add(node.op)
        called += _calls(node)
        pending += [one.lstrip("^").partition(":")[0] for one in node.input]
    visited: set[str] = set()
    while called:
        name = called.pop()
        if name in visited or name not in functions:
            continue
        visited.add(name)
        for node in functions[name].node_def:
            found.add(node.op)
            called += _calls(node)
    return found


def _calls(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name
