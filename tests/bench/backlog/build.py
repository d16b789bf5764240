"""A backlog that no network ever took, built in a process that ends by ``SIGKILL``.

``python -m tests.bench.backlog.build FOLDER BYTES FRAMES`` fills the lanes ``decisions`` and
``logs`` with records of 4 KiB that hardly shrink, and a little of ``readings`` beside, until the
spool takes so many bytes; releases spans above the cursor; then fills a journal of its own with so
many frames of one record, and kills itself. On standard output it says what is there, as JSON.
"""

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from mesh.adapters.system import SystemDisk
from mesh.spool.journal import numbers
from mesh.spool.spool import Spool
from schemas import wire
from schemas.limits import JOURNAL_BYTES_MAX
from schemas.messages import Lane, LogLine, Reading, Severity
from schemas.ranges import Ranges
from tests.bench.spool.load import append_one_by_one, opened, sample_records

__all__ = ["main"]

_BIG_LANES = (Lane.DECISIONS, Lane.LOGS)
_BIG_RECORDS = 1024
_BIG_CHARS = 4000
_BIG_APPEND = 250
_SMALL_APPEND = 250
_JOURNALS_MAX = 8
_POLL_SECONDS = 0.01
_REST_SECONDS = 2.0
_SEAL_SECONDS_MAX = 60.0
_RELEASED_SPANS = 50
_RELEASED_SHARE = 16
_WALL_NS = 1_767_225_600_000_000_000


def main() -> None:
    """Builds, says what it built, and kills itself."""
    folder, size, frames = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    asyncio.run(_build(SystemDisk(folder), size, frames))


async def _build(disk: SystemDisk, size: int, frames: int) -> None:
    generator = random.Random(1)
    async with opened(disk) as spool:
        # So much more as will be released, and as journals will shrink when they are sealed.
        more = size // (_RELEASED_SHARE - 1) + 2 * JOURNAL_BYTES_MAX
        await _fill(spool, disk, generator, size + more)
        released = {lane: _holes(spool, lane) for lane in _BIG_LANES}
        for lane, numbers in released.items():
            spool.release(lane, numbers, "hq")
        await _rested(disk)
    # What comes now stands in a journal of its own, which nothing seals.
    async with opened(disk, maintain=False) as spool:
        await append_one_by_one(spool, sample_records(), frames)
        told = {
            lane: [spool.next_seq(lane), released.get(lane, Ranges()).spans]
            for lane in (*_BIG_LANES, Lane.READINGS)
        }
        print(json.dumps(told), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


async def _fill(spool: Spool, disk: SystemDisk, generator: random.Random, size: int) -> None:
    big = [_line(generator) for _ in range(_BIG_RECORDS)]
    readings = [_reading(generator, number) for number in range(_BIG_RECORDS)]
    while spool.status().used_bytes < size:
        for _ in range(8):
            under_way = []
            for lane in _BIG_LANES:
                start = generator.randrange(_BIG_RECORDS - _BIG_APPEND)
                under_way.append(spool.append(lane, big[start : start + _BIG_APPEND]))
            start = generator.randrange(_BIG_RECORDS - _SMALL_APPEND)
            under_way.append(spool.append(Lane.READINGS, readings[start : start + _SMALL_APPEND]))
            for appended in under_way:
                assert await appended.settled, "the disk failed"
        async with asyncio.timeout(_SEAL_SECONDS_MAX):
            while len(numbers(disk)) > _JOURNALS_MAX:  # noqa: ASYNC110 - only the files tell
                await asyncio.sleep(_POLL_SECONDS)


def _holes(spool: Spool, lane: Lane) -> Ranges:
    """Numbers above the first, in equal distances: what came to headquarters by another way."""
    stop = spool.next_seq(lane)
    step = stop // (_RELEASED_SPANS + 1)
    spans = [
        (number * step, number * step + step // _RELEASED_SHARE)
        for number in range(1, _RELEASED_SPANS)
    ]
    return Ranges.of(spans)


async def _rested(disk: SystemDisk) -> None:
    """Returns once the closed journals are sealed: nothing has changed for a while."""
    before: list[int] = []
    while (now := numbers(disk)) != before:
        before = now
        await asyncio.sleep(_REST_SECONDS)


def _line(generator: random.Random) -> bytes:
    text = "".join(map(chr, generator.choices(range(32, 127), k=_BIG_CHARS)))
    return wire.encode(LogLine(_WALL_NS, _WALL_NS, Severity.NOTICE, "bench", text))


def _reading(generator: random.Random, number: int) -> bytes:
    values = {f"field-{index}": round(generator.random(), 6) for index in range(8)}
    return wire.encode(Reading(_WALL_NS + number, number, "plant/pump-1/telemetry", values))


if __name__ == "__main__":
    main()
