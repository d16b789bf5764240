"""What one lane holds for the next holder.

Frames in journals, batches on the shelf, less what was released. Pure.

The spool tells a backlog what became durable, what was sealed and what was released; the forwarder
asks what comes next. A number stands in at most one of ``fresh`` and ``sealed``.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from mesh.spool.commit import Located
from mesh.spool.cursor import bounded
from mesh.spool.frame import HEADER_BYTES
from mesh.spool.shelf import Sealed
from schemas.limits import BATCH_RAW_BYTES_MAX, FRAMES_PER_BATCH_MAX
from schemas.ranges import Ranges

__all__ = ["Backlog", "runs"]

_NONE = Ranges()


class Backlog:
    """One lane's pending records.

    Args:
        fresh: frames in journals, in the order of their numbers.
        sealed: batches on the shelf, in the order of their numbers.
        released: what was released.
    """

    def __init__(
        self, fresh: Iterable[Located] = (), sealed: Iterable[Sealed] = (), released: Ranges = _NONE
    ) -> None:
        self._fresh = list(fresh)
        self._sealed = list(sealed)
        self.released = released

    @property
    def records(self) -> int:
        """How many records are pending."""
        held = Ranges.of(
            [(item.first, item.stop) for item in self._sealed]
            + [(item.frame.header.first, item.frame.header.stop) for item in self._fresh]
        )
        return len(held - self.released)

    @property
    def fresh_bytes(self) -> int:
        """Bytes of the frames that stand in journals only."""
        return sum(HEADER_BYTES + item.frame.header.body_bytes for item in self._fresh)

    def bytes_outside(self, journal: int) -> int:
        """The same, less those that stand in this journal."""
        return sum(
            HEADER_BYTES + item.frame.header.body_bytes
            for item in self._fresh
            if item.journal != journal
        )

    @property
    def sealed_bytes(self) -> int:
        """Bytes of the batches on the shelf."""
        return sum(item.size for item in self._sealed)

    @property
    def on_shelf(self) -> tuple[Sealed, ...]:
        """The batches on the shelf, oldest first."""
        return tuple(self._sealed)

    def next_piece(self, start: int) -> Sealed | tuple[Located, ...] | None:
        """The first pending piece that holds a number at or above ``start``.

        A batch, or frames that make one.
        """
        index = bisect_right(self._sealed, start, key=lambda item: item.stop)
        frames = self._run_from(start)
        if index < len(self._sealed):
            sealed = self._sealed[index]
            if not frames or sealed.first < frames[0].frame.header.first:
                return sealed
        return frames or None

    def _run_from(self, start: int) -> tuple[Located, ...]:
        index = bisect_right(self._fresh, start, key=lambda item: item.frame.header.stop)
        return next(iter(runs(self._fresh[index:])), ())

    def add(self, frames: Iterable[Located]) -> None:
        """Takes frames that have become durable; their numbers follow those that are there."""
        self._fresh.extend(frames)

    def release(self, numbers: Ranges) -> tuple[Sealed, ...]:
        """Takes a release; returns the batches that nobody needs any more.

        Of too many spans the highest are not taken: the next release says them again.
        """
        self.released = bounded(self.released | numbers)
        self._fresh = [
            item
            for item in self._fresh
            if not self.released.covers(item.frame.header.first, item.frame.header.stop)
        ]
        gone = tuple(item for item in self._sealed if self.released.covers(item.first, item.stop))
        self.drop(gone)
        return gone

    def drop(self, gone: Iterable[Sealed]) -> None:
        """Forgets batches that leave the shelf."""
        leaving = set(gone)
        if leaving:
            self._sealed = [item for item in self._sealed if item not in leaving]

    def in_journal(self, number: int) -> tuple[Located, ...]:
        """The pending frames that stand in one journal."""
        return tuple(item for item in self._fresh if item.journal == number)

    def seal(self, frames: Iterable[Located], batches: Iterable[Sealed]) -> tuple[Sealed, ...]:
        """Frames have become batches; returns those that were released meanwhile, for unlinking."""
        gone = set(frames)
        self._fresh = [item for item in self._fresh if item not in gone]
        self._sealed = sorted((*self._sealed, *batches), key=lambda item: item.first)
        return self.release(_NONE)


def runs(frames: Sequence[Located]) -> Iterable[tuple[Located, ...]]:
    """Cuts frames into runs that make a batch each.

    Of one journal, without gaps, within a batch's bounds.
    """
    run: list[Located] = []
    size = 0
    for item in frames:
        header = item.frame.header
        if run and (
            header.first != run[-1].frame.header.stop
            or item.journal != run[-1].journal
            or size + header.body_bytes > BATCH_RAW_BYTES_MAX
            or len(run) == FRAMES_PER_BATCH_MAX
        ):
            yield tuple(run)
            run, size = [], 0
        run.append(item)
        size += header.body_bytes
    if run:
        yield tuple(run)
