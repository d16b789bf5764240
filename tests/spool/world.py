"""A spool on a simulated disk, and an audit of what it holds against what it was told."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from mesh.ports import Disk
from mesh.spool.batch import Labels
from mesh.spool.lane import LaneSettings
from mesh.spool.spool import DEFAULT_LANES, Resources, Spool, SpoolSettings
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.crash import stage
from simulator.crash.annals import Said, record
from simulator.crash.oracle import View, judge, pending, records_of, view
from simulator.crash.stage import Thread

__all__ = [
    "BARE",
    "CALM",
    "LABELS",
    "SMALL",
    "Nowhere",
    "Said",
    "Watcher",
    "audit",
    "explained_of",
    "opened",
    "pending",
    "play",
    "record",
    "records_of",
    "reserved",
    "resources",
]

LABELS = Labels("hall", "pump")
SMALL = SpoolSettings(
    LABELS,
    lanes={lane: replace(DEFAULT_LANES[lane], reserved=64) for lane in Lane},
    journal_bytes_max=1,
    spare_bytes=4096,
    headroom_bytes=0,
)
"""Every group rotates, and few numbers are reserved."""

CALM = replace(SMALL, journal_bytes_max=1 << 20)
"""Nothing rotates by itself."""

BARE = replace(CALM, retained_bytes_max=0)
"""The same, and nothing stays that was released."""

Nowhere = Thread


class Watcher:
    """Port ``Observer``: keeps all events."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def observe(self, event: object) -> None:
        """Takes one event."""
        self.seen.append(event)

    def of(self, kind: type) -> list[object]:
        """Those of one kind."""
        return [event for event in self.seen if isinstance(event, kind)]


def resources(
    disk: Disk, seed: int = 0, watcher: Watcher | None = None, machine: bytes = b"m" * 16
) -> Resources:
    """What a spool needs, on the running virtual loop."""
    return stage.resources(disk, random.Random(seed), watcher or Watcher(), machine)


@asynccontextmanager
async def opened(
    disk: Disk,
    settings: SpoolSettings = CALM,
    *,
    seed: int = 0,
    watcher: Watcher | None = None,
    maintain: bool = True,
    close: bool = True,
    machine: bytes = b"m" * 16,
) -> AsyncIterator[Spool]:
    """A spool with its chores running; closed in order at the end, unless told otherwise."""
    spool = await Spool.open(resources(disk, seed, watcher, machine), settings)
    chores = asyncio.get_running_loop().create_task(spool.maintain() if maintain else _nothing())
    try:
        yield spool
    finally:
        if chores.done():
            chores.result()
        chores.cancel()
        await asyncio.wait([chores])
    if close:
        await spool.close()


async def _nothing() -> None:
    """No chores."""


def explained_of(spool: Spool, lane: Lane) -> Mapping[str, Ranges]:
    """The numbers that will never arrive, by reason."""
    return spool._lanes[lane].explained


async def audit(spool: Spool, said: Said, *, damaged: bool = False) -> None:
    """Invariants I1, I2, I3 and I5 of the list of faults, and that no number comes twice.

    Args:
        spool: just opened after a crash, or at rest.
        said: what was said to it in its present epoch.
        damaged: whether something was damaged on purpose, so that losses may be called so.
    """
    for lane in Lane:
        judge(lane, await _seen(spool, lane), said, damaged=damaged)


async def _seen(spool: Spool, lane: Lane) -> View:
    """What can be seen of a lane; looked at again when something happened meanwhile."""
    while True:
        before = dict(explained_of(spool, lane))
        numbers = (spool.next_seq(lane), spool.durable(lane), spool.released(lane))
        seen = await view(spool, lane, before)
        if (explained_of(spool, lane), numbers) == (before, (*seen[3:], seen.released)):
            return seen


def play(
    main: Callable[[random.Random], object], seed: int = 0, seconds_max: float | None = 1e6
) -> None:
    """Runs a coroutine on virtual time."""
    run(main, seed, seconds_max=seconds_max)  # type: ignore[arg-type]


def reserved(numbers: int) -> SpoolSettings:
    """Settings with other reservations."""
    return replace(SMALL, lanes={lane: LaneSettings(0.0, numbers) for lane in Lane})
