"""Where async rewards run."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable
from typing import Any


class EventLoop:
    """One event loop in a daemon thread of its own, started when it is first needed, so that async rewards also run
    where the calling thread has a loop already (Jupyter), and may keep connections open from call to call.

    >>> async def double(x):
    ...     return 2 * x
    >>> loop = EventLoop()
    >>> loop.run(double(4))
    8
    >>> loop.close()
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Any = None

    def run(self, awaitable: Awaitable[object]) -> object:
        """What `awaitable` returns; what it raises is raised."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run, args=(self._loop,), name="evolora-async-reward", daemon=True)
            thread.start()
            self._stop = weakref.finalize(self, _stop, self._loop, thread)
        future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C the coroutine would go on
            raise

    def close(self) -> None:
        """End the thread; a later `run` starts another."""
        if self._loop is not None:
            self._stop()
            self._loop = None


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while not loop.is_closed():
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            continue  # asyncio hands these to the future and stops the loop as well
        break
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:  # what they close may take a moment; a task that does not end is left behind
        loop.run_until_complete(asyncio.wait(left, timeout=2))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=5)
