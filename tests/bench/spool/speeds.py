"""How fast a spool seals and opens, and what it writes for each byte that it takes."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from mesh.adapters.system import SystemDisk
from mesh.spool.journal import FOLDER as JOURNALS
from mesh.spool.shelf import FOLDER as SHELVES
from schemas.limits import JOURNAL_BYTES_MAX
from tests.bench.spool.load import (
    LANE,
    PRODUCERS,
    RECORD_BYTES,
    append_awaited,
    drain,
    opened,
    receipts,
    sample_records,
)
from tests.spool.counted_disk import CountedDisk

__all__ = ["Speeds", "Written", "speeds", "written"]

_SEALED_JOURNALS = 4
_POLL_SECONDS = 0.002
_SETTLE_SECONDS = 1.0
_WRITTEN_SECONDS_MIN = 4.0


@dataclass(frozen=True, slots=True)
class Speeds:
    """Megabytes a second.

    Args:
        seal: bytes of records, from the beginning of the chores until all are in batches.
        open_groups: bytes of one full journal of frames of 64 records, while it is opened.
        open_single: the same with a frame for each record.
    """

    seal: float
    open_groups: float
    open_single: float


async def speeds(folder: Path) -> Speeds:
    """Measures each on a spool of its own."""
    seal = await _seal_speed(folder / "sealed")
    groups = await _open_speed(folder / "groups", PRODUCERS)
    single = await _open_speed(folder / "single", 1)
    return Speeds(seal, groups, single)


async def _seal_speed(root: Path) -> float:
    count = _SEALED_JOURNALS * JOURNAL_BYTES_MAX // RECORD_BYTES
    await _fill(root, count, PRODUCERS)
    async with opened(SystemDisk(root), maintain=False) as spool:
        begun = perf_counter()
        chores = asyncio.get_running_loop().create_task(spool.maintain())
        while _shelved(root) < count:
            assert not chores.done(), "the chores ended"
            await asyncio.sleep(_POLL_SECONDS)
        seconds = perf_counter() - begun
        chores.cancel()
        await asyncio.wait([chores])
    return count * RECORD_BYTES / seconds / 1e6


async def _open_speed(root: Path, records_per_frame: int) -> float:
    frame_bytes = 128 + RECORD_BYTES * records_per_frame
    await _fill(
        root, (JOURNAL_BYTES_MAX - (64 << 10)) // frame_bytes * records_per_frame, records_per_frame
    )
    # An opening ends by beginning a journal and committing to it: that is not the scan's time.
    size = sum(path.stat().st_size for path in (root / JOURNALS).iterdir())
    begun = perf_counter()
    async with opened(SystemDisk(root), maintain=False):
        full = perf_counter() - begun
    begun = perf_counter()
    async with opened(SystemDisk(root.with_name(f"{root.name}-empty")), maintain=False):
        empty = perf_counter() - begun
    return size / max(full - empty, 1e-9) / 1e6


async def _fill(root: Path, count: int, records_per_frame: int) -> None:
    """Appends records in frames of so many; nothing is sealed or released."""
    records = sample_records()
    async with opened(SystemDisk(root), maintain=False) as spool:
        for start in range(0, count, records_per_frame):
            at = start % (len(records) - records_per_frame)
            taken = min(records_per_frame, count - start)
            assert await spool.append(LANE, records[at : at + taken]).settled


def _shelved(root: Path) -> int:
    """Records in batches, told from the names of their files."""
    count = 0
    for path in (root / SHELVES / LANE).rglob("*.batch"):
        first, _, last = path.stem.partition("-")
        count += int(last) - int(first) + 1
    return count


@dataclass(frozen=True, slots=True)
class Written:
    """What a load of records cost the disk.

    Args:
        records: how many were appended.
        bytes_ratio: bytes written per byte of records.
        blocks_ratio: bytes of whole blocks given to the medium per byte of records.
        syncs: of files and folders.
        by_place: bytes written per byte of records, by folder.
    """

    records: int
    bytes_ratio: float
    blocks_ratio: float
    syncs: int
    by_place: dict[str, float]


async def written(root: Path, seconds: float, *, online: bool) -> Written:
    """The load of 64 producers; then everything is released, or everything is sealed."""
    disk = CountedDisk(SystemDisk(root))
    async with opened(disk) as spool, asyncio.TaskGroup() as tasks:
        spool.set_linked(up=online)
        receiving = tasks.create_task(receipts(spool)) if online else None
        disk.take()
        # Long enough for several journals, so that what is left in the last one counts for little.
        outcome = await append_awaited(spool, sample_records(), max(seconds, _WRITTEN_SECONDS_MIN))
        if receiving is not None:
            receiving.cancel()
            await drain(spool)
        await _settled(disk)
        wear = disk.take()
    appended = outcome.records * RECORD_BYTES
    return Written(
        outcome.records,
        round(sum(wear.written_bytes.values()) / appended, 3),
        round(wear.block_bytes / appended, 3),
        wear.all_syncs,
        {place: round(size / appended, 3) for place, size in wear.written_bytes.items()},
    )


async def _settled(disk: CountedDisk) -> None:
    """Returns once nothing was written for a while: the chores are done."""
    before = -1
    while (now := sum(disk.wear.written_bytes.values())) != before:
        before = now
        await asyncio.sleep(_SETTLE_SECONDS)
