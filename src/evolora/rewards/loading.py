"""From a name or a place in the user's code to a reward function."""

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar, overload

from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.rewards.json_object import json_object
from evolora.rewards.sentiment import sentiment
from evolora.rewards.text import exact, similarity

BUILTIN_REWARDS: dict[str, Reward] = {
    "similarity": similarity,
    "exact": exact,
    "sentiment": sentiment,
    "json": json_object,
}

_registered: dict[str, Reward] = {}

R = TypeVar("R", bound=Reward)


@overload
def register_reward(name: str, function: R) -> R: ...
@overload
def register_reward(name: str, function: None = None) -> Callable[[R], R]: ...
def register_reward(name: str, function: R | None = None) -> R | Callable[[R], R]:
    """Make `function` known as `name` to `load_reward` in this process; returns the function. Without a function, a
    decorator. Raises InputError for a name that is taken, empty or holds a colon.

    >>> @register_reward("shortness")
    ... def shortness(completions, **kwargs):
    ...     return [1 / (1 + len(completion)) for completion in completions]
    >>> load_reward("shortness")(completions=["abc"])
    [0.25]
    """
    if not name or ":" in name:
        raise InputError(f"the reward name is {name!r}, expected text without a colon.")
    if name in _known():
        raise InputError(f"the reward name {name!r} is already taken, expected one besides {', '.join(_known())}.")

    def register(function: R) -> R:
        _registered[name] = function
        return function

    return register if function is None else register(function)


def load_reward(spec: str) -> Reward:
    """The reward function that `spec` names: a built-in or registered name, or a place that `load_function` takes.

    Raises InputError for an unknown name (listing the known ones), and as `load_function` does.

    >>> load_reward("exact")(completions=["4"], target=["4"])
    [1.0]
    """
    if spec in _known():
        return _known()[spec]
    return load_function(spec)


def load_function(spec: str) -> Reward:
    """The user's function at `path.py:function` or `package.module:function`.

    A file is run anew at each call, as a module of its own, with its folder first on `sys.path` until it is imported,
    so that it can import its neighbours; a module is imported with the working folder first on `sys.path`.

    Raises InputError for text that is no place, a missing file, an import that fails, a function that is missing or not
    callable.

    >>> load_function("evolora.rewards:exact")(completions=["4"], target=["4"])
    [1.0]
    """
    place, colon, attribute = spec.rpartition(":")
    if not (place and colon and attribute):
        raise InputError(
            f"--reward is {spec!r}, expected one of {', '.join(_known())}, or path.py:function, "
            "or package.module:function."
        )
    module = _import_file(Path(place), spec) if _is_file(place) else _import_module(place, spec)
    function = getattr(module, attribute, None)
    if function is None:
        raise InputError(f"--reward {spec} finds nothing named {attribute!r} in {place}, expected a function.")
    if not callable(function):
        raise InputError(f"--reward {spec} finds a {type(function).__name__}, expected a function.")
    reward: Reward = function
    return reward


def _known() -> dict[str, Reward]:
    return {**BUILTIN_REWARDS, **_registered}


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        found = "a file of another kind" if path.is_file() else "no file"
        raise InputError(f"--reward {spec} finds {found} at {path}, expected an existing .py file.")
    path = path.resolve()
    # Neither the name of an installed module nor that of another reward file; the same in every process.
    name = f"evolora_reward_{path.stem}_{hashlib.blake2b(bytes(path), digest_size=6).hexdigest()}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look there
    with _importing(str(path.parent), spec):
        try:
            module_spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    with _importing(str(Path.cwd()), spec):
        return importlib.import_module(name)


@contextlib.contextmanager
def _importing(folder: str, spec: str) -> Iterator[None]:
    """With `folder` first on `sys.path`, and what the imported code raises as an InputError."""
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--reward {spec} cannot be imported ({what}), expected code that imports cleanly.") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
