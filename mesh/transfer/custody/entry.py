"""An entry: one thing in a journal of custody, with a head that can be judged alone. Pure.

All integers are little-endian::

    0   4s  magic "HFcu"                  16 u64 offset of the entry in its file
    4   u8  version, 1                    24 i64 wall clock at the commit, ns UTC
    5   u8  kind                          32 16s store id
    6   u8  flags: 1 = clock trusted      48 12s first bytes of the body's SHA-256
    7   u8  reserved, 0                   60 u32 CRC-32 of the 60 bytes before
    8   u32 bytes of the body             64     body
    12  u32 number of the journal, low 32 bits

Kinds and their bodies: 1 *head*, a ``CustodyHead``, the first entry of a journal; 2 *lane*, a
``CustodyLane``, as many behind the head as it says; 3 *batch*, a batch as it came, unopened;
4 *release*, a ``CustodyRelease``.

Invariants. The head's checksum is judged before any of its fields is believed. Store, journal and
offset refuse what is no entry of this place: another store's, a misdirected write's, what a file
held before. What does not verify is ``Broken``, and reading goes on at the next entry that does;
zeros behind the last entry are its end.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final, NamedTuple

from schemas.errors import Damaged
from schemas.limits import BATCH_BYTES_MAX, CUSTODY_LANE_BYTES_MAX
from schemas.messages import Instant

__all__ = [
    "ENTRY_HEAD_BYTES",
    "Broken",
    "Draft",
    "Entry",
    "Kind",
    "is_of_another_version",
    "pack",
    "parse_head",
    "scan",
]

_MAGIC: Final = b"HFcu"
_VERSION: Final = 1
_TRUSTED: Final = 1
_HEAD: Final = struct.Struct("<4sBBBBIIQq16s12s")
_CRC: Final = struct.Struct("<I")
_JOURNAL_MASK: Final = 0xFFFF_FFFF
ENTRY_HEAD_BYTES: Final = _HEAD.size + _CRC.size
_BODY_BYTES_MAX: Final = max(BATCH_BYTES_MAX, CUSTODY_LANE_BYTES_MAX)

assert ENTRY_HEAD_BYTES == 64, "the docstring says so"  # noqa: PLR2004


class Kind(IntEnum):
    """What an entry holds."""

    HEAD = 1
    LANE = 2
    BATCH = 3
    RELEASE = 4


class Draft(NamedTuple):
    """An entry that is to be written."""

    kind: Kind
    body: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry's head says, and where it begins in its file."""

    kind: Kind
    offset: int
    body_bytes: int
    journal: int
    at: Instant
    store: bytes
    digest: bytes

    @property
    def body_offset(self) -> int:
        """Where its body begins."""
        return self.offset + ENTRY_HEAD_BYTES

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.body_offset + self.body_bytes

    def verifies(self, body: bytes) -> bool:
        """Whether this is the body that was written with it."""
        return len(body) == self.body_bytes and _digest(body) == self.digest

    def belongs(self, store: bytes | None, journal: int, offset: int) -> bool:
        """Whether it is an entry of this place; of any store where none is said."""
        ours = store is None or self.store == store
        return ours and (self.journal, self.offset) == (journal & _JOURNAL_MASK, offset)


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes ``offset <= n < end`` that do not verify."""

    offset: int
    end: int


def pack(store: bytes, journal: int, offset: int, draft: Draft, at: Instant) -> bytes:
    """An entry's head; its body follows it.

    Args:
        store: id of the store.
        journal: number of the journal that it is written to.
        offset: where in it the entry begins.
        draft: what is written.
        at: the time of the commit.
    """
    assert len(draft.body) <= _BODY_BYTES_MAX, "what is written is bounded"
    head = _HEAD.pack(
        _MAGIC,
        _VERSION,
        draft.kind,
        _TRUSTED if at.trusted else 0,
        0,
        len(draft.body),
        journal & _JOURNAL_MASK,
        offset,
        at.wall_ns,
        store,
        _digest(draft.body),
    )
    return head + _CRC.pack(zlib.crc32(head))


def parse_head(data: bytes, offset: int = 0) -> Entry:
    """The head that stands at ``offset`` of these bytes.

    Raises:
        Damaged: no whole, known head stands there.
    """
    head = data[offset : offset + _HEAD.size]
    if offset + ENTRY_HEAD_BYTES > len(data):
        raise Damaged(f"byte {offset}: {len(data) - offset} bytes are too few for an entry's head")
    if _CRC.unpack_from(data, offset + _HEAD.size)[0] != zlib.crc32(head):
        raise Damaged(f"byte {offset}: the entry's head does not match its checksum")
    magic, version, kind, flags, reserved, size, journal, at, wall_ns, store, digest = _HEAD.unpack(
        head
    )
    if magic != _MAGIC or version != _VERSION or flags & ~_TRUSTED or reserved:
        raise Damaged(f"byte {offset}: entry version {version}, flags {flags}: not known here")
    if size > _BODY_BYTES_MAX or kind not in Kind.__members__.values():
        raise Damaged(f"byte {offset}: an entry of kind {kind} with {size} bytes: not known here")
    return Entry(
        Kind(kind),
        at,
        size,
        journal,
        Instant(wall_ns, 0, bool(flags & _TRUSTED)),
        store,
        digest,
    )


def is_of_another_version(data: bytes) -> bool:
    """Whether a whole head stands at the beginning of these bytes that another version wrote."""
    if len(data) < ENTRY_HEAD_BYTES or data[: len(_MAGIC)] != _MAGIC:
        return False
    whole = _CRC.unpack_from(data, _HEAD.size)[0] == zlib.crc32(data[: _HEAD.size])
    return whole and data[len(_MAGIC)] != _VERSION


def scan(
    data: bytes, store: bytes | None, journal: int, offset: int = 0
) -> Iterator[tuple[Entry, bytes] | Broken]:
    """Reads entries one after another; where one does not verify, goes on at the next that does.

    Args:
        data: the file, or its beginning.
        store: entries of another store are no entries here.
        journal: nor are those that were written to another journal.
        offset: where the first entry begins.

    Yields:
        Entries with their bodies in the order of the file, and the broken bytes between them.
    """
    bad_from: int | None = None
    while offset < len(data):
        found = _whole_at(data, store, journal, offset)
        if found is None:
            bad_from = offset if bad_from is None else bad_from
            following = data.find(_MAGIC, offset + 1)
            offset = len(data) if following < 0 else following
            continue
        if bad_from is not None:
            yield Broken(bad_from, offset)
            bad_from = None
        yield found
        offset = found[0].end
    if bad_from is not None and data[bad_from:].strip(b"\0"):
        yield Broken(bad_from, len(data))


def _whole_at(
    data: bytes, store: bytes | None, journal: int, offset: int
) -> tuple[Entry, bytes] | None:
    if data[offset : offset + len(_MAGIC)] != _MAGIC:
        return None
    try:
        entry = parse_head(data, offset)
    except Damaged:
        return None
    if not entry.belongs(store, journal, offset):
        return None
    body = data[entry.body_offset : entry.end]
    return (entry, body) if entry.verifies(body) else None


def _digest(body: bytes) -> bytes:
    return sha256(body).digest()[:12]
