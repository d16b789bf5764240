"""What to give up when the store is full. A plan as a value.

The spool states the loss, makes that durable, then acts.

Lowest priority first, oldest first. Accounts and alarms are never given up: they are small, and
they are what tells of the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.spool.shelf import Sealed
from schemas.messages import Lane

__all__ = ["Eviction", "plan"]

_KEPT = frozenset({Lane.ACCOUNT, Lane.ALARMS})


@dataclass(frozen=True, slots=True)
class Eviction:
    """A batch to give up."""

    lane: Lane
    batch: Sealed


def plan(
    shelves: Mapping[Lane, Sequence[Sealed]], used_bytes: int, bytes_max: int
) -> tuple[Eviction, ...]:
    """Which batches go, so that the store fits again with a sixteenth to spare.

    Args:
        shelves: what each lane has on its shelf, oldest first.
        used_bytes: what the store takes now.
        bytes_max: what it may take.

    Returns:
        Nothing while it fits; everything that may go when even that does not suffice.
    """
    if used_bytes <= bytes_max:
        return ()
    excess = used_bytes - (bytes_max - bytes_max // 16)
    evictions: list[Eviction] = []
    for lane in sorted(shelves, key=lambda lane: lane.priority, reverse=True):
        if lane in _KEPT:
            continue
        for batch in shelves[lane]:
            if excess <= 0:
                return tuple(evictions)
            evictions.append(Eviction(lane, batch))
            excess -= batch.size
    return tuple(evictions)
