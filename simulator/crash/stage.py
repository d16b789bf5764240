"""The stage: what a spool needs to live on virtual time and a simulated disk."""

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from mesh.ports import Clock, Disk, Observer
from mesh.spool.spool import Resources, Spool
from simulator.clock import SimClock, VirtualLoop

__all__ = ["Thread", "resources", "working"]


class Thread(Executor):
    """Stands for a thread: on virtual time its calls run on the loop, one after another."""


def resources(
    disk: Disk,
    generator: random.Random,
    observer: Observer,
    machine: bytes,
    clock: Clock | None = None,
    boot: bytes | None = None,
) -> Resources:
    """What a spool needs, on the running virtual loop.

    Args:
        disk: its folder.
        generator: draws what is random to it.
        observer: is told what happens.
        machine: the machine, 16 bytes.
        clock: its clock; one that has just begun where none is given.
        boot: the boot id, 16 bytes; a new one where none is given.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "executors that are never used want a loop that knows"
    return Resources(
        disk=disk,
        clock=clock or SimClock(loop),
        writer=Thread(),
        worker=Thread(),
        entropy=generator.randbytes,
        boot=boot or generator.randbytes(16),
        machine=machine,
        observer=observer,
    )


@asynccontextmanager
async def working(spool: Spool) -> AsyncIterator[None]:
    """Lets a spool do its chores meanwhile; what ended them early is raised.

    An audit wants them to rest: what they give up between two questions would look like a loss.
    """
    chores = asyncio.get_running_loop().create_task(spool.maintain())
    try:
        yield
    finally:
        early = chores.done()
        chores.cancel()
        await asyncio.wait([chores])
    if early:
        chores.result()
