"""A spool as an edge has it, and the load that is put on it."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.adapters.thread import LoopThread
from mesh.ports import Disk, DiskFile, OpenMode
from mesh.spool.batch import Labels
from mesh.spool.journal import FOLDER as JOURNALS
from mesh.spool.journal import SPARE
from mesh.spool.spool import DEFAULT_LANES, Resources, Spool, SpoolSettings
from schemas import wire
from schemas.limits import JOURNAL_BYTES_MAX
from schemas.messages import Event, Lane, Severity
from schemas.ranges import Ranges

__all__ = [
    "BULK_RECORDS",
    "LANE",
    "PRODUCERS",
    "RECORD_BYTES",
    "Appends",
    "Ignoring",
    "JournalsDisk",
    "append_awaited",
    "append_bulk",
    "append_one_by_one",
    "drain",
    "opened",
    "receipts",
    "sample_records",
    "warm_up",
]

PRODUCERS = 64
RECORD_BYTES = 200
BULK_RECORDS = 1000
LANE = Lane.DECISIONS
_BYTES_MAX = 16 << 30
_RECEIPT_SECONDS = 0.25
_RECEIPTS_LATE = 3
_SAMPLES = 4096
_WARM_BYTES_MAX = 24 * JOURNAL_BYTES_MAX


class Ignoring:
    """Port ``Observer``: says nothing."""

    def observe(self, event: object) -> None:
        """Takes one event."""


@dataclass(frozen=True, slots=True)
class Appends:
    """What one pass showed.

    Args:
        records: how many became durable.
        seconds: in how long.
        latencies: seconds from ``append`` until its caller went on, one for each record or bulk.
        journals: how many began reused, spared and new meanwhile.
    """

    records: int
    seconds: float
    latencies: Sequence[float] = ()
    journals: tuple[int, int, int] = (0, 0, 0)

    @property
    def per_s(self) -> float:
        """Records a second."""
        return self.records / self.seconds


def sample_records(count: int = _SAMPLES) -> list[bytes]:
    """Different records of exactly ``RECORD_BYTES`` in their canonical bytes."""
    generator = random.Random(1)
    return [_sample(generator, number) for number in range(count)]


def _sample(generator: random.Random, number: int) -> bytes:
    wall_ns = 1_767_225_600_000_000_000 + number * 1_000_000
    text = ""
    while (short := RECORD_BYTES - len(_event(wall_ns, text))) > 0:
        text += f"{generator.getrandbits(4 * short):0{short}x}"
    # The length of a text is written in more bytes beyond a bound: what is over is cut.
    record = _event(wall_ns, text[: len(text) + short])
    assert len(record) == RECORD_BYTES
    return record


def _event(wall_ns: int, text: str) -> bytes:
    return wire.encode(Event(wall_ns, wall_ns, "bench", Severity.NOTICE, text))


class JournalsDisk(SystemDisk):
    """The real disk, which counts in what kind of file each journal begins.

    ``reused`` in one that held a whole journal, ``spared`` in a smaller spare, ``new`` in none.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reused = self.spared = self.new = 0

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file."""
        if mode == "create" and path.startswith(JOURNALS) and not path.startswith(SPARE):
            self.new += 1
        return super().open(path, mode)

    def rename(self, source: str, target: str) -> None:
        """Renames a file."""
        if source.startswith(SPARE):
            whole = self.size(source) >= JOURNAL_BYTES_MAX
            self.reused += whole
            self.spared += not whole
        super().rename(source, target)


async def warm_up(spool: Spool, disk: JournalsDisk, records: Sequence[bytes]) -> None:
    """Appends until a journal has begun in the blocks of another, or long enough for that."""
    bulk = list(records[:BULK_RECORDS])
    appended = 0
    while not disk.reused and appended < _WARM_BYTES_MAX:
        assert await spool.append(LANE, bulk).settled, "the disk failed"
        appended += BULK_RECORDS * RECORD_BYTES
    disk.reused = disk.spared = disk.new = 0


@asynccontextmanager
async def opened(disk: Disk, *, maintain: bool = True) -> AsyncIterator[Spool]:
    """A spool with real threads; its chores run beside it, unless told otherwise."""
    with LoopThread("writer") as writer, ThreadPoolExecutor(1, "worker") as worker:
        resources = Resources(
            disk,
            SystemClock(),
            writer,
            worker,
            entropy,
            boot_id(),
            machine_id() or bytes(16),
            Ignoring(),
        )
        # No lane has a quota of its own: nothing is to be given up.
        lanes = {lane: replace(kept, bytes_max=None) for lane, kept in DEFAULT_LANES.items()}
        settings = SpoolSettings(Labels("bench", "edge-1"), _BYTES_MAX, lanes)
        spool = await Spool.open(resources, settings)
        try:
            async with asyncio.TaskGroup() as tasks:
                chores = tasks.create_task(spool.maintain()) if maintain else None
                yield spool
                if chores is not None:
                    chores.cancel()
        finally:
            await spool.close()


async def append_awaited(
    spool: Spool, records: Sequence[bytes], seconds: float, producers: int = PRODUCERS
) -> Appends:
    """Producers that each append a record, wait until it is durable, and go on."""
    latencies: list[float] = []
    begun = perf_counter()
    until = begun + seconds

    async def produce(index: int) -> None:
        while (at := perf_counter()) < until:
            appended = spool.append(LANE, [records[index % len(records)]])
            assert await appended.settled, "the disk failed"
            latencies.append(perf_counter() - at)
            index += producers

    async with asyncio.TaskGroup() as tasks:
        for index in range(producers):
            tasks.create_task(produce(index))
    return Appends(len(latencies), perf_counter() - begun, latencies)


async def append_bulk(
    spool: Spool, records: Sequence[bytes], seconds: float, callers: int = 1
) -> Appends:
    """Callers that each append ``BULK_RECORDS`` at once, wait until they are durable, and go on."""
    latencies: list[float] = []
    begun = perf_counter()
    until = begun + seconds
    bulk = list(records[:BULK_RECORDS])

    async def produce() -> None:
        while (at := perf_counter()) < until:
            assert await spool.append(LANE, bulk).settled, "the disk failed"
            latencies.append(perf_counter() - at)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(produce())
    return Appends(len(latencies) * BULK_RECORDS, perf_counter() - begun, latencies)


async def append_one_by_one(spool: Spool, records: Sequence[bytes], count: int) -> None:
    """Appends records each in a frame of its own."""
    for number in range(count):
        appended = spool.append(LANE, [records[number % len(records)]])
        assert await appended.settled, "the disk failed"


async def receipts(spool: Spool) -> None:
    """Releases what became durable about a second ago, as receipts would. Until cancelled."""
    seen: deque[dict[Lane, int]] = deque()
    while True:
        seen.append({lane: spool.durable(lane) for lane in Lane})
        await asyncio.sleep(_RECEIPT_SECONDS)
        if len(seen) > _RECEIPTS_LATE:
            _release(spool, seen.popleft())


async def drain(spool: Spool) -> None:
    """Releases everything."""
    await spool.commit()
    _release(spool, {lane: spool.durable(lane) for lane in Lane})


def _release(spool: Spool, stops: dict[Lane, int]) -> None:
    for lane, stop in stops.items():
        if stop:
            spool.release(lane, Ranges(((0, stop),)), "hq")
