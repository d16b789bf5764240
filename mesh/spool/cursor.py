"""The cursor: what was released, as sets of numbers, in two slots of one file.

Each slot is ``magic "HFcu", u32 bytes, u32 CRC-32`` and a ``Cursor`` in canonical bytes; the second
slot begins in the middle of the file. Writes take turns, so a torn write spoils the slot that was
already out of date, and of two readable slots the one with the higher generation holds. The cursor
is durable before anything that it releases is unlinked; what is read on opening may stand in the
page cache only, so it is written once more before it is acted upon. The beginning of each slot is
allocated when the file is made, so a full disk does not stop a release, which is what frees it.
Losing it loses nothing: what is still there is sent again, and the receiver takes it once.
"""

import struct
import zlib
from typing import Final

from mesh.ports import Disk, DiskFile
from schemas import wire
from schemas.errors import DiskFailed, DiskFull, DiskReadOnly, Refused
from schemas.limits import CURSOR_BYTES_MAX
from schemas.ranges import Ranges
from schemas.stored import Cursor

__all__ = ["PATH", "fits", "load", "narrowed", "parse", "prepare", "store", "widened"]

PATH: Final = "cursor"
_NEW: Final = "cursor.new"
_MAGIC: Final = b"HFcu"
_HEAD: Final = struct.Struct("<4sII")
_SLOT_BYTES: Final = CURSOR_BYTES_MAX
_SPANS_MAX: Final = 160
"""Of each lane: 18 bytes each, of nine lives with seven lanes, fit into a slot with the holders."""
_ALLOCATED_BYTES: Final = 16 * 1024


def load(disk: Disk) -> Cursor:
    """The newest cursor that can be read; an empty one when there is none."""
    try:
        file = disk.open(PATH, "read")
    except (FileNotFoundError, DiskFailed):
        return Cursor(0)
    try:
        slots = [_read_slot(file, slot) for slot in (0, 1)]
    finally:
        file.close()
    return max(map(parse, slots), key=lambda cursor: cursor.generation)


def _read_slot(file: DiskFile, slot: int) -> bytes:
    try:
        return file.read(slot * _SLOT_BYTES, _SLOT_BYTES)
    except DiskFailed:
        return b""


def prepare(disk: Disk) -> None:
    """Makes the file, of zeros, where there is none; the caller syncs its folder.

    Raises:
        DiskFailed: it cannot be made, or not be allocated.
    """
    if PATH not in disk.list(""):
        _allocate(disk, PATH)


def store(disk: Disk, cursor: Cursor) -> None:
    """Writes a cursor over the older slot of the file that was prepared; durable on return.

    Where the file does not take it, though the disk has room, it is written anew beside and
    renamed: a bad sector must not stop what waits for a release.

    Raises:
        DiskFailed: the newer slot still stands.
    """
    body = wire.encode(cursor)
    assert _HEAD.size + len(body) <= _SLOT_BYTES, "its spans, epochs and holders are bounded"
    data = _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body
    try:
        _write(disk, PATH, data, cursor.generation)
    except FileNotFoundError:
        # Somebody has removed it.
        prepare(disk)
        disk.sync_directory("")
        _write(disk, PATH, data, cursor.generation)
    except (DiskFull, DiskReadOnly):
        raise
    except DiskFailed:
        disk.unlink(_NEW)
        _allocate(disk, _NEW)
        _write(disk, _NEW, data, cursor.generation)
        disk.rename(_NEW, PATH)
        disk.sync_directory("")


def _write(disk: Disk, path: str, data: bytes, generation: int) -> None:
    file = disk.open(path, "update")
    try:
        file.write(data, generation % 2 * _SLOT_BYTES)
        file.sync()
    finally:
        file.close()


def _allocate(disk: Disk, path: str) -> None:
    file = disk.open(path, "create")
    try:
        for slot in (0, 1):
            file.write(bytes(_ALLOCATED_BYTES), slot * _SLOT_BYTES)
        file.sync()
    finally:
        file.close()


def widened(released: Ranges, numbers: Ranges) -> Ranges:
    """What is released with these numbers too, in at most as many spans as a cursor holds.

    What was released stays so: it may be unlinked. Beyond the bound only those numbers are taken
    that add no span; the rest is not released until the holes below it are.
    """
    whole = released | numbers
    if len(whole.spans) <= _SPANS_MAX:
        return whole
    for span in numbers.spans:
        wider = released.add(*span)
        if len(wider.spans) <= max(_SPANS_MAX, len(released.spans)):
            released = wider
    return released


def narrowed(released: Ranges, lost: Ranges) -> Ranges:
    """What is released without these numbers, in at most as many spans as a cursor holds.

    Beyond the bound only those spans leave that cut none in two; the rest stays released until it
    is said to be lost again.
    """
    rest = released - lost
    if fits(rest):
        return rest
    for span in lost.spans:
        fewer = released - Ranges((span,))
        if len(fewer.spans) <= max(_SPANS_MAX, len(released.spans)):
            released = fewer
    return released


def fits(released: Ranges) -> bool:
    """Whether a cursor can say so much of a lane."""
    return len(released.spans) <= _SPANS_MAX


def parse(slot: bytes) -> Cursor:
    """What a slot says; an empty cursor, of generation 0, where it is not whole."""
    if len(slot) < _HEAD.size:
        return Cursor(0)
    magic, size, crc = _HEAD.unpack_from(slot)
    body = slot[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(body) != size or zlib.crc32(body) != crc:
        return Cursor(0)
    try:
        return wire.decode_as(Cursor, body)
    except Refused:
        return Cursor(0)
