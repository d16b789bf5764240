"""A photograph: the disks that a power cut now could leave, and what had been said by then.

Some operations come up a hundred times as often as others; how often one is photographed is set
against that.
"""

import random
from collections.abc import Mapping
from itertools import islice
from typing import Final, NamedTuple

from simulator.crash.annals import Annals
from simulator.crash.operations import Operation
from simulator.crash.times import Times
from simulator.disk import SimDisk

__all__ = ["SPACIOUS_BYTES", "Photograph", "images_of", "is_wanted"]

_SHARES: Final[Mapping[Operation, float]] = {
    Operation.APPEND: 0.04,
    Operation.ROTATE: 0.04,
    Operation.SEAL: 0.02,
    Operation.RELEASE: 0.25,
    Operation.RECLAIM: 0.5,
    Operation.EVICT: 0.3,
    Operation.EPOCH_CHANGE: 0.35,
    Operation.OPEN: 0.03,
    Operation.REST: 0.08,
}
_IMAGES_MAX: Final = 6
_LOOKED_AT_MAX: Final = 64
SPACIOUS_BYTES: Final = 1 << 40
"""What a disk holds that nobody fills."""


class Photograph(NamedTuple):
    """What a power cut before a change could leave.

    Args:
        cut: the number of that change.
        operation: what was under way.
        images: disks that differ from each other and from what was durable.
        annals: what had been said.
        times: the time.
        machine: the machine on which it was.
    """

    cut: int
    operation: Operation
    images: tuple[SimDisk, ...]
    annals: Annals
    times: Times
    machine: int


def is_wanted(operation: Operation, generator: random.Random) -> bool:
    """Whether to take one now. One draw, whatever becomes of it."""
    return generator.random() < _SHARES[operation]


def images_of(disk: SimDisk, generator: random.Random, block_bytes: int) -> tuple[SimDisk, ...]:
    """Some of the disks that a power cut now could leave; each has something that was not synced.

    Args:
        disk: as it stands.
        generator: draws which.
        block_bytes: what the device writes as a whole.
    """
    possible = disk.crash_images(generator, block_bytes=block_bytes, samples_max=_LOOKED_AT_MAX)
    # The first is what is durable: nothing of what was not synced.
    durable, *others = islice(possible, _LOOKED_AT_MAX)
    if len(others) > _IMAGES_MAX:
        others = [*generator.sample(others[:-1], _IMAGES_MAX - 1), others[-1]]
    images = tuple(image for image in others if image.image_hash() != durable.image_hash())
    for image in images:
        image.capacity_bytes = SPACIOUS_BYTES
    return images
