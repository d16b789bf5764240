"""Turns: which of the queues that wait at one link goes next. Pure.

The most urgent lane goes first, with one exception: a lane with a guaranteed *share* that is owed
its next part goes before the others, unless an alarm or an account waits. What a lane is owed grows
by its share of every byte that goes while it waits, shrinks by what it sends while others wait, and
is bounded on both sides: neither a long wait nor a long feast is remembered for more than a batch.

Within a lane live goes before history, and the lives of several nodes take turns by bytes: each
has a tag, the place in the lane's common count of bytes where its next part begins; the least goes
next. Who comes anew begins at the present place: resting earns nothing. (Start-time fair queueing:
Goyal, Vin, Cheng, SIGCOMM 1996.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mesh.transfer.source import Life
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Lane

__all__ = ["LaneRule", "Queue", "Turns"]

_URGENT: Final = frozenset({Lane.ACCOUNT, Lane.ALARMS})
_OWED_BYTES_MAX: Final = BATCH_BYTES_MAX
_TAGS_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class LaneRule:
    """How a lane is sent.

    Args:
        share: how much of a link's bytes is its own while something of it waits, 0 to 1.
        live: whether the newest goes first, and history behind it.
        linger_seconds: how long it gathers records after a small batch that was its last.
    """

    share: float = 0.0
    live: bool = False
    linger_seconds: float = 0.0


class Queue(NamedTuple):
    """Something that could send one part now."""

    life: Life
    lane: Lane
    live: bool
    bytes: int
    """How large that part is."""


@dataclass(slots=True)
class _Lane:
    owed: float = 0.0
    place: int = 0
    tags: dict[Life, int] = field(default_factory=dict)


class Turns:
    """Who goes next over one link.

    Args:
        rules: of each lane; missing ones have no share.
    """

    def __init__(self, rules: Mapping[Lane, LaneRule]) -> None:
        self._shares = {lane: rule.share for lane, rule in rules.items() if rule.share > 0}
        assert sum(self._shares.values()) <= 1.0, f"shares {self._shares} are more than the whole"
        self._lanes = {lane: _Lane() for lane in Lane}
        self._waiting: frozenset[Lane] = frozenset()

    def __repr__(self) -> str:
        owed = {str(lane): round(self._lanes[lane].owed) for lane in self._shares}
        return f"<Turns owed {owed}>"

    def owed(self, lane: Lane) -> float:
        """By how many bytes a lane got less than its share; below 0 for more."""
        return self._lanes[lane].owed

    def pick(self, queues: Sequence[Queue]) -> Queue | None:
        """The queue that goes next.

        Args:
            queues: all that wait at the link.

        Returns:
            One of them; ``None`` where there are none.
        """
        self._waiting = frozenset(queue.lane for queue in queues)
        for lane in self._shares:
            if lane not in self._waiting:
                self._lanes[lane].owed = min(0.0, self._lanes[lane].owed)
        if not queues:
            return None
        live = {queue.lane for queue in queues if queue.live}
        lane = self._lane(live, _smallest(queues))
        state = self._lanes[lane]
        return min(
            (queue for queue in queues if queue.lane is lane and queue.live is (lane in live)),
            key=lambda queue: state.tags.get(queue.life, state.place),
        )

    def on_sent(self, queue: Queue, size: int) -> None:
        """A queue that was picked has sent so many bytes."""
        for lane in self._waiting & self._shares.keys():
            self._owe(lane, self._shares[lane] * size)
        if queue.lane in self._shares and self._waiting - {queue.lane}:
            self._owe(queue.lane, -float(size))
        state = self._lanes[queue.lane]
        begun = max(state.place, state.tags.pop(queue.life, state.place))
        state.place = begun
        state.tags[queue.life] = begun + size
        if len(state.tags) > _TAGS_MAX:
            state.tags.pop(next(iter(state.tags)))

    def _lane(self, live: set[Lane], sizes: Mapping[Lane, int]) -> Lane:
        first = min(self._waiting, key=lambda lane: lane.priority)
        owed = [
            lane
            for lane in self._shares
            if lane in self._waiting and self._lanes[lane].owed >= sizes[lane]
        ]
        if first in _URGENT or not owed:
            return first
        return max(owed, key=lambda lane: (self._lanes[lane].owed, lane in live, -lane.priority))

    def _owe(self, lane: Lane, size: float) -> None:
        state = self._lanes[lane]
        state.owed = max(-_OWED_BYTES_MAX, min(_OWED_BYTES_MAX, state.owed + size))


def _smallest(queues: Sequence[Queue]) -> dict[Lane, int]:
    """How large the smallest part is that a lane could send next."""
    sizes: dict[Lane, int] = {}
    for queue in queues:
        sizes[queue.lane] = min(queue.bytes, sizes.get(queue.lane, queue.bytes))
    return sizes
