"""Forecasts: when a lane comes to its own quota, and when the spool is full before that."""

import asyncio
import random
from dataclasses import replace

import pytest

from mesh.spool.lane import WhenFull
from mesh.spool.settings import DEFAULT_LANES
from mesh.spool.view.forecast import Growth, hours_left, hours_until_full, refusal
from mesh.spool.view.outlook import outlook
from mesh.spool.view.sight import look
from schemas.limits import BLOCK_BYTES
from schemas.messages import Lane
from simulator.disk import SimDisk
from tests.spool.world import SMALL, opened, play, record

HOUR = 3600
FREE = {lane: replace(DEFAULT_LANES[lane], bytes_max=None) for lane in Lane}


def _growths(**lanes: tuple[int, float, int | None]) -> dict[Lane, Growth]:
    return {lane: Growth(*lanes.get(lane, (0, 0.0, None))) for lane in Lane}


def test_a_lane_comes_to_its_own_quota() -> None:
    """However much room the spool has."""
    growths = _growths(events=(1000, 1.0, 1000 + HOUR))
    assert hours_left(Lane.EVENTS, growths, FREE, 10**9) == pytest.approx(1.0)
    assert hours_left(Lane.EVENTS, growths, FREE, None) == pytest.approx(1.0)
    assert hours_left(Lane.EVENTS, _growths(), FREE, 10**9) is None
    full = _growths(events=(5000, 1.0, 4000))
    assert hours_left(Lane.EVENTS, full, FREE, 10**9) == 0


def test_less_urgent_lanes_give_up_first() -> None:
    """A lane lives on the space of those that go before it, not of those that go after."""
    growths = _growths(events=(HOUR, 1.0, None), logs=(HOUR, 1.0, None))
    assert hours_left(Lane.LOGS, growths, FREE, 4 * HOUR) == pytest.approx(1.0)
    assert hours_left(Lane.EVENTS, growths, FREE, 4 * HOUR) == pytest.approx(3.0)
    assert hours_until_full(growths, 4 * HOUR) == pytest.approx(1.0)


def test_a_lane_that_refuses_is_not_lived_on() -> None:
    """What refuses when it is full is never given up for another."""
    growths = _growths(events=(HOUR, 1.0, None), logs=(HOUR, 0.0, None))
    refusing = {**FREE, Lane.LOGS: replace(FREE[Lane.LOGS], when_full=WhenFull.REFUSE)}
    assert hours_left(Lane.EVENTS, growths, FREE, 4 * HOUR) == pytest.approx(3.0)
    assert hours_left(Lane.EVENTS, growths, refusing, 4 * HOUR) == pytest.approx(2.0)


def test_a_lane_at_its_quota_takes_no_more_of_the_others_room() -> None:
    """The sum of what grows up to a quota each: here 1 + 1 for an hour, then 1 alone."""
    growths = _growths(events=(0, 1.0, None), metrics=(0, 1.0, HOUR))
    assert hours_until_full(growths, 4 * HOUR) == pytest.approx(3.0)
    both = _growths(events=(0, 1.0, HOUR), metrics=(0, 1.0, HOUR))
    assert hours_until_full(both, 4 * HOUR) is None
    assert hours_until_full(both, None) is None


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_first_moment_at_which_the_room_is_taken(seed: int) -> None:
    """Against the sum itself, a moment before and at that moment."""
    rng = random.Random(seed)
    growths = {
        lane: Growth(rng.randrange(1000), rng.choice([0.0, rng.random()]), rng.choice([None, 3000]))
        for lane in Lane
    }

    def taken(seconds: float) -> float:
        grown = [(g, g.bytes + g.bytes_per_second * seconds) for g in growths.values()]
        return sum(
            size if g.bytes_max is None else max(g.bytes, min(g.bytes_max, size))
            for g, size in grown
        )

    room = int(taken(0)) + rng.randrange(20_000)
    hours = hours_until_full(growths, room)
    if hours is None:
        assert taken(10**9) < room
    else:
        assert taken(hours * HOUR) == pytest.approx(room, rel=1e-6)


def test_a_refusal_is_told_as_the_spool_tells_it() -> None:
    """A lane that refuses, at its quota: the onlooker and the spool give the same reason."""
    disk = SimDisk()
    lanes = {
        **SMALL.lanes,
        Lane.ALARMS: replace(SMALL.lanes[Lane.ALARMS], bytes_max=BLOCK_BYTES),
        Lane.LOGS: replace(SMALL.lanes[Lane.LOGS], enabled=False),
    }
    told: dict[Lane, str] = {}

    async def main(_: random.Random) -> None:
        async with opened(disk, replace(SMALL, lanes=lanes)) as spool:
            for turn in range(2):
                assert await spool.append(Lane.ALARMS, [record(f"alarm {turn}")]).settled
                await asyncio.sleep(1)
            await asyncio.sleep(5)
            told.update({lane: state.refuses for lane, state in spool._lanes.items()})

    play(main)
    with look(disk, lambda: None) as sight:
        seen = outlook(sight, lanes, SMALL.bytes_max)
    assert {lane: state.refuses for lane, state in seen.lanes.items()} == told
    assert told[Lane.ALARMS]
    assert told[Lane.LOGS]
    assert seen.lanes[Lane.ALARMS].hours_left in {0, None}


def test_a_full_spool_stops_those_that_give_nothing_up() -> None:
    """The others make room instead; accounts are never refused."""
    full = (100, 200, 150)
    assert "the spool is full" in refusal(Lane.ALARMS, DEFAULT_LANES[Lane.ALARMS], *full)
    assert refusal(Lane.EVENTS, DEFAULT_LANES[Lane.EVENTS], *full) == ""
    assert refusal(Lane.ACCOUNT, DEFAULT_LANES[Lane.ACCOUNT], *full) == ""
    assert refusal(Lane.ALARMS, DEFAULT_LANES[Lane.ALARMS], 100, 200, None) == ""
