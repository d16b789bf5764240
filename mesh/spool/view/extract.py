"""An extract: the records that a spool holds, read out by somebody who does not own it.

In order within a lane, earlier lives first, one batch in memory at a time. Damage never stops it:
what cannot be read is told between the records, with its numbers, and the rest follows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.spool import batch as batches
from mesh.spool import shelf
from mesh.spool.commit import Located
from mesh.spool.journal import journal_path
from mesh.spool.shelf import Sealed
from mesh.spool.view.findings import Finding, Grade
from mesh.spool.view.sight import Sight
from schemas import wire
from schemas.errors import DiskFailed, Refused
from schemas.limits import SEQ_MAX
from schemas.messages import Epoch, Explained, Identity, Lane, Record
from schemas.ranges import Ranges

__all__ = ["Extracted", "Wanted", "extract"]

_LEFT_OUT: Final = "left out of this extract"


@dataclass(frozen=True, slots=True)
class Extracted:
    """One record, and what names it."""

    identity: Identity
    record: Record


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records of a lane.

    Args:
        first: the lowest number.
        last: the highest number, inclusive.
        since_wall_ns: none that was made before, UTC.
        released: also those that were released and are still there.
    """

    first: int = 0
    last: int = SEQ_MAX
    since_wall_ns: int | None = None
    released: bool = False

    def overlaps(self, first: int, stop: int) -> bool:
        """Whether any of ``first <= n < stop`` is wanted."""
        return first <= self.last and self.first < stop


def extract(
    sight: Sight, lane: Lane, wanted: Wanted, look: Callable[[], Sight], *, running: bool
) -> Iterator[Extracted | Finding]:
    """The records of a lane, and what could not be read of it.

    Args:
        sight: what was seen.
        lane: which lane.
        wanted: which records.
        look: looks anew, where a batch has gone since.
        running: whether a node writes to it: then the last frame may just be on its way.
    """
    for epoch in sight.unknown:
        for item in shelf.sealed(sight.picture, lane, epoch):
            if wanted.overlaps(item.first, item.stop):
                yield from _batch(sight, lane, epoch, item, wanted, look)
    for epoch, lanes in sight.lives.items():
        if lane not in lanes:
            continue
        for piece in _pieces(sight, lane, epoch, wanted):
            if isinstance(piece, Sealed):
                yield from _batch(sight, lane, epoch, piece, wanted, look)
            else:
                yield from _frame(sight, lane, piece, wanted)
        yield from _holes(sight, lane, epoch, wanted, running=running)


def _holes(
    sight: Sight, lane: Lane, epoch: Epoch, wanted: Wanted, *, running: bool
) -> Iterator[Finding]:
    """The numbers of which nothing is left, and nothing says why."""
    holes = sight.lives[epoch][lane].newly.get(Explained.DAMAGED, Ranges())
    end = holes.end
    if epoch == sight.identity.epoch:
        # Beside a running node a frame at the end that looks broken is on its way.
        end = sight.end(lane) if running else max(sight.end(lane), sight.broken_end(lane))
    holes &= Ranges.of([(wanted.first, max(wanted.first, min(wanted.last + 1, end)))])
    if holes:
        what = "neither held, nor released, nor explained"
        yield Finding(Grade.DAMAGE, f"{shelf.FOLDER}/{lane}", what, _LEFT_OUT, {lane: holes})


def _pieces(sight: Sight, lane: Lane, epoch: Epoch, wanted: Wanted) -> list[Sealed | Located]:
    found = sight.lives[epoch][lane]
    placed: list[tuple[int, int, Sealed | Located]] = []
    batch_items = [*found.sealed]
    if wanted.released:
        batch_items += (*found.leaving, *found.retained)
    placed += [(item.first, item.stop, item) for item in batch_items]
    present = epoch == sight.identity.epoch
    frames = _all_frames(sight, lane) if wanted.released and present else found.fresh
    shelved = Ranges.of([(item.first, item.stop) for item in batch_items])
    for item in frames:
        header = item.frame.header
        if not shelved.covers(header.first, header.stop):
            placed.append((header.first, header.stop, item))
    placed.sort(key=lambda place: place[:2])
    return [item for first, stop, item in placed if wanted.overlaps(first, stop)]


def _all_frames(sight: Sight, lane: Lane) -> Sequence[Located]:
    """Each frame in the journals that was not given up; of two copies one."""
    given_up = sight.explained(lane)
    once = {
        frame.header.first: Located(content.number, frame)
        for content in sight.survey.journals
        for frame in content.frames
        if frame.header.lane is lane and not given_up.covers(frame.header.first, frame.header.stop)
    }
    return list(once.values())


def _frame(
    sight: Sight, lane: Lane, item: Located, wanted: Wanted
) -> Iterator[Extracted | Finding]:
    header, path = item.frame.header, journal_path(item.journal)
    journals = sight.survey.journals
    data = next(content.data for content in journals if content.number == item.journal)
    try:
        records = wire.split(data[item.frame.body_offset : item.frame.end], header.count)
    except Refused as refused:
        lost = {lane: Ranges.of([(header.first, header.stop)])}
        yield Finding(Grade.DAMAGE, path, str(refused), _LEFT_OUT, lost)
        return
    numbers = range(header.first, header.stop)
    yield from _records(sight, lane, sight.identity.epoch, numbers, records, wanted, path)


def _batch(
    sight: Sight,
    lane: Lane,
    epoch: Epoch,
    item: Sealed,
    wanted: Wanted,
    look: Callable[[], Sight],
) -> Iterator[Extracted | Finding]:
    path = shelf.batch_path(lane, epoch, item.first, item.stop)
    numbers = Ranges.of([(item.first, item.stop)])
    try:
        batch = sight.batch(lane, epoch, item)
        header, since = batch.header, wanted.since_wall_ns
        if since is not None and header.clock_trusted and header.last_wall_ns < since:
            return
        records = batches.open_records(batch)
    except FileNotFoundError:
        with look() as now:
            numbers -= now.released(lane, epoch) | now.explained(lane, epoch)
        if numbers:
            what = "it vanished, and nothing says why"
            yield Finding(Grade.DAMAGE, path, what, _LEFT_OUT, {lane: numbers})
        return
    except (DiskFailed, Refused) as damage:
        yield Finding(Grade.DAMAGE, path, str(damage), _LEFT_OUT, {lane: numbers})
        return
    yield from _records(sight, lane, epoch, header.present, records, wanted, path)


def _records(
    sight: Sight,
    lane: Lane,
    epoch: Epoch,
    numbers: Ranges | range,
    records: Sequence[bytes],
    wanted: Wanted,
    path: str,
) -> Iterator[Extracted | Finding]:
    released = Ranges() if wanted.released else sight.released(lane, epoch)
    for number, data in zip(numbers, records, strict=True):
        if not wanted.first <= number <= wanted.last or number in released:
            continue
        record = _decoded(data)
        if isinstance(record, str):
            lost = {lane: Ranges.of([(number, number + 1)])}
            yield Finding(Grade.DAMAGE, path, record, _LEFT_OUT, lost)
        elif wanted.since_wall_ns is None or record.wall_ns >= wanted.since_wall_ns:
            identity = Identity(sight.identity.node, epoch, lane, number)
            yield Extracted(identity, record)


def _decoded(data: bytes) -> Record | str:
    """A record, or why these bytes are none."""
    try:
        message = wire.decode(data)
    except Refused as refused:
        return f"a record cannot be read: {refused}"
    if isinstance(message, Record):
        return message
    return f"a {type(message).__name__} where a record should be"
