"""The journal: the append-only file that takes the fresh frames of all lanes.

One sync commits a group across lanes.

``journal/0000000000000042`` begins with a head, then come frames (``mesh.spool.frame``)::

    0   4s  magic "HFjr"
    4   u8  version, 1
    5       reserved, 0 (three bytes)
    8   u32 bytes of the header
    12  u32 CRC-32 of the header
    16      header: a ``JournalHeader`` in canonical bytes

Why one file for all lanes: five files, each synced, cost 6.6 times one.

Crash safety. A journal counts only once its head is synced and its name is durable in the folder:
only then is the first frame written. Its header holds where each lane stands, so the newest journal
alone tells all numbers. After a failed sync a file is never synced again, since the kernel may have
dropped what it could not write and would then report success (Rebello et al., "Can Applications
Recover from fsync Failures?", USENIX ATC 2020); the group goes to a new file. So the same frame may
stand in two journals; both copies are the same bytes, and either will do.
"""

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk, DiskFile
from mesh.spool.frame import Broken, Whole, scan
from schemas import wire
from schemas.errors import DiskFailed, Refused
from schemas.limits import COMMIT_GROUP_BYTES_MAX, JOURNAL_BYTES_MAX, JOURNAL_HEADER_BYTES_MAX
from schemas.messages import Epoch
from schemas.stored import Closed, JournalHeader, Reserved

__all__ = ["FOLDER", "Journal", "JournalContent", "journal_path", "numbers", "read"]

FOLDER: Final = "journal"
_MAGIC: Final = b"HFjr"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sB3xII")
_NAME_DIGITS: Final = 16
_SECTOR_BYTES: Final = 4096
_READ_BYTES_MAX: Final = JOURNAL_BYTES_MAX + 2 * COMMIT_GROUP_BYTES_MAX


def journal_path(number: int) -> str:
    """Where the journal of this number stands."""
    return f"{FOLDER}/{number:0{_NAME_DIGITS}d}"


def numbers(disk: Disk) -> list[int]:
    """The numbers of all journals, oldest first. Foreign names are passed over."""
    names = disk.list(FOLDER)
    return sorted(int(name) for name in names if len(name) == _NAME_DIGITS and name.isdecimal())


class Journal:
    """One journal, open for appending. Only the writer thread uses it."""

    def __init__(self, file: DiskFile, number: int, size: int) -> None:
        self._file = file
        self.number = number
        self.size = size

    @classmethod
    def create(cls, disk: Disk, header: JournalHeader) -> "Journal":
        """Begins a new journal; durable, with its name, on return.

        Raises:
            DiskFailed: it was not begun; a useless file may be left, which ``read`` will say, but
                not one for each attempt.
        """
        head = wire.encode(header)
        assert len(head) <= JOURNAL_HEADER_BYTES_MAX, "what a header explains is bounded"
        data = _HEAD.pack(_MAGIC, _VERSION, len(head), zlib.crc32(head)) + head
        file = disk.open(journal_path(header.number), "create")
        try:
            file.write(data, 0)
            file.sync()
            disk.sync_directory(FOLDER)
        except BaseException:
            file.close()
            with suppress(DiskFailed):
                disk.unlink(journal_path(header.number))
            raise
        return cls(file, header.number, len(data))

    def append(self, data: bytes) -> int:
        """Appends frames and syncs: they are durable on return.

        Returns:
            Where the first of them begins.

        Raises:
            DiskFailed: nothing is known about these frames, and this journal must not be used
                again.
        """
        offset = self.size
        self._file.write(data, offset)
        self._file.sync()
        self.size = offset + len(data)
        return offset

    def close(self) -> None:
        """Gives the file back; syncs nothing."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What a journal file holds.

    Args:
        number: from its name.
        header: its header; ``None`` when the file was never begun, or is damaged at its head.
        frames: record frames that verify, in order.
        broken: what does not verify, in order.
        torn_tail: whether the last of ``broken`` is what a crash in mid-write leaves.
        reserved: the numbers reserved by control frames.
        closed: the numbers to go on with, when it was closed in order.
        data: the bytes.
    """

    number: int
    header: JournalHeader | None
    frames: tuple[Whole, ...]
    broken: tuple[Broken, ...]
    torn_tail: bool
    reserved: tuple[Reserved, ...]
    closed: Closed | None
    data: bytes


def read(disk: Disk, number: int, store: bytes, epoch: Epoch) -> JournalContent:
    """Reads a journal in one pass. Nothing in it can make this fail.

    What the medium does not give back reads as zeros, and so is damage like any other.

    Raises:
        DiskFailed: the file cannot be opened.
    """
    file = disk.open(journal_path(number), "read")
    try:
        data = _read_all(file)
    finally:
        file.close()
    header, offset = _read_head(data, number, store, epoch)
    frames: list[Whole] = []
    broken: list[Broken] = []
    reserved: list[Reserved] = []
    closed: Closed | None = None
    for item in scan(data, store, epoch, offset):
        if isinstance(item, Broken):
            broken.append(item)
            continue
        closed = None
        if item.header.lane is not None:
            frames.append(item)
            continue
        control = _control(data[item.body_offset : item.end])
        if isinstance(control, Reserved):
            reserved.append(control)
        elif isinstance(control, Closed):
            closed = control
    torn = bool(broken) and broken[-1].end == len(data) and broken[-1].header is None
    return JournalContent(
        number, header, tuple(frames), tuple(broken), torn, tuple(reserved), closed, data
    )


def _read_all(file: DiskFile) -> bytes:
    try:
        return file.read(0, _READ_BYTES_MAX)
    except DiskFailed:
        size = min(file.size(), _READ_BYTES_MAX)
        starts = range(0, size, _SECTOR_BYTES)
        return b"".join(_read_sector(file, at, min(_SECTOR_BYTES, size - at)) for at in starts)


def _read_sector(file: DiskFile, start: int, size: int) -> bytes:
    try:
        return file.read(start, size)
    except DiskFailed:
        return bytes(size)


def _read_head(
    data: bytes, number: int, store: bytes, epoch: Epoch
) -> tuple[JournalHeader | None, int]:
    """The header and where the first frame begins; no header when the file was never begun."""
    if len(data) < _HEAD.size:
        return None, 0
    magic, version, size, crc = _HEAD.unpack_from(data)
    head = data[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or version != _VERSION or zlib.crc32(head) != crc:
        return None, 0
    try:
        header = wire.decode_as(JournalHeader, head)
    except Refused:
        return None, 0
    if header.number != number or header.store != store or header.epoch != epoch:
        return None, 0
    return header, _HEAD.size + size


def _control(body: bytes) -> object:
    try:
        return wire.decode(body)
    except Refused:
        return None
