"""The journal of custody: the append-only file that takes batches and releases of all lanes.

``journal/0000000000000042`` begins with a *snapshot*: a head (``CustodyHead``) and one entry for
each lane that is known (``CustodyLane``). Then come batches and releases in the order in which they
were committed. Behind the last entry stand sixteen zero bytes, which the next group overwrites.

A journal counts once its snapshot is synced and its name is durable in the folder. The snapshot
makes the older journals needless but for the batches in them: it says what is held of each lane,
what of that was released, and up to where each older journal counts. So an older journal is removed
once none of its batches is held. The one before the newest stays in any case: where the newest
one's snapshot has rotted, that of the one before it and what follows it say the same.

What is held after the snapshot follows from the batches behind it: the change of the ledger is what
the batch's header says, so the two cannot disagree, and one sync makes both durable.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk, DiskFile
from mesh.spool import batch as batches
from mesh.spool.journal import FOLDER, journal_path, numbers
from mesh.transfer.custody.entry import (
    ENTRY_HEAD_BYTES,
    Broken,
    Draft,
    Entry,
    Kind,
    pack,
    parse_head,
    scan,
)
from schemas import wire
from schemas.errors import Damaged, DiskFailed, Refused
from schemas.limits import BATCH_HEADER_BYTES_MAX
from schemas.messages import BatchHeader, Instant
from schemas.stored import CustodyHead, CustodyLane, CustodyRelease

__all__ = [
    "FOLDER",
    "Content",
    "Journal",
    "Seen",
    "journal_path",
    "numbers",
    "read",
    "read_snapshot",
    "walk",
]

_END: Final = bytes(16)
_PIECE_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 512
_BATCH_HEAD_BYTES_MAX: Final = 16 + BATCH_HEADER_BYTES_MAX


class Journal:
    """One journal, open for appending. Only the writer thread uses it."""

    def __init__(self, file: DiskFile, store: bytes, number: int) -> None:
        self._file = file
        self._store = store
        self.number = number
        self.size = 0
        """Where the next entry begins."""

    @classmethod
    def create(
        cls, disk: Disk, head: CustodyHead, drafts: Sequence[Draft], at: Instant
    ) -> tuple["Journal", list[Entry]]:
        """Begins a journal with its snapshot and a first group; durable, with its name, on return.

        Raises:
            DiskFailed: it was not begun; a useless file may be left.
        """
        path = journal_path(head.number)
        file = disk.open(path, "create")
        journal = cls(file, head.store, head.number)
        try:
            entries = journal.append(drafts, at)
            disk.sync_directory(FOLDER)
        except BaseException:
            file.close()
            with suppress(DiskFailed):
                disk.unlink(path)
            raise
        return journal, entries

    def append(self, drafts: Sequence[Draft], at: Instant) -> list[Entry]:
        """Appends a group and syncs: it is durable on return.

        Raises:
            DiskFull: nothing was appended; a smaller group may fit.
            DiskFailed: nothing is known about this group, and this journal must not be used again.
        """
        pieces: list[bytes] = []
        entries: list[Entry] = []
        offset = self.size
        for draft in drafts:
            head = pack(self._store, self.number, offset, draft, at)
            entries.append(parse_head(head))
            pieces += (head, draft.body)
            offset = entries[-1].end
        self._file.write(b"".join((*pieces, _END)), self.size)
        self._file.sync()
        self.size = offset
        return entries

    def cut_back(self) -> None:
        """Takes away what a write without room has left.

        Raises:
            DiskFailed: it is still there; this journal must not be used again.
        """
        self._file.truncate(self.size)

    def close(self) -> None:
        """Gives the file back; syncs nothing."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch or a release as it stands in a journal."""

    entry: Entry
    what: BatchHeader | CustodyRelease


@dataclass(frozen=True, slots=True)
class Content:
    """What a journal holds.

    Args:
        number: from its name.
        head: its head; ``None`` where that is not whole.
        lanes: those of its snapshot that are whole.
        seen: batches and releases, in order.
        broken: what does not verify, with its bytes.
        end: up to where it counts.
    """

    number: int
    head: CustodyHead | None
    lanes: tuple[CustodyLane, ...]
    seen: tuple[Seen, ...]
    broken: tuple[tuple[Broken, bytes], ...]
    end: int

    @property
    def is_complete(self) -> bool:
        """Whether its snapshot is whole."""
        return self.head is not None and len(self.lanes) == self.head.lanes


def read(disk: Disk, number: int, store: bytes | None, end: int | None = None) -> Content:
    """Reads a journal, each body against its digest. Nothing in it can make this fail.

    Args:
        disk: the folder of the store.
        number: of the journal.
        store: whose entries count; of the first one that is found where none is said.
        end: up to where it counts; to its end where that is not known.

    Raises:
        DiskFailed: the medium does not give it back, sector by sector or at all.
    """
    data = _data(disk, number)[:end]
    head: CustodyHead | None = None
    lanes: list[CustodyLane] = []
    seen: list[Seen] = []
    broken: list[tuple[Broken, bytes]] = []
    last = 0
    for item in scan(data, store, number):
        if isinstance(item, Broken):
            broken.append((item, data[item.offset : item.end]))
            continue
        entry, body = item
        store = store or entry.store
        last = entry.end
        said = _said(entry.kind, body)
        if isinstance(said, CustodyHead) and entry.offset == 0:
            head = said
        elif isinstance(said, CustodyLane):
            lanes.append(said)
        elif isinstance(said, BatchHeader | CustodyRelease):
            seen.append(Seen(entry, said))
        else:
            broken.append((Broken(entry.offset, entry.end), body))
    return Content(number, head, tuple(lanes), tuple(seen), tuple(broken), last)


def read_snapshot(disk: Disk, number: int) -> Content:
    """Reads a journal's snapshot, and nothing behind it.

    Raises:
        DiskFailed: the medium does not give it back.
    """
    file = disk.open(journal_path(number), "read")
    try:
        head: CustodyHead | None = None
        lanes: list[CustodyLane] = []
        offset, store = 0, None
        while head is None or len(lanes) < head.lanes:
            found = _entry(file, store, number, offset)
            said = None
            if found is not None:
                body = file.read(found.body_offset, found.body_bytes)
                said = _said(found.kind, body) if found.verifies(body) else None
            if found is None or not isinstance(said, CustodyHead | CustodyLane):
                break
            if isinstance(said, CustodyHead):
                head, store = said, said.store
            else:
                lanes.append(said)
            offset = found.end
    finally:
        file.close()
    return Content(number, head, tuple(lanes), (), (), offset)


def walk(disk: Disk, number: int, store: bytes, end: int) -> Iterator[Seen]:
    """The batches of a journal by their heads: bodies are judged when they are read.

    Where a head does not verify, or the medium does not give it back, the rest of the file is read
    byte by byte.

    Raises:
        DiskFailed: the file cannot even be opened.
    """
    file = disk.open(journal_path(number), "read")
    offset = 0
    try:
        while offset < end and (seen := _next(file, store, number, offset)) is not None:
            entry, header = seen
            if header is not None:
                yield Seen(entry, header)
            offset = entry.end
    finally:
        file.close()
    if offset < end:
        yield from (it for it in read(disk, number, store, end).seen if it.entry.offset >= offset)


def _next(
    file: DiskFile, store: bytes, number: int, offset: int
) -> tuple[Entry, BatchHeader | None] | None:
    """An entry, with its header where it is a batch that can be read; ``None`` for no entry."""
    try:
        entry = _entry(file, store, number, offset)
    except DiskFailed:
        return None
    if entry is None:
        return None
    header = None
    if entry.kind is Kind.BATCH:
        with suppress(DiskFailed):
            header = _batch_header(file, entry)
    return entry, header


def _entry(file: DiskFile, store: bytes | None, number: int, offset: int) -> Entry | None:
    try:
        entry = parse_head(file.read(offset, ENTRY_HEAD_BYTES))
    except Damaged:
        return None
    return entry if entry.belongs(store, number, offset) else None


def _batch_header(file: DiskFile, entry: Entry) -> BatchHeader | None:
    for size in (_HEAD_BYTES, _BATCH_HEAD_BYTES_MAX):
        data = file.read(entry.body_offset, min(size, entry.body_bytes))
        try:
            return batches.parse_header(data)
        except Refused:
            continue
    return None


def _said(kind: Kind, body: bytes) -> object:
    """What a body says; ``None`` where it says nothing that is known."""
    try:
        if kind is Kind.BATCH:
            return batches.parse_header(body)
        return wire.decode(body)
    except Refused:
        return None


def _data(disk: Disk, number: int) -> bytes:
    """All bytes of a journal; what the medium does not give back as zeros."""
    file = disk.open(journal_path(number), "read")
    try:
        size = file.size()
        pieces = []
        for start in range(0, size, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, size - start)
            try:
                pieces.append(file.read(start, wanted))
            except DiskFailed:
                pieces.append(b"".join(_sectors(file, start, wanted)))
        return b"".join(pieces)
    finally:
        file.close()


def _sectors(file: DiskFile, start: int, size: int, sector: int = 4096) -> Iterator[bytes]:
    for at in range(start, start + size, sector):
        wanted = min(sector, start + size - at)
        try:
            yield file.read(at, wanted)
        except DiskFailed:
            yield bytes(wanted)
