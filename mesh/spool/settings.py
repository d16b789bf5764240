"""What a spool is made of: how its lanes are kept, and what the composition root hands to it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Clock, Disk, Observer
from mesh.spool.batch import Labels
from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.sealing import Packer
from schemas.limits import (
    BLOCK_BYTES,
    JOURNAL_BYTES_MAX,
    JOURNALS_CLOSED_MAX,
    JOURNALS_WAITING_MAX,
    KIB,
    MIB,
    NUMBERS_RESERVED,
    SPARE_BYTES_MIN,
)
from schemas.messages import Lane

__all__ = ["DEFAULT_LANES", "Resources", "SpoolSettings"]

_AT_ONCE: Final = 0.0
_RIDES_ALONG: Final = 1.0
_FEW: Final = 4096
_JOURNAL_BYTES_MIN: Final = 256 * KIB
_UNSEALED_BYTES_MIN: Final = 64 * KIB

DEFAULT_LANES: Final[Mapping[Lane, LaneSettings]] = {
    Lane.ACCOUNT: LaneSettings(_AT_ONCE, _FEW, 16 * MIB),
    Lane.ALARMS: LaneSettings(_AT_ONCE, _FEW, 64 * MIB, when_full=WhenFull.REFUSE),
    Lane.DECISIONS: LaneSettings(0.005, NUMBERS_RESERVED),
    Lane.EVENTS: LaneSettings(_AT_ONCE, _FEW, 128 * MIB),
    Lane.METRICS: LaneSettings(_RIDES_ALONG, _FEW, 256 * MIB),
    Lane.READINGS: LaneSettings(_RIDES_ALONG, NUMBERS_RESERVED, 512 * MIB),
    Lane.LOGS: LaneSettings(_RIDES_ALONG, _FEW, 128 * MIB),
}
"""For a card of 4 GB, of which a spool takes 1 GiB: decisions may have all of it, each of the
others a part, and what only helps to understand goes first. None is given up for its age: an
outage of months is what a spool is for."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """What a spool is configured with.

    Args:
        labels: site, node, and what else stands on each batch.
        bytes_max: what the folder may take, in blocks.
        lanes: how each lane is kept.
        journal_bytes_max: a journal of at least so many bytes is followed by a new one.
        journal_seconds_max: so is one that is so old, in running time.
        release_seconds: how long a closed journal waits for its release while a link is up, before
            it is sealed.
        spares_max: how many journals that nobody needs any more are kept for later ones, while
            less than half of ``bytes_max`` is used; beyond that it is one.
        retained_bytes_max: how much of what was released stays while there is space; ``None`` for a
            quarter of ``bytes_max``, 0 for nothing.
        journals_retained_max: how many journals stay among that, since an opening reads them all.
        spare_bytes: what is kept allocated for the next journal; the reserve of a full disk.
        headroom_bytes: what the spool leaves free on the file system, giving up what it may.
    """

    labels: Labels
    bytes_max: int = 1 << 30
    lanes: Mapping[Lane, LaneSettings] = field(default_factory=lambda: DEFAULT_LANES)
    journal_bytes_max: int = JOURNAL_BYTES_MAX
    journal_seconds_max: float = 3600.0
    release_seconds: float = 10.0
    spares_max: int = 16
    retained_bytes_max: int | None = None
    journals_retained_max: int = 2
    spare_bytes: int = SPARE_BYTES_MIN
    headroom_bytes: int = 2 * JOURNAL_BYTES_MAX

    @property
    def journal_bytes(self) -> int:
        """When a journal is full: a small spool has small journals, so that it can give up."""
        return min(self.journal_bytes_max, max(_JOURNAL_BYTES_MIN, self.bytes_max // 16))

    @property
    def spares_kept(self) -> int:
        """How many spares: one, and more where they are a small part of the spool."""
        return max(1, min(self.spares_max, self.bytes_max // (16 * self.journal_bytes)))

    @property
    def journals_waiting(self) -> int:
        """How many closed journals may wait for their release; beyond that the oldest are sealed.

        An opening reads them all, and nothing in them can be given up.
        """
        fitting = self.bytes_max // (8 * self.journal_bytes)
        return max(JOURNALS_CLOSED_MAX, min(JOURNALS_WAITING_MAX, fitting))

    @property
    def retained_bytes(self) -> int:
        """How much of what was released may stay."""
        return self.bytes_max // 4 if self.retained_bytes_max is None else self.retained_bytes_max

    @property
    def retained_leave_bytes(self) -> int:
        """What it leaves free on the file system: the headroom, a journal and a spare at least."""
        return max(self.headroom_bytes, self.journal_bytes + self.reserve_bytes)

    @property
    def reserve_bytes(self) -> int:
        """How large a spare is made: a small spool cannot spare much."""
        return min(self.spare_bytes, max(BLOCK_BYTES, self.bytes_max // 32))

    @property
    def unsealed_bytes_max(self) -> int:
        """How much may stand in closed journals: a quarter of the spool, some journals at least."""
        return max(_UNSEALED_BYTES_MIN, self.bytes_max // 4, 4 * self.journal_bytes)

    def __post_init__(self) -> None:
        assert self.journal_bytes_max <= JOURNAL_BYTES_MAX, "a reader reads no more"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the composition root hands to a spool.

    Args:
        disk: the spool's own folder.
        clock: for the times on frames.
        writer: executor of one thread, for commits only.
        worker: executor of one thread, for everything else that blocks.
        entropy: random bytes.
        boot: boot id, 16 bytes.
        machine: machine id, 16 bytes.
        observer: is told what happens.
        packer: makes batches of frames when a journal is sealed; in the worker where there is none.
    """

    disk: Disk
    clock: Clock
    writer: Executor
    worker: Executor
    entropy: Callable[[int], bytes]
    boot: bytes
    machine: bytes
    observer: Observer
    packer: Packer | None = None
