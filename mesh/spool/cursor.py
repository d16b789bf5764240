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
from schemas.errors import DiskFailed, Refused
from schemas.limits import CURSOR_BYTES_MAX, RANGES_MAX
from schemas.ranges import Ranges
from schemas.stored import Cursor

__all__ = ["PATH", "bounded", "load", "parse", "prepare", "store"]

PATH: Final = "cursor"
_MAGIC: Final = b"HFcu"
_HEAD: Final = struct.Struct("<4sII")
_SLOT_BYTES: Final = CURSOR_BYTES_MAX
_SPANS_MAX: Final = RANGES_MAX // 16
_ALLOCATED_BYTES: Final = 16 * 1024


def load(disk: Disk) -> Cursor:
    """The newest cursor that can be read; an empty one when there is none."""
    try:
        file = disk.open(PATH, "read")
    except FileNotFoundError:
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
    if PATH in disk.list(""):
        return
    file = disk.open(PATH, "create")
    try:
        for slot in (0, 1):
            file.write(bytes(_ALLOCATED_BYTES), slot * _SLOT_BYTES)
        file.sync()
    finally:
        file.close()


def store(disk: Disk, cursor: Cursor) -> None:
    """Writes a cursor over the older slot of the file that was prepared; durable on return.

    Raises:
        DiskFailed: the newer slot still stands.
    """
    body = wire.encode(cursor)
    assert _HEAD.size + len(body) <= _SLOT_BYTES, "bounded() bounds it"
    data = _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body
    try:
        file = disk.open(PATH, "update")
    except FileNotFoundError:
        # Somebody has removed it.
        prepare(disk)
        disk.sync_directory("")
        file = disk.open(PATH, "update")
    try:
        file.write(data, cursor.generation % 2 * _SLOT_BYTES)
        file.sync()
    finally:
        file.close()


def bounded(ranges: Ranges) -> Ranges:
    """At most as many spans as a cursor holds.

    The highest ones go: they are not released until the holes below them are, so what they hold
    stays, and no cursor ever says less than what was unlinked.
    """
    if len(ranges.spans) <= _SPANS_MAX:
        return ranges
    return Ranges(ranges.spans[:_SPANS_MAX])


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
