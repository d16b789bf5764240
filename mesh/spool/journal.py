"""The journal: the append-only file that takes the fresh frames of all lanes.

One sync commits a group across lanes.

``journal/0000000000000042`` begins with a head, then come frames (``mesh.spool.frame``)::

    0   4s  magic "HFjr"
    4   u8  version, 1
    5       reserved, 0 (three bytes)
    8   u32 bytes of the header
    12  u32 CRC-32 of the header
    16      header: a ``JournalHeader`` in canonical bytes

After the header, and after the frames of each group, stand sixteen zero bytes, which the next group
overwrites: an end that was reached in order begins with them, a torn one does not.

Why one file for all lanes: five files, each synced, cost 6.6 times one.

Crash safety. A journal counts only once its head is synced and its name is durable in the folder:
only then is the first frame written. Its header holds where each lane stands, so the newest journal
alone tells all numbers. A file whose blocks are written already syncs in two thirds of the time, so
journals that nobody needs any more are kept as ``journal/spare``, ``journal/spare1`` and so on, and
the next one begins in one of them: its head is written and synced there, then it is renamed. What
it held before lies behind the end, and names another journal. The spare is also the reserve of a
full disk: a loss can be stated in it without a new block. After a failed sync a file is never
synced again, since the kernel may have dropped what it could not write and would then report
success (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020); the
group goes to a new file. So the same frame may stand in two journals; both copies are the same
bytes, and either will do.
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
from schemas.limits import (
    COMMIT_GROUP_BYTES_MAX,
    JOURNAL_BYTES_MAX,
    JOURNAL_HEADER_BYTES_MAX,
    TORN_TAIL_BYTES_KEPT,
)
from schemas.messages import Epoch
from schemas.stored import Closed, JournalHeader, Reserved

__all__ = [
    "END",
    "FOLDER",
    "SPARE",
    "Journal",
    "JournalContent",
    "journal_path",
    "make_spare",
    "numbers",
    "parse_head",
    "read",
    "read_header",
    "retire",
    "spare_names",
    "spares",
]

FOLDER: Final = "journal"
SPARE: Final = "journal/spare"
"""The first of them; others have a digit behind it."""
_MAGIC: Final = b"HFjr"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sB3sII")
_RESERVED: Final = bytes(3)
_NAME_DIGITS: Final = 16
_SECTOR_BYTES: Final = 4096
END: Final = bytes(16)
"""What stands after the last frame."""
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

    def __init__(self, file: DiskFile, number: int, size: int, allocated: int) -> None:
        self._file = file
        self._allocated = allocated
        self.number = number
        self.size = size
        self.sound = True
        """Whether no sync of it has failed."""

    @property
    def allocated(self) -> int:
        """What the file occupies: what is used, or what it had from the beginning."""
        return max(self._allocated, self.size + len(END))

    @classmethod
    def create(cls, disk: Disk, header: JournalHeader, *, spare: str = "") -> "Journal":
        """Begins a new journal; durable, with its name, on return.

        Args:
            disk: where the spool lives.
            header: what it begins with.
            spare: in which spare to begin it, which is then no longer there, come what may; empty
                for a new file.

        Raises:
            DiskFailed: it was not begun; a useless file may be left, which ``read`` will say, but
                not one for each attempt.
        """
        head = wire.encode(header)
        assert len(head) <= JOURNAL_HEADER_BYTES_MAX, "what a header explains is bounded"
        data = _HEAD.pack(_MAGIC, _VERSION, _RESERVED, len(head), zlib.crc32(head)) + head
        path = journal_path(header.number)
        try:
            file = disk.open(spare or path, "update" if spare else "create")
        except FileNotFoundError:
            # Somebody has removed it.
            spare = ""
            file = disk.open(path, "create")
        written = spare or path
        try:
            file.write(data + END, 0)
            file.sync()
            allocated = file.size()
            if spare:
                disk.rename(spare, path)
            disk.sync_directory(FOLDER)
        except BaseException:
            file.close()
            for useless in dict.fromkeys((written, path)):
                with suppress(DiskFailed):
                    disk.unlink(useless)
            raise
        return cls(file, header.number, len(data), allocated)

    def append(self, data: bytes | bytearray) -> int:
        """Appends frames and syncs: they are durable on return.

        Args:
            data: frames, and ``END`` after them.

        Returns:
            Where the first of them begins.

        Raises:
            DiskFailed: nothing is known about these frames, and this journal must not be used
                again.
        """
        offset = self.size
        self._file.write(data, offset)
        self.sound = False
        self._file.sync()
        self.sound = True
        self.size = offset + len(data) - len(END)
        return offset

    def close(self) -> None:
        """Gives the file back; syncs nothing."""
        self._file.close()


def spare_names(count: int) -> list[str]:
    """The names of so many spares."""
    return [SPARE, *(f"{SPARE}{n}" for n in range(1, count))]


def spares(disk: Disk) -> tuple[dict[str, int], int]:
    """The spares that there are, and their sizes; and the highest number that stands in one.

    A journal of that number would believe what an abandoned one has left there.
    """
    found: dict[str, int] = {}
    highest = 0
    for name in (f"{FOLDER}/{name}" for name in disk.list(FOLDER)):
        with suppress(DiskFailed, FileNotFoundError):
            if name.startswith(SPARE):
                header = _header_in(disk, name)
                highest = max(highest, header.number if header else 0)
                found[name] = disk.size(name)
    return found, highest


def make_spare(disk: Disk, size: int) -> int:
    """Sees to it that there is a spare of at least ``size`` bytes, all of them allocated.

    Its name need not be durable: without it the next journal is a new file.

    Returns:
        How long it is.

    Raises:
        DiskFailed: there is none.
    """
    try:
        there = disk.size(SPARE)
        if there >= size:
            return there
        disk.unlink(SPARE)
    except FileNotFoundError:
        pass
    file = disk.open(SPARE, "create")
    try:
        file.write(bytes(size), 0)
        file.sync()
    except BaseException:
        with suppress(DiskFailed):
            disk.unlink(SPARE)
        raise
    finally:
        file.close()
    return size


def retire(disk: Disk, number: int, spare: str = "") -> int:
    """Removes a journal that nobody needs any more, or keeps its blocks as a spare.

    Its old name is durably gone before it can be written to again.

    Args:
        disk: where the spool lives.
        number: of the journal.
        spare: as which spare to keep it; empty for not at all. No sync of it may ever have failed.

    Returns:
        How long the spare is; 0 where the journal was removed.
    """
    path = journal_path(number)
    if not spare:
        disk.unlink(path)
        return 0
    try:
        size = disk.size(path)
        disk.rename(path, spare)
    except FileNotFoundError:
        return 0
    disk.sync_directory(FOLDER)
    return size


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What a journal file holds.

    Args:
        number: from its name.
        header: its header; ``None`` when the file was never begun, or is damaged at its head.
        frames: record frames that verify, in order.
        broken: what does not verify, in order.
        torn_tail: whether the last of ``broken`` is what a crash in mid-write leaves. Of a long one
            the beginning suffices: nothing in it was acknowledged.
        reserved: the numbers reserved by control frames.
        closed: the numbers to go on with, when it was closed in order.
        size: of the file, in bytes.
        broken_data: the bytes of each of ``broken``.
        data: all bytes, for who looks closer; empty where nobody does.
        unreadable: whether nobody can know what it holds.
    """

    number: int
    header: JournalHeader | None
    frames: tuple[Whole, ...]
    broken: tuple[Broken, ...]
    torn_tail: bool
    reserved: tuple[Reserved, ...]
    closed: Closed | None
    size: int
    broken_data: tuple[bytes, ...] = ()
    data: bytes = b""
    unreadable: bool = False


def read(
    disk: Disk, number: int, store: bytes, epoch: Epoch, *, keep_data: bool = True
) -> JournalContent:
    """Reads a journal in one pass. Nothing in it can make this fail.

    What the medium does not give back reads as zeros, and so is damage like any other. A file that
    cannot even be opened may have held anything.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        file = disk.open(journal_path(number), "read")
    except DiskFailed:
        unreadable = (Broken(0, COMMIT_GROUP_BYTES_MAX, None),)
        return JournalContent(
            *(number, None, (), unreadable),
            torn_tail=False,
            reserved=(),
            closed=None,
            size=0,
            broken_data=(b"",),
            unreadable=True,
        )
    try:
        data = _read_all(file)
    finally:
        file.close()
    header, offset = _read_head(data, number, store, epoch)
    frames: list[Whole] = []
    broken: list[Broken] = []
    reserved: list[Reserved] = []
    closed: Closed | None = None
    for item in scan(data, store, epoch, number, offset):
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
    if torn:
        tail = broken.pop()
        stop = min(tail.end, tail.offset + TORN_TAIL_BYTES_KEPT)
        torn = bool(data[tail.offset : tail.offset + len(END)].strip(b"\0"))
        broken += [Broken(tail.offset, stop, None)] if torn else []
    return JournalContent(
        number,
        header,
        tuple(frames),
        tuple(broken),
        torn,
        tuple(reserved),
        closed,
        len(data),
        tuple(data[item.offset : item.end] for item in broken),
        data if keep_data else b"",
    )


def read_header(disk: Disk, number: int) -> JournalHeader | None:
    """The header of a journal, whoever wrote it; ``None`` when it is not whole."""
    header = _header_in(disk, journal_path(number))
    return header if header is not None and header.number == number else None


def _header_in(disk: Disk, path: str) -> JournalHeader | None:
    try:
        file = disk.open(path, "read")
    except (FileNotFoundError, DiskFailed):
        return None
    try:
        data = file.read(0, _HEAD.size + JOURNAL_HEADER_BYTES_MAX)
    except DiskFailed:
        return None
    finally:
        file.close()
    return parse_head(data)[0]


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
    header, offset = parse_head(data)
    if header is None or (header.number, header.store, header.epoch) != (number, store, epoch):
        return None, 0
    return header, offset


def parse_head(data: bytes) -> tuple[JournalHeader | None, int]:
    """What a journal's head says, and where the first frame begins; ``None`` if it is not whole."""
    if len(data) < _HEAD.size:
        return None, 0
    magic, version, reserved, size, crc = _HEAD.unpack_from(data)
    head = data[_HEAD.size : _HEAD.size + size]
    known = (magic, version, reserved) == (_MAGIC, _VERSION, _RESERVED)
    if not known or zlib.crc32(head) != crc:
        return None, 0
    try:
        header = wire.decode_as(JournalHeader, head)
    except Refused:
        return None, 0
    return header, _HEAD.size + size


def _control(body: bytes) -> object:
    try:
        return wire.decode(body)
    except Refused:
        return None
