"""A process that appends, seals and releases all the time.

``python -m tests.integration.appending FOLDER`` says ``ready`` once it has begun, and ends when its
standard input does.
"""

import asyncio
import itertools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy
from mesh.spool.spool import Resources, Spool
from schemas.messages import Lane
from schemas.ranges import Ranges
from tests.spool.world import CALM, Watcher, record

_KEPT_RECORDS = 200
_TURN_SECONDS = 0.005


async def _append(folder: str) -> None:
    resources = Resources(
        SystemDisk(folder),
        SystemClock(),
        ThreadPoolExecutor(1),
        ThreadPoolExecutor(1),
        entropy,
        boot_id(),
        bytes(16),
        Watcher(),
    )
    settings = replace(CALM, journal_bytes_max=16 * 1024, bytes_max=256 * 1024)
    spool = await Spool.open(resources, settings)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    chores = asyncio.get_running_loop().create_task(spool.maintain())
    rng = random.Random(5)
    print("ready", flush=True)
    for turn in itertools.count():
        if ended.done():
            break
        waiting = [
            spool.append(lane, [record(f"{lane} {turn} {n}") for n in range(rng.randint(1, 9))])
            for lane in (Lane.EVENTS, Lane.LOGS, Lane.METRICS)
        ]
        for appended in waiting:
            assert await appended.settled
        await asyncio.sleep(_TURN_SECONDS)
        durable = spool.durable(Lane.EVENTS)
        if turn % 5 == 0 and durable > _KEPT_RECORDS:
            spool.release(Lane.EVENTS, Ranges(((0, durable - _KEPT_RECORDS),)), "hq")
    chores.cancel()
    await asyncio.wait([chores])
    await spool.close()


if __name__ == "__main__":
    asyncio.run(_append(sys.argv[1]))
