"""A process that compiles kernels for another: run as a script by `compile`, which writes what to compile to its input.

It imports the modules of kernels and not the package, whose models and rewards would take longer than most kernels do.
"""

import gc
import pickle
import signal
import sys
import types
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Answer each version that can be read with a line, done or failed, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    gc.disable()  # a tenth of the time, for nothing in a process of seconds
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that is imported may write between the answers
    sys.path[:] = pickle.load(requests)
    package = types.ModuleType("evolora")
    package.__path__ = [str(Path(__file__).parents[2])]
    sys.modules["evolora"] = package
    while True:
        try:
            module, name, argument_types = pickle.load(requests)
        except EOFError:
            return
        try:
            getattr(import_module(module), name).compile(argument_types)
            answers.write(b"done\n")
        except Exception:
            answers.write(b"failed\n")
        answers.flush()


if __name__ == "__main__":
    main()
