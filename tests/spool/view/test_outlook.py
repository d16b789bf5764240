"""Outlooks: what files tell of pending records, rates, space and losses is what is there."""

import asyncio
import random

import pytest

from mesh.spool import store
from mesh.spool.settings import DEFAULT_LANES
from mesh.spool.spool import SpoolStatus
from mesh.spool.view.outlook import Outlook, outlook
from mesh.spool.view.sight import look
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import CALM, SMALL, SpoolSettings, opened, play, record

SECONDS = 100


def _lived(
    settings: SpoolSettings, *, close: bool = False, release: int = 0
) -> tuple[SimDisk, SpoolStatus]:
    """An event a second for ``SECONDS``, and a log line every tenth; and what the spool says."""
    disk = SimDisk()
    said: list[SpoolStatus] = []

    async def main(_: random.Random) -> None:
        async with opened(disk, settings, close=close) as spool:
            for second in range(SECONDS):
                assert await spool.append(Lane.EVENTS, [record(f"event {second:04}")]).settled
                if second % 10 == 0:
                    assert await spool.append(Lane.LOGS, [record("x" * 1000)]).settled
                await asyncio.sleep(1)
            if release:
                spool.release(Lane.EVENTS, Ranges(((0, release),)), "hq")
            await asyncio.sleep(5)
            said.append(spool.status())

    play(main)
    return disk, said[0]


def _seen(disk: SimDisk, bytes_max: int | None = None) -> Outlook:
    with look(disk, lambda: None) as sight:
        return outlook(sight, DEFAULT_LANES, bytes_max)


@pytest.mark.parametrize("settings", [CALM, SMALL], ids=["in the journal", "on the shelf"])
@pytest.mark.parametrize("release", [0, 33])
def test_an_onlooker_counts_what_the_spool_counts(settings: SpoolSettings, release: int) -> None:
    """Pending records, their bytes, the next number: the same from inside and from outside."""
    disk, said = _lived(settings, release=release)
    seen = _seen(disk)
    for lane, status in said.lanes.items():
        state = seen.lanes[lane]
        assert state.records == status.pending_records, lane
        assert state.bytes == status.pending_bytes, lane
        assert state.present.end == status.next_seq, lane
    assert seen.lanes[Lane.EVENTS].present.holders == ({"hq": release} if release else {})
    assert seen.used_bytes == said.used_bytes
    assert sum(state.records for state in seen.lanes.values()) > 100 - release


@pytest.mark.parametrize("settings", [CALM, SMALL], ids=["in the journal", "on the shelf"])
def test_rates_are_those_of_the_newest_frames(settings: SpoolSettings) -> None:
    """One event a second is told as that, over a span that is told with it."""
    rate = _seen(_lived(settings)[0]).lanes[Lane.EVENTS].rate
    assert rate is not None
    assert rate.span_seconds > (90 if settings is CALM else 0)
    if settings is CALM:
        assert rate.records_per_second == pytest.approx(1.0, rel=0.03)
        size = 128 + len(record("event 0000"))
        assert rate.bytes_per_second == pytest.approx(size, rel=0.03)


def test_hours_left_are_what_is_left_by_what_grows() -> None:
    """The least urgent lane loses first: a more urgent one lives on its space as well."""
    disk, _ = _lived(CALM)
    seen = _seen(disk, 10_000_000)
    events, logs = seen.lanes[Lane.EVENTS], seen.lanes[Lane.LOGS]
    assert events.rate is not None
    assert logs.rate is not None
    growth = events.rate.rest_bytes_per_second + logs.rate.rest_bytes_per_second
    assert seen.hours_left == pytest.approx(
        (10_000_000 - seen.used_bytes) / growth / 3600, rel=0.02
    )
    assert logs.hours_left == seen.hours_left
    assert events.hours_left is not None
    assert seen.hours_left is not None
    assert events.hours_left > 1.5 * seen.hours_left
    assert _seen(disk).hours_left is None


def test_what_goes_first_is_the_oldest_of_the_least_urgent() -> None:
    """As the spool itself would choose."""
    seen = _seen(_lived(SMALL)[0], 1 << 30)
    assert seen.goes_first[0].lane is Lane.LOGS
    assert seen.goes_first[0].numbers.spans[0][0] == 0
    assert _seen(_lived(CALM)[0], 1 << 30).goes_first == ()


@pytest.mark.parametrize("settings", [CALM, SMALL], ids=["in the journal", "on the shelf"])
def test_the_oldest_pending_record_has_the_time_of_its_commit(settings: SpoolSettings) -> None:
    """What was released no longer counts."""
    whole = _seen(_lived(settings)[0]).lanes[Lane.EVENTS].oldest
    rest = _seen(_lived(settings, release=50)[0]).lanes[Lane.EVENTS].oldest
    assert whole is not None
    assert rest is not None
    assert (rest.wall_ns - whole.wall_ns) / 1e9 == pytest.approx(50, abs=2)


def test_what_a_reservation_may_cost_is_told_apart_from_what_is_stated() -> None:
    """Nothing is stated while a node runs; the next opening would call the reservation void."""
    lane = _seen(_lived(CALM)[0]).lanes[Lane.EVENTS]
    assert lane.present.stated == {}
    assert list(lane.present.unstated) == [Explained.VOID]
    disk, _ = _lived(CALM)
    disk.unlock(store.LOCK)

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM) as spool:
            assert await spool.append(Lane.EVENTS, [record("after")]).settled

    play(main)
    lane = _seen(disk).lanes[Lane.EVENTS]
    assert list(lane.present.stated) == [Explained.VOID]
    assert lane.present.unstated == {}
