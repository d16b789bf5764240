"""A link as the forwarder uses it: its pace, what is under way, and whether it gets anywhere."""

from dataclasses import dataclass
from typing import Final

from mesh.ports import Link
from mesh.transfer.pace import Pace
from mesh.transfer.schedule import LinkRule
from schemas.limits import BATCH_BYTES_MAX

__all__ = ["Route", "Uplink"]

_PAUSE_SECONDS: Final = 1.0
_PART_BYTES_MIN: Final = 512
_FAILURES_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class Uplink:
    """A link, and what was configured for it."""

    link: Link
    rule: LinkRule


class Route:
    """The state of one link.

    Args:
        uplink: the link, and its rule.
        parts_max: how many parts may be under way.
    """

    def __init__(self, uplink: Uplink, parts_max: int) -> None:
        self.link = uplink.link
        self.name = uplink.rule.name
        self.pace = Pace()
        self.life = 0
        """Counts its changes: what is said of a part of an earlier life means nothing."""
        self.used = False
        """Whether anything was sent since it last changed."""
        self.told_on = -1
        """The connection on which a failure was told."""
        self._throttled_bytes_max = uplink.rule.part_bytes_max or BATCH_BYTES_MAX
        self._part_bytes_max = BATCH_BYTES_MAX
        self._resume_at = 0.0
        self._failures = 0
        self._parts_max = parts_max
        self._parts = 0
        self._parts_of_all_lives = 0

    def __repr__(self) -> str:
        return f"<Route {self.link.state} {self.pace}>"

    @property
    def part_bytes(self) -> int:
        """The most that the next part may have."""
        return min(self.pace.part_bytes, self._part_bytes_max, self._throttled_bytes_max)

    def room(self, now: float) -> int:
        """How many bytes may be sent now; none for a moment after a failure.

        What an earlier life of the link still holds up does not stop the next one, and is bounded.
        """
        if not self.link.state.up or now < self._resume_at:
            return 0
        if self._parts >= self._parts_max or self._parts_of_all_lives >= 2 * self._parts_max:
            return 0
        return self.pace.room_bytes

    def get_timer(self, now: float) -> float | None:
        """When there may be room again though nothing else happens."""
        return self._resume_at if now < self._resume_at else None

    def on_changed(self, now: float) -> None:
        """It came up or went down."""
        self.life += 1
        self.used = False
        self._failures = 0
        self._parts = 0
        self._part_bytes_max = BATCH_BYTES_MAX
        self.pace.on_break(now)

    def on_sent(self, size: int, now: float) -> None:
        """A part is on its way."""
        self.used = True
        self._parts += 1
        self._parts_of_all_lives += 1
        self.pace.on_sent(size, now)

    def on_ended(self, life: int) -> None:
        """A part of some life was answered, or never will be."""
        self._parts_of_all_lives -= 1
        self._parts -= life == self.life

    def on_refused(self, size: int) -> None:
        """A part was not taken."""
        self._failures = 0
        self.pace.on_lost(size)

    def on_accepted(self, size: int, now: float) -> None:
        """A part was accepted."""
        self._failures = 0
        self.pace.on_accepted(size, now)

    def on_failed(self, size: int, now: float) -> bool:
        """A part may not have arrived. Returns whether the link, though up, gets nowhere."""
        self.pace.on_lost(size)
        self._resume_at = now + _PAUSE_SECONDS
        self._failures += 1
        if self._failures < _FAILURES_MAX:
            return False
        self._failures = 0
        return self.link.state.up

    def cut_smaller(self, size: int) -> bool:
        """A part of this size is too large for the link; whether a smaller one may be tried."""
        if size <= _PART_BYTES_MIN:
            return False
        self._part_bytes_max = max(_PART_BYTES_MIN, min(self._part_bytes_max, size) // 2)
        return True
