"""From what `--reward` says to the reward functions it names."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from evolora.environment import references, resolved
from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.rewards.context import RewardContext
from evolora.rewards.expression import Argument, Expression, Term, parse, written_argument
from evolora.rewards.options import HUMAN
from evolora.rewards.process_state import ProcessState
from evolora.rewards.registry import BUILTIN_REWARDS, READ_VARIABLES, builtin_factory

_registered: dict[str, Reward] = {}

# Arguments of built-in rewards that may name a file or a folder.
_PATHS = ("model", "schema", "function")

# A function's place that cannot be anything else.
_PLACE = re.compile(r"""[^\s()*+,'"<>=:]+:[A-Za-z_]\w*""")

R = TypeVar("R", bound=Reward)


@overload
def register_reward(name: str, function: R) -> R: ...
@overload
def register_reward(name: str, function: None = None) -> Callable[[R], R]: ...
def register_reward(name: str, function: R | None = None) -> R | Callable[[R], R]:
    """Make `function` known as `name` to `--reward` and `load_reward` in this process; returns the function. Without a
    function, a decorator. Raises InputError for a name that is taken or no name: letters, digits, `_` and inner `-`.

    >>> @register_reward("shortness")
    ... def shortness(completions, **kwargs):
    ...     return [1 / (1 + len(completion)) for completion in completions]
    >>> load_reward("shortness")(completions=["abc"])
    [0.25]
    """
    try:
        plain = parse(name).single == Term(name)
    except InputError:
        plain = False
    if not plain or ":" in name:
        raise InputError(f"the reward name is {name!r}, expected letters, digits, '_' and inner '-'.")
    if name in known_rewards():
        raise InputError(
            f"the reward name {name!r} is already taken, expected one besides {', '.join(known_rewards())}."
        )

    def register(function: R) -> R:
        _registered[name] = function
        return function

    return register if function is None else register(function)


def known_rewards() -> list[str]:
    """The names of the built-in and the registered rewards."""
    return [*BUILTIN_REWARDS, *_registered]


def registered(name: str) -> Reward | None:
    """The reward that `register_reward` was given under this name."""
    return _registered.get(name)


def parse_reward(spec: str) -> Expression:
    """The expression that `spec` writes, its names and options checked, its paths made absolute.

    A spec that is one place, or names an existing file with blanks or signs in its path, is one term.
    Raises InputError for what is no expression, for unknown names and for options that a reward does not have.
    """
    path, _, function = spec.rpartition(":")
    whole = function.isidentifier() and (_PLACE.fullmatch(spec) or (path.endswith(".py") and Path(path).is_file()))
    expression = Expression(Term(spec)) if whole else parse(spec)
    return expression.map(_checked)


def load_reward(spec: str, context: RewardContext | None = None) -> Reward:
    """The reward function that `spec` names: a built-in or registered name, with its options in brackets if there are
    any, `path.py:function` or `package.module:function`.

    Raises InputError for an unknown name (listing the known ones), bad options, a missing file, an import that fails, a
    function that is missing or not callable, and for more than one reward.

    >>> load_reward("exact")(completions=["4"], target=["4"])
    [1.0]
    """
    term = parse_reward(spec).single
    if term is None:
        raise InputError(f"--reward {spec!r}: found more than one reward, expected one.")
    return make_reward(term, context or RewardContext())


def make_reward(term: Term, context: RewardContext) -> Reward:
    """The reward function of a term, its texts with the values of the variables that they name. Raises InputError as
    `load_reward` does."""
    if references(term.name):
        named = parse_reward(resolved(term.name)).single
        if named is None:
            raise InputError(f"--reward {term}: found more than one reward in it, expected one.")
        term = named
    if term.name in _registered:
        return _registered[term.name]
    if term.is_function:
        return load_function(term.name)
    more = {"context": context} if needs_context(term) else {}
    late = term.name in READ_VARIABLES
    options = {name: value if late or not isinstance(value, str) else resolved(value) for name, value in term.options}
    return builtin_factory(term.name)(**options, **more)


def needs_context(term: Term) -> bool:
    """Whether a term's reward is made from the run that it is for."""
    return term.name in BUILTIN_REWARDS and "context" in inspect.signature(builtin_factory(term.name)).parameters


def load_function(spec: str) -> Reward:
    """The function at `path.py:function` or `package.module:function`.

    A file is run anew at each call, as a module of its own, with its folder first on `sys.path` until it is imported,
    so that it can import its neighbours; a module is imported with the working folder first on `sys.path`.

    Raises InputError for a missing file, an import that fails, a function that is missing or not callable.
    """
    place, colon, attribute = spec.rpartition(":")
    if not (place and colon and attribute):
        raise InputError(f"--reward is {spec!r}, expected path.py:function or package.module:function.")
    module = _import_file(Path(place), spec) if _is_file(place) else _import_module(place, spec)
    function = getattr(module, attribute, None)
    if function is None:
        raise InputError(f"--reward {spec} finds nothing named {attribute!r} in {place}, expected a function.")
    if not callable(function):
        raise InputError(f"--reward {spec} finds a {type(function).__name__}, expected a function.")
    reward: Reward = function
    return reward


def _checked(term: Term) -> Term:
    """The term with every argument named, of its option's type, and paths absolute. Raises InputError."""
    if term.is_function:
        path, _, function = term.name.rpartition(":")
        located = _is_file(path) and not references(term.name)
        return Term(f"{Path(path).absolute()}:{function}") if located else term
    if term.name == HUMAN:
        raise InputError("--reward human stands alone: expected no options and no other rewards beside it.")
    if term.name not in known_rewards():
        raise InputError(
            f"--reward is {term.name!r}, expected one of {', '.join([*known_rewards(), HUMAN])}, or path.py:function, "
            "or package.module:function."
        )
    if term.name in _registered:
        if term.positional or term.options:
            raise InputError(f"--reward {term}: found options, expected none for a registered reward.")
        return term
    return with_named_options(term, builtin_factory(term.name))


def with_named_options(term: Term, factory: Callable[..., object]) -> Term:
    """The term with every argument named, of the type that `factory` has for it, and paths absolute. Raises
    InputError."""
    options = [name for name in inspect.signature(factory).parameters if name != "context"]
    if len(term.positional) > len(options):
        raise InputError(f"--reward {term}: found {len(term.positional)} arguments, expected {_listed(options)}.")
    named = dict(zip(options, term.positional, strict=False))
    for name, value in term.options:
        if name not in options or name in named:
            found = "twice" if name in named else "unknown"
            raise InputError(f"--reward {term}: the option {name} is {found}, expected {_listed(options)}.")
        named[name] = value
    hints = get_type_hints(factory)
    checked = {name: _typed(term, name, value, hints[name]) for name, value in named.items()}
    required = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty and name not in checked and name != "context"
    ]
    if required:
        raise InputError(f"--reward {term}: found no {required[0]}, expected {term.name}({required[0]}=...).")
    return replace(term, positional=(), options=tuple(checked.items()))


def _typed(term: Term, option: str, value: Argument, hint: Any) -> Argument:
    """The value as its option's type has it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, bool) and bool in kinds:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and int in kinds:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and float in kinds:
        return float(value)
    if str in kinds and value is not None:
        text = value if isinstance(value, str) else written_argument(value)
        return _absolute(text) if option in _PATHS else text
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    expected = " or ".join(words[kind] for kind in kinds)
    raise InputError(f"--reward {term}: {option} is {value!r}, expected {expected}.")


def _absolute(text: str) -> str:
    """The path of a file, a folder or a file's function made absolute; any other text, such as a hub name, as it is."""
    if references(text):
        return text
    path, colon, function = text.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).absolute()}:{function}"
    return str(Path(text).absolute()) if Path(text).exists() else text


def _listed(options: list[str]) -> str:
    return f"at most {', '.join(options)}" if options else "none"


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
        with ProcessState(f"importing {spec}").kept():
            yield
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--reward {spec} cannot be imported ({what}), expected code that imports cleanly.") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
