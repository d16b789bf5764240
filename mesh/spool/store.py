"""The folder of a spool: who it is, who owns it, and what a reader finds in it.

::

    STORE            who it is                                 LOCK    one writer
    journal/         fresh frames                              cursor  what was released
    lanes/           sealed batches                            quarantine/  damaged bytes, kept

    STORE:
    0   4s  magic "HFst"
    4   u8  version, 1
    5       reserved, 0 (three bytes)
    8   u32 bytes of the identity
    12  u32 CRC-32 of the twelve bytes before and the identity
    16      a ``StoreIdentity`` in canonical bytes

``STORE`` is written beside, synced, renamed, and the folder synced: it is whole or it is not there.
The folders are made anew with each opening, since a crash may have kept ``STORE`` and lost them. A
``STORE`` that rotted or was removed does not stop a spool: the newest journal says whose it is
(``mesh.spool.epochs``). ``survey`` reads everything and changes nothing, so it serves the owner on
opening and anybody else looking on.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.ports import Disk
from mesh.spool import cursor, journal, shelf
from mesh.spool.journal import JournalContent
from mesh.spool.recovery import UNUSED, LaneFound, judge, judge_past, knows_nothing
from mesh.spool.shelf import Sealed
from schemas import wire
from schemas.errors import (
    Damaged,
    DiskFailed,
    DiskFull,
    DiskReadOnly,
    Refused,
    RefusedBecause,
    StoreUnusable,
)
from schemas.limits import QUARANTINE_FILES_MAX, STORE_BYTES_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import Cursor, Numbers, PastEpoch, StoreIdentity

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
    "write",
]

LOCK: Final = "LOCK"
QUARANTINE: Final = "quarantine"
_STORE: Final = "STORE"
_NEW: Final = "STORE.new"
_MAGIC: Final = b"HFst"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sB3sII")
_RESERVED: Final = bytes(3)
_CRC_AT: Final = _HEAD.size - 4


def identity(disk: Disk) -> StoreIdentity | None:
    """Who the store is; ``None`` when there is none yet.

    Raises:
        StoreUnusable: ``STORE`` is of a version that is not known here.
        Damaged: ``STORE`` rotted.
    """
    try:
        file = disk.open(_STORE, "read")
    except FileNotFoundError:
        return None
    try:
        data = file.read(0, _HEAD.size + STORE_BYTES_MAX)
    except DiskFailed as failure:
        raise Damaged(f"STORE: {failure}") from failure
    finally:
        file.close()
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise Damaged(f"STORE: {len(data)} bytes that do not begin as a STORE")
    _, version, reserved, size, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + size]
    if reserved != _RESERVED or len(body) != size or _crc(data[:_CRC_AT], body) != crc:
        raise Damaged("STORE: it does not match its checksum")
    if version != _VERSION:
        raise _of_another_version(f"version {version}")
    try:
        return wire.decode_as(StoreIdentity, body)
    except Refused as wrong:
        if wrong.reason is RefusedBecause.BAD_VERSION:
            raise _of_another_version(wrong.detail) from wrong
        raise Damaged(f"STORE: {wrong}") from wrong


def _crc(head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head))


def _of_another_version(found: str) -> StoreUnusable:
    return StoreUnusable(
        f"the file STORE of the spool is of another format ({found}; known is {_VERSION}): use the "
        "version of this program that wrote it, or move the folder away to begin a new store"
    )


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
        write(disk, store)
    except (DiskReadOnly, DiskFull) as refused:
        problem = StoreUnusable(f"a new spool cannot be made here: {refused}")
        problem.exit_code = refused.exit_code
        raise problem from refused


def write(disk: Disk, store: StoreIdentity) -> None:
    """Replaces ``STORE``; durable on return.

    Raises:
        DiskFailed: the old one still stands, or nobody knows which.
    """
    body = wire.encode(store)
    assert len(body) <= STORE_BYTES_MAX, "past epochs and what is explained of them are bounded"
    disk.unlink(_NEW)
    file = disk.open(_NEW, "create")
    try:
        head = _HEAD.pack(_MAGIC, _VERSION, _RESERVED, len(body), 0)[:_CRC_AT]
        file.write(head + struct.pack("<I", _crc(head, body)) + body, 0)
        file.sync()
    finally:
        file.close()
    disk.rename(_NEW, _STORE)
    disk.sync_directory("")


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files of a spool hold.

    Args:
        journals: the contents of all journals, oldest first.
        cursor: what was released.
        lanes: where each lane stands.
        blank: whether nothing tells that this life ever had a number. Then none is safe to hand out
            in it.
        past: where each lane of each past epoch stands, oldest first.
    """

    journals: tuple[JournalContent, ...]
    cursor: Cursor
    lanes: Mapping[Lane, LaneFound]
    blank: bool
    past: Mapping[Epoch, Mapping[Lane, LaneFound]] = field(default_factory=dict)


def survey(disk: Disk, store: StoreIdentity, *, keep_data: bool = True) -> Survey:
    """Reads what there is, and changes nothing.

    Args:
        disk: the folder of the spool.
        store: who it is.
        keep_data: whether to keep the bytes of the journals, for who looks closer.

    Raises:
        DiskFailed: the medium does not give it back.
    """
    found = tuple(
        journal.read(disk, number, store.store, store.epoch, keep_data=keep_data)
        for number in journal.numbers(disk)
    )
    cursors = cursor.load(disk)
    shelves = {lane: shelf.sealed(disk, lane, store.epoch) for lane in Lane}
    released = {lane: released_in(cursors, store.epoch, lane) for lane in Lane}
    lanes = judge(found, shelves, released)
    past = {
        life.epoch: {
            lane: judge_past(
                life.lanes.get(lane) or _unknown(life),
                shelf.sealed(disk, lane, life.epoch),
                released_in(cursors, life.epoch, lane),
            )
            for lane in Lane
        }
        for life in store.past
    }
    return Survey(found, cursors, lanes, knows_nothing(found, shelves, released), past)


def _unknown(life: PastEpoch) -> Numbers:
    """Where a lane of a past life stands that ``STORE`` does not name: its statements go on."""
    stated = max((numbers.statement for numbers in life.lanes.values()), default=0)
    return replace(UNUSED, statement=stated)


def released_in(released: Cursor, epoch: Epoch, lane: Lane) -> Ranges:
    """What a cursor says of a lane in one epoch."""
    return released.released.get(f"{epoch}/{lane}", Ranges())


def quarantine(disk: Disk, content: JournalContent) -> list[str]:
    """Keeps the broken bytes of a journal under names that say where they stood.

    What cannot be kept, for want of space or because there is too much already, is not: evidence
    never stands in the way of opening.

    Returns:
        The names of the files that were written now.
    """
    kept = []
    there = set(disk.list(QUARANTINE))
    for item, data in zip(content.broken, content.broken_data, strict=True):
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
