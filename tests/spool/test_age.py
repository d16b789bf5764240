"""Age: running time, which no step of a wall clock makes longer."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ports import Clock
from mesh.spool import journal
from mesh.spool.age import running_offset_ns
from mesh.spool.journal import JournalContent
from mesh.spool.spool import DEFAULT_LANES, Spool, SpoolSettings
from schemas.messages import Epoch, Explained, Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import JournalHeader
from simulator.disk import SimDisk
from tests.spool.frames import OWNER, chained
from tests.spool.world import (
    SMALL,
    Said,
    explained_of,
    pending,
    play,
    records_of,
    resources,
)

YEARS_NS = 3650 * 86_400 * 10**9


class _Steps(Clock):
    """Port ``Clock``: the loop's running time under a wall clock that somebody sets."""

    def __init__(self, *, trusted: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self.wall_ns = 1_767_225_600_000_000_000
        self.trusted = trusted

    def now(self) -> Instant:
        """As it is set."""
        mono_ns = int(self._loop.time() * 10**9)
        return Instant(self.wall_ns + mono_ns, mono_ns, self.trusted)


def _aged(lane: Lane, seconds: float) -> SpoolSettings:
    kept = dict(SMALL.lanes)
    kept[lane] = replace(DEFAULT_LANES[lane], reserved=64, age_seconds_max=seconds)
    return replace(SMALL, lanes=kept, journal_bytes_max=1 << 20, journal_seconds_max=60.0)


@pytest.mark.parametrize("step_ns", [YEARS_NS, -YEARS_NS, -1_767_225_600_000_000_000])
def test_a_step_of_the_wall_clock_expires_nothing_and_changes_no_order(step_ns: int) -> None:
    """Row 30: ten years on, ten back, or 1970; age is running time, order is by number."""

    async def main(_: random.Random) -> None:
        disk, said, clock = SimDisk(), Said(), _Steps()
        made = replace(resources(disk), clock=clock)
        spool = await Spool.open(made, _aged(Lane.METRICS, 3600.0))
        chores = asyncio.get_running_loop().create_task(spool.maintain())
        for n in range(3):
            assert await said.append(spool, Lane.METRICS, [f"{n}"])
            spool._pump.rotate()
            await asyncio.sleep(600)
            clock.wall_ns += step_ns
        assert list(records_of(await pending(spool, Lane.METRICS))) == [0, 1, 2]
        assert not explained_of(spool, Lane.METRICS)
        await asyncio.sleep(2000)
        gone = explained_of(spool, Lane.METRICS)
        assert gone == {Explained.EXPIRED: Ranges(((0, 1),))}, "an hour of running time is one"
        chores.cancel()
        await asyncio.wait([chores])
        await spool.close()

    play(main)


def _journal(boot: bytes, mono_ns: int, running_ns: int, wall: Instant | None) -> JournalContent:
    """A journal that was begun at a time, with a frame behind it or none."""
    header = JournalHeader(OWNER.store, Epoch(1, 1), boot, 1, 0, mono_ns, running_ns, {})
    content = JournalContent(
        1, header, (), (), torn_tail=False, reserved=(), closed=None, size=0, broken_data=()
    )
    if wall is None:
        return content
    data, (made,), _ = chained([1])
    assert data
    return replace(content, frames=(journal.Whole(0, replace(made, at=wall)),))


_times = st.integers(0, YEARS_NS)
_walls = st.integers(-(2**62), 2**62)


@given(_times, _times, _times, _walls, st.booleans(), _walls, st.booleans())
def test_running_time_never_jumps_within_a_boot(
    mono_ns: int,
    running_ns: int,
    later_ns: int,
    wall_ns: int,
    trusted: bool,  # noqa: FBT001 - drawn
    now_wall_ns: int,
    now_trusted: bool,  # noqa: FBT001 - drawn
) -> None:
    """Row 30: through a restart of the process it goes on with the monotonic clock alone."""
    last = Instant(wall_ns, running_ns, trusted)
    found = _journal(b"B" * 16, mono_ns, running_ns, last)
    now = Instant(now_wall_ns, mono_ns + later_ns, now_trusted)
    assert now.mono_ns + running_offset_ns([found], now, b"B" * 16) == running_ns + later_ns


@given(_times, _times, _walls, st.booleans(), _walls, st.booleans(), st.booleans())
def test_running_time_across_a_boot_counts_only_what_two_trusted_clocks_say(
    running_ns: int,
    now_mono_ns: int,
    wall_ns: int,
    trusted: bool,  # noqa: FBT001 - drawn
    now_wall_ns: int,
    now_trusted: bool,  # noqa: FBT001 - drawn
    has_frame: bool,  # noqa: FBT001 - drawn
) -> None:
    """Row 30: no more than that, and never back."""
    last = Instant(wall_ns, running_ns, trusted) if has_frame else None
    now = Instant(now_wall_ns, now_mono_ns, now_trusted)
    found = _journal(b"B" * 16, 5, running_ns, last)
    away_ns = now_wall_ns - wall_ns if has_frame and trusted and now_trusted else 0
    running = now_mono_ns + running_offset_ns([found], now, b"C" * 16)
    assert running == running_ns + max(0, away_ns)


def test_the_first_moment_of_a_store_is_zero() -> None:
    """Row 30: nothing is older than the store."""
    assert running_offset_ns([], Instant(5, 7), b"B" * 16) == -7
    torn = replace(_journal(b"B" * 16, 1, 1, None), header=None)
    assert running_offset_ns([torn], Instant(5, 7), b"B" * 16) == -7


def test_a_boot_in_1970_expires_nothing() -> None:
    """Row 30: switched off for long without a clock, records are kept longer, never shorter."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        settings = _aged(Lane.METRICS, 3600.0)
        for boot, wall_ns in ((1, None), (2, 0), (3, YEARS_NS)):
            clock = _Steps(trusted=wall_ns is None)
            clock.wall_ns = wall_ns if wall_ns is not None else clock.wall_ns
            made = replace(resources(disk, boot), clock=clock, boot=bytes([boot]) * 16)
            spool = await Spool.open(made, settings)
            chores = asyncio.get_running_loop().create_task(spool.maintain())
            assert await said.append(spool, Lane.METRICS, [f"{boot}"])
            await asyncio.sleep(600)
            assert sorted(records_of(await pending(spool, Lane.METRICS))) == list(range(boot))
            assert Explained.EXPIRED not in explained_of(spool, Lane.METRICS)
            chores.cancel()
            await asyncio.wait([chores])
            await spool.close()

    play(main)
