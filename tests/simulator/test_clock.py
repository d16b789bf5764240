"""Virtual time: it jumps, it never goes back, and one seed is one order of events."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter  # noqa: TID251  # what is proved here is that no real time passes

import pytest

from simulator.clock import START_WALL_NS, SimClock, Stalled, VirtualLoop, run
from simulator.disk import SimDisk
from simulator.disk_faults import PowerCut

WEEK = 7 * 86_400
NS = 1_000_000_000


def the_loop() -> VirtualLoop:
    """The running loop, which is virtual."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_a_week_takes_milliseconds() -> None:
    """A sleep is as long as it says, virtually, and takes no time to speak of."""

    async def main(_: random.Random) -> float:
        before = the_loop().time()
        await asyncio.sleep(WEEK)
        return the_loop().time() - before

    began = perf_counter()
    assert run(main) == WEEK
    assert perf_counter() - began < 1


def test_ten_years_of_timers_keep_their_nanoseconds() -> None:
    """Late in a long run a sleep still ends, and is right to what a float can tell: 60 ns."""

    async def main(_: random.Random) -> int:
        await asyncio.sleep(10 * 365 * 86_400)
        before = the_loop().elapsed_ns
        for _ in range(1000):
            await asyncio.sleep(0.001)
        return the_loop().elapsed_ns - before

    assert abs(run(main) - NS) < 1000 * 60


def test_timers_run_in_order() -> None:
    """Each at its own time, the earlier first, whichever was set first."""

    async def main(_: random.Random) -> list[tuple[float, float]]:
        seen = []

        async def one(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((seconds, the_loop().time()))

        async with asyncio.TaskGroup() as group:
            for seconds in (3.5, 0.25, 86_400.0, 2.0):
                group.create_task(one(seconds))
        return seen

    assert run(main) == [(0.25, 0.25), (2.0, 2.0), (3.5, 3.5), (86_400.0, 86_400.0)]


def test_timeouts_are_virtual() -> None:
    """``asyncio.timeout`` ends what takes too long, at its time."""

    async def main(_: random.Random) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.sleep(WEEK)
        return the_loop().time()

    assert run(main) == 3600


async def a_storm(generator: random.Random) -> list[tuple[int, int]]:
    """Twenty tasks that sleep, queue and call an executor as the generator says."""
    seen: list[tuple[int, int]] = []
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)
    loop = the_loop()

    async def one(number: int) -> None:
        for _ in range(10):
            await asyncio.sleep(generator.choice((0, 0, 0.001, generator.random())))
            await queue.put(number)
            await loop.run_in_executor(None, loop.spend, generator.random() / 100)
            seen.append((await queue.get(), loop.elapsed_ns))

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(number))
    return seen


def test_one_seed_is_one_run() -> None:
    """The same seed gives the same events at the same nanoseconds; another one others."""
    assert run(a_storm, 1) == run(a_storm, 1)
    assert run(a_storm, 1) != run(a_storm, 2)


def test_a_deadlock_is_told_at_once() -> None:
    """Where a real loop would hang, this one raises, and says when and for which seed."""

    async def main(_: random.Random) -> None:
        await asyncio.sleep(5)
        await asyncio.Event().wait()

    with pytest.raises(Stalled, match=r"at 5\.0+ s") as caught:
        run(main, 7)
    assert caught.value.__notes__ == ["seed 7, at 5.000000000 virtual seconds"]


def test_a_run_has_an_end() -> None:
    """A program that waits again and again for ever is stopped at the virtual limit."""

    async def main(_: random.Random) -> None:
        while True:  # noqa: ASYNC110  # waiting in vain is the point
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError):
        run(main, seconds_max=1000)


def test_an_executor_is_one_virtual_thread() -> None:
    """Its calls queue; each takes what it spends; the loop runs on; what was raised comes back."""

    async def main(_: random.Random) -> list[tuple[str, float]]:
        loop, seen = the_loop(), []

        async def call(name: str, seconds: float) -> None:
            await loop.run_in_executor(None, loop.spend, seconds)
            seen.append((name, loop.time()))

        async def beat() -> None:
            for _ in range(4):
                await asyncio.sleep(10)
                seen.append(("beat", loop.time()))

        async with asyncio.TaskGroup() as group:
            group.create_task(call("slow", 25))
            group.create_task(call("behind", 1))
            group.create_task(beat())
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 1, 0)
        return seen

    assert run(main) == [
        ("beat", 10),
        ("beat", 20),
        ("slow", 25),
        ("behind", 26),
        ("beat", 30),
        ("beat", 40),
    ]


def test_two_executors_work_side_by_side() -> None:
    """They do not wait for each other, and their threads are never started."""

    async def main(_: random.Random) -> float:
        loop = the_loop()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            await asyncio.gather(
                loop.run_in_executor(one, loop.spend, 5), loop.run_in_executor(two, loop.spend, 5)
            )
        return loop.time()

    assert run(main) == 5


def test_each_call_may_cost_time() -> None:
    """What a call takes at least is handed in."""

    async def main(_: random.Random) -> float:
        assert await asyncio.to_thread(max, 1, 2) == 2
        return the_loop().time()

    assert run(main, call_seconds=lambda: 0.25) == 0.25


def test_a_call_that_was_given_up_does_not_block_the_others() -> None:
    """Cancelled before it began it never runs; cancelled while it runs its answer is dropped."""

    async def main(_: random.Random) -> tuple[list[str], float]:
        loop, done = the_loop(), []

        def work(name: str) -> None:
            done.append(name)
            loop.spend(10)

        first = loop.run_in_executor(None, work, "first")
        second = loop.run_in_executor(None, work, "second")
        third = loop.run_in_executor(None, work, "third")
        await asyncio.sleep(1)
        first.cancel()
        second.cancel()
        await third
        return done, loop.time()

    assert run(main) == (["first", "third"], 20)


def test_a_stalled_disk_does_not_stop_the_loop() -> None:
    """Thirty seconds in a sync hold up the writer, not the heart beat."""

    async def main(_: random.Random) -> tuple[float, int]:
        loop, beats = the_loop(), 0
        disk = SimDisk(spend=loop.spend)
        disk.faults.stall("sync", 30)
        file = disk.open("a", "create")
        synced = loop.run_in_executor(None, file.sync)
        while not synced.done():
            await asyncio.sleep(1)
            beats += 1
        return loop.time(), beats

    assert run(main) == (30, 30)


def test_a_slow_call_on_the_loop_itself_makes_timers_late() -> None:
    """Time that is spent outside of an executor is everybody's."""

    async def main(_: random.Random) -> list[float]:
        loop, seen = the_loop(), []
        loop.call_later(1, lambda: seen.append(loop.time()))
        loop.spend(5)
        await asyncio.sleep(0.5)
        return seen

    assert run(main) == [5.0]


def test_a_power_cut_ends_the_run() -> None:
    """A power cut inside an executor comes out of the run, past ``except Exception``."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        disk.faults.cut_power(0)
        try:
            await asyncio.to_thread(disk.open, "a", "create")
        except Exception as error:  # noqa: BLE001
            pytest.fail(f"swallowed {error!r}")

    with pytest.raises(PowerCut):
        run(main)


def test_a_clock_reads_the_virtual_time() -> None:
    """Wall and monotonic time pass with the loop's."""

    async def main(_: random.Random) -> None:
        await asyncio.sleep(100)
        clock = SimClock(the_loop(), wall_ns=START_WALL_NS)
        await asyncio.sleep(1.5)
        now = clock.now()
        assert (now.wall_ns, now.mono_ns) == (START_WALL_NS + 3 * NS // 2, 3 * NS // 2)
        assert now.trusted

    run(main)


@pytest.mark.parametrize("seconds", [315_360_000, -315_360_000, 0.5])
def test_a_wall_clock_that_jumps(seconds: float) -> None:
    """Wall time jumps either way; monotonic time does not notice."""
    clock = SimClock()
    clock.advance(10)
    before = clock.now()
    clock.jump(seconds)
    after = clock.now()
    assert after.mono_ns == before.mono_ns == 10 * NS
    assert after.wall_ns - before.wall_ns == seconds * NS


def test_a_board_without_a_battery_boots_in_1970() -> None:
    """Nobody trusts it until somebody sets it; the next boot is in 1970 again."""
    clock = SimClock(wall_ns=0, trusted=False)
    clock.advance(3)
    assert (clock.now().wall_ns, clock.now().trusted) == (3 * NS, False)
    clock.set_wall(START_WALL_NS)
    clock.trust()
    assert (clock.now().wall_ns, clock.now().trusted) == (START_WALL_NS, True)
    clock.distrust()
    assert not clock.now().trusted
    rebooted = clock.reboot(wall_ns=0)
    assert (rebooted.now().wall_ns, rebooted.now().mono_ns) == (0, 0)
    kept = clock.reboot()
    assert (kept.now().wall_ns, kept.now().mono_ns) == (START_WALL_NS, 0)


def test_a_wall_clock_that_drifts() -> None:
    """A crystal of 50 ppm is 4.32 s ahead after a day."""
    clock = SimClock(drift_ppm=50)
    before = clock.now()
    clock.advance(86_400)
    after = clock.now()
    assert after.wall_ns - before.wall_ns == 86_400 * NS + 4_320_000_000
    assert after.mono_ns - before.mono_ns == 86_400 * NS
