"""A spool as an edge has it, and the load that is put on it."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle
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
    "append_bursts",
    "append_one_by_one",
    "drain",
    "fill",
    "opened",
    "ready",
    "receipts",
    "sample_records",
]

PRODUCERS = 64
RECORD_BYTES = 200
BULK_RECORDS = 1000
LANE = Lane.DECISIONS
_BYTES_MAX = 16 << 30
_RECEIPT_SECONDS = 0.25
_RECEIPTS_LATE = 3
_SAMPLES = 4096
_BURST_BYTES = 10 * JOURNAL_BYTES_MAX
_BURST_JOURNALS = 12
_READY_SECONDS_MAX = 10.0
_POLL_SECONDS = 0.02


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
        latencies: seconds from ``append`` until its caller went on, of the first caller.
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

    def spares_ready(self) -> int:
        """How many spares there are that held a whole journal."""
        names = [f"{JOURNALS}/{name}" for name in self.list(JOURNALS)]
        return sum(self.size(name) >= JOURNAL_BYTES_MAX for name in names if name.startswith(SPARE))

    def forget(self) -> None:
        """Counts anew."""
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


async def fill(spool: Spool, records: Sequence[bytes]) -> None:
    """Appends as much as makes a burst's worth of journals; no receipt may come meanwhile."""
    await _append_burst(spool, records, (_BURST_JOURNALS + 4) * JOURNAL_BYTES_MAX)


async def ready(disk: JournalsDisk) -> None:
    """Returns once what was appended is released and its journals lie ready for others."""
    async with asyncio.timeout(_READY_SECONDS_MAX):
        while disk.spares_ready() < _BURST_JOURNALS:  # noqa: ASYNC110 - nothing tells of a file
            await asyncio.sleep(_POLL_SECONDS)


async def _append_burst(
    spool: Spool, records: Sequence[bytes], size: int, latencies: list[float] | None = None
) -> None:
    """Appends ``BULK_RECORDS`` at once, waits until they are durable, and goes on to ``size``."""
    bulk = list(records[:BULK_RECORDS])
    for _ in range(size // (BULK_RECORDS * RECORD_BYTES)):
        at = perf_counter()
        assert await spool.append(LANE, bulk).settled, "the disk failed"
        if latencies is not None:
            latencies.append(perf_counter() - at)


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
    """Producers that each append a record, wait until it is durable, and go on.

    The first of them tells how long that took: what all 64 would tell is the same, since one group
    serves them, and telling it is no work of the spool.
    """
    latencies: list[float] = []
    count = 0
    begun = perf_counter()
    until = begun + seconds

    async def produce(index: int) -> None:
        nonlocal count
        mine = cycle(records[index::producers])
        while (at := perf_counter()) < until:
            assert await spool.append(LANE, [next(mine)]).settled, "the disk failed"
            count += 1
            if not index:
                latencies.append(perf_counter() - at)

    async with asyncio.TaskGroup() as tasks:
        for index in range(producers):
            tasks.create_task(produce(index))
    return Appends(count, perf_counter() - begun, latencies)


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


async def append_bursts(
    spool: Spool, disk: JournalsDisk, records: Sequence[bytes], seconds: float, callers: int = 1
) -> Appends:
    """The same in bursts that fit into what lies ready; in between it waits until that is so.

    The waiting is not counted.
    """
    latencies: list[float] = []
    count = 0
    taken = 0.0
    while taken < seconds:
        await ready(disk)
        begun = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                burst = _append_burst(spool, records, _BURST_BYTES // callers, latencies)
                tasks.create_task(burst)
        taken += perf_counter() - begun
        count = len(latencies) * BULK_RECORDS
    return Appends(count, taken, latencies)


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
