"""Compiled functions whose machine code is kept beside Python's own, so that only the first process compiles them.

The window pass takes Numba some ten seconds to compile, and every process of a job needs it. Its machine code depends
on the source, on the versions of the compilers and on the processor, and on nothing else; it is kept as an object
file in ``__pycache__``, next to what Python compiles, and trusted as much: only if the file belongs to this user or to
root, nobody else may write it, and its checksum is right. Numba's own cache is not used, because it reads pickles.
Where nothing can be kept, each process compiles anew.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llvmlite import binding as llvm
from numba import _dynfunc  # type: ignore[attr-defined]  # a module in C
from numba.core import sigutils
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

from shared_features.exact import compiled

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "__pycache__"

_normalized: Any = sigutils.normalize_signature  # untyped, as the rest of Numba's toolbox


class Kept:
    """A function of one signature, compiled without reference counts at its first call, or loaded.

    Args:
        function: what Numba compiles; it allocates nothing that outlives it and raises nothing but MemoryError.
        signature: its types, in Numba's notation.
    """

    def __init__(self, function: Any, signature: str) -> None:
        self._function, self._signature = function, signature
        self._lock = threading.Lock()
        self._call: Any = None
        self.__doc__, self.__name__, self.__module__ = function.__doc__, function.__name__, function.__module__

    def __call__(self, *arguments: Any) -> Any:
        """Call it; threads may do so side by side, and others run meanwhile."""
        if self._call is None:
            with self._lock:
                self._call = self._call or self._made()
        return self._call(*arguments)

    def _made(self) -> Any:
        (argument_types, return_type) = _normalized(self._signature)
        path = FOLDER / f"{self.__name__}.{_key(self._signature)}.o"
        kept = _read(path)
        if kept is None:
            with _alone(path):
                kept = _read(path)
                if kept is None:
                    kept = self._compiled(argument_types)
                    _write(path, *kept)
        dispatcher = compiled()(self._function)
        entry = SimpleNamespace(signature=return_type(*argument_types), objectmode=False)
        entry.entry_point = _load(self._function, *kept)
        dispatcher.add_overload(entry)
        dispatcher.disable_compile()
        return dispatcher

    def _compiled(self, argument_types: Any) -> tuple[str, bytes]:
        """The names of the function for Python and of its environment in an object file, and the file."""
        symbols, module = self._module(argument_types)
        return symbols, _machine().emit_object(module)

    def _module(self, argument_types: Any) -> tuple[str, Any]:
        """These names, and all that the object file is made of."""
        dispatcher = compiled()(self._function)
        dispatcher.compile(argument_types)
        (overload,) = dispatcher.overloads.values()
        symbols = [overload.fndesc.llvm_cpython_wrapper_name, overload.fndesc.env_name]
        module = llvm.parse_assembly(dispatcher.inspect_llvm(overload.signature.args))
        for function in module.functions:
            if not function.is_declaration and function.name not in symbols:
                function.linkage = "internal"
        passes = llvm.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options()))
        return " ".join(symbols), module


def kept(signature: str) -> Any:
    """Decorator: a function that is compiled once for a machine, see `Kept`."""
    return lambda function: Kept(function, signature)


def _processor() -> tuple[str, str]:
    """Name and features of what Numba compiles for."""
    of: Any = cpu_target.target_context.codegen()
    return of._get_host_cpu_name(), of._get_host_cpu_features()


def _machine() -> Any:
    name, features = _processor()
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=3, jit=True)


def _key(signature: str) -> str:
    """All that a function's machine code depends on, as 32 hexadecimal digits."""
    return hashlib.blake2b(_surroundings() + signature.encode(), digest_size=16).hexdigest()


@cache
def _surroundings() -> bytes:
    """What all machine code of this process depends on: sources, versions, processor."""
    found = hashlib.blake2b()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + path.read_bytes())
    versions = [metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
    processor = [llvm.get_default_triple(), *_processor()]
    found.update(json.dumps([sys.version, versions, processor]).encode())
    return found.digest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Processes that start together wait for the first one's code, not for each other's cores."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            lock = stack.enter_context((path.parent / f"{path.name.partition('.')[0]}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> tuple[str, bytes] | None:
    """Symbol and object file, if they are there, ours and whole."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.getuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                log.warning("%s is left aside: another user could have written it", path)
                return None
            checksum, symbol, code = file.read().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    if hashlib.blake2b(symbol + code).hexdigest().encode() != checksum:
        return None
    return symbol.decode("ascii"), code


def _write(path: Path, symbol: str, code: bytes) -> None:
    """Keep an object file in place of the function's former ones; where that cannot be, go on without."""
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(descriptor, "wb") as file:
            checksum = hashlib.blake2b(symbol.encode() + code).hexdigest()
            file.write(f"{checksum}\n{symbol}\n".encode() + code)
        os.replace(temporary, path)
        for former in path.parent.glob(f"{path.name.partition('.')[0]}.*.o"):
            if former != path:
                former.unlink(missing_ok=True)
    except OSError as error:
        log.info("compiled code is not kept in %s (%s): each process compiles anew", path.parent, error.strerror)


def _load(function: Any, symbols: str, code: bytes) -> Any:
    """The function in an object file, as Python calls it, without a look at its arguments' types."""
    _make_symbols_known()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    wrapper, environment_name = symbols.split()
    environment = _dynfunc.Environment(function.__globals__)
    ctypes.c_void_p.from_address(engine.get_global_value_address(environment_name)).value = id(environment)
    address = engine.get_function_address(wrapper)
    module = sys.modules[function.__module__]
    return _dynfunc.make_function(module, function.__name__, function.__doc__ or "", address, environment, (engine,))


@cache
def _make_symbols_known() -> None:
    """Tell LLVM what Numba's code refers to: Python's functions, and those that allocate."""
    rtsys.initialize(cpu_target.target_context)
