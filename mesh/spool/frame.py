"""A frame: consecutive records of one lane, written together; the smallest unit on disk.

A frame is a header of 128 bytes and a body, which is the canonical bytes of its records one after
another. All integers are little-endian::

    0   4s  magic "HFfr"                 56  16s boot id
    4   u8  version, 1                   72  i64 wall clock, ns UTC
    5   u8  flags: 1 = clock trusted     80  i64 running time of the spool, ns
    6   u8  lane code, 0 = control       88  16s chain before the body
    7   u8  reserved, 0                  104 16s chain after the body
    8   u32 count of records             120 u32 number of the journal, low 32 bits
    12  u32 bytes of the body            124 u32 CRC-32 of the 124 bytes before
    16  u64 first number
    24  u64 epoch: counter
    32  u64 epoch: random
    40  16s store id

Invariants. The header's checksum is judged before any of its fields is believed, so a damaged
length never sends a reader astray. ``chain_after = SHA-256(chain_before ‖ body)[:16]``: the body's
only checksum, and a frame of this lane and epoch can stand in one place only; two holders that have
the same chain have the same records. Store id, epoch and journal number refuse what is no frame of
this file: another store's, another life's, and what the file held before it was used again. A
*control* frame (lane code 0, count 0) has a message of ``schemas.stored`` as its body; its chain
begins at zero and is a checksum alone.

Running time counts the nanoseconds that a spool was in use, whatever its clocks were set to:
``mesh.spool.age`` says how.

What a scan makes of bytes that do not verify:

- a whole header with a bad or short body is ``Broken`` *with* its header: that frame was written
  and may have been acknowledged, so its numbers are known and are lost;
- bytes with no whole header are ``Broken`` *without* one. At the end, with nothing valid behind,
  they are a torn tail: a crash left them, nothing in them was acknowledged. Anywhere else they are
  damage, and the numbers follow from the neighbours.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from schemas.errors import Damaged
from schemas.limits import FRAME_BODY_BYTES_MAX, RECORDS_PER_FRAME_MAX, SEQ_MAX
from schemas.messages import Epoch, Instant, Lane

__all__ = [
    "CHAIN_START",
    "HEADER_BYTES",
    "Broken",
    "FrameHeader",
    "Owner",
    "Whole",
    "chain",
    "pack",
    "parse_header",
    "scan",
]

_MAGIC: Final = b"HFfr"
_VERSION: Final = 1
_TRUSTED: Final = 1
_HEADER: Final = struct.Struct("<4sBBBBIIQQQ16s16sqq16s16sI")
_JOURNAL_MASK: Final = 0xFFFF_FFFF
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
CHAIN_START: Final = bytes(16)
"""The chain of a lane that has no record yet."""

assert HEADER_BYTES == 128, "the docstring says so"  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose frames these are: what one writer puts into each of its frames.

    Args:
        store: id of the spool, 16 bytes.
        epoch: the life that writes.
        boot: boot id, 16 bytes.
    """

    store: bytes
    epoch: Epoch
    boot: bytes


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself.

    ``lane`` is ``None`` for a control frame; ``at.mono_ns`` is the spool's running time;
    ``journal`` the low 32 bits of its number.
    """

    owner: Owner
    lane: Lane | None
    first: int
    count: int
    body_bytes: int
    at: Instant
    chain_before: bytes
    chain_after: bytes
    journal: int

    @property
    def stop(self) -> int:
        """One more than the last number."""
        return self.first + self.count

    def verifies(self, body: bytes) -> bool:
        """Whether this is the body that was written with it."""
        return len(body) == self.body_bytes and chain(self.chain_before, body) == self.chain_after


@dataclass(frozen=True, slots=True)
class Whole:
    """A frame that verifies, and where its header begins in the file."""

    offset: int
    header: FrameHeader

    @property
    def body_offset(self) -> int:
        """Where its body begins."""
        return self.offset + HEADER_BYTES

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.body_offset + self.header.body_bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes ``offset <= n < end`` that do not verify.

    ``header`` is there when at least the header does.
    """

    offset: int
    end: int
    header: FrameHeader | None


def chain(before: bytes, body: bytes | memoryview) -> bytes:
    """The chain after a body: ``SHA-256(before ‖ body)[:16]``."""
    digest = sha256(before)
    digest.update(body)
    return digest.digest()[:16]


def pack(
    owner: Owner,
    journal: int,
    lane: Lane | None,
    first: int,
    count: int,
    body: bytes | memoryview,
    before: bytes,
    at: Instant,
) -> tuple[bytes, FrameHeader]:
    """A frame's header, as bytes and as what they say.

    Args:
        owner: who writes.
        journal: number of the journal that it is written to.
        lane: which lane; ``None`` for a control frame.
        first: number of the first record.
        count: how many records.
        body: their canonical bytes.
        before: the lane's chain before them; ``CHAIN_START`` for a control frame.
        at: the time of the commit: wall clock, and running time of the spool.
    """
    assert len(body) <= FRAME_BODY_BYTES_MAX, "the writer cuts groups into frames"
    assert count <= RECORDS_PER_FRAME_MAX, "the writer cuts groups into frames"
    after = chain(before, body)
    journal &= _JOURNAL_MASK
    head = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _TRUSTED if at.trusted else 0,
        0 if lane is None else lane.code,
        0,
        count,
        len(body),
        first,
        owner.epoch.counter,
        owner.epoch.random,
        owner.store,
        owner.boot,
        at.wall_ns,
        at.mono_ns,
        before,
        after,
        journal,
    )
    header = FrameHeader(owner, lane, first, count, len(body), at, before, after, journal)
    return head + _CRC.pack(zlib.crc32(head)), header


def parse_header(data: bytes, offset: int = 0) -> FrameHeader:
    """The header at ``offset``.

    Raises:
        Damaged: no whole, known header stands there.
    """
    head = data[offset : offset + _HEADER.size]
    if len(head) < _HEADER.size or offset + HEADER_BYTES > len(data):
        raise Damaged(f"byte {offset}: {len(data) - offset} bytes are too few for a frame header")
    if _CRC.unpack_from(data, offset + _HEADER.size)[0] != zlib.crc32(head):
        raise Damaged(f"byte {offset}: the frame header does not match its checksum")
    (
        magic,
        version,
        flags,
        code,
        reserved,
        count,
        size,
        first,
        epoch_counter,
        epoch_random,
        store,
        boot,
        wall_ns,
        mono_ns,
        before,
        after,
        journal,
    ) = _HEADER.unpack(head)
    if magic != _MAGIC or version != _VERSION or flags & ~_TRUSTED or reserved:
        raise Damaged(f"byte {offset}: frame version {version}, flags {flags}: not known here")
    if size > FRAME_BODY_BYTES_MAX or count > RECORDS_PER_FRAME_MAX or first + count > SEQ_MAX:
        raise Damaged(f"byte {offset}: frame of {count} records in {size} bytes is out of bounds")
    if code > len(Lane):
        raise Damaged(f"byte {offset}: lane code {code} is not known here")
    return FrameHeader(
        Owner(store, Epoch(epoch_counter, epoch_random), boot),
        Lane.of_code(code) if code else None,
        first,
        count,
        size,
        Instant(wall_ns, mono_ns, bool(flags & _TRUSTED)),
        before,
        after,
        journal,
    )


def scan(
    data: bytes, store: bytes, epoch: Epoch, journal: int, offset: int = 0
) -> Iterator[Whole | Broken]:
    """Reads frames one after another; where one does not verify, goes on at the next that does.

    One pass: no byte is judged as a header twice.

    Args:
        data: the file.
        store: frames of another store are no frames here.
        epoch: nor are frames of another epoch.
        journal: nor are frames that were written to another journal.
        offset: where the first frame begins.

    Yields:
        Frames in the order of the file, and the broken bytes between them and at the end.
    """
    mine = _Mine(store, epoch, journal & _JOURNAL_MASK)
    bad_from: int | None = None
    while offset < len(data):
        header = _own_header(data, offset, mine)
        if header is None:
            bad_from = offset if bad_from is None else bad_from
            found = data.find(_MAGIC, offset + 1)
            offset = len(data) if found < 0 else found
            continue
        if bad_from is not None:
            yield Broken(bad_from, offset, None)
            bad_from = None
        end = offset + HEADER_BYTES + header.body_bytes
        body = data[offset + HEADER_BYTES : end]
        if header.verifies(body):
            yield Whole(offset, header)
            offset = end
        else:
            # The length is the header's word; the bytes are not. The next frame may begin anywhere.
            end = min(end, _next_own(data, offset + HEADER_BYTES, mine))
            yield Broken(offset, end, header)
            offset = end
    if bad_from is not None:
        yield Broken(bad_from, len(data), None)


class _Mine(NamedTuple):
    """Which frames are frames of this file."""

    store: bytes
    epoch: Epoch
    journal: int


def _own_header(data: bytes, offset: int, mine: _Mine) -> FrameHeader | None:
    if data[offset : offset + 4] != _MAGIC:
        return None
    try:
        header = parse_header(data, offset)
    except Damaged:
        return None
    found = (header.owner.store, header.owner.epoch, header.journal)
    return header if found == mine else None


def _next_own(data: bytes, offset: int, mine: _Mine) -> int:
    while (found := data.find(_MAGIC, offset)) >= 0:
        if _own_header(data, found, mine) is not None:
            return found
        offset = found + 1
    return len(data)
