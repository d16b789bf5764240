"""The writer: turns groups of records into frames and makes them durable.

Runs in the writer thread, nowhere else.

Natural group commit: while one group is being synced the next one queues, so the slower the disk,
the larger the groups. A group holds records of any number of lanes and costs one ``fdatasync``. The
writer knows the chains; the spool knows everything else and hands it over with each group as
values, so the two share nothing.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from mesh.ports import Disk
from mesh.spool.frame import CHAIN_START, HEADER_BYTES, FrameHeader, Owner, Whole, pack
from mesh.spool.journal import END, Journal, retire
from schemas import wire
from schemas.errors import DiskFailed, DiskFull
from schemas.limits import FRAME_BODY_BYTES_MAX, RECORDS_PER_FRAME_MAX
from schemas.messages import Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import Closed, JournalHeader, LaneMark, Numbers, Reserved

__all__ = ["Committed", "Entry", "Group", "Located", "Standing", "Writer"]


_NO_HEADER: Final = bytes(HEADER_BYTES)


class Entry(NamedTuple):
    """Consecutive records of one lane, numbered from ``first``; how many bytes they are."""

    lane: Lane
    first: int
    records: Sequence[bytes]
    size: int


class Standing(NamedTuple):
    """What a journal's header says of a lane beside its mark."""

    reserved: int
    explained: Mapping[str, Ranges]
    statement: int


class Group(NamedTuple):
    """What one sync makes durable.

    Args:
        at: the time of the commit.
        entries: records, lane by lane, each lane's numbers ascending.
        standing: how each lane stands, for the header of a new journal.
        reserve: numbers to reserve with this group; empty for none.
        rotate: whether to begin a new journal first.
        spare: the spare to begin it in; empty for none.
        mono_ns: the time of the commit on the monotonic clock; ``at`` has the running time.
        close: whether this is the last group of this life.
    """

    at: Instant
    entries: Sequence[Entry]
    standing: Mapping[Lane, Standing]
    reserve: Mapping[Lane, int]
    rotate: bool = False
    close: bool = False
    spare: str = ""
    mono_ns: int = 0


class Located(NamedTuple):
    """A durable frame, and the journal in which it stands."""

    journal: int
    frame: Whole


class Committed(NamedTuple):
    """What a group became.

    Args:
        frames: where its frames stand.
        journal: number of the journal that is open now.
        journal_bytes: how much of it is used.
        journal_allocated: what its file occupies.
        written_bytes: how much was written for this group.
        abandoned: journals that were begun and failed since the last group that became durable;
            nothing stands in them that does not stand elsewhere, or was given up.
        sound: journals that were closed since then and of which no sync failed.
    """

    frames: tuple[Located, ...]
    journal: int
    journal_bytes: int
    journal_allocated: int
    written_bytes: int
    abandoned: tuple[int, ...] = ()
    sound: tuple[int, ...] = ()


class Writer:
    """Owns the open journal and the chains.

    Args:
        disk: where the spool lives.
        owner: what each frame says of its writer.
        marks: where each lane stands.
        number: of the last journal that there is.
    """

    def __init__(
        self, disk: Disk, owner: Owner, marks: Mapping[Lane, LaneMark], number: int
    ) -> None:
        self._disk = disk
        self._owner = owner
        self._marks = dict(marks)
        self._number = number
        self._journal: Journal | None = None
        self._abandoned: tuple[int, ...] = ()
        self._sound: tuple[int, ...] = ()

    def commit(self, group: Group) -> Committed:
        """Makes a group durable.

        Where the open journal fails, the group, still in memory, goes to a new one; the old one is
        never synced again.

        Raises:
            DiskFull: the new one has no room for it. Where it was begun in a spare, that is a spare
                again: a smaller group may fit.
            DiskFailed: the new one failed as well. Nothing is promised; a later group may be tried.
        """
        if self._journal is not None and group.rotate:
            self._sound += (self._journal.number,)
            self._set_down()
        if self._journal is not None:
            try:
                return self._write(self._journal, group)
            except DiskFailed:
                self._set_down()
        try:
            committed = self._write(self._begin(group), group)
        except BaseException as failure:
            # Whatever went wrong: half a group may stand there, so nothing may follow it.
            journal = self._journal
            self._set_down()
            if journal is not None:
                again = journal.sound and isinstance(failure, DiskFull)
                self._abandon(journal.number, group.spare if again else "")
            raise
        abandoned, self._abandoned = self._abandoned, ()
        sound, self._sound = self._sound, ()
        return committed._replace(abandoned=abandoned, sound=sound)

    def _abandon(self, number: int, spare: str) -> None:
        """A journal that was begun and holds nothing that was promised."""
        try:
            retire(self._disk, number, spare)
        except DiskFailed:
            self._abandoned += (number,)

    def close(self) -> None:
        """Gives the open journal's file back."""
        self._set_down()

    def _set_down(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _begin(self, group: Group) -> Journal:
        try:
            return self._begin_in(group.spare, group)
        except DiskFailed:
            # Whatever was at fault, a new file may do.
            return self._begin_in("", group)

    def _begin_in(self, spare: str, group: Group) -> Journal:
        # A number that failed is not tried again: its file may exist.
        self._number += 1
        lanes = {
            lane: Numbers(self._mark(lane), item.reserved, item.explained, item.statement)
            for lane, item in group.standing.items()
        }
        header = JournalHeader(
            self._owner.store,
            self._owner.epoch,
            self._owner.boot,
            self._number,
            group.at.wall_ns,
            group.mono_ns,
            group.at.mono_ns,
            lanes,
        )
        self._journal = Journal.create(self._disk, header, spare=spare)
        return self._journal

    def _mark(self, lane: Lane) -> LaneMark:
        return self._marks.get(lane, LaneMark(0, CHAIN_START))

    def _write(self, journal: Journal, group: Group) -> Committed:
        cuts = [(entry.lane, cut) for entry in group.entries for cut in _cut(entry)]
        controls = [wire.encode(control) for control in _controls(group)]
        # The records are copied once, into their place; each header is put before them afterwards.
        pieces: list[bytes] = []
        for _, cut in cuts:
            pieces.append(_NO_HEADER)
            pieces += cut.records
        for body in controls:
            pieces += (_NO_HEADER, body)
        data = bytearray().join((*pieces, END))
        marks = dict(self._marks)
        frames: list[tuple[int, FrameHeader]] = []
        offset = 0
        with memoryview(data) as view:
            for lane, cut in cuts:
                before = marks.get(lane, LaneMark(0, CHAIN_START)).chain
                where = slice(offset + HEADER_BYTES, offset + HEADER_BYTES + cut.size)
                numbers = (cut.first, len(cut.records))
                header = self._pack(journal, lane, numbers, view[where], before, group.at)
                view[offset : where.start] = header[0]
                marks[lane] = LaneMark(header[1].stop, header[1].chain_after)
                frames.append((offset, header[1]))
                offset = where.stop
            for body in controls:
                header = self._pack(journal, None, (0, 0), body, CHAIN_START, group.at)
                view[offset : offset + HEADER_BYTES] = header[0]
                offset += HEADER_BYTES + len(body)
        start = journal.append(data) if offset else journal.size
        self._marks = marks
        located = tuple(
            Located(journal.number, Whole(start + offset, header)) for offset, header in frames
        )
        return Committed(located, journal.number, journal.size, journal.allocated, offset)

    def _pack(
        self,
        journal: Journal,
        lane: Lane | None,
        numbers: tuple[int, int],
        body: bytes | memoryview,
        before: bytes,
        at: Instant,
    ) -> tuple[bytes, FrameHeader]:
        return pack(self._owner, journal.number, lane, *numbers, body, before, at)


def _controls(group: Group) -> list[Reserved | Closed]:
    controls: list[Reserved | Closed] = []
    if group.reserve:
        controls.append(Reserved(group.reserve))
    if group.close:
        controls.append(Closed({lane: item.reserved for lane, item in group.standing.items()}))
    return controls


class _Cut(NamedTuple):
    """Records that make a frame, the number of the first, and how many bytes they are."""

    first: int
    records: Sequence[bytes]
    size: int


def _cut(entry: Entry) -> list[_Cut]:
    """Cuts records into frames, within the bounds of a frame."""
    records = entry.records
    if entry.size <= FRAME_BODY_BYTES_MAX and len(records) <= RECORDS_PER_FRAME_MAX:
        return [_Cut(entry.first, records, entry.size)]
    cuts: list[_Cut] = []
    start, left = 0, entry.size
    while start < len(records):
        body, size = _longest(records, start, left)
        cuts.append(_Cut(entry.first + start, body, size))
        start += len(body)
        left -= size
    return cuts


def _longest(records: Sequence[bytes], start: int, left: int) -> tuple[Sequence[bytes], int]:
    """The most records from ``start`` that make a frame, and how many bytes they are.

    Args:
        records: all of them.
        start: the first of these.
        left: how many bytes there are from there to the end.
    """
    ahead = len(records) - start
    if left <= FRAME_BODY_BYTES_MAX and ahead <= RECORDS_PER_FRAME_MAX:
        return records[start:], left
    # Most records of a bulk are equally long, and then the first guess is right.
    guess = min(ahead, RECORDS_PER_FRAME_MAX, FRAME_BODY_BYTES_MAX * ahead // max(1, left))
    body = records[start : start + guess]
    size = sum(map(len, body))
    if 0 < guess < ahead and 0 <= FRAME_BODY_BYTES_MAX - size < len(records[start + guess]):
        return body, size
    ends = list(accumulate(map(len, records[start : start + RECORDS_PER_FRAME_MAX])))
    count = bisect_right(ends, FRAME_BODY_BYTES_MAX)
    assert count, "a record fits into a frame"
    return records[start : start + count], ends[count - 1]
