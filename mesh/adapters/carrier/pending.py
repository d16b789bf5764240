"""What of a spool waits for the next holder, for somebody who looks on while its node runs.

Batches are read from the shelf as they are. What stands in journals only is packed into batches, as
a node does that sends it straight from there: boundaries may differ between two sendings, and
sameness is judged on the chain.

What a node has not made durable yet may already be read, and must not leave the house: a power cut
would take it, and its numbers would be explained while somebody holds them. So the journals are
synced by the onlooker, too, which costs the node a sync and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk
from mesh.spool import sealing, shelf
from mesh.spool.backlog import runs
from mesh.spool.batch import Batch, Labels
from mesh.spool.commit import Located
from mesh.spool.journal import FOLDER as JOURNALS
from mesh.spool.journal import journal_path
from mesh.spool.shelf import Sealed
from mesh.spool.view.sight import Sight
from mesh.transfer.carried import Flaw
from mesh.transfer.room import Sized
from schemas.errors import DiskFailed, Refused
from schemas.limits import BATCH_BYTES_MAX, KIB
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Piece", "pieces", "read", "settle"]

_HEADER_BYTES: Final = 2 * KIB
_FRAME_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Piece(Sized):
    """A batch on the shelf, or frames that make one."""

    epoch: Epoch
    what: Sealed | tuple[Located, ...]

    @property
    def span(self) -> tuple[int, int]:
        """Its numbers, ``first <= n < stop``."""
        if isinstance(self.what, Sealed):
            return self.what.first, self.what.stop
        return self.what[0].frame.header.first, self.what[-1].frame.header.stop

    @property
    def journal(self) -> int | None:
        """The journal that it stands in; ``None`` for a batch on the shelf."""
        return None if isinstance(self.what, Sealed) else self.what[0].journal

    @property
    def place(self) -> str:
        """The file that it stands in, below the spool's folder."""
        if isinstance(self.what, Sealed):
            return shelf.batch_path(self.lane, self.epoch, *self.span)
        return journal_path(self.what[0].journal)


def settle(disk: Disk, sight: Sight) -> dict[int, str]:
    """Makes durable what is seen of the journals.

    Args:
        disk: the spool's folder; nothing is written to it.
        sight: what was seen.

    Returns:
        The journals that cannot be made so, and why: what they hold stays where it is.
    """
    failed = {}
    numbers = [content.number for content in sight.survey.journals]
    try:
        disk.sync_directory(JOURNALS)
    except DiskFailed as failure:
        return dict.fromkeys(numbers, str(failure))
    for number in numbers:
        try:
            file = disk.open(journal_path(number), "read")
        except FileNotFoundError:
            continue
        except DiskFailed as failure:
            failed[number] = str(failure)
            continue
        try:
            file.sync()
        except DiskFailed as failure:
            failed[number] = str(failure)
        finally:
            file.close()
    return failed


def pieces(sight: Sight, gone: Mapping[tuple[str, Lane], Ranges]) -> list[Piece]:
    """All that waits: the most urgent lane first, of it the oldest life, of that the oldest.

    Args:
        sight: what was seen.
        gone: numbers that need not be taken, by epoch and lane.
    """
    found = []
    for lane in Lane:
        for epoch, lanes in sight.lives.items():
            if lane in lanes:
                known = gone.get((str(epoch), lane), Ranges()) | sight.released(lane, epoch)
                found += _of_lane(sight, lane, epoch, known)
    return found


def _of_lane(sight: Sight, lane: Lane, epoch: Epoch, gone: Ranges) -> list[Piece]:
    found = sight.lives[epoch][lane]
    made = [
        Piece(lane, item.stop - item.first, item.size or BATCH_BYTES_MAX, epoch, item)
        for item in found.sealed
        if not gone.covers(item.first, item.stop)
    ]
    headers = ((item, item.frame.header) for item in found.fresh)
    fresh = [item for item, header in headers if not gone.covers(header.first, header.stop)]
    for run in runs(fresh):
        frames = [item.frame.header for item in run]
        size = sum(frame.body_bytes + _FRAME_BYTES for frame in frames) + _HEADER_BYTES
        records = sum(frame.count for frame in frames)
        made.append(Piece(lane, records, min(size, BATCH_BYTES_MAX), epoch, run))
    return sorted(made, key=lambda piece: piece.span)


def read(sight: Sight, labels: Labels, piece: Piece) -> tuple[tuple[Batch, ...], tuple[Flaw, ...]]:
    """The batches of a piece, one unless some of it is damaged, and what is.

    Raises:
        FileNotFoundError: it was sealed, released or given up meanwhile: look again.
    """
    if isinstance(piece.what, Sealed):
        try:
            return (sight.batch(piece.lane, piece.epoch, piece.what),), ()
        except (DiskFailed, Refused) as damage:
            return (), (Flaw(piece.place, str(damage)),)
    try:
        packed = sealing.pack(sight.picture, labels, piece.what)
    except DiskFailed as failure:
        return (), (Flaw(piece.place, str(failure)),)
    if packed.damaged:
        # Where the journal itself has gone, its frames are on the shelf.
        sight.picture.size(piece.place)
    spans = [(item.frame.header.first, item.frame.header.stop) for item in packed.damaged]
    what = f"{piece.lane} {Ranges.of(spans)} cannot be read"
    return packed.batches, (Flaw(piece.place, what),) if spans else ()
