"""Processes of a world: they run until they end, are killed, or raise what nobody expected."""

import asyncio
from collections.abc import Callable, Coroutine

from simulator.crash.annals import Violation
from simulator.disk_faults import PowerCut

__all__ = ["CrashNow", "Fuse", "Process"]


class CrashNow(BaseException):
    """The process is gone. No error: nobody may handle it but the world."""


class Fuse:
    """Lets so many calls through, then the process is gone.

    Args:
        calls: how many; ``None`` for as many as come.
    """

    def __init__(self, calls: int | None = None) -> None:
        self.left = calls

    def burn(self) -> None:
        """One call.

        Raises:
            CrashNow: it was one too many.
        """
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise CrashNow


class Process:
    """A program and its end. What ends it unasked is reported.

    Args:
        tasks: where it runs.
        name: for reports.
        report: is told of a program that raised.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, name: str, report: Callable[[str, str], None]
    ) -> None:
        self._tasks = tasks
        self._name = name
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._killed = False

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._task is not None and not self._task.done()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Starts the program. It does not run yet."""
        assert not self.running, f"{self._name} runs already"
        self._killed = False
        self._task = self._tasks.create_task(self._guarded(work), name=self._name)

    async def kill(self) -> None:
        """Ends it here and now, in the middle of whatever it does."""
        self._killed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            if not self._killed:
                raise
        except BaseException as error:  # noqa: BLE001  # whatever a program raises is a finding
            if not self._killed and not _is_end(error):
                self._report(self._name, _told(error))


def _is_end(error: BaseException) -> bool:
    """Whether the power went, which is no fault of the program's."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_end(one) for one in error.exceptions)
    return isinstance(error, PowerCut | CrashNow)


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(one) for one in error.exceptions if not _is_end(one))
    if isinstance(error, Violation):
        return str(error)
    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where, trace = f"{code.co_filename}:{trace.tb_lineno} {code.co_name}", trace.tb_next
    return f"{type(error).__name__}: {error} (at {where})"
