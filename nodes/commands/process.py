"""What every long-running command has in common: signals, logging, errors, exit codes.

SIGTERM and SIGINT drain: the role stops taking, and what it holds goes on its way within a stated
time. SIGHUP reads the configuration again: when it is right the role ends in order and begins anew
with it; when it is wrong the role goes on as it was and the log says what is wrong. A second SIGINT
ends at once.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NoReturn

from mesh.adapters.system import SystemClock
from schemas.errors import MeshError

__all__ = [
    "Ending",
    "LogObserver",
    "escaped",
    "fail",
    "first_of",
    "log_to_stderr",
    "run_role",
    "told",
]

_LOGGER: Final = logging.getLogger("holdfast")


@dataclass(slots=True)
class Ending:
    """Why a role must end: asked to stop, or to begin anew."""

    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    reload: bool = False

    def stop(self) -> None:
        """The role ends for good."""
        self.reload = False
        self.wanted.set()

    def renew(self) -> None:
        """The role ends, and begins anew."""
        self.reload = True
        self.wanted.set()


def run_role(role: Callable[[Ending], Awaitable[None]], check: Callable[[], object]) -> None:
    """Runs a role until it is told to end.

    Again after each SIGHUP that finds the configuration right.

    Args:
        role: runs until ``Ending.wanted``.
        check: reads the configuration; raises when it is wrong.

    Raises:
        MeshError: what the role could not go on from.
    """
    while asyncio.run(_run_once(role, check)):
        _LOGGER.info("configuration read again; beginning anew")


async def _run_once(role: Callable[[Ending], Awaitable[None]], check: Callable[[], object]) -> bool:
    ending = Ending()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if ending.wanted.is_set():
            raise KeyboardInterrupt
        ending.stop()

    def checked(job: "asyncio.Future[object]") -> None:
        wrong = job.exception()
        if wrong is None:
            ending.renew()
        else:
            _LOGGER.error("SIGHUP: going on as before: %s", wrong)

    def renew() -> None:
        # In a thread: loading a model takes a while, and decisions do not wait for it.
        loop.run_in_executor(None, check).add_done_callback(checked)

    loop.add_signal_handler(signal.SIGTERM, ending.stop)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGHUP, renew)
    await role(ending)
    return ending.reload


def first_of(errors: BaseExceptionGroup[MeshError]) -> MeshError:
    """The first error of a group of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MeshError), "the group holds nothing else"
    return error


def log_to_stderr(level: str) -> None:
    """Logs to standard error, times in RFC 3339 with ``Z``, control characters escaped."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class _Formatter(logging.Formatter):
    """``2026-11-23T14:46:07.123Z level logger text``, one line for each record."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s %(message)s")
        self._clock = SystemClock()

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{told(self._clock.now().wall_ns)} {escaped(text)}"


class LogObserver:
    """Tells the log what is observed, where nothing better listens."""

    def observe(self, event: object) -> None:
        """Logs one event."""
        _LOGGER.warning("%s", event)


def told(wall_ns: int) -> str:
    """A moment in RFC 3339 with ``Z``, to the millisecond."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def escaped(text: str) -> str:
    """Text whose control characters cannot reach a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fail(error: MeshError) -> NoReturn:
    """Tells a person what is wrong, line by line, and ends with the error's exit code."""
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"holdfast: {escaped(line)}", file=sys.stderr)  # noqa: T201 - to a person
    sys.exit(error.exit_code)
