"""Names of a package that are imported when they are first asked for (PEP 562): the command line answers at once."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package; `modules` has, by module, the names that are its, separated by blanks. The
    package gets a `__dir__` with these names, too.

    >>> lazily("evolora", {"evolora.errors": "InputError RewardError"})("InputError").__name__
    'InputError'
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    own = vars(sys.modules[package])
    own.setdefault("__dir__", lambda: sorted({*own, *homes}))
    return find
