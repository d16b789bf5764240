"""Virtual time: an event loop that never waits, and clocks that read it.

Invariants:

1. Time passes only when nothing is ready to run: the loop then jumps to its next timer. A simulated
   week of sleep costs microseconds.
2. Time never goes back, and is a whole number of nanoseconds, so that years do not wear it out.
3. Nothing but the program and its seed decides what runs next: there are no threads, what an
   executor would do runs here, and no real socket is waited for. The same seed gives the same run.
4. When nothing is ready and no timer is set, nothing will ever happen: the loop raises
   ``Stalled`` where a real one would hang.

An executor is one virtual thread: its calls queue, and each takes the virtual time that it spends
(``VirtualLoop.spend``; a simulated disk does that). What it did is visible when it begins, what it
returns is delivered when it ends, and the loop runs on in between, as with a real thread.
"""

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from mesh.ports import Clock
from schemas.messages import Instant

__all__ = ["SimClock", "Stalled", "VirtualLoop", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_WALL_NS: Final = 1_767_225_600_000_000_000
"""2026-01-01 in UTC: when a simulated world begins unless it is told otherwise."""

_NS: Final = 1_000_000_000
_TURNS_A_LOOK: Final = 64


class Stalled(RuntimeError):
    """Everything waits, and no timer is set: a deadlock of the program under test."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, which begins at 0.

    Args:
        call_seconds: how long each call in an executor takes at least, virtually.
    """

    def __init__(self, call_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._ns = 0
        self._call_seconds = call_seconds
        self._spent_ns: int | None = None
        self._queues: dict[Executor | None, deque[Callable[[], None]]] = {}
        super().__init__(_JumpingSelector(self))
        self._set_resolution()

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self.time():.9f} s>"

    @property
    def elapsed_ns(self) -> int:
        """Virtual nanoseconds since the loop was made."""
        return self._ns

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._ns / _NS

    def spend(self, seconds: float) -> None:
        """Lets virtual time pass for the caller, as a slow system call would.

        In an executor's call the caller alone is held up. On the loop itself the loop is: time
        jumps, and timers that fell due run late.

        Args:
            seconds: how long; not negative.
        """
        nanoseconds = _whole_ns(seconds)
        if self._spent_ns is None:
            self._pass(nanoseconds)
        else:
            self._spent_ns += nanoseconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Queues a call behind the earlier ones of the same executor, which itself is never used.

        The queue has no bound, as that of a real executor: who calls bounds it.
        """
        future: asyncio.Future[T] = self.create_future()
        queue = self._queues.setdefault(executor, deque())

        def begin() -> None:
            if future.cancelled():
                self._next(executor)
                return
            self._spent_ns = _whole_ns(self._call_seconds())
            finish: Callable[[], None]
            try:
                finish = partial(future.set_result, func(*args))
            except BaseException as error:  # noqa: BLE001  # an executor hands over whatever came
                finish = partial(future.set_exception, error)
            spent_ns, self._spent_ns = self._spent_ns, None
            self.call_later(spent_ns / _NS, self._end, executor, future, finish)

        queue.append(begin)
        if len(queue) == 1:
            self.call_soon(begin)
        return future

    def _end(
        self,
        executor: Executor | None,
        future: asyncio.Future[Any],
        finish: Callable[[], None],
    ) -> None:
        if not future.cancelled():
            finish()
        self._next(executor)

    def _next(self, executor: Executor | None) -> None:
        queue = self._queues[executor]
        queue.popleft()
        if queue:
            self.call_soon(queue[0])
        else:
            del self._queues[executor]

    def _pass(self, nanoseconds: int) -> None:
        self._ns += nanoseconds
        if self._ns >= self._doubles_ns:
            self._set_resolution()

    def _set_resolution(self) -> None:
        # The loop runs a timer that is due within its resolution. After four months of seconds as
        # floats a nanosecond is less than they can tell, and a timer would be about due for ever.
        # What a float can tell doubles no sooner than time does.
        self._doubles_ns = max(_NS, 2 * self._ns)
        self._clock_resolution = max(1 / _NS, 4 * math.ulp(self.time()))


class _JumpingSelector(selectors.DefaultSelector):
    """Looks at the real descriptors now and then (a signal comes that way); otherwise jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns += 1
        events: list[tuple[selectors.SelectorKey, int]] = []
        if timeout is None or self._turns % _TURNS_A_LOOK == 0:
            events = super().select(0)
        if events:
            return events
        if timeout is None:
            raise Stalled(f"at {self._loop.time():.9f} s everything waits and no timer is set")
        self._loop._pass(_whole_ns(timeout))  # noqa: SLF001  # the selector is the loop's own other half
        return events


class SimClock(Clock):
    """A clock on virtual time, which can be wrong.

    Args:
        loop: whose time it reads; without one it moves by ``advance`` only.
        wall_ns: what its wall clock shows now, ns since 1970; 0 for a board without a battery.
        trusted: whether the wall clock is known to be right.
        drift_ppm: how much faster than virtual time its wall clock runs, in millionths.
    """

    def __init__(
        self,
        loop: VirtualLoop | None = None,
        *,
        wall_ns: int = START_WALL_NS,
        trusted: bool = True,
        drift_ppm: int = 0,
    ) -> None:
        self._loop = loop
        self._advanced_ns = 0
        self._boot_ns = self._true_ns()
        self._set_ns = self._boot_ns
        self._set_wall_ns = wall_ns
        self._trusted = trusted
        self._drift_ppm = drift_ppm

    def __repr__(self) -> str:
        return f"SimClock({self.now()})"

    def now(self) -> Instant:
        """Wall time as set and drifted; ns since this clock was made; as trusted as it was told."""
        true_ns = self._true_ns()
        return Instant(self._wall_ns(true_ns), true_ns - self._boot_ns, self._trusted)

    def advance(self, seconds: float) -> None:
        """Lets time pass for this clock alone.

        Args:
            seconds: how long; not negative.
        """
        self._advanced_ns += _whole_ns(seconds)

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward, or back when negative; the monotonic clock goes on."""
        self.set_wall(self._wall_ns(self._true_ns()) + round(seconds * _NS))

    def set_wall(self, wall_ns: int) -> None:
        """Sets the wall clock.

        Args:
            wall_ns: what it shows from now on, ns since 1970.
        """
        self._set_ns, self._set_wall_ns = self._true_ns(), wall_ns

    def trust(self) -> None:
        """Somebody vouches for the wall clock from now on."""
        self._trusted = True

    def distrust(self) -> None:
        """Nobody vouches for the wall clock from now on."""
        self._trusted = False

    def reboot(self, *, wall_ns: int | None = None, trusted: bool = False) -> "SimClock":
        """The clock of the next boot: monotonic from 0; this one is to be thrown away.

        Args:
            wall_ns: what its wall clock shows; ``None`` goes on from this one (a battery).
            trusted: whether it is known to be right.
        """
        if wall_ns is None:
            wall_ns = self._wall_ns(self._true_ns())
        return SimClock(self._loop, wall_ns=wall_ns, trusted=trusted, drift_ppm=self._drift_ppm)

    def _true_ns(self) -> int:
        return self._advanced_ns + (0 if self._loop is None else self._loop.elapsed_ns)

    def _wall_ns(self, true_ns: int) -> int:
        elapsed_ns = true_ns - self._set_ns
        return self._set_wall_ns + elapsed_ns + elapsed_ns * self._drift_ppm // 1_000_000


def run(
    main: Callable[[random.Random], Coroutine[Any, Any, T]],
    seed: int = 0,
    *,
    seconds_max: float | None = None,
    call_seconds: Callable[[], float] = lambda: 0.0,
) -> T:
    """Runs a program on virtual time, from one seed.

    Args:
        main: makes the coroutine to run, from the generator that all randomness is to come from.
        seed: of that generator; a failure carries it as a note.
        seconds_max: virtual seconds after which ``TimeoutError`` is raised; ``None`` for never.
        call_seconds: as for ``VirtualLoop``.

    Returns:
        What the coroutine returned.

    Raises:
        Stalled: everything waits for ever.
    """
    loop = VirtualLoop(call_seconds)

    async def bounded() -> T:
        async with asyncio.timeout(seconds_max):
            # The seed of a simulation is no secret.
            return await main(random.Random(seed))  # noqa: S311

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(bounded())
        except BaseException as error:
            error.add_note(f"seed {seed}, at {loop.time():.9f} virtual seconds")
            raise


def _whole_ns(seconds: float) -> int:
    """Rounded up, so that a wait never ends early and every wait makes progress."""
    assert seconds >= 0, f"time would go back by {-seconds} s"
    return math.ceil(seconds * _NS)
