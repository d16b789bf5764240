"""What is held of one lane of one life: its ledger, and where its batches stand. Pure.

A batch is *pending* while it has a number that the next holder does not have, then *retained* until
its journal goes: should the next holder lose it, it is offered again. Batches may overlap, since
their boundaries may differ between two sends. They are kept in the order of their last numbers, so
that whoever goes on behind the last number of one passes over none; of those that end alike the
longest comes first.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple

from mesh.transfer.source import Life
from schemas.limits import HOLDERS_MAX, LEDGER_SPANS_MAX
from schemas.messages import BatchHeader, Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import CustodyLane, LaneLedger

__all__ = ["Holding", "Kept", "LaneKey", "Place", "key_of"]

_LAST: Final = attrgetter("last")
_ORDER: Final = attrgetter("last", "first")
_START: Final = itemgetter(0)


class LaneKey(NamedTuple):
    """One lane of one life."""

    life: Life
    lane: Lane

    def __str__(self) -> str:
        return f"{self.life}/{self.lane}"


def key_of(what: BatchHeader | LaneLedger) -> LaneKey:
    """Which lane of which life something is of."""
    return LaneKey(Life(what.site, what.node, what.epoch), what.lane)


class Place(NamedTuple):
    """Where a batch stands."""

    journal: int
    offset: int
    size: int


@dataclass(eq=False, slots=True)
class Kept:
    """A batch that is kept: a few hundred bytes, whatever its size.

    Args:
        first: its first number.
        last: its last number, inclusive.
        sparse: which numbers, where some between are missing.
        place: where it stands.
        taken_ns: when it was taken, on the monotonic clock of this boot; negative when that was
            before it.
        expires_wall_ns: when it loses its use here, UTC; ``None`` for never.
        failures: how often it could not be read.
    """

    first: int
    last: int
    sparse: Ranges | None
    place: Place
    taken_ns: int
    expires_wall_ns: int | None = None
    failures: int = 0

    @classmethod
    def of(cls, header: BatchHeader, place: Place, taken_ns: int, at: Instant) -> "Kept":
        """What is kept of a batch with this header.

        Args:
            header: of the batch.
            place: where it stands.
            taken_ns: when it was taken, on the monotonic clock of this boot.
            at: when that was by the clock that stamped its entry.
        """
        sparse = header.present if len(header.present.spans) > 1 else None
        expires = header.expires_wall_ns
        if expires is not None and at.trusted and expires < at.wall_ns:
            # Its origin wants it to go on all the same: given back, it would only come again.
            expires = None
        return cls(header.first, header.last, sparse, place, taken_ns, expires)

    @property
    def present(self) -> Ranges:
        """Its numbers."""
        return self.sparse or Ranges(((self.first, self.last + 1),))

    @property
    def name(self) -> tuple[int, int, int]:
        """The same for another copy of the same batch, as far as can be told without its bytes."""
        return (self.first, self.last, self.place.size)


class Holding:
    """One lane: what is held of it, what was released, and where the batches are.

    Args:
        state: what a snapshot says of it.
    """

    def __init__(self, state: CustodyLane) -> None:
        self.ledger = state.ledger
        self.released = state.released
        self.holders = dict(state.holders)
        self.pending: list[Kept] = []
        self.retained: list[Kept] = []
        self._sparse = 0

    def __repr__(self) -> str:
        return f"<Holding {key_of(self.ledger)} {len(self.pending)} pending>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def state(self) -> CustodyLane:
        """What a snapshot says of it."""
        return CustodyLane(self.ledger, self.released, dict(self.holders))

    @property
    def spans(self) -> int:
        """How much its numbers cost."""
        return len(self.ledger.held.spans) + len(self.released.spans)

    def kept(self) -> Iterator[Kept]:
        """All of its batches."""
        yield from self.pending
        yield from self.retained

    def rest(self, kept: Kept) -> Ranges:
        """The numbers of a batch that the next holder does not have."""
        return kept.present - self.released

    def first_from(self, start: int) -> Kept | None:
        """The first pending batch with a number at or above ``start``."""
        return next(iter(self.pending_from(start, 1)), None)

    def pending_from(self, start: int, count: int) -> list[Kept]:
        """The first so many pending batches with a number at or above ``start``."""
        index = bisect_left(self.pending, start, key=_LAST)
        following = islice(self.pending, index, None)
        return list(islice((it for it in following if self.rest(it).end > start), count))

    def missing(self, gone: Sequence[Kept]) -> Ranges:
        """The numbers that went with batches which are here no more: held, and in no other."""
        there = Ranges.of(span for kept in self.kept() for span in kept.present.spans)
        went = Ranges.of(span for kept in gone for span in kept.present.spans)
        return (went & self.ledger.held) - self.released - there

    # --- what happens ------------------------------------------------------------------------

    def add(self, kept: Kept) -> bool:
        """A batch is kept here; returns whether it is pending."""
        self._sparse += kept.sparse is not None
        pending = bool(self.rest(kept))
        insort(self.pending if pending else self.retained, kept, key=_ORDER)
        return pending

    def release(self, numbers: Ranges, holder: str, mark: int) -> list[Kept]:
        """The next holder has these numbers; returns the batches that are no longer pending.

        Some may never have been here: they came another way, and need not go further from here.
        """
        new = numbers - self.released
        self.note_holder(holder, mark)
        if not new:
            return []
        released = self.released | new
        # A bound: what is forgotten here is only sent again.
        self.released = Ranges(released.spans[:LEDGER_SPANS_MAX])
        done = [kept for kept in self._touched(new) if not self.rest(kept)]
        gone = set(map(id, done))
        if done:
            low = bisect_left(self.pending, min(map(_LAST, done)), key=_LAST)
            high = bisect_left(self.pending, max(map(_LAST, done)) + 1, key=_LAST)
            self.pending[low:high] = [it for it in self.pending[low:high] if id(it) not in gone]
        for kept in done:
            insort(self.retained, kept, key=_ORDER)
        return done

    def note_holder(self, holder: str, mark: int) -> None:
        """A holder has released the numbers below ``mark``."""
        mark = max(mark, self.holders.pop(holder, 0))
        self.holders[holder] = mark
        while len(self.holders) > HOLDERS_MAX:
            self.holders.pop(next(iter(self.holders)))

    def reclaim(self, numbers: Ranges, holder: str) -> tuple[list[Kept], Ranges]:
        """The next holder has lost these numbers.

        Returns:
            The batches that are pending again, and the numbers held that none of them has.
        """
        numbers &= self.released
        self.released -= numbers
        if numbers and holder in self.holders:
            self.holders[holder] = min(self.holders[holder], numbers.spans[0][0])
        back = [kept for kept in self.retained if self.rest(kept)]
        self.retained = [kept for kept in self.retained if not self.rest(kept)]
        for kept in back:
            insort(self.pending, kept, key=_ORDER)
        there = Ranges.of(span for kept in self.pending for span in kept.present.spans)
        return back, (numbers & self.ledger.held) - there

    def lose(self, numbers: Ranges) -> None:
        """These numbers are held no more, here or further on."""
        self.ledger = replace(self.ledger, held=self.ledger.held - numbers)
        self.released -= numbers

    def remove(self, gone: Iterable[Kept]) -> None:
        """These batches are no longer here; what they leave behind is the caller's to say."""
        names = set(map(id, gone))
        self.pending = [kept for kept in self.pending if id(kept) not in names]
        self.retained = [kept for kept in self.retained if id(kept) not in names]
        self._sparse = sum(kept.sparse is not None for kept in self.kept())

    def _touched(self, new: Ranges) -> Iterator[Kept]:
        """The pending batches that may have become complete with these numbers."""
        if self._sparse:
            yield from list(self.pending)
            return
        done = self.released.spans
        at = {bisect_right(done, span[0], key=_START) - 1 for span in (new & self.released).spans}
        for start, stop in (done[index] for index in sorted(at)):
            low = bisect_left(self.pending, start, key=_LAST)
            high = bisect_left(self.pending, stop, key=_LAST)
            yield from self.pending[low:high]
