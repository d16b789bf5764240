"""A lane on its way: what was sent of it, what became of that, and what waits until when. Pure.

Numbers are *released*, *sent*, *parked* or *passed* over, or to be sent. ``mesh.transfer.delivery``
says which rules move them from one to the other.
"""

from dataclasses import dataclass, field
from operator import is_not
from typing import Final, NamedTuple

from mesh.transfer.holders import Holders
from mesh.transfer.turns import LaneRule
from schemas.limits import RANGES_MAX
from schemas.ranges import Ranges

__all__ = ["Outgoing", "Sending"]

_CHAINS_KEPT: Final = 1024
_PARKED_MAX: Final = 256
_PARKED_SECONDS: Final = 3600.0
_UNANSWERED_MAX: Final = 4096
_NONE: Final = Ranges()


class Sending(NamedTuple):
    """A batch that is under way: from which number on, up to which, and how large its body is."""

    start: int
    stop: int
    size: int


@dataclass(slots=True)
class Outgoing:
    """One lane of one life.

    Args:
        rule: what the lane asks for.
        released: what its cursor says.
    """

    rule: LaneRule
    released: Ranges
    sent: Ranges = _NONE
    live_from: int = 0
    under_way: dict[int, Sending] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    parked: Ranges = _NONE
    unpark_at: float | None = None
    passed: Ranges = _NONE
    """What stayed without a receipt while none came."""
    accepted_at: float | None = None
    unanswered: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Accepted batches without a receipt: where each ends and when that was, by where it starts."""
    in_vain: int = 0
    """How often a receipt was overdue since the last one came."""
    next_at: float = 0.0
    live_at: float = 0.0
    """Until when what is live gathers records; history does not wait for that."""
    resends: int = 0
    chains: dict[int, bytes] = field(default_factory=dict)
    """The chains before numbers that were sent."""
    holders: Holders = field(default_factory=Holders)
    _taken: Ranges = _NONE
    _taken_of: tuple[Ranges, ...] = ()

    @property
    def taken(self) -> Ranges:
        """What need not be sent now."""
        parts = (self.released, self.parked, self.passed, self.sent)
        # Sets of numbers are never changed, only replaced.
        if len(self._taken_of) != len(parts) or any(map(is_not, parts, self._taken_of)):
            self._taken = self.released | self.parked | self.passed | self.sent
            self._taken_of = parts
        return self._taken

    @property
    def accepted(self) -> Ranges:
        """What was accepted and has no receipt."""
        return self.sent - Ranges.of((item.start, item.stop) for item in self.under_way.values())

    @property
    def is_probing(self) -> bool:
        """Whether a batch is on its way to find out whether receipts come again."""
        return self.in_vain > 0 and (bool(self.under_way) or self.accepted_at is not None)

    def await_receipt(self, sending: Sending, now: float) -> None:
        """A batch was accepted: from now on a receipt is due."""
        if self.accepted_at is None:
            self.accepted_at = now
        self.unanswered[sending.start] = (sending.stop, now)
        if len(self.unanswered) > _UNANSWERED_MAX:
            del self.unanswered[next(iter(self.unanswered))]

    def go_back(self) -> None:
        """What was accepted and has no receipt is to be sent again."""
        accepted = self.accepted
        self.resends += bool(accepted)
        self.sent -= accepted
        self.unanswered.clear()
        self.accepted_at = None

    def count_try(self, start: int, tries_max: int) -> bool:
        """A batch was sent for nothing; whether that was its last try."""
        tries = self.tries.pop(start, 0) + 1
        if tries >= tries_max:
            return len(self.parked.spans) < _PARKED_MAX
        self.tries[start] = tries
        while len(self.tries) > _CHAINS_KEPT:
            self.tries.pop(next(iter(self.tries)))
        return False

    def pass_over(self) -> None:
        """What was sent to find out had no receipt either: the next one is tried."""
        for start, stop in self.accepted.spans:
            if len(self.passed.spans) < _PARKED_MAX:
                self.passed = self.passed.add(start, stop)

    def park(self, start: int, stop: int, now: float) -> None:
        """A batch was refused, or not answered, too often: it is tried again much later."""
        self.parked = self.parked.add(start, stop)
        if self.unpark_at is None:
            self.unpark_at = now + _PARKED_SECONDS

    def answer(self, stated: Ranges, patience: float, tries_max: int, now: float) -> None:
        """Receipts state these numbers: what they should have stated before is to be sent again."""
        answered = [
            start for start, (stop, _) in self.unanswered.items() if stated.covers(start, stop)
        ]
        newest = max((self.unanswered.pop(start)[1] for start in answered), default=0.0)
        late = [start for start, (_, at) in self.unanswered.items() if at + patience < newest]
        for start in late:
            stop, _ = self.unanswered.pop(start)
            self.sent -= Ranges(((start, stop),))
            self.resends += 1
            if self.count_try(start, tries_max):
                self.park(start, stop, now)

    def lose(self, sending: Sending) -> None:
        """A sending came to nothing."""
        self.sent -= Ranges(((sending.start, sending.stop),))
        self.resends += 1

    def mark_sent(self, start: int, stop: int) -> None:
        """These numbers need not be sent now; of too many spans the oldest are sent again."""
        self.sent = self.sent.add(start, stop)
        if len(self.sent.spans) > RANGES_MAX:
            # What is dropped is sent again, and taken once.
            self.sent = Ranges(self.sent.spans[-RANGES_MAX:])

    def remember(self, number: int, chain: bytes) -> None:
        """The chain before a number, for a receipt to be compared with."""
        # What was sent again is new again: the oldest is what goes.
        self.chains.pop(number, None)
        self.chains[number] = chain
        while len(self.chains) > _CHAINS_KEPT:
            self.chains.pop(next(iter(self.chains)))

    def on_break(self) -> None:
        """The link broke: all that is not released is sent again."""
        self.under_way.clear()
        self.tries.clear()
        self.parked = self.passed = _NONE
        self.unpark_at = None
        self.next_at = self.live_at = 0.0
        self.in_vain = 0
        self.go_back()

    def unpark(self, now: float) -> None:
        """What was parked is tried again once its time has come."""
        if self.unpark_at is not None and now >= self.unpark_at:
            self.parked, self.unpark_at = _NONE, None
            self.tries.clear()
