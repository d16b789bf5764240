"""A process that opens a spool with a backlog, appends to it, and drains it to the end.

``python -m tests.bench.backlog.drain FOLDER`` does what a forwarder does with a perfect link: takes
batches lane by lane, a window at a time, and releases them; beside that it goes on appending. Each
batch is opened, its chain checked, and its numbers compared with those before. On standard output
it says what it saw, as JSON. It is a process of its own, so that its memory is the spool's.
"""

import asyncio
import json
import resource
import sys
from pathlib import Path
from time import perf_counter

from mesh.adapters.system import SystemDisk
from mesh.spool import batch as batches
from mesh.spool.spool import Spool
from schemas.limits import SEND_WINDOW_BATCHES
from schemas.messages import Lane
from schemas.ranges import Ranges
from tests.bench.spool.load import opened, sample_records

__all__ = ["main"]

_SAMPLE_SECONDS = 0.1
_PAGE_BYTES = resource.getpagesize()


def main() -> None:
    """Drains, and says what it saw."""
    print(json.dumps(asyncio.run(_measure(SystemDisk(Path(sys.argv[1]))))))


async def _measure(disk: SystemDisk) -> dict[str, object]:
    record = sample_records(1)
    before = _resident_mb()
    begun = perf_counter()
    async with opened(disk) as spool:
        open_seconds = perf_counter() - begun
        assert await spool.append(Lane.EVENTS, record).settled, "the disk failed"
        first_append_seconds = perf_counter() - begun
        rss: list[float] = [_resident_mb()]
        slowest: list[float] = [0.0]
        living = asyncio.get_running_loop().create_task(_live(spool, record, rss, slowest))
        begun = perf_counter()
        drained = {lane: await _drain(spool, lane) for lane in Lane if lane is not Lane.EVENTS}
        drain_seconds = perf_counter() - begun
        living.cancel()
        await asyncio.wait([living])
    return {
        "open_seconds": round(open_seconds, 3),
        "first_append_seconds": round(first_append_seconds, 3),
        "drain_seconds": round(drain_seconds, 3),
        "append_seconds_max": round(slowest[0], 3),
        "peak_rss_mb": round(_peak_mb(), 1),
        "rss_mb_before": round(before, 1),
        "rss_mb": [round(one, 1) for one in rss],
        "batches": sum(count for count, _ in drained.values()),
        "drained": {lane: numbers.spans for lane, (_, numbers) in drained.items()},
    }


async def _live(spool: Spool, record: list[bytes], rss: list[float], slowest: list[float]) -> None:
    while True:
        begun = perf_counter()
        assert await spool.append(Lane.EVENTS, record).settled, "the disk failed"
        slowest[0] = max(slowest[0], perf_counter() - begun)
        rss.append(_resident_mb())
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _drain(spool: Spool, lane: Lane) -> tuple[int, Ranges]:
    """How many batches, and which numbers among them were still pending."""
    count, start = 0, 0
    drained: list[tuple[int, int]] = []
    under_way: list[tuple[int, int]] = []
    last: tuple[int, bytes] | None = None
    while (batch := await spool.next_batch(lane, start)) is not None:
        header = batch.header
        assert header.last >= start, f"{header}: comes after {start}"
        assert len(batches.open_records(batch)) == header.count
        if last is not None and last[0] == header.first:
            assert last[1] == header.chain_before, f"{header}: the chain is broken"
        start = header.last + 1
        last = start, header.chain_after
        count += 1
        drained += (Ranges(((header.first, start),)) - spool.released(lane)).spans
        under_way.append((header.first, start))
        if len(under_way) == SEND_WINDOW_BATCHES:
            spool.release(lane, Ranges.of(under_way), "hq")
            under_way.clear()
    if under_way:
        spool.release(lane, Ranges.of(under_way), "hq")
    return count, Ranges.of(drained)


def _resident_mb() -> float:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * _PAGE_BYTES / 1e6


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text("ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024 / 1e6


if __name__ == "__main__":
    main()
