"""What the spool keeps in memory of one lane, and what a person may ask of it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from mesh.spool.backlog import Backlog
from mesh.spool.commit import Entry, Standing
from mesh.spool.explained import bounded
from mesh.spool.recovery import LaneFound
from schemas.limits import NUMBERS_RESERVED
from schemas.messages import Lane
from schemas.ranges import Ranges
from schemas.stored import LaneMark, Numbers

__all__ = ["LaneSettings", "LaneState", "LaneStatus", "WhenFull"]

_SMOOTHING_SECONDS: Final = 10.0


class WhenFull(StrEnum):
    """What a lane does when it has as much as it may have."""

    REFUSE = "refuse"
    """New records are refused. What is there is never given up, for nobody."""
    EVICT_OLDEST = "evict-oldest"
    """The oldest records are given up, and stated."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """How a lane is kept.

    Args:
        linger_seconds: how long a record that nobody awaits may wait for others before it is
            committed.
        reserved: how many numbers may be handed out ahead of what is durable.
        bytes_max: what it may take on disk, in blocks; ``None`` for all that the spool may. Kept by
            the journal: what is in an open journal is not given up.
        age_seconds_max: for how long a record is kept, in running time; ``None`` for as long as
            there is room.
        when_full: what to do beyond ``bytes_max``, or when the spool is full.
        enabled: whether it takes records. A lane that does not still hands on what it holds.

    Raises:
        ValueError: more are reserved than ``NUMBERS_RESERVED``.
    """

    linger_seconds: float
    reserved: int
    bytes_max: int | None = None
    age_seconds_max: float | None = None
    when_full: WhenFull = WhenFull.EVICT_OLDEST
    enabled: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.reserved <= NUMBERS_RESERVED:
            raise ValueError(f"{self.reserved} numbers reserved, not 1 to {NUMBERS_RESERVED}")


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How a lane stands.

    Args:
        next_seq: the number that the next record will take.
        pending_records: durable and not released, of all epochs.
        pending_bytes: what they take on disk.
        waiting_records: handed over and not yet durable.
        explained: how many numbers will never arrive, by reason.
        bytes_per_second: what it grows by at the present rate.
        refuses: why it takes nothing now; empty when it does.
        settings: how it is kept; its window is what a crash may take of what nobody awaited.
    """

    next_seq: int
    pending_records: int
    pending_bytes: int
    waiting_records: int
    explained: Mapping[str, int]
    bytes_per_second: float
    refuses: str
    settings: LaneSettings

    @property
    def linger_seconds(self) -> float:
        """Its stated window."""
        return self.settings.linger_seconds


@dataclass(slots=True)
class LaneState:
    """The loop's side of a lane: numbers handed out, records that wait, what is pending.

    ``next_seq - len(waiting)`` is the number of the first record that waits. In a past epoch
    nothing waits and no number is handed out. ``refuses`` says why the lane takes nothing now;
    empty when it does.
    """

    settings: LaneSettings
    backlog: Backlog
    next_seq: int
    reserved: int
    explained: dict[str, Ranges]
    statement: int
    chain: bytes
    waiting: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0
    unrecorded: int = 0
    short_of: int = 0
    refuses: str = ""
    _appended_bytes: int = 0
    _rate: float = 0.0
    _rated_at: float | None = None

    @classmethod
    def after(cls, found: LaneFound, settings: LaneSettings) -> "LaneState":
        """The state in which a lane goes on."""
        return cls(
            settings,
            Backlog(found.fresh, found.sealed, found.released, found.kept),
            found.mark.next_seq,
            found.mark.next_seq,
            bounded(found.explained, found.released),
            found.statement,
            found.mark.chain,
        )

    def hand_over(self, lane: Lane, stop: int) -> Entry | None:
        """Takes what waits below ``stop`` as an entry of a group."""
        taken, size = self.waiting, self.waiting_bytes
        first = self.next_seq - len(taken)
        if stop == self.next_seq:
            self.waiting = []
        else:
            taken, self.waiting = taken[: stop - first], taken[stop - first :]
            size = sum(map(len, taken))
        self.waiting_bytes -= size
        self._appended_bytes += size
        return Entry(lane, first, taken, size) if taken else None

    def wanted_reservation(self) -> int:
        """The number up to which to reserve now; 0 while half of it, and what fell short, is left.

        At most ``NUMBERS_RESERVED`` above the next number.
        """
        ahead = max(self.settings.reserved, self.short_of)
        left = self.reserved - self.next_seq
        enough = left >= self.settings.reserved // 2 and left >= self.short_of
        self.short_of = 0
        return 0 if enough else self.next_seq + ahead

    def explain(self, why: str, numbers: Ranges) -> None:
        """States that numbers will never arrive; what is stated stays bounded."""
        if numbers:
            stated = {**self.explained, why: self.explained.get(why, Ranges()) | numbers}
            self.explained = bounded(stated, self.backlog.released)

    def standing(self, reserved: int) -> Standing:
        """As a journal's header says it."""
        return Standing(reserved, self.explained, self.statement)

    def ended(self) -> Numbers:
        """As ``STORE`` says it of a past epoch."""
        mark = LaneMark(self.next_seq, self.chain)
        return Numbers(mark, self.next_seq, self.explained, self.statement)

    def status(self, now_seconds: float, past: Iterable["LaneState"]) -> LaneStatus:
        """How it stands; the rate is smoothed over about ten seconds.

        Args:
            now_seconds: on the loop's clock.
            past: the same lane in past epochs.
        """
        if self._rated_at is None:
            self._rated_at = now_seconds
        elapsed = now_seconds - self._rated_at
        if elapsed > 0:
            weight = min(1.0, elapsed / _SMOOTHING_SECONDS)
            self._rate += weight * (self._appended_bytes / elapsed - self._rate)
            self._appended_bytes, self._rated_at = 0, now_seconds
        lives = (self, *past)
        explained: Counter[str] = Counter()
        for state in lives:
            explained.update({why: len(numbers) for why, numbers in state.explained.items()})
        return LaneStatus(
            self.next_seq,
            sum(state.backlog.records for state in lives),
            sum(state.backlog.fresh_bytes + state.backlog.sealed_bytes for state in lives),
            len(self.waiting),
            explained,
            self._rate,
            self.refuses,
            self.settings,
        )
