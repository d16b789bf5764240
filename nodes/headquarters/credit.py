"""Credit: how much more a sender may send, and when, from how full the way in is. Pure.

While the way in is less than half full, everybody may send on. Above that each sender has a share
of what is left, and waits before it uses it: the fuller, the longer, up to twice the time that it
takes to drain the way in to a half, at a moment that chance picks, so that ten thousand senders
that came back together are spread over that time instead of coming back together again. The most
urgent lanes wait for nobody: what they have to say is little, and is why there is a way in.
"""

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Lane

__all__ = ["URGENT", "Credit", "Room", "credit"]

URGENT: Final = frozenset({Lane.ACCOUNT, Lane.ALARMS})
_FREELY: Final = 0.5
_CREDIT_BYTES_MAX: Final = 64 * BATCH_BYTES_MAX
_WAIT_SECONDS_MAX: Final = 600.0
_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Room:
    """How full the way in is.

    Args:
        waiting_bytes: what waits in it.
        bytes_max: what it takes before it refuses.
    """

    waiting_bytes: int = 0
    bytes_max: int = 0

    @property
    def fullness(self) -> float:
        """0 to 1; 0 where nobody knows."""
        return min(1.0, self.waiting_bytes / self.bytes_max) if self.bytes_max > 0 else 0.0


class Credit(NamedTuple):
    """What a receipt grants."""

    credit_bytes: int
    not_before_ms: int


def credit(
    lane: Lane, room: Room, senders: int, bytes_per_second: float, rng: random.Random
) -> Credit:
    """What a receipt for a lane grants its sender.

    Args:
        lane: which lane; each lane above the urgent ones waits longer than the one before it.
        room: how full the way in is.
        senders: how many share it, at least one.
        bytes_per_second: how fast it is drained; 0 where nobody knows.
        rng: picks the moment.
    """
    # At least a batch: without any the sender could not go on when its wait is over.
    left = max(0, room.bytes_max - room.waiting_bytes) // max(1, senders)
    share = min(_CREDIT_BYTES_MAX, max(BATCH_BYTES_MAX, left))
    if room.fullness <= _FREELY:
        return Credit(share if room.bytes_max else 0, 0)
    if lane in URGENT:
        return Credit(share, 0)
    over = room.waiting_bytes - _FREELY * room.bytes_max
    drain = over / bytes_per_second if bytes_per_second > 0 else _WAIT_SECONDS_MAX
    rank = (lane.priority - len(URGENT) + 1) / (len(Lane) - len(URGENT))
    longest = min(_WAIT_SECONDS_MAX, 2 * drain * rank)
    return Credit(share, round(rng.uniform(0, longest) * _MS))
