"""Wear profiles: what a node's life costs its flash, and the budget of each.

A profile runs on a simulated disk and virtual time, so it is exact and the same on every machine: a
sync takes 5 ms, as on a good SD card. What is counted is what the spool gives to the disk
(``tests.spool.counted_disk``); what a file system adds for its own journal is not, nor what is
written once in the life of a store: its identity, the first journal, the spare.

A budget is a promise: what was counted, and about a fifth to spare.
"""

import asyncio
import random
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial

from mesh.spool.spool import Spool, SpoolSettings
from schemas import wire
from schemas.messages import Event, Lane, MetricPoint, Severity
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.disk import SimDisk
from tests.spool.counted_disk import CountedDisk
from tests.spool.world import LABELS, opened

__all__ = ["PROFILES", "Cost", "Profile", "cost", "report"]

_SYNC_SECONDS = 0.005
_HEALTH_SECONDS = 10.0
_ACCOUNT_SECONDS = 30.0
_RECEIPT_SECONDS = 0.25
_RECEIPTS_LATE = 3
_POINTS = 32
_DECISION_BYTES = 200
_SETTLE_SECONDS = 60.0
_BEGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a load cost, or may cost.

    Args:
        bytes_ratio: bytes written per byte of records.
        blocks_ratio: bytes of whole blocks of 4 KiB given to the medium per byte of records.
        syncs_per_hour: syncs of files and folders.
        mib_per_hour: whole blocks given to the medium.
        cursor_kib_per_hour: bytes of cursors. None is to be written while nothing is released.
    """

    bytes_ratio: float
    blocks_ratio: float
    syncs_per_hour: float
    mib_per_hour: float
    cursor_kib_per_hour: float

    def exceeds(self, budget: "Cost") -> list[str]:
        """What is over budget, by name and figures."""
        mine, allowed = asdict(self), asdict(budget)
        return [
            f"{name}: {mine[name]:.3f}, at most {allowed[name]:.3f}"
            for name in mine
            if mine[name] > allowed[name]
        ]


@dataclass(frozen=True, slots=True)
class Profile:
    """A load, and its budgets.

    Args:
        name: of the profile.
        decisions_per_s: records of 200 bytes that nobody awaits, as the edge decides; beside them
            32 metric points each 10 s and an account of each lane each 30 s.
        seconds: how long it is watched.
        online: its budget while receipts come about a second after a record became durable.
        offline: its budget while nothing is released.
    """

    name: str
    decisions_per_s: int
    seconds: int
    online: Cost
    offline: Cost


PROFILES = (
    Profile(
        "idle edge",
        0,
        3600,
        Cost(1.45, 6.7, 870, 4.2, 62.0),
        Cost(1.35, 4.0, 435, 2.6, 0.0),
    ),
    Profile(
        "10 decisions a second",
        10,
        600,
        Cost(2.5, 33.5, 60_600, 252.0, 3_620.0),
        Cost(2.0, 24.6, 43_400, 185.0, 0.0),
    ),
    Profile(
        "100 decisions a second",
        100,
        100,
        Cost(2.1, 27.4, 450_000, 1_900.0, 3_550.0),
        Cost(2.05, 26.4, 432_000, 1_830.0, 0.0),
    ),
    Profile(
        "1,000 decisions a second",
        1000,
        60,
        Cost(1.48, 6.2, 830_000, 4_250.0, 3_500.0),
        Cost(1.77, 6.4, 818_000, 4_390.0, 0.0),
    ),
)


def cost(profile: Profile, *, online: bool) -> Cost:
    """Runs a profile and counts."""
    work = partial(_live, profile, online=online)
    return run(work, call_seconds=lambda: _SYNC_SECONDS)


def report() -> dict[str, dict[str, dict[str, float]]]:
    """Each profile's costs beside its budgets."""
    return {
        profile.name: {
            "online": asdict(cost(profile, online=True)),
            "online_budget": asdict(profile.online),
            "offline": asdict(cost(profile, online=False)),
            "offline_budget": asdict(profile.offline),
        }
        for profile in PROFILES
    }


async def _live(profile: Profile, generator: random.Random, *, online: bool) -> Cost:
    disk = CountedDisk(SimDisk())
    given = 0

    def append(lane: Lane, records: list[bytes]) -> None:
        nonlocal given
        given += sum(map(len, records))
        spool.append(lane, records, awaited=False)

    async def decide() -> None:
        while profile.decisions_per_s:
            append(Lane.DECISIONS, [_decision(generator)])
            await asyncio.sleep(1 / profile.decisions_per_s)

    async def tell_health() -> None:
        while True:
            append(Lane.METRICS, [_point(generator, number) for number in range(_POINTS)])
            await asyncio.sleep(_HEALTH_SECONDS)

    async def state_accounts() -> None:
        while True:
            await asyncio.sleep(_ACCOUNT_SECONDS)
            await spool.state_accounts()

    async with opened(disk, SpoolSettings(LABELS)) as spool:
        spool.set_linked(up=online)
        await asyncio.sleep(_BEGIN_SECONDS)
        disk.take()
        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(load()) for load in (decide, tell_health, state_accounts)]
            if online:
                loads.append(tasks.create_task(_receipts(spool)))
            await asyncio.sleep(profile.seconds)
            for load in loads:
                load.cancel()
        if online:
            await spool.commit()
            _release(spool, {lane: spool.durable(lane) for lane in Lane})
        await asyncio.sleep(_SETTLE_SECONDS)
        wear = disk.take()
    hours = profile.seconds / 3600
    return Cost(
        round(sum(wear.written_bytes.values()) / given, 3),
        round(wear.block_bytes / given, 3),
        round(wear.all_syncs / hours),
        round(wear.block_bytes / hours / (1 << 20), 1),
        round(wear.written_bytes["cursor"] / hours / 1024, 1),
    )


async def _receipts(spool: Spool) -> None:
    seen: deque[dict[Lane, int]] = deque()
    while True:
        seen.append({lane: spool.durable(lane) for lane in Lane})
        await asyncio.sleep(_RECEIPT_SECONDS)
        if len(seen) > _RECEIPTS_LATE:
            _release(spool, seen.popleft())


def _release(spool: Spool, stops: dict[Lane, int]) -> None:
    for lane, stop in stops.items():
        # A receipt comes when there is something new to say.
        if stop > spool.released(lane).end:
            spool.release(lane, Ranges(((0, stop),)), "hq")


def _decision(generator: random.Random) -> bytes:
    empty = len(wire.encode(Event(0, 0, "decided", Severity.NOTICE, "")))
    text = f"{generator.getrandbits(1024):0256x}"[: _DECISION_BYTES - empty - 1]
    return wire.encode(Event(0, 0, "decided", Severity.NOTICE, text))


def _point(generator: random.Random, number: int) -> bytes:
    labels = {"lane": f"lane-{number}"}
    return wire.encode(
        MetricPoint(0, 0, "holdfast_lane_pending_records", generator.random(), labels)
    )
