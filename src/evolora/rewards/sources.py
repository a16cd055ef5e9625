"""What a reward is made of, by checksums: whether it is still the one that a run was scored by."""

import ast
import contextlib
import dis
import functools
import hashlib
import importlib.util
import inspect
import shlex
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from evolora.files import file_sha256
from evolora.rewards.base import Reward
from evolora.rewards.expression import Argument, Expression, Term
from evolora.rewards.loading import registered

# What a function reads of its module, or of what is around it, and does not change by itself.
_LASTING = (
    (bool, int, float, str, bytes, tuple),
    FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, functools.partial,
)  # fmt: skip


def reward_sources(expression: Expression, functions: Mapping[str, Reward]) -> dict[str, str]:
    """The checksum of each file and function that the rewards of an expression come from, by its path or name: a
    function's file and the modules that it imports from its own folder, the source of a function that was given as an
    object, where it can be had, and files, folders and programs that a reward's options name."""
    found: dict[str, str] = {}
    for term in expression.terms:
        own = functions.get(term.name) or registered(term.name)
        if own is not None:
            found |= _function(term, own)
        elif term.is_function:
            found |= _place(term.name)
        for _, value in term.options:
            found |= _argument(value)
    return found


def _function(term: Term, function: object) -> dict[str, str]:
    """Of a function that was given as an object: its code, with all that it calls and reads of its own files."""
    files: set[Path] = set()
    text = "\n".join(_described(function, set(), files))
    return {term.label: hashlib.sha256(text.encode()).hexdigest(), **_sums(files)}


def _described(value: object, seen: set[int], files: set[Path]) -> Iterator[str]:
    """What a value is, the same in every process. The `files` of modules that are not installed are added."""
    if id(value) in seen or isinstance(value, (bool, int, float, str, bytes, type(None))):
        yield repr(value) if id(value) not in seen else "again"
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield from _described(part, seen, files)
    elif isinstance(value, Mapping):
        for key, own in value.items():
            yield repr(key)
            yield from _described(own, seen, files)
    elif isinstance(value, (list, tuple)):
        for own in value:
            yield from _described(own, seen, files)
    elif isinstance(value, ModuleType):
        if (path := _own_file(value)) is not None:
            files |= _imported(path, path.parent)
        yield value.__name__
    elif inspect.ismethod(value):
        yield from _described(value.__func__, seen, files)
        yield from _described(value.__self__, seen, files)
    elif inspect.isroutine(value) or isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        if _own_file(value) is not None or _is_typed(value):
            yield from _code(value, seen, files)
    else:  # what an object holds may change from call to call
        yield from _described(type(value), seen, files)


def _code(value: Any, seen: set[int], files: set[Path]) -> Iterator[str]:
    """The source of a function or class, and what it reads of its module: functions, classes, modules and constants,
    which no function of it sets."""
    try:
        yield inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt
        yield repr(getattr(getattr(value, "__code__", None), "co_code", b""))
    names = getattr(inspect.getmodule(value), "__dict__", {})
    for function in [value] if inspect.isfunction(value) else filter(inspect.isfunction, vars(value).values()):
        codes = [function.__code__]
        for code in codes:
            codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
            changed = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"}
            for name in code.co_names:
                if name in names and name not in changed and isinstance(names[name], _LASTING):
                    yield name
                    yield from _described(names[name], seen, files)
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # empty
                if isinstance(cell.cell_contents, _LASTING[1:]):
                    yield from _described(cell.cell_contents, seen, files)


def _is_typed(value: Any) -> bool:
    """Whether a function was typed at a prompt, or made by `exec`: it has no file."""
    return inspect.isfunction(value) and not Path(value.__code__.co_filename).is_file()


def _own_file(value: Any) -> Path | None:
    """The source file of what is not installed; `__main__` has one, too."""
    try:
        path = Path(inspect.getsourcefile(value) or "").resolve()
    except (OSError, TypeError):
        return None
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    own = path.is_file() and not any(path.is_relative_to(folder) for folder in installed)
    return path if own and not path.is_relative_to(Path(__file__).parents[1]) else None


def _argument(value: Argument) -> dict[str, str]:
    """What a text names: a function's place, a folder, or files among the words of a command."""
    if not isinstance(value, str):
        return {}
    path, colon, function = value.rpartition(":")
    if colon and path.endswith(".py") and function.isidentifier():
        return _place(value)
    try:
        if Path(value).is_dir():
            files = [file for file in sorted(Path(value).iterdir()) if file.is_file()]
        else:
            files = [Path(word) for word in (value, *shlex.split(value)) if Path(word).is_file()]
    except (ValueError, OSError):  # no path, and no command
        return {}
    return _sums(files)


def _place(spec: str) -> dict[str, str]:
    """The files behind `path.py:function` or `package.module:function`."""
    place = spec.rpartition(":")[0]
    if place.endswith(".py"):
        path = Path(place)
        return _sums(_imported(path, path.resolve().parent))
    if local := list(_modules(Path.cwd(), place)):
        return _sums({file for module in local for file in _imported(module, Path.cwd())})
    # What is installed is known by its version: its own imports are not followed.
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(place)
        if found is not None and found.origin is not None and Path(found.origin).is_file():
            return _sums([Path(found.origin)])
    return {}


def _imported(path: Path, root: Path) -> set[Path]:
    """A source file and all that it imports, directly or not, from below `root`."""
    found, waiting = set[Path](), [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += [module for name in _names(file, root) for module in _modules(root, name)]
    return found


def _names(file: Path, root: Path) -> Iterator[str]:
    """The dotted names that a source file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    package = file.relative_to(root).with_suffix("").parts[:-1] if file.is_relative_to(root) else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*inside, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" if module else alias.name for alias in node.names)


def _modules(root: Path, name: str) -> Iterator[Path]:
    """The files below `root` that importing a dotted name would run."""
    parts = name.split(".") if name else []
    for end in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:end])
        yield from (file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file())


def _sums(files: set[Path] | list[Path]) -> dict[str, str]:
    return {str(file): file_sha256(file) for file in sorted(files)}
