"""What one lane of one epoch holds for the next holder.

Frames in journals, batches on the shelf, less what was released. Pure.

The spool tells a backlog what became durable, what was sealed and what was released; the forwarder
asks what comes next. A number stands in at most one of ``fresh`` and ``sealed``; both are sorted by
number, and no operation looks at more of them than it changes, however long the outage was. Of what
was released and still stands in a journal the numbers alone are known (``mesh.spool.kept``); a
holder that has lost some of them makes them pending again.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from mesh.spool.commit import Located
from mesh.spool.cursor import widened
from mesh.spool.frame import HEADER_BYTES
from mesh.spool.kept import Kept, touches
from mesh.spool.shelf import Sealed
from schemas.limits import BATCH_RAW_BYTES_MAX, FRAMES_PER_BATCH_MAX
from schemas.ranges import Ranges

__all__ = ["Backlog", "runs"]

_NONE = Ranges()


class Backlog:
    """The pending records of one lane and epoch.

    Args:
        fresh: frames in journals, in the order of their numbers.
        sealed: batches on the shelf, in the order of their numbers.
        released: what was released.
        kept: of that, what still stands in journals, by journal.
    """

    def __init__(
        self,
        fresh: Iterable[Located] = (),
        sealed: Iterable[Sealed] = (),
        released: Ranges = _NONE,
        kept: Mapping[int, Ranges] = MappingProxyType({}),
    ) -> None:
        self._fresh: list[Located] = []
        self._sealed = list(sealed)
        self.released = released
        self.kept = Kept(kept)
        """What was released and still stands in journals."""
        self.fresh_bytes = 0
        """Bytes of the frames that stand in journals only."""
        self.sealed_bytes = sum(item.allocated for item in self._sealed)
        """Bytes that the batches on the shelf occupy."""
        self.records = sum(self._pending(item.first, item.stop) for item in self._sealed)
        """How many records are pending."""
        self.add(fresh)

    def __repr__(self) -> str:
        return f"<Backlog {self.records} records, {len(self._sealed)} batches>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def on_shelf(self) -> Sequence[Sealed]:
        """The batches on the shelf, oldest first; not to be changed."""
        return self._sealed

    @property
    def spans(self) -> Ranges:
        """The numbers of all batches and frames that hold something pending."""
        shelved = [(item.first, item.stop) for item in self._sealed]
        fresh = [(item.frame.header.first, item.frame.header.stop) for item in self._fresh]
        return Ranges.of(shelved + fresh)

    def next_piece(self, start: int) -> Sealed | tuple[Located, ...] | None:
        """The first pending piece that holds a number at or above ``start``.

        A batch, or frames that make one.
        """
        index = bisect_right(self._sealed, start, key=_stop_of_sealed)
        frames = self._run_from(start)
        if index < len(self._sealed):
            sealed = self._sealed[index]
            if not frames or sealed.first < frames[0].frame.header.first:
                return sealed
        return frames or None

    def shelved_from(self, start: int, count: int) -> Sequence[Sealed]:
        """The first so many batches on the shelf that hold a number at or above ``start``."""
        index = bisect_right(self._sealed, start, key=_stop_of_sealed)
        return self._sealed[index : index + count]

    def has_from(self, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        ends = [self._sealed[-1].stop] if self._sealed else []
        if self._fresh:
            ends.append(self._fresh[-1].frame.header.stop)
        return max(ends, default=0) > start or bool(self.kept.wanted_from(start))

    def _run_from(self, start: int) -> tuple[Located, ...]:
        index = bisect_right(self._fresh, start, key=_stop_of_fresh)
        near = self._fresh[index : index + FRAMES_PER_BATCH_MAX]
        return next(iter(runs(near)), ())

    @property
    def journals(self) -> set[int]:
        """The numbers of the journals in which something pending stands."""
        return {item.journal for item in self._fresh}

    def in_journal(self, number: int) -> tuple[Located, ...]:
        """The pending frames that stand in one journal."""
        return tuple(item for item in self._fresh if item.journal == number)

    def _pending(self, first: int, stop: int) -> int:
        if not self.released or first >= self.released.end:
            return stop - first
        return len(self.released.gaps(first, stop))

    # --- what happens --------------------------------------------------------------------------

    def add(self, frames: Iterable[Located]) -> None:
        """Takes frames that have become durable; their numbers follow those that are there."""
        for item in frames:
            header = item.frame.header
            self._fresh.append(item)
            self.fresh_bytes += HEADER_BYTES + header.body_bytes
            self.records += self._pending(header.first, header.stop)

    def release(self, numbers: Ranges) -> tuple[Sealed, ...]:
        """Takes a release; returns the batches of which nothing is pending any more.

        Of too many spans some are not taken: the next release says them again.
        """
        before = self.released
        self.released = widened(before, numbers)
        new = (self.released - before).spans
        # All are counted before any piece goes: several spans may lie in one piece.
        self.records -= sum(self._held(*span) for span in new)
        gone: list[Sealed] = []
        for start, stop in new:
            gone += self._release_sealed(start, stop)
            self._release_fresh(start, stop)
        self.kept.release(Ranges(new))
        return tuple(gone)

    def reclaim(self, lost: Ranges, batches: Iterable[Sealed]) -> Ranges:
        """Takes back what a holder has lost.

        Args:
            lost: numbers that were released. None of them counts as released any more.
            batches: those that were released and hold some of these numbers.

        Returns:
            Those that are here, and pending again.
        """
        for item in batches:
            self._shelve(item)
        back = [*self.kept.want(lost).spans]
        for start, stop in lost.spans:
            spans = [(max(start, low), min(stop, high)) for low, high in self._near(start, stop)]
            back += spans
        numbers = Ranges.of(back)
        self.released -= lost
        self.records += len(numbers)
        return numbers

    def restore(self, journal: int, frames: Iterable[Located], asked: Ranges) -> Ranges:
        """A journal was read for what is wanted of it.

        Args:
            journal: which.
            frames: all that verify there.
            asked: what was wanted when it was read; of what has come since nothing is known.

        Returns:
            Numbers that are not there. Nobody wants them any more, nor are they pending.
        """
        wanted = self.kept.wanted_in(journal)
        spans: list[tuple[int, int]] = []
        for item in frames:
            header = item.frame.header
            if touches(wanted, header.first, header.stop):
                self._fresh.append(item)
                self.fresh_bytes += HEADER_BYTES + header.body_bytes
                spans.append((header.first, header.stop))
        self._fresh.sort(key=_first_of_fresh)
        self.kept.stand_elsewhere(journal, Ranges.of(spans))
        missing = self.kept.miss(journal, asked)
        self.records -= len(missing)
        return missing

    def _held(self, start: int, stop: int) -> int:
        """How many numbers of a span stand in a frame or a batch, or are wanted."""
        near = self._near(start, stop)
        held = sum(min(stop, last) - max(start, first) for first, last in near)
        return held + self.kept.count_wanted(start, stop)

    def _near(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The numbers of the batches and frames that hold some of a span."""
        sealed = self._sealed[_touching_sealed(self._sealed, start, stop)]
        fresh = self._fresh[_touching_fresh(self._fresh, start, stop)]
        spans = [(item.first, item.stop) for item in sealed]
        return spans + [(item.frame.header.first, item.frame.header.stop) for item in fresh]

    def _release_sealed(self, start: int, stop: int) -> list[Sealed]:
        where = _touching_sealed(self._sealed, start, stop)
        gone: list[Sealed] = []
        kept: list[Sealed] = []
        for item in self._sealed[where]:
            (gone if self.released.covers(item.first, item.stop) else kept).append(item)
        if gone:
            self._sealed[where] = kept
            self.sealed_bytes -= sum(item.allocated for item in gone)
        return gone

    def _release_fresh(self, start: int, stop: int) -> None:
        where = _touching_fresh(self._fresh, start, stop)
        staying = []
        gone: dict[int, list[tuple[int, int]]] = {}
        for item in self._fresh[where]:
            header = item.frame.header
            if self.released.covers(header.first, header.stop):
                self.fresh_bytes -= HEADER_BYTES + header.body_bytes
                gone.setdefault(item.journal, []).append((header.first, header.stop))
            else:
                staying.append(item)
        self._fresh[where] = staying
        self.kept.keep(gone)

    def drop(self, gone: Collection[Sealed]) -> list[Sealed]:
        """Forgets batches that leave the shelf; returns those that were still there."""
        there = []
        for item in gone:
            index = bisect_left(self._sealed, item.first, key=_first_of_sealed)
            if index < len(self._sealed) and self._sealed[index] == item:
                del self._sealed[index]
                self.sealed_bytes -= item.allocated
                self.records -= self._pending(item.first, item.stop)
                there.append(item)
        return there

    def drop_frames(self, gone: Collection[Located]) -> list[Located]:
        """Forgets frames that can no longer be read; returns those that were still there."""
        firsts = {item.frame.header.first for item in gone}
        there = [item for item in self._fresh if item.frame.header.first in firsts]
        if there:
            self._keep_fresh([i for i in self._fresh if i.frame.header.first not in firsts])
        return there

    def seal(self, journal: int, batches: Iterable[Sealed]) -> tuple[Sealed, ...]:
        """Frames of a journal have become batches. Others, that came back meanwhile, stay.

        Returns:
            Those that were released meanwhile.
        """
        batches = list(batches)
        sealed = Ranges.of([(item.first, item.stop) for item in batches])
        self._keep_fresh(
            [
                item
                for item in self._fresh
                if item.journal != journal
                or not sealed.covers(item.frame.header.first, item.frame.header.stop)
            ]
        )
        self.records -= len(self.kept.stand_elsewhere(journal, sealed))
        gone = []
        for item in batches:
            if self.released.covers(item.first, item.stop):
                gone.append(item)
                continue
            self._shelve(item)
            self.records += self._pending(item.first, item.stop)
        return tuple(gone)

    def _shelve(self, item: Sealed) -> None:
        index = bisect_left(self._sealed, item.first, key=_first_of_sealed)
        self._sealed.insert(index, item)
        self.sealed_bytes += item.allocated

    def _keep_fresh(self, kept: list[Located]) -> None:
        leaving = len(self._fresh) - len(kept)
        if not leaving:
            return
        headers = [item.frame.header for item in kept]
        pending = sum(self._pending(header.first, header.stop) for header in headers)
        before = [item.frame.header for item in self._fresh]
        self.records += pending - sum(self._pending(header.first, header.stop) for header in before)
        self._fresh = kept
        self.fresh_bytes = sum(HEADER_BYTES + header.body_bytes for header in headers)


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


def _touching_sealed(items: Sequence[Sealed], start: int, stop: int) -> slice:
    """Where the batches stand that hold a number of a span."""
    low = bisect_right(items, start, key=_stop_of_sealed)
    return slice(low, bisect_left(items, stop, lo=low, key=_first_of_sealed))


def _touching_fresh(items: Sequence[Located], start: int, stop: int) -> slice:
    """Where the frames stand that hold a number of a span."""
    low = bisect_right(items, start, key=_stop_of_fresh)
    return slice(low, bisect_left(items, stop, lo=low, key=_first_of_fresh))


def _first_of_sealed(item: Sealed) -> int:
    return item.first


def _stop_of_sealed(item: Sealed) -> int:
    return item.stop


def _first_of_fresh(item: Located) -> int:
    return item.frame.header.first


def _stop_of_fresh(item: Located) -> int:
    return item.frame.header.stop
