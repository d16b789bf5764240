"""What to give up when a lane or the store is full. A plan as a value. Pure.

The spool states the loss, makes that durable, then acts. First each lane that has more than its own
quota gives up its oldest; then, while the store is still too large, the lanes give up, lowest
priority first, oldest first. A lane that refuses when it is full is never given up for another:
accounts and alarms are such lanes, since they are small, and tell of the rest. Of several epochs
the oldest goes first. What was released and only retained has gone before any of it: no plan speaks
of it, and no size that is compared here counts it (``mesh.spool.retained``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.shelf import Sealed
from schemas.messages import Epoch, Lane

__all__ = ["Eviction", "Shelf", "first_to_go", "plan"]

_SPARED: Final = 16


@dataclass(frozen=True, slots=True)
class Shelf:
    """What a lane has of one epoch.

    Args:
        epoch: which life.
        lane: which lane.
        batches: what may be given up, oldest first.
        bytes: what it takes in all, journals included.
    """

    epoch: Epoch
    lane: Lane
    batches: Sequence[Sealed]
    bytes: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """A batch to give up."""

    epoch: Epoch
    lane: Lane
    batch: Sealed


def first_to_go(lanes: Mapping[Lane, LaneSettings]) -> tuple[Lane, ...]:
    """The lanes that give up records for others, in the order in which they do."""
    return tuple(reversed([lane for lane in _yielding(lanes) if lane is not Lane.ACCOUNT]))


def _yielding(lanes: Mapping[Lane, LaneSettings]) -> list[Lane]:
    """The lanes that give up records when they are full themselves."""
    return [lane for lane in Lane if lanes[lane].when_full is WhenFull.EVICT_OLDEST]


def plan(
    shelves: Sequence[Shelf],
    lanes: Mapping[Lane, LaneSettings],
    used_bytes: int,
    bytes_max: int,
) -> tuple[Eviction, ...]:
    """Which batches go, so that all fits again with a sixteenth to spare.

    Args:
        shelves: of each lane, its epochs from the oldest to the present one.
        lanes: how each lane is kept.
        used_bytes: what the store takes now.
        bytes_max: what it may take.

    Returns:
        Nothing while all fits; everything that may go when even that does not suffice.
    """
    taken = dict.fromkeys(range(len(shelves)), 0)
    evictions: list[Eviction] = []

    def give_up(lane: Lane, excess: int) -> int:
        """Takes the oldest that are left of a lane; returns how many bytes that gives."""
        given = 0
        for index, shelf in enumerate(shelves):
            if shelf.lane is not lane:
                continue
            for batch in islice(shelf.batches, taken[index], None):
                if given >= excess:
                    return given
                evictions.append(Eviction(shelf.epoch, lane, batch))
                taken[index] += 1
                given += batch.allocated
        return given

    freed = 0
    for lane in _yielding(lanes):
        quota = lanes[lane].bytes_max
        held = sum(shelf.bytes for shelf in shelves if shelf.lane is lane)
        if quota is not None and held > quota:
            freed += give_up(lane, held - (quota - quota // _SPARED))
    if used_bytes - freed > bytes_max:
        excess = used_bytes - freed - (bytes_max - bytes_max // _SPARED)
        for lane in first_to_go(lanes):
            if excess <= 0:
                break
            excess -= give_up(lane, excess)
    return tuple(evictions)
