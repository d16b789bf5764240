"""What a spool is made of: how its lanes are kept, and what the composition root hands to it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Clock, Disk, Observer
from mesh.spool.batch import Labels
from mesh.spool.lane import LaneSettings
from schemas.limits import JOURNAL_BYTES_MAX, NUMBERS_RESERVED
from schemas.messages import Lane

__all__ = ["DEFAULT_LANES", "Resources", "SpoolSettings"]

_AT_ONCE: Final = 0.0
_RIDES_ALONG: Final = 1.0
_FEW: Final = 4096

DEFAULT_LANES: Final[Mapping[Lane, LaneSettings]] = {
    Lane.ACCOUNT: LaneSettings(_AT_ONCE, _FEW),
    Lane.ALARMS: LaneSettings(_AT_ONCE, _FEW),
    Lane.DECISIONS: LaneSettings(0.005, NUMBERS_RESERVED),
    Lane.EVENTS: LaneSettings(_AT_ONCE, _FEW),
    Lane.METRICS: LaneSettings(_RIDES_ALONG, _FEW),
    Lane.READINGS: LaneSettings(_RIDES_ALONG, NUMBERS_RESERVED),
    Lane.LOGS: LaneSettings(_RIDES_ALONG, _FEW),
}


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """What a spool is configured with.

    Args:
        labels: site, node, and what else stands on each batch.
        bytes_max: what the folder may take.
        lanes: how each lane is kept.
        journal_bytes_max: a journal of at least so many bytes is sealed.
    """

    labels: Labels
    bytes_max: int = 1 << 30
    lanes: Mapping[Lane, LaneSettings] = field(default_factory=lambda: DEFAULT_LANES)
    journal_bytes_max: int = JOURNAL_BYTES_MAX

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
    """

    disk: Disk
    clock: Clock
    writer: Executor
    worker: Executor
    entropy: Callable[[int], bytes]
    boot: bytes
    machine: bytes
    observer: Observer
