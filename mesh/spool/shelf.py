"""The shelf: sealed batches, one immutable file each.

``lanes/<lane>/<epoch>/<first>-<last>.batch``, numbers of twenty digits, the last inclusive. The
names alone tell what is there, so a spool of any size opens by listing folders.

Crash safety. The folders above are made, and their names durable, before the first batch. A batch
is written beside (``….new``), synced, renamed, and its folder synced; only then does the journal
that its frames came from go. A ``.new`` file is a crash's leaving and is removed on open. What a
reader sees may stand in the page cache only, so the folders are synced once more on open, before a
journal goes. A batch and its journal may both be there: then the batch holds.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk
from mesh.spool.batch import Batch, parse
from schemas.errors import Damaged, DiskFailed, Refused
from schemas.limits import BATCH_BYTES_MAX, BLOCK_BYTES
from schemas.messages import Epoch, Lane

__all__ = [
    "FOLDER",
    "Sealed",
    "batch_path",
    "clear",
    "epochs",
    "prepare",
    "put",
    "read",
    "sealed",
    "settle",
    "tidy",
]

FOLDER: Final = "lanes"
_NEW: Final = ".new"
_NAME: Final = re.compile(r"(\d{20})-(\d{20})\.batch")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A batch on the shelf: numbers ``first <= n < stop``, and its length in bytes."""

    first: int
    stop: int
    size: int

    @property
    def allocated(self) -> int:
        """What it occupies, in whole blocks."""
        return -(-self.size // BLOCK_BYTES) * BLOCK_BYTES


def batch_path(lane: Lane, epoch: Epoch, first: int, stop: int) -> str:
    """Where the batch of these numbers stands."""
    return f"{_folder(lane, epoch)}/{first:020d}-{stop - 1:020d}.batch"


def sealed(disk: Disk, lane: Lane, epoch: Epoch) -> list[Sealed]:
    """What is on the shelf for a lane, sorted. Foreign names are passed over."""
    folder = _folder(lane, epoch)
    found = []
    for name in _names(disk, folder):
        match = _NAME.fullmatch(name)
        if match is not None and int(match[1]) <= int(match[2]):
            size = _size(disk, f"{folder}/{name}")
            found.append(Sealed(int(match[1]), int(match[2]) + 1, size))
    return sorted(found, key=lambda item: item.first)


def _names(disk: Disk, folder: str) -> list[str]:
    """The names in a folder; none where the medium does not give them back, asked twice."""
    for _ in range(2):
        with suppress(DiskFailed):
            return disk.list(folder)
    return []


def _size(disk: Disk, path: str) -> int:
    """A file's length; 0 where the medium does not tell: reading it will show what it is worth."""
    try:
        return disk.size(path)
    except (DiskFailed, FileNotFoundError):
        return 0


def prepare(disk: Disk, lane: Lane, epoch: Epoch) -> None:
    """Makes the folder of a lane; its name is durable on return.

    It is synced even where it is there: whoever made it may not have come to that.

    Raises:
        DiskFailed: it is not, or nobody knows.
    """
    disk.make_directory(_folder(lane, epoch))
    disk.sync_directory(FOLDER)
    disk.sync_directory(f"{FOLDER}/{lane}")


def put(disk: Disk, batch: Batch) -> Sealed:
    """Puts a batch on the shelf, whose folder was prepared; durable on return.

    Raises:
        DiskFailed: it is not there, and nothing else has changed.
    """
    header = batch.header
    path = batch_path(header.lane, header.epoch, header.first, header.last + 1)
    disk.unlink(path + _NEW)
    file = disk.open(path + _NEW, "create")
    try:
        file.write(batch.data, 0)
        file.sync()
    except DiskFailed:
        # On a full disk half a batch is room that something else needs.
        with suppress(DiskFailed):
            disk.unlink(path + _NEW)
        raise
    finally:
        file.close()
    disk.rename(path + _NEW, path)
    disk.sync_directory(_folder(header.lane, header.epoch))
    return Sealed(header.first, header.last + 1, len(batch.data))


def epochs(disk: Disk) -> list[Epoch]:
    """The epochs of all batches that there are, in no order. Foreign names are passed over."""
    found: set[Epoch] = set()
    for lane in Lane:
        for name in _names(disk, f"{FOLDER}/{lane}"):
            with suppress(Refused):
                epoch = Epoch.parse(name)
                if epoch not in found and sealed(disk, lane, epoch):
                    found.add(epoch)
    return list(found)


def read(disk: Disk, lane: Lane, epoch: Epoch, item: Sealed) -> Batch:
    """A batch, whole, and the one that its name says.

    Raises:
        FileNotFoundError: it was given up in the meantime.
        Damaged: the medium does not give it back, or something else stands there.
        DiskFailed: it cannot be opened now, which says nothing about what it holds.
    """
    try:
        found = _parsed(disk, lane, epoch, item)
    except Damaged:
        # Many a bad read is gone the second time; a loss that is stated never is.
        found = _parsed(disk, lane, epoch, item)
    path = batch_path(lane, epoch, item.first, item.stop)
    header = found.header
    if (header.lane, header.epoch, header.first, header.last + 1) != (
        *(lane, epoch),
        *(item.first, item.stop),
    ):
        raise Damaged(f"{path}: the batch {header} stands there")
    return found


def settle(disk: Disk, epoch: Epoch) -> None:
    """What was unlinked of an epoch stays unlinked, whatever happens.

    Raises:
        DiskFailed: nobody knows.
    """
    for lane in Lane:
        if str(epoch) in disk.list(f"{FOLDER}/{lane}"):
            disk.sync_directory(_folder(lane, epoch))


def _parsed(disk: Disk, lane: Lane, epoch: Epoch, item: Sealed) -> Batch:
    path = batch_path(lane, epoch, item.first, item.stop)
    file = disk.open(path, "read")
    try:
        return parse(file.read(0, BATCH_BYTES_MAX + 1))
    except (DiskFailed, Refused) as failure:
        raise Damaged(f"{path}: {failure}") from failure
    finally:
        file.close()


def clear(disk: Disk, lane: Lane, epoch: Epoch, items: Iterable[Sealed]) -> None:
    """Unlinks batches that were released or whose loss is stated."""
    for item in items:
        disk.unlink(batch_path(lane, epoch, item.first, item.stop))


def tidy(disk: Disk, lane: Lane, epoch: Epoch) -> None:
    """Removes what a crash left of batches that were being written; the others' names are durable.

    Raises:
        DiskFailed: nobody knows.
    """
    folder = _folder(lane, epoch)
    names = _names(disk, folder)
    for name in names:
        if name.endswith(_NEW):
            disk.unlink(f"{folder}/{name}")
    if names:
        prepare(disk, lane, epoch)
        disk.sync_directory(folder)


def _folder(lane: Lane, epoch: Epoch) -> str:
    return f"{FOLDER}/{lane}/{epoch}"
