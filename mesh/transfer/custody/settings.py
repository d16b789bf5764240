"""What a store of custody needs, and how much it may take."""

import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from mesh.ports import Clock, Disk, Observer
from mesh.transfer.custody.writer import RESERVE_BYTES
from schemas.limits import (
    CUSTODY_BATCHES_MAX,
    CUSTODY_GROUP_BYTES_MAX,
    CUSTODY_JOURNAL_BYTES_MAX,
)

__all__ = ["CUSTODY_BYTES_MIN", "CustodyResources", "CustodySettings"]

CUSTODY_BYTES_MIN: Final = 4 * (CUSTODY_JOURNAL_BYTES_MAX + CUSTODY_GROUP_BYTES_MAX)
"""Less is not worth a gateway: two journals, one that is compacted, and room."""


@dataclass(frozen=True, slots=True)
class CustodySettings:
    """How much a store may hold.

    Args:
        holder: whose custody it is: what its receipts are signed with.
        bytes_max: what the store may take on disk; beyond it custody is refused, never dropped.
        journal_bytes_max: when the next journal is begun, not counting its snapshot.
        retained_share: how much of ``bytes_max`` may be batches that the next holder has.
        batches_max: how many batches may be held or retained.
        max_age_seconds: after how long a batch is given back to its origin; ``None`` for never.
        release_seconds: how long releases may wait for a commit.
        full_seconds: after how long something may be offered again that found no room.
    """

    holder: str
    bytes_max: int = 10 << 30
    journal_bytes_max: int = CUSTODY_JOURNAL_BYTES_MAX
    retained_share: float = 0.5
    batches_max: int = CUSTODY_BATCHES_MAX
    max_age_seconds: float | None = None
    release_seconds: float = 1.0
    full_seconds: float = 5.0

    def __post_init__(self) -> None:
        assert self.bytes_max > 2 * RESERVE_BYTES, "there is room beside the reserve"
        assert 0 <= self.retained_share <= 1, "it is a share"


@dataclass(frozen=True, slots=True)
class CustodyResources:
    """What a store needs of the world.

    Args:
        disk: a folder of its own.
        clock: for ages and the times of commits.
        writer: an executor of one thread, for all that writes.
        worker: an executor of one thread, for digests and reading.
        entropy: random bytes, for ids.
        rng: for the jitter of pauses.
        machine: 16 bytes that name the machine.
        observer: is told what happens.
    """

    disk: Disk
    clock: Clock
    writer: Executor
    worker: Executor
    entropy: Callable[[int], bytes]
    rng: random.Random
    machine: bytes
    observer: Observer
