"""What was released and still lies there, until its space is needed. Pure.

A holder that took records over may lose them again: it was restored from a backup, or acknowledged
before it wrote. So a batch that was released stays on the shelf, and a closed journal of which all
is released stays in its folder, in the order in which they were released. Nobody counts them as
pending, or as used: they are the first to go when room is wanted, the oldest release first.

Invariants: nothing here is pending, and all of it is released; whoever takes something out of here
either unlinks it, after the cursor is durable, or makes it pending again. Both happen on the loop
in one turn, so nothing is offered that is being unlinked.
"""

from collections.abc import Iterable
from typing import NamedTuple

from mesh.spool.kept import touches
from mesh.spool.lives import Shelved
from mesh.spool.shelf import Sealed
from schemas.limits import BLOCK_BYTES
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["ClosedJournal", "Retained"]


class ClosedJournal(NamedTuple):
    """A journal that is not written any more, what it occupies, and whether no sync of it failed.

    One that failed is never written over.
    """

    number: int
    size: int
    reusable: bool

    @property
    def allocated(self) -> int:
        """What it occupies, in whole blocks."""
        return -(-self.size // BLOCK_BYTES) * BLOCK_BYTES


class Retained:
    """Batches and journals that nobody needs now, the oldest release first.

    Args:
        found: batches that an opening found, in the order in which they go.
    """

    def __init__(self, found: Iterable[Shelved] = ()) -> None:
        self._items: dict[Shelved | ClosedJournal, None] = {}
        self._journals: dict[int, ClosedJournal] = {}
        self.bytes = 0
        """What they occupy, in whole blocks."""
        self.add(found)

    def __repr__(self) -> str:
        return f"<Retained {len(self._items)} files, {self.bytes} bytes>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def journals(self) -> int:
        """How many journals there are."""
        return len(self._journals)

    def numbers(self, epoch: Epoch, lane: Lane) -> Ranges:
        """The numbers of a lane that lie on the shelf."""
        return Ranges.of((item.first, item.stop) for item in self._batches(epoch, lane))

    def _batches(self, epoch: Epoch, lane: Lane) -> list[Sealed]:
        return [
            item.batch
            for item in self._items
            if isinstance(item, Shelved) and item.lane is lane and item.epoch == epoch
        ]

    # --- what happens ------------------------------------------------------------------------

    def add(self, released: Iterable[Shelved]) -> None:
        """Batches were released."""
        for item in released:
            self._items[item] = None
            self.bytes += item.batch.allocated

    def add_journal(self, closed: ClosedJournal) -> None:
        """All of a closed journal was released."""
        self._items[closed] = None
        self._journals[closed.number] = closed
        self.bytes += closed.allocated

    def take_batches(self, epoch: Epoch, lane: Lane, wanted: Ranges) -> list[Sealed]:
        """Takes out the batches of a lane that hold some of these numbers."""
        found = [
            item for item in self._batches(epoch, lane) if touches(wanted, item.first, item.stop)
        ]
        for item in found:
            self._drop(Shelved(epoch, lane, item))
        return found

    def take_journal(self, number: int) -> ClosedJournal | None:
        """Takes out a journal; ``None`` where it is not here."""
        closed = self._journals.get(number)
        if closed is not None:
            self._drop(closed)
        return closed

    def take_reusable(self) -> ClosedJournal | None:
        """Takes out the oldest journal that may be written over; ``None`` where there is none."""
        closed = next((item for item in self._journals.values() if item.reusable), None)
        if closed is not None:
            self._drop(closed)
        return closed

    def take_surplus(self, journals_max: int) -> list[ClosedJournal]:
        """Takes out the oldest journals, so that no more than ``journals_max`` are left."""
        surplus = list(self._journals.values())[: max(0, len(self._journals) - journals_max)]
        for item in surplus:
            self._drop(item)
        return surplus

    def take_oldest(self, bytes_max: int) -> list[Shelved | ClosedJournal]:
        """Takes out what was released first, so that the rest occupies at most ``bytes_max``."""
        taken: list[Shelved | ClosedJournal] = []
        for item in list(self._items):
            if self.bytes <= bytes_max:
                break
            self._drop(item)
            taken.append(item)
        return taken

    def _drop(self, item: Shelved | ClosedJournal) -> None:
        del self._items[item]
        if isinstance(item, ClosedJournal):
            del self._journals[item.number]
            self.bytes -= item.allocated
        else:
            self.bytes -= item.batch.allocated
