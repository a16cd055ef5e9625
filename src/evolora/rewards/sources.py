"""What a reward is made of, by checksums: whether it is still the one that a run was scored by."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from evolora.files import file_sha256
from evolora.rewards.base import Reward
from evolora.rewards.expression import Argument, Expression, Term
from evolora.rewards.loading import registered


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
    bound = ""
    while isinstance(function, functools.partial):
        bound += f"{function.args!r}{function.keywords!r}"
        function = function.func
    try:
        code = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):  # typed at a prompt
        return {}
    return {term.label: hashlib.sha256(f"{code}{bound}".encode()).hexdigest()}


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
