"""The holders of a lane: what each has stated last, and in which of its lives. Pure.

Receipts overtake each other, so which life came last says little. A receipt of a life of its holder
that is over changes nothing; a holder that begins a life may have lost what it held.
"""

from typing import Final, NamedTuple

from schemas.limits import HOLDERS_MAX
from schemas.messages import Epoch, Receipt
from schemas.ranges import Ranges

__all__ = ["Holders"]

_SILENT_SECONDS: Final = 3600.0
_PAST_LIVES_MAX: Final = 16
_NONE: Final = Ranges()


class _Stated(NamedTuple):
    """What a holder said last."""

    life: Epoch
    number: int
    numbers: Ranges
    at: float


class Holders:
    """What the holders of one lane have stated."""

    def __init__(self) -> None:
        self._stated: dict[str, _Stated] = {}
        # The last number that was heard of lives of holders that another one followed.
        self._past: dict[tuple[str, Epoch], int] = {}

    def __repr__(self) -> str:
        return f"<Holders {', '.join(self._stated)}>"

    def is_late(self, receipt: Receipt, now: float) -> bool:
        """Whether a receipt is of a life that is over.

        One that says something new is the holder's present life if it began after the one that took
        its place, or if that one has fallen silent: a holder that was restored from a copy may
        count its lives from less.
        """
        heard = self._past.get((receipt.holder, receipt.life))
        if heard is None:
            return False
        known = self._stated.get(receipt.holder)
        if receipt.number <= heard or known is None:
            return receipt.number <= heard
        silent = now - known.at >= _SILENT_SECONDS
        return receipt.life.counter <= known.life.counter and not silent

    def is_newest(self, receipt: Receipt) -> bool:
        """Whether its holder has said nothing later."""
        known = self._stated.get(receipt.holder)
        return known is None or known.life != receipt.life or receipt.number >= known.number

    def lost(self, receipt: Receipt, stated: Ranges, held_before: int) -> Ranges:
        """What its holder had stated in an earlier life, and nobody states now.

        Args:
            receipt: its holder's newest.
            stated: the numbers that it states.
            held_before: what the holder is known to have stated before this program began, where it
                says something for the first time since.
        """
        known = self._stated.get(receipt.holder)
        if known is None:
            before = Ranges.of([(0, held_before)])
        elif known.life != receipt.life:
            before = known.numbers
        else:
            return _NONE
        lost = before - stated
        for holder, other in self._stated.items():
            if holder != receipt.holder:
                lost -= other.numbers
        return lost

    def hear(self, receipt: Receipt, stated: Ranges, now: float) -> None:
        """Its holder's newest receipt: an earlier life of the holder, if there was one, is over."""
        known = self._stated.pop(receipt.holder, None)
        if known is not None and known.life != receipt.life:
            self._past[receipt.holder, known.life] = known.number
            if len(self._past) > _PAST_LIVES_MAX:
                del self._past[next(iter(self._past))]
        self._past.pop((receipt.holder, receipt.life), None)
        self._stated[receipt.holder] = _Stated(receipt.life, receipt.number, stated, now)
        while len(self._stated) > HOLDERS_MAX:
            self._stated.pop(next(iter(self._stated)))
