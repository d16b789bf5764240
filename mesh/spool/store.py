"""The folder of a spool: who it is, who owns it, and what a reader finds in it.

::

    STORE            a ``StoreIdentity`` in canonical bytes    LOCK    one writer
    journal/         fresh frames                              cursor  what was released
    lanes/           sealed batches                            quarantine/  damaged bytes, kept

``STORE`` is written beside, synced, renamed, and the folder synced: it is whole or it is not there.
The folders are made anew with each opening, since a crash may have kept ``STORE`` and lost them.
``survey`` reads everything and changes nothing, so it serves the owner on opening and anybody else
looking on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk
from mesh.spool import cursor, journal, shelf
from mesh.spool.journal import JournalContent
from mesh.spool.recovery import LaneFound, judge, knows_nothing
from mesh.spool.shelf import Sealed
from schemas import wire
from schemas.errors import DiskFailed, DiskFull, DiskReadOnly, Refused, StoreUnusable
from schemas.limits import QUARANTINE_FILES_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import Cursor, StoreIdentity

__all__ = [
    "LOCK",
    "Survey",
    "create",
    "identity",
    "prepare",
    "quarantine",
    "released_in",
    "set_aside",
    "survey",
]

LOCK: Final = "LOCK"
QUARANTINE: Final = "quarantine"
_STORE: Final = "STORE"
_NEW: Final = "STORE.new"
_STORE_BYTES_MAX: Final = 64 * 1024


def identity(disk: Disk) -> StoreIdentity | None:
    """Who the store is; ``None`` when there is none yet.

    Raises:
        StoreUnusable: ``STORE`` cannot be understood.
    """
    try:
        file = disk.open(_STORE, "read")
    except FileNotFoundError:
        return None
    try:
        data = file.read(0, _STORE_BYTES_MAX)
    finally:
        file.close()
    try:
        return wire.decode_as(StoreIdentity, data)
    except Refused as wrong:
        raise StoreUnusable(
            f"the file STORE of the spool cannot be read ({wrong}): it is of a newer version, or "
            "damaged; use that version, or move the folder away to begin a new store"
        ) from wrong


def prepare(disk: Disk) -> None:
    """Makes the folders and the cursor that are not there; their names are durable on return.

    Raises:
        DiskFailed: not all are.
    """
    for folder in (journal.FOLDER, shelf.FOLDER, QUARANTINE):
        disk.make_directory(folder)
    cursor.prepare(disk)
    disk.sync_directory("")


def create(disk: Disk, store: StoreIdentity) -> None:
    """Makes the folders and ``STORE``; durable on return.

    Raises:
        StoreUnusable: the folder cannot be written.
    """
    try:
        prepare(disk)
        disk.unlink(_NEW)
        file = disk.open(_NEW, "create")
        try:
            file.write(wire.encode(store), 0)
            file.sync()
        finally:
            file.close()
        disk.rename(_NEW, _STORE)
        disk.sync_directory("")
    except (DiskReadOnly, DiskFull) as refused:
        problem = StoreUnusable(f"a new spool cannot be made here: {refused}")
        problem.exit_code = refused.exit_code
        raise problem from refused


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files of a spool hold.

    Args:
        journals: the contents of all journals, oldest first.
        cursor: what was released.
        lanes: where each lane stands.
        blank: whether nothing tells that this life ever had a number. Then none is safe to hand out
            in it.
    """

    journals: tuple[JournalContent, ...]
    cursor: Cursor
    lanes: Mapping[Lane, LaneFound]
    blank: bool


def survey(disk: Disk, store: StoreIdentity) -> Survey:
    """Reads what there is, and changes nothing.

    Raises:
        DiskFailed: the medium does not give it back.
    """
    found = tuple(
        journal.read(disk, number, store.store, store.epoch) for number in journal.numbers(disk)
    )
    cursors = cursor.load(disk)
    shelves = {lane: shelf.sealed(disk, lane, store.epoch) for lane in Lane}
    released = {lane: released_in(cursors, store, lane) for lane in Lane}
    lanes = judge(found, shelves, released)
    return Survey(found, cursors, lanes, knows_nothing(found, shelves, released))


def released_in(released: Cursor, store: StoreIdentity, lane: Lane) -> Ranges:
    """What a cursor says of a lane in the store's present life."""
    return released.released.get(f"{store.epoch}/{lane}", Ranges())


def quarantine(disk: Disk, content: JournalContent) -> list[str]:
    """Keeps the broken bytes of a journal under names that say where they stood.

    What cannot be kept, for want of space or because there is too much already, is not: evidence
    never stands in the way of opening.

    Returns:
        The names of the files that were written now.
    """
    kept = []
    there = set(disk.list(QUARANTINE))
    for item in content.broken:
        data = content.data[item.offset : item.end]
        name = f"journal-{content.number:016d}-{item.offset}"
        if not data.strip(b"\0") or name in there or len(there) >= QUARANTINE_FILES_MAX:
            continue
        try:
            _keep(disk, f"{QUARANTINE}/{name}", data)
        except DiskFailed:
            break
        there.add(name)
        kept.append(f"{QUARANTINE}/{name}")
    return kept


def _keep(disk: Disk, path: str, data: bytes) -> None:
    file = disk.open(path, "create")
    try:
        file.write(data, 0)
        file.sync()
    finally:
        file.close()
    disk.sync_directory(QUARANTINE)


def set_aside(disk: Disk, lane: Lane, epoch: Epoch, item: Sealed) -> str:
    """Takes a damaged batch off the shelf and keeps it; its loss is already stated.

    Returns:
        Its new name; empty when it is gone, or there is too much already.
    """
    path = shelf.batch_path(lane, epoch, item.first, item.stop)
    if len(disk.list(QUARANTINE)) >= QUARANTINE_FILES_MAX:
        disk.unlink(path)
        return ""
    kept = f"{QUARANTINE}/{lane}-{epoch}-{path.rpartition('/')[2]}"
    try:
        disk.rename(path, kept)
    except FileNotFoundError:
        return ""
    disk.sync_directory(QUARANTINE)
    disk.sync_directory(path.rpartition("/")[0])
    return kept
