"""A spool at work until its power is cut.

As a program: ``python -m tests.bench.powercut.spool FOLDER SEED ROUND``.

Built as ``holdfast edge`` builds it, on the real disk, but small, so that within a second or two it
does all that a spool ever does: commits groups, begins journals, seals them, writes its cursor,
unlinks what was released, and gives up the oldest for want of space. Eight producers await their
records in six lanes; the next holder releases some lanes, now in order, now from the middle.
"""

import asyncio
import itertools
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.adapters.thread import LoopThread
from mesh.ports import Disk
from mesh.spool.batch import Labels
from mesh.spool.spool import Appended, Resources, Spool, SpoolSettings
from schemas.errors import DiskFailed, Overloaded
from schemas.messages import Lane
from tests.bench.powercut.work import PRODUCERS, Name, record
from tests.bench.powercut.writer import say

__all__ = ["SETTINGS", "resources", "work"]

SETTINGS: Final = SpoolSettings(
    Labels("bench", "edge-1"),
    bytes_max=3 << 19,
    journal_bytes_max=128 << 10,
    spare_bytes=128 << 10,
)
_LANES: Final = (
    *(Lane.ALARMS, Lane.ALARMS, Lane.DECISIONS, Lane.DECISIONS),
    *(Lane.EVENTS, Lane.METRICS, Lane.READINGS, Lane.LOGS),
)
_RELEASED: Final = (Lane.ACCOUNT, Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS)
"""The others are never released, so that there is something to give up."""
_PAUSE_SECONDS: Final = 0.002

assert len(_LANES) == PRODUCERS, "a lane for each producer"


class _Silent:
    def observe(self, event: object) -> None:
        """Says nothing."""


@contextmanager
def resources(disk: Disk) -> Iterator[Resources]:
    """What an edge hands to its spool."""
    with LoopThread("writer") as writer, ThreadPoolExecutor(1, "worker") as worker:
        yield Resources(
            disk,
            SystemClock(),
            writer,
            worker,
            entropy,
            boot_id(),
            machine_id() or bytes(16),
            _Silent(),
        )


async def _append(spool: Spool, lane: Lane, data: bytes) -> Appended:
    while True:
        try:
            return spool.append(lane, [data])
        except Overloaded:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _produce(spool: Spool, seed: int, cut_round: int, producer: int) -> None:
    """Appends one record after the other, and tells of each that is settled."""
    lane = _LANES[producer]
    for number in itertools.count():
        data = record(seed, Name(cut_round, producer, number))
        try:
            appended = await _append(spool, lane, data)
        except DiskFailed:
            return
        if not await asyncio.shield(appended.settled):
            return
        say("A", producer, number, appended.epoch, lane, appended.first)


async def _release(spool: Spool, rng: random.Random) -> None:
    """Is the next holder: takes a batch, says so, and lets the spool release it."""
    while True:
        await asyncio.sleep(rng.uniform(0.005, 0.03))
        lane = rng.choice(_RELEASED)
        start = rng.randrange(spool.next_seq(lane) + 1) if rng.random() < 0.2 else 0
        batch = await spool.next_batch(lane, start)
        if batch is None:
            continue
        numbers = batch.header.present
        for first, stop in numbers.spans:
            say("R", batch.header.epoch, lane, first, stop)
        spool.release(lane, numbers, "bench")


async def work(disk: Disk, seed: int, cut_round: int) -> None:
    """Opens a spool and fills it until the end of this process."""
    rng = random.Random(f"{seed} {cut_round}")
    with resources(disk) as given:
        spool = await Spool.open(given, SETTINGS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(spool.maintain())
            tasks.create_task(_release(spool, rng))
            for producer in range(PRODUCERS):
                tasks.create_task(_produce(spool, seed, cut_round, producer))


if __name__ == "__main__":
    asyncio.run(work(SystemDisk(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
