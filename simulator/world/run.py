"""One seed, played from its beginning to its end."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from simulator.clock import Stalled, VirtualLoop, run
from simulator.world.faults import DAY, Shape, schedule
from simulator.world.striking import Striker
from simulator.world.trace import Trace
from simulator.world.world import Outcome, Program, World

__all__ = ["Say", "play", "stage"]

_CALL_SECONDS: Final = 0.001
_SECONDS_MORE: Final = 30 * DAY

Say = Callable[[str], None]
"""Is told one line for each event."""

_Act = Callable[[World, random.Random], Coroutine[Any, Any, None]]


def play(
    seed: int, shape: Shape, program: Program | None = None, say: Say | None = None
) -> Outcome:
    """Lets a world live as long as its shape says, with faults drawn from the seed; judges it.

    Args:
        seed: of all its randomness.
        shape: how large it is, and what may go wrong.
        program: what runs in it; the real thing where none is given.
        say: is told of each event.
    """

    async def act(world: World, rng: random.Random) -> None:
        # A schedule of its own: what strikes does not depend on what is struck.
        striker = Striker(world, random.Random(rng.getrandbits(64)))  # noqa: S311  # a simulation
        strikes = schedule(shape, rng)
        async with asyncio.TaskGroup() as faults:
            backups = faults.create_task(striker.keep_backups())
            for one in strikes:
                faults.create_task(striker.strike(one))
            await asyncio.sleep(shape.seconds)
            backups.cancel()

    return stage(seed, shape, act, program, say)


def stage(
    seed: int, shape: Shape, act: _Act, program: Program | None = None, say: Say | None = None
) -> Outcome:
    """Builds a world, lets something happen in it, mends nothing, drains and judges it.

    Args:
        seed: of all its randomness.
        shape: how large it is.
        act: what happens; leaves everything mended.
        program: what runs in it; the real thing where none is given.
        say: is told of each event.
    """

    async def main(rng: random.Random) -> Outcome:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        trace = Trace(loop.time, say)
        async with asyncio.TaskGroup() as tasks:
            world = World(shape, rng, trace, tasks, program)
            world.start()
            watching = tasks.create_task(world.keep_checking())
            await act(world, rng)
            watching.cancel()
            outcome = await world.finish()
            await world.stop()
        return outcome

    try:
        return run(
            main,
            seed,
            seconds_max=shape.seconds + _SECONDS_MORE,
            call_seconds=lambda: _CALL_SECONDS,
        )
    except (Stalled, TimeoutError) as stuck:
        return Outcome(violations=[f"world: {type(stuck).__name__}: {stuck}"])
