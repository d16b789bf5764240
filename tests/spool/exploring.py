"""Every crash of a scripted history: the power goes before each change, and each disk is opened.

A script is a coroutine that takes a disk and a ``Said``. It is run once for each change that it
makes to the disk, cut short there; each disk that such a crash could leave is opened and audited
against what had been said by then, is used, closed in order, and opened again.
"""

import random
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from schemas.messages import Explained, Lane
from simulator.disk import SimDisk, cut_everywhere
from tests.spool.world import CALM, Said, audit, explained_of, opened, play

Script = Callable[[SimDisk, Said], Coroutine[Any, Any, None]]


@dataclass
class Explored:
    """How much was looked at."""

    cuts: int = 0
    images: int = 0
    possible: int = 0


def explore(
    script: Script, make: Callable[[], SimDisk] = SimDisk, *, images_max: int = 16, seed: int = 0
) -> Explored:
    """Runs, cuts, opens, audits. Raises what the audit raises; the cut and the image are noted."""
    told: list[Said] = []

    def work(disk: SimDisk) -> None:
        told.append(Said())

        async def main(_: random.Random) -> None:
            await script(disk, told[-1])

        play(main, seed)

    explored = Explored()
    for cut, disk in enumerate(cut_everywhere(work, make)):
        explored.cuts += 1
        generator = random.Random(seed * 10_007 + cut)
        images = list(disk.crash_images(generator, samples_max=images_max))
        explored.possible += len(images)
        # The first is nothing of what was not synced, the last all of it.
        if len(images) > images_max:
            between = generator.sample(images[1:-1], images_max - 2)
            images = [images[0], *between, images[-1]]
        for number, image in enumerate(images):
            explored.images += 1
            try:
                check(image, deepcopy(told[-1]))
            except BaseException as error:
                error.add_note(f"seed {seed}, power cut before change {cut}, image {number}")
                raise
    return explored


def check(image: SimDisk, said: Said) -> None:
    """Opens a disk that a crash left, audits, goes on, closes, opens again."""

    async def first(_: random.Random) -> None:
        async with opened(image, CALM, seed=1) as spool:
            await audit(spool, said)
            assert await said.append(spool, Lane.EVENTS, ["after the crash"])
            await audit(spool, said)
            void.append(explained_of(spool, Lane.EVENTS).get(Explained.VOID))

    async def second(_: random.Random) -> None:
        async with opened(image, CALM, seed=2) as spool:
            assert explained_of(spool, Lane.EVENTS).get(Explained.VOID) == void[0], (
                "a clean close leaves nothing void"
            )
            await audit(spool, said)

    void: list[object] = []
    play(first)
    play(second)


def alive(disk: SimDisk) -> None:
    """Raises ``PowerCut`` when the power has gone: a spool takes that for a failing disk."""
    disk.list("")
