"""A Ray cluster: one of this machine's own for as long as a run takes, or one that is there."""

import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from evolora.errors import InputError
from evolora.signals import ENDING

_SECONDS_TO_ANSWER = 10.0


def connect(address: str | None, *, cpus: int) -> bool:
    """Join the cluster at an `address`, or start one on this machine with room for so many CPUs. Whether it is this
    process's own, and to be ended with it.

    Raises InputError where Ray is not installed, or where there is no cluster to be joined.
    """
    # Ray reads these when it is imported. It would send statistics of its use, upload the working directory under
    # `uv run`, and give workers less of a busy machine than this process has.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    said = "--workers" if address is None else f"--ray {address}"
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(f"{said}: found no package ray, expected it installed: pip install 'evolora[ray]'") from None
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _own_signals():
        if address is None:
            with _refused(f"{said}: Ray cannot be started on this machine", "that it can, or less else to run"):
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
            return True
        if address != "auto":
            _knock(address)
        with _refused(f"{said}: cannot be joined", "a cluster that lets this machine in"):
            try:
                ray.init(address, **quiet)
            except ConnectionError:
                raise InputError(f"{said}: found no Ray there, expected a cluster that is running") from None
    return True


@contextlib.contextmanager
def _refused(said: str, expected: str) -> Iterator[None]:
    """Errors are of many kinds: no port, no room for its files, nobody who answers, another version, no token."""
    import ray

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        ray.shutdown()
        raise InputError(f"{said} ({' '.join(str(error).split())[:300]}), expected {expected}") from None


def leave() -> None:
    """End what `connect` began."""
    import ray

    with _own_signals():
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray tries for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray {address}: found no Ray there ({error}), expected a cluster that is running") from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts its own handler in the place of this program's."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):  # in another thread, or not set by Python
                signal.signal(number, handler)


def room(*, cpus: float, gpus: float) -> int:
    """How many workers that take so much the cluster has room for, were it empty."""
    import ray

    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [math.floor(has.get("CPU", 0) / cpus)]
            if gpus:
                whole = math.floor(has.get("GPU", 0))
                # Parts of one GPU are of that one alone.
                fits.append(whole * math.floor(1 / gpus) if gpus < 1 else math.floor(whole / gpus))
            found += min(fits)
    return found
