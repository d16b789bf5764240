"""Waiting inside an adapter: for something to change, and for its tasks to end."""

import asyncio

__all__ = ["WaitingLine", "leave"]


class WaitingLine:
    """Those who wait are woken together, in the order in which they came, and look for themselves.

    Its length is bounded by the number of tasks: each waits at most once.
    """

    def __init__(self) -> None:
        self._turns: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Returns at the next ``wake``."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        finally:
            if turn in self._turns:
                self._turns.remove(turn)

    def wake(self) -> None:
        """Lets all go on that wait now."""
        if not self._turns:
            return
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)


async def leave(tasks: asyncio.TaskGroup, error: BaseException | None) -> None:
    """Waits for the tasks of an adapter that is left; they have been cancelled.

    Entered by hand, a task group would wrap each error of the caller's own block in an
    ``ExceptionGroup``. It is only told of a cancellation, which may have been its own doing.

    Args:
        tasks: entered before.
        error: what ends the block of the caller.
    """
    if isinstance(error, asyncio.CancelledError):
        await tasks.__aexit__(type(error), error, error.__traceback__)
    else:
        await tasks.__aexit__(None, None, None)
