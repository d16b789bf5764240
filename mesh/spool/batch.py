"""A batch: consecutive frames of one lane, compressed.

What rests on disk, crosses links, lies in the archive.

::

    0  4s  magic "HFba"
    4  u8  version, 1
    5  u8  reserved, 0 (three bytes)
    8  u32 bytes of the header
    12 u32 CRC-32 of the header
    16     header: a ``BatchHeader`` in canonical bytes
           body: the frames' bodies one after another, by the header's codec

Codecs. ``rows+zstd``: as they are, in one zstd frame. ``columns``: ``mesh.spool.columns``, for
lanes of numbers, where that is smaller and was seen to open to the same bytes.

Invariants. Body and header have a length and a digest; nothing may follow. The body opens to
exactly ``raw_bytes``, never to
more: the size that the zstd frame declares is read first and one without is refused, since a body
of 32 KiB can open to a GiB (RFC 8878, section 3.1.1). The chain over the frames leads from
``chain_before`` to ``chain_after``. Two batches of the same records may differ in their bytes, so
sameness is judged on the chain, never on the compressed bytes. The only importer of zstandard.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Final, assert_never

import numpy as np
import numpy.typing as npt
import zstandard

from mesh.spool.columns import body as columns
from mesh.spool.columns.tables import Table, joined
from mesh.spool.frame import FrameHeader, chain
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import (
    BATCH_BYTES_MAX,
    BATCH_HEADER_BYTES_MAX,
    BATCH_RAW_BYTES_MAX,
    FRAMES_PER_BATCH_MAX,
)
from schemas.messages import BatchHeader, Codec, Lane
from schemas.ranges import Ranges

__all__ = [
    "COLUMN_RECORDS_MIN",
    "SCHEMA",
    "Batch",
    "Labels",
    "Opened",
    "chain_inside",
    "has_columns",
    "open_batch",
    "open_records",
    "pack",
    "parse",
    "parse_header",
]

SCHEMA: Final = "records.v1"
"""Schema id of bodies made of ``schemas.wire`` records in version 1."""
COLUMN_RECORDS_MIN: Final = 16
"""Fewer records are packed as rows: columns save little of them and take longer."""
_COLUMN_LANES: Final = frozenset((Lane.METRICS, Lane.READINGS))
_MAGIC: Final = b"HFba"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sB3sII")
_RESERVED: Final = bytes(3)
_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Labels:
    """What a node writes on each of its batches."""

    site: str
    node: str
    region: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose header verifies; its body is still closed.

    Args:
        header: what it says of itself.
        data: all of its bytes.
        head_bytes: how many of them come before its body.
    """

    header: BatchHeader
    data: bytes
    head_bytes: int
    _digest: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def body(self) -> bytes:
        """Its body as it stands: a copy, which nobody needs who passes the batch on."""
        return self.data[self.head_bytes :]

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of its bytes: what a link calls it. Worked out once."""
        if not self._digest:
            object.__setattr__(self, "_digest", sha256(self.data).digest())
        return self._digest


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """The records of a batch; its chain was seen to lead through them.

    Args:
        raw: their canonical bytes, one after another.
        bounds: where each begins, and where the last one ends.
        table: the same as numbers in templates, where they came as columns.
    """

    raw: bytes
    bounds: npt.NDArray[np.int64]
    table: Table | None


def has_columns(frames: Sequence[FrameHeader]) -> bool:
    """Whether columns are tried for these frames: the lane is one of numbers, and they are many."""
    records = sum(frame.count for frame in frames)
    return frames[0].lane in _COLUMN_LANES and records >= COLUMN_RECORDS_MIN


def pack(
    labels: Labels,
    frames: Sequence[FrameHeader],
    bodies: Sequence[bytes],
    *,
    rows_only: bool = False,
) -> Batch:
    """Frames of one lane and epoch to a batch, in the codec that makes it smaller.

    Rows are compressed in a call that releases the interpreter. Columns hold it for milliseconds:
    ``mesh.spool.packing`` makes them in another process.

    Args:
        labels: the origin.
        frames: consecutive frames: each begins where the one before it ends.
        bodies: their bodies.
        rows_only: columns are not tried.
    """
    first, last = frames[0], frames[-1]
    lane = first.lane
    assert lane is not None, "control frames stay in the journal"
    assert len(frames) <= FRAMES_PER_BATCH_MAX, "the caller cuts"
    count = sum(frame.count for frame in frames)
    assert count == last.stop - first.first, "frames are consecutive"
    raw = b"".join(bodies)
    assert len(raw) <= BATCH_RAW_BYTES_MAX, "the caller cuts"
    codec, body = Codec.ROWS_ZSTD, zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    if not rows_only and has_columns(frames):
        narrow = _columns(raw, count)
        if narrow is not None and len(narrow) < len(body):
            codec, body = Codec.COLUMNS, narrow
    header = BatchHeader(
        store=first.owner.store,
        site=labels.site,
        node=labels.node,
        epoch=first.owner.epoch,
        lane=lane,
        first=first.first,
        last=last.stop - 1,
        count=count,
        present=Ranges(((first.first, last.stop),)),
        frames=tuple(frame.count for frame in frames),
        chain_before=first.chain_before,
        chain_after=last.chain_after,
        first_wall_ns=first.at.wall_ns,
        last_wall_ns=last.at.wall_ns,
        clock_trusted=all(frame.at.trusted for frame in frames),
        boot=last.owner.boot,
        running_ns=last.at.mono_ns,
        codec=codec,
        schema=SCHEMA,
        raw_bytes=len(raw),
        body_bytes=len(body),
        body_digest=sha256(body).digest(),
        priority=lane.priority,
        region=labels.region,
        tenant=labels.tenant,
    )
    head = wire.encode(header)
    head = _HEAD.pack(_MAGIC, _VERSION, _RESERVED, len(head), zlib.crc32(head)) + head
    return Batch(header, head + body, len(head))


def _columns(raw: bytes, count: int) -> bytes | None:
    """Records as columns, where these open to the same bytes again."""
    try:
        body = columns.encode(wire.split(raw, count))
        if body is not None and columns.decode(body, count, len(raw)) == raw:
            return body
    except Refused:
        pass
    return None


def parse(data: bytes) -> Batch:
    """The batch that these bytes are, all of them.

    Its body is checked against its digest, not opened.

    Raises:
        Refused: ``malformed``, ``too_large``, ``bad_version``, ``bad_checksum``,
            ``unknown_extension``, or what ``schemas.wire.decode`` says of the header.
    """
    if len(data) > BATCH_BYTES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{len(data)} bytes, at most {BATCH_BYTES_MAX}")
    header, end = _parse_head(data)
    body = memoryview(data)[end:]
    if len(body) != header.body_bytes or sha256(body).digest() != header.body_digest:
        raise Refused(RefusedBecause.BAD_CHECKSUM, f"{header}: the body does not match its digest")
    if header.critical:
        names = ", ".join(sorted(header.critical))
        raise Refused(RefusedBecause.UNKNOWN_EXTENSION, f"{header}: critical extension {names}")
    _check_numbers(header)
    return Batch(header, data, end)


def parse_header(data: bytes) -> BatchHeader:
    """The header of the batch that these bytes are, or begin; nothing of the body is looked at.

    Raises:
        Refused: as ``parse``.
    """
    return _parse_head(data)[0]


def _parse_head(data: bytes) -> tuple[BatchHeader, int]:
    """The header, and where the body begins."""
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise Refused(RefusedBecause.MALFORMED, f"{len(data)} bytes that do not begin as a batch")
    _, version, reserved, size, crc = _HEAD.unpack_from(data)
    if reserved != _RESERVED:
        raise Refused(RefusedBecause.MALFORMED, f"reserved bytes {reserved.hex()}, not zero")
    if version != _VERSION:
        raise Refused(RefusedBecause.BAD_VERSION, f"batch version {version}, known is {_VERSION}")
    head = data[_HEAD.size : _HEAD.size + size]
    if size > BATCH_HEADER_BYTES_MAX or zlib.crc32(head) != crc or len(head) != size:
        raise Refused(RefusedBecause.BAD_CHECKSUM, "the batch header does not match its checksum")
    return wire.decode_as(BatchHeader, head), _HEAD.size + size


def _check_numbers(header: BatchHeader) -> None:
    spans = header.present.spans
    whole = (
        spans
        and (spans[0][0], spans[-1][1]) == (header.first, header.last + 1)
        and len(header.present) == header.count == sum(header.frames)
    )
    if not whole:
        raise Refused(RefusedBecause.OUT_OF_RANGE, f"{header}: its ranges and counts disagree")


def open_records(batch: Batch) -> list[bytes]:
    """The canonical bytes of each record, in the order of ``header.present``.

    Raises:
        Refused: ``too_large``, ``malformed``, ``bad_version``, ``out_of_range`` or ``bad_chain``.
    """
    opened = open_batch(batch)
    return [opened.raw[start:stop] for start, stop in pairwise(opened.bounds.tolist())]


def open_batch(batch: Batch) -> Opened:
    """The records of a batch without an object for each, in the order of ``header.present``.

    Raises:
        Refused: ``too_large``, ``malformed``, ``bad_version``, ``out_of_range`` or ``bad_chain``.
    """
    header = batch.header
    if header.schema != SCHEMA or header.sealed:
        raise Refused(RefusedBecause.BAD_VERSION, f"{header}: schema {header.schema!r}, or sealed")
    opened = _open_body(batch)
    if _lead(header, opened, header.frames) != header.chain_after:
        raise Refused(RefusedBecause.BAD_CHAIN, f"{header}: the records do not lead to its chain")
    return opened


def chain_inside(header: BatchHeader, opened: Opened, number: int) -> bytes | None:
    """The chain before a number of a batch; ``None`` where no frame begins with that number.

    Args:
        header: of the batch, in which no number is missing.
        opened: its records.
        number: as ``first < number <= last``.
    """
    ends = list(accumulate(header.frames))
    if number - header.first not in ends:
        return None
    frames = header.frames[: ends.index(number - header.first) + 1]
    return _lead(header, opened, frames)


def _lead(header: BatchHeader, opened: Opened, frames: Sequence[int]) -> bytes:
    """Where the chain leads over the first frames of a batch, of so many records each."""
    view = memoryview(opened.raw)
    ends = opened.bounds[[0, *accumulate(frames)]]
    link = header.chain_before
    for start, stop in pairwise(ends.tolist()):
        link = chain(link, view[start:stop])
    return link


def _open_body(batch: Batch) -> Opened:
    header = batch.header
    match header.codec:
        case Codec.ROWS_ZSTD:
            raw = _open_rows(batch)
            return Opened(raw, np.array(wire.bounds(raw, header.count), np.int64), None)
        case Codec.COLUMNS:
            table, sizes = columns.read(batch.body, header.count, header.raw_bytes)
            bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
            return Opened(joined(table, sizes), bounds, table)
        case _:
            assert_never(header.codec)


def _open_rows(batch: Batch) -> bytes:
    header = batch.header
    try:
        frame = zstandard.get_frame_parameters(batch.body)
        declared, window = frame.content_size, frame.window_size
        if declared != header.raw_bytes or frame.dict_id or window > 2 * BATCH_RAW_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"{header}: the body declares {declared} bytes, its header {header.raw_bytes}",
            )
        # Allocates what the frame declares, which is bounded by now, and refuses a second frame.
        return zstandard.ZstdDecompressor().decompress(batch.body, allow_extra_data=False)
    except zstandard.ZstdError as wrong:
        raise Refused(RefusedBecause.MALFORMED, f"{header}: {wrong}") from wrong
