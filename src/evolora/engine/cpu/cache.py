"""Where compiled kernels are kept: in the user's cache folder, where every environment of the same version finds them.

A folder is of one key: all the kernels' sources, Python, numba, LLVM and the processor. A file in it is one function
for one list of argument types. numba's own files are not used: they go by a source file's path and time, and two
processes that write one function's index at a time may lead to each other's code.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import pickle
import secrets
import shutil
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import bytecode, sigutils
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

from evolora.files import user_cache

_UNUSED_SECONDS = 30 * 24 * 3600
_DIGEST_BYTES = hashlib.sha256().digest_size
# Another one where what is in a file changes.
_FORMAT = 2

# numba tells functions of one name, such as the parts of its own library that are made anew for each use, apart by a
# number that each process counts from 1. What several processes compile becomes parts of one program here: each counts
# from a place of its own. Results have the same bits whatever the numbers.
bytecode.FunctionIdentity._unique_ids = itertools.count(secrets.randbelow(2**40) << 16)


def folder() -> Path:
    """Where this installation's kernels are kept; it may not be there yet."""
    given = numba.config.CACHE_DIR  # NUMBA_CACHE_DIR
    return (Path(given) / "evolora" if given else user_cache() / "kernels") / key()


@functools.cache
def key() -> str:
    """What machine code depends on, hashed. Paths and times are no part of it: copies of one version share it."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        if b"@compiled(" in source or b"from numba.extending" in source:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + source + b"\0")
    features = llvm.get_host_cpu_features().flatten()
    versions = _FORMAT, sys.implementation.cache_tag, numba.__version__, llvmlite.__version__, np.__version__
    digest.update(repr((*versions, llvm.get_process_triple(), llvm.get_host_cpu_name(), features)).encode())
    return digest.hexdigest()[:32]


def unwritable() -> str | None:
    """Why nothing can be kept, in words; None where it can."""
    try:
        _make_folder()
        probe = folder() / f"probe.{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:  # no home folder is a RuntimeError
        return str(error)
    return None


def _make_folder() -> None:
    """With folders of other versions gone that have not been used for long."""
    own = folder()
    if own.is_dir():
        return
    own.mkdir(parents=True, exist_ok=True)
    for other in own.parent.iterdir():
        with contextlib.suppress(OSError):
            if other.is_dir() and other != own and time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(other)


@functools.cache
def _mark_as_used(used: Path) -> None:
    """Once a process, in a folder's time."""
    with contextlib.suppress(OSError):
        os.utime(used)


def parts(function: Any) -> set[Any]:
    """The kernels that `function` calls, and those that these call."""
    found: set[Any] = set()
    rest = [function]
    while rest:
        function = rest.pop()
        called = [function.__globals__.get(name) for name in function.__code__.co_names]
        new = {each for each in called if isinstance(each, CPUDispatcher)} - found
        found |= new
        rest += [kernel.py_func for kernel in new]
    return found


class _Copy(NamedTuple):
    """A kernel of which another one's machine code has a copy."""

    module: str
    name: str
    types: tuple[Any, ...]
    symbol: str

    def load(self) -> bool:
        """Load the kernel itself; false where it is another one than the copy was made of."""
        kernel = getattr(import_module(self.module), self.name)
        kernel.compile(self.types)
        return bool(kernel.overloads[self.types].fndesc.mangled_name == self.symbol)


class KernelCache(_Cache):  # type: ignore[misc]
    """What a dispatcher of numba asks for the compiled versions of one function of this package."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str:
        return str(folder())

    def path(self, types: Any) -> Path:
        """The file of one version."""
        # The name of a type says all of it that machine code depends on.
        arguments, _ = sigutils.normalize_signature(types)
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        version = hashlib.sha256(f"{name}{arguments}".encode()).hexdigest()[:16]
        return folder() / f"{name.removeprefix('evolora.engine.cpu.')}-{version}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        if not self._enabled:
            return None
        try:
            path = self.path(sig)
            stored = path.read_bytes()
        except (OSError, RuntimeError):
            return None
        _mark_as_used(path.parent)
        digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:  # cut short where the machine lost its power
            return None
        reduced, copies = pickle.loads(data)
        if not all(copy.load() for copy in copies):
            return None
        return CompileResult._rebuild(target_context, *reduced)

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled or data.lifted or data.library.has_dynamic_globals:
            return
        reduced = dumps((data._reduce(), self._copies(data.library)))
        try:
            _make_folder()
            path = self.path(sig)
            temporary = path.with_suffix(f".{secrets.token_hex(8)}.part")
            try:
                temporary.write_bytes(hashlib.sha256(reduced).digest() + reduced)
                temporary.replace(path)  # whole or not at all
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            _say_once(f"the compiled CPU kernels cannot be kept, and will be compiled again: {error}")

    def _copies(self, library: Any) -> list[_Copy]:
        defined = {function.name for function in library._final_module.functions if not function.is_declaration}
        return [
            _Copy(kernel.__module__, kernel.__name__, types, compiled.fndesc.mangled_name)
            for kernel in parts(self._function)
            for types, compiled in kernel.overloads.items()
            if compiled.fndesc.mangled_name in defined and kernel.py_func is not self._function
        ]

    def has(self, types: Any) -> bool:
        """Whether there is a file for these argument types."""
        try:
            return self.path(types).is_file()
        except (OSError, RuntimeError):
            return False

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing is kept in memory."""


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
