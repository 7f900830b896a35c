"""SavedModels through TensorFlow's C API: what TensorFlow Serving does, without Python's TensorFlow.

``import tensorflow`` takes 5 to 11 s and 700 MB, most of it for Python modules that serving needs nothing of. The
shared libraries of the same package load in 0.4 s. ``TF_LoadSessionFromSavedModel`` is the very loader that
TensorFlow Serving uses, so models of TF 1 and TF 2 behave, and fail, as they do there.

Source: tensorflow/c/c_api.h, tf_tensor.h and tsl/platform/ctstring_internal.h (the layout of strings), 2.21.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving import wire
from serving.tensors import ELEMENT_TYPES, Array

_Pointer = ctypes.c_void_p
_STRING = int(wire.DataType.DT_STRING)
_STRING_BYTES = 24  # sizeof(TF_TString)
_SMALL_BYTES = 4096
_SHORT = 22  # characters that fit into a TF_TString itself


class TensorFlowError(Exception):
    """TensorFlow refuses or fails; `code` is the canonical status code (those of gRPC), the text TensorFlow's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Tensor(NamedTuple):
    """A tensor outside TensorFlow: numbers as an array of the storage type, strings as row-major bytes."""

    dtype: int
    shape: tuple[int, ...]
    values: Array | list[bytes]


class _Buffer(ctypes.Structure):
    _fields_ = (("data", _Pointer), ("length", ctypes.c_size_t), ("deallocator", _Pointer))


class _Output(ctypes.Structure):
    _fields_ = (("operation", _Pointer), ("index", ctypes.c_int))


@contextmanager
def _without_start_up_lines() -> Iterator[None]:
    """Standard error goes nowhere meanwhile: TensorFlow 2.21 says some lines before it looks at any level."""
    if sys.stderr is None:  # whoever started this process has closed it
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Library:
    """The functions that are used, with their types. Short ones keep the interpreter lock: giving it up costs more."""

    def __init__(self) -> None:
        folder = _package_folder()
        suffix = {"darwin": ".2.dylib"}.get(sys.platform, ".so.2")
        framework = str(folder / f"libtensorflow_framework{suffix}")
        full = str(folder / f"libtensorflow_cc{suffix}")
        # TensorFlow's own start-up lines are noise to whoever serves; its errors come back as statuses.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _without_start_up_lines():
            ctypes.CDLL(framework)
            slow, quick = ctypes.CDLL(full), ctypes.PyDLL(full)

        def function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype = result
            found.argtypes = arguments
            return found

        size, integer = ctypes.c_size_t, ctypes.c_int
        self.version = function(quick, "TF_Version", ctypes.c_char_p)
        self.new_status = function(quick, "TF_NewStatus", _Pointer)
        self.delete_status = function(quick, "TF_DeleteStatus", None, _Pointer)
        self.get_code = function(quick, "TF_GetCode", integer, _Pointer)
        self.message = function(quick, "TF_Message", ctypes.c_char_p, _Pointer)
        self.new_buffer = function(quick, "TF_NewBuffer", ctypes.POINTER(_Buffer))
        self.delete_buffer = function(quick, "TF_DeleteBuffer", None, ctypes.POINTER(_Buffer))
        self.new_graph = function(quick, "TF_NewGraph", _Pointer)
        self.delete_graph = function(slow, "TF_DeleteGraph", None, _Pointer)
        self.operation = function(quick, "TF_GraphOperationByName", _Pointer, _Pointer, ctypes.c_char_p)
        self.output_count = function(quick, "TF_OperationNumOutputs", integer, _Pointer)
        self.output_type = function(quick, "TF_OperationOutputType", integer, _Output)
        self.new_options = function(quick, "TF_NewSessionOptions", _Pointer)
        self.delete_options = function(quick, "TF_DeleteSessionOptions", None, _Pointer)
        self.set_config = function(quick, "TF_SetConfig", None, _Pointer, ctypes.c_char_p, size, _Pointer)
        self.load = function(
            slow, "TF_LoadSessionFromSavedModel", _Pointer, _Pointer, _Pointer, ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_char_p), integer, _Pointer, ctypes.POINTER(_Buffer), _Pointer,
        )  # fmt: skip
        self.close_session = function(slow, "TF_CloseSession", None, _Pointer, _Pointer)
        self.delete_session = function(slow, "TF_DeleteSession", None, _Pointer, _Pointer)
        self.run = function(
            slow, "TF_SessionRun", None, _Pointer, ctypes.POINTER(_Buffer), _Pointer, _Pointer, integer,
            _Pointer, _Pointer, integer, _Pointer, integer, _Pointer, _Pointer,
        )  # fmt: skip
        self.allocate = function(quick, "TF_AllocateTensor", _Pointer, integer, _Pointer, integer, size)
        self.delete_tensor = function(quick, "TF_DeleteTensor", None, _Pointer)
        self.data = function(quick, "TF_TensorData", _Pointer, _Pointer)
        self.copy_string = function(quick, "TF_StringCopy", None, _Pointer, ctypes.c_char_p, size)
        self.byte_size = function(quick, "TF_TensorByteSize", size, _Pointer)
        self.tensor_type = function(quick, "TF_TensorType", integer, _Pointer)
        self.rank = function(quick, "TF_NumDims", integer, _Pointer)
        self.dim = function(quick, "TF_Dim", ctypes.c_int64, _Pointer, integer)


def _package_folder() -> Path:
    # Finds the package without importing it.
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.origin is None:
        raise TensorFlowError(12, "TensorFlow is not installed in this environment: install tensorflow==2.21.0")
    return Path(found.origin).parent


_library: _Library | None = None
_library_lock = threading.Lock()


def library() -> _Library:
    """TensorFlow's shared libraries, loaded the first time."""
    global _library
    with _library_lock:
        if _library is None:
            _library = _Library()
        return _library


class _Status:
    """A TF_Status that raises what it holds when the block ends."""

    def __init__(self, tf: _Library) -> None:
        self._tf = tf
        self.pointer: int = tf.new_status()

    def __enter__(self) -> int:
        return self.pointer

    def __exit__(self, kind: Any, *rest: object) -> None:
        code = self._tf.get_code(self.pointer)
        message = self._tf.message(self.pointer).decode("utf-8", "replace") if code else ""
        self._tf.delete_status(self.pointer)
        if code and kind is None:
            raise TensorFlowError(code, message)


class Run:
    """Feeds and fetches looked up once: what to call again and again."""

    def __init__(self, feeds: Sequence[_Output], fetches: Sequence[_Output]) -> None:
        self.feeds = (_Output * len(feeds))(*feeds)
        self.fetches = (_Output * len(fetches))(*fetches)
        self.feed_values = _Pointer * len(feeds)
        self.fetch_values = _Pointer * len(fetches)


class LoadedModel:
    """A SavedModel in memory.

    Attributes:
        meta_graph: its MetaGraphDef message, signatures in ``signature_def``.

    Args:
        folder: that holds ``saved_model.pb``.
        tags: of the graph to load.
        intra_op_threads: one operation's threads, 0 for one a core (fixed by the first model of a process).
        inter_op_threads: operations at once, 0 for one a core (the same).

    Raises TensorFlowError with TensorFlow's own words if it cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        tags: Sequence[str] = ("serve",),
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
    ) -> None:
        tf = self._tf = library()
        config = wire.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads, inter_op_parallelism_threads=inter_op_threads
        ).SerializeToString()
        options = tf.new_options()
        self._graph = tf.new_graph()
        self._session: int | None = None
        buffer = tf.new_buffer()
        # Restoring on this thread, not on those that requests use: the caller may have given it a low priority.
        run_options = _ON_CALLERS_THREAD.SerializeToString()
        run_buffer = _Buffer(ctypes.cast(ctypes.c_char_p(run_options), _Pointer), len(run_options), None)
        tag_array = (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags))
        try:
            with _Status(tf) as status:
                tf.set_config(options, config, len(config), status)
            with _Status(tf) as status:
                self._session = tf.load(
                    options,
                    ctypes.byref(run_buffer),
                    os.fsencode(folder),
                    tag_array,
                    len(tags),
                    self._graph,
                    buffer,
                    status,
                )
            encoded = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        except BaseException:
            tf.delete_graph(self._graph)
            raise
        finally:
            tf.delete_buffer(buffer)
            tf.delete_options(options)
        whole = wire.MetaGraphDef.FromString(encoded)
        # The graph itself came along as unknown fields; nobody needs it twice.
        self.meta_graph = wire.MetaGraphDef(meta_info_def=whole.meta_info_def)
        for name, signature in whole.signature_def.items():
            self.meta_graph.signature_def[name].CopyFrom(signature)

    def close(self) -> None:
        """Free the model. The caller sees to it that nothing runs."""
        session, self._session = self._session, None
        if session is None:
            return
        for function in (self._tf.close_session, self._tf.delete_session):
            with _Status(self._tf) as status:
                function(session, status)
        self._tf.delete_graph(self._graph)

    def prepare(self, feeds: Sequence[str], fetches: Sequence[str]) -> Run:
        """Look tensors up by name (``operation:index``); TensorFlowError (NOT_FOUND) if the graph has none such."""
        return Run([self._output(name) for name in feeds], [self._output(name) for name in fetches])

    def _output(self, name: str) -> _Output:
        operation_name, _, index = name.partition(":")
        operation = self._tf.operation(self._graph, operation_name.encode())
        number = int(index) if index.isdigit() else 0
        if not operation or number >= self._tf.output_count(operation):
            raise TensorFlowError(5, f"Tensor {name} is not in the graph")
        return _Output(operation, number)

    def run(self, prepared: Run, feeds: Sequence[Tensor], timeout_ms: int = 0) -> list[Tensor]:
        """Compute the fetches.

        Args:
            prepared: from `prepare`, of this model.
            feeds: in the order prepared; each is copied.
            timeout_ms: ends in DEADLINE_EXCEEDED after so long; 0 waits, and computes on the caller's thread.

        Raises TensorFlowError, for example on a type that the graph does not expect.
        """
        tf = self._tf
        options = wire.RunOptions(timeout_in_ms=timeout_ms) if timeout_ms else _ON_CALLERS_THREAD
        encoded = options.SerializeToString()
        buffer = _Buffer(ctypes.cast(ctypes.c_char_p(encoded), _Pointer), len(encoded), None)
        given = prepared.feed_values()
        answers = prepared.fetch_values()
        try:
            for index, tensor in enumerate(feeds):
                given[index] = self._new_tensor(tensor)
            with _Status(tf) as status:
                tf.run(
                    self._session, ctypes.byref(buffer), prepared.feeds, given, len(given),
                    prepared.fetches, answers, len(answers), None, 0, None, status,
                )  # fmt: skip
            return [self._read(pointer or 0) for pointer in answers]
        finally:
            for pointer in (*given, *answers):
                if pointer:
                    tf.delete_tensor(pointer)

    def _new_tensor(self, tensor: Tensor) -> int:
        tf = self._tf
        values = tensor.values
        long: list[int] = []
        if isinstance(values, list):
            data, long = _string_layout(values)
        else:
            data = values
        size = data.nbytes
        pointer: int = tf.allocate(tensor.dtype, _dimensions(tensor.shape), len(tensor.shape), size)
        if not pointer:
            raise TensorFlowError(8, f"no memory for a tensor of {size} bytes")
        if size:
            address = tf.data(pointer)
            if size <= _SMALL_BYTES:  # asking NumPy for an address takes longer than a copy
                ctypes.memmove(address, data.tobytes(), size)
            else:
                data = np.ascontiguousarray(data)
                ctypes.memmove(address, data.__array_interface__["data"][0], size)
            for index in long:  # on TensorFlow's heap; freed with the tensor
                tf.copy_string(address + index * _STRING_BYTES, values[index], len(values[index]))
        return pointer

    def _read(self, pointer: int) -> Tensor:
        tf = self._tf
        dtype = tf.tensor_type(pointer)
        shape = tuple(tf.dim(pointer, index) for index in range(tf.rank(pointer)))
        if dtype == _STRING:
            return Tensor(dtype, shape, _read_strings(tf.data(pointer), math.prod(shape)))
        element = ELEMENT_TYPES.get(dtype)
        if element is None:
            raise TensorFlowError(12, f"an output of type {dtype} cannot be sent")
        size = tf.byte_size(pointer)
        raw = ctypes.string_at(tf.data(pointer), size) if size else b""
        return Tensor(dtype, shape, np.frombuffer(raw, element.storage).reshape(shape))


_ON_CALLERS_THREAD = wire.RunOptions(inter_op_thread_pool=-1)


@functools.lru_cache(maxsize=256)
def _dimensions(shape: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """For TensorFlow to read: shared, never changed."""
    return (ctypes.c_int64 * len(shape))(*shape)


def _string_layout(values: list[bytes]) -> tuple[Array, list[int]]:
    """Strings as an array of TF_TString with the short ones in place, and the indices of the long ones."""
    count = len(values)
    layout = np.zeros((count, _STRING_BYTES), np.uint8)
    if not count:
        return layout, []
    sizes = np.fromiter(map(len, values), np.int64, count=count)
    layout[:, 1 : 1 + _SHORT] = np.array(values, f"S{_SHORT}").view(np.uint8).reshape(count, _SHORT)
    layout[:, 0] = np.minimum(sizes, _SHORT) << 2
    long = np.flatnonzero(sizes > _SHORT)
    layout[long] = 0  # an empty string, to be assigned to
    return layout, long.tolist()


def _read_strings(address: int, count: int) -> list[bytes]:
    if not count:
        return []
    raw = ctypes.string_at(address, count * _STRING_BYTES)
    words = np.frombuffer(raw, np.uint64).reshape(count, 3).tolist()
    values = []
    for index, (first, second, third) in enumerate(words):
        kind = first & 3
        if kind == 0:
            start = index * _STRING_BYTES + 1
            values.append(raw[start : start + ((first & 0xFF) >> 2)])
        elif kind == 1:  # size, capacity, pointer
            values.append(ctypes.string_at(third, first >> 2))
        elif kind == 3:  # size, pointer, owner
            values.append(ctypes.string_at(second, first >> 2))
        else:  # offset from itself: 32-bit size, offset, count
            offset = first >> 32
            values.append(ctypes.string_at(address + index * _STRING_BYTES + offset, (first & 0xFFFFFFFF) >> 2))
    return values
