"""What runs in a worker process: the file is the program, started with `python -P worker.py`.

It reads one line with what it is to load, then one line for each chunk of completions, and answers each with a line of
JSON. It does not import torch unless the reward does. See `workers.py` for the other side.
"""

import base64
import contextlib
import faulthandler
import importlib.util
import inspect
import json
import os
import pickle
import queue
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from evolora.rewards.base import Reward


def main() -> None:
    """Load the reward and answer until stdin ends."""
    # What the reward prints must not get between the answers, and it has no keyboard.
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    faulthandler.enable()
    _outlive_signals()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked, lines), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, default=repr).encode() + b"\n")
        answers.flush()

    setup = json.loads(lines.get())
    sys.path[:] = setup["path"]
    sys.argv[:] = setup["argv"]
    _use_evolora_lightly()
    from evolora.errors import InputError

    try:
        reward = _load(setup)
        described = _describe(reward)
    except InputError as error:
        answer({"refused": str(error)})
        return
    except (Exception, SystemExit) as error:
        answer({"unloadable": " ".join(f"{type(error).__name__}: {error}".split())})
        return
    answer(described)

    from evolora.rewards.calling import Logged, call_reward
    from evolora.rewards.event_loop import EventLoop

    loop = EventLoop()
    while True:
        line = lines.get()
        chunk = pickle.loads(base64.b64decode(line))
        if chunk["limit"] is not None:
            # Where the parent is gone and the reward holds Python's lock forever, only this ends it.
            faulthandler.dump_traceback_later(chunk["limit"] + 5, exit=True)
        logged = Logged()
        keywords = chunk["keywords"]
        for name in chunk["logs"]:
            keywords[name] = getattr(logged, name)
        values = call_reward(reward, keywords, chunk["count"], loop)
        faulthandler.cancel_dump_traceback_later()
        answer(
            {
                "values": [_plain(value) for value in values] if isinstance(values, list) else _plain(values),
                "metrics": logged.metrics,
                "extra": logged.extra,
            }
        )


def _outlive_signals() -> None:
    """What ends all processes of a job at once must not end this one before its parent, which may have work for it yet;
    it ends with its parent. What the reward forks has the usual handlers."""
    own = os.getpid()

    def ignore(number: int, _: object) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), ignore)


def _read(asked: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    """On a thread of its own, so that the end of the parent is noticed while the reward is busy."""
    for line in asked:
        lines.put(line)
    with contextlib.suppress(OSError, AttributeError):
        if os.getpgid(0) == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _use_evolora_lightly() -> None:
    """Let `evolora.rewards` be imported without what `evolora/__init__.py` imports, torch for one: a worker that is
    replaced should not take seconds to start. Whoever asks the package itself for a name gets it as ever."""
    if "evolora" in sys.modules:
        return
    folder = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "evolora", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def whole(name: str) -> object:
        if name.startswith("__") or "__getattr__" not in vars(package):
            raise AttributeError(f"module 'evolora' has no attribute {name!r}")
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = whole  # type: ignore[method-assign]
    sys.modules["evolora"] = package


def _load(setup: dict[str, Any]) -> "Reward":
    from evolora.rewards.loading import load_function, load_reward

    if setup["spec"] is not None:
        return load_reward(setup["spec"])
    if setup["main"] is not None:
        _import_main(setup["main"])
    for file_and_name in setup["files"]:
        load_function(file_and_name)  # leaves the module where pickle looks for it
    reward: Reward = pickle.loads(base64.b64decode(setup["pickle"]))
    return reward


def _import_main(path: str) -> None:
    """The parent's script as a module, as multiprocessing does it: its `if __name__ == "__main__"` does not run."""
    spec = importlib.util.spec_from_file_location("__mp_main__", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)


def _describe(reward: "Reward") -> dict[str, Any]:
    from evolora.rewards.base import compares, parameters, reward_name

    return {
        "name": reward_name(reward),
        "compares": compares(reward),
        "version": getattr(reward, "version", None),
        "parameters": [
            [one.name, int(one.kind), one.default is not inspect.Parameter.empty] for one in parameters(reward)
        ],
    }


def _plain(value: object) -> object:
    """A value as JSON: a failure with its traceback as text."""
    from evolora.rewards.base import FailedReward
    from evolora.rewards.calling import user_traceback

    if not isinstance(value, FailedReward):
        return value
    shown = [user_traceback(value.exception)] if value.exception is not None else []
    return {"what": value.what, "details": "\n".join([*shown, *([value.details] if value.details else [])])}


if __name__ == "__main__":
    main()
