"""A thread that works for an event loop: an executor for ``loop.run_in_executor``.

The standard library's pool costs some fifty microseconds a job, most of it for a second kind of
future and its locks. A spool hands over a group for each sync of the disk, which takes about as
long, so the way there and back matters. This one hands jobs over through a queue in C and gives
back a future of the loop itself, which ``run_in_executor`` passes on as it is.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

__all__ = ["LoopThread"]

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]
_END: Final = None


class LoopThread(Executor):
    """One thread; its jobs run one after another, in the order in which they were handed over.

    Only a running loop hands jobs over. Nobody else cancels them: a job runs once it was taken.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(  # type: ignore[override]  # a future of the loop, as the module says
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,  # noqa: ANN401 - as of the base class
    ) -> "asyncio.Future[Any]":
        """Hands a job over.

        Returns:
            A future of the running loop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((loop, future, fn, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class says so
        """Lets the thread end once it has done what was handed over."""
        del cancel_futures
        self._jobs.put(_END)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, fn, args = job
            try:
                result = fn(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
                done: Callable[..., None] = _fail
                result = error
            else:
                done = _succeed
            with suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(done, future, result)
            del job, future, fn, args, result


def _succeed(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
