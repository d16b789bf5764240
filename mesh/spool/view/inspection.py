"""An inspection: what a journal, a batch or a broken piece of one holds, frame by frame. Pure.

It needs no store: bytes in, a head and stretches out. So it reads what recovery would pass over: a
file whose head is gone (the owner is then taken from the first frame whose header is whole), frames
of another store or life, a batch whose body no longer matches. The layouts are those of
``mesh.spool.journal``, ``mesh.spool.batch`` and ``mesh.spool.frame``; what their version does not
cover is refused, never guessed at.
"""

import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final

from mesh.spool import batch as batches
from mesh.spool import journal
from mesh.spool.frame import Owner, chain
from mesh.spool.view.stretch import Stretch, first_header, stretches
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import (
    BATCH_BYTES_MAX,
    BATCH_HEADER_BYTES_MAX,
    COMMIT_GROUP_BYTES_MAX,
    JOURNAL_BYTES_MAX,
    JOURNAL_HEADER_BYTES_MAX,
)
from schemas.messages import BatchHeader
from schemas.ranges import Ranges
from schemas.stored import JournalHeader

__all__ = ["INSPECTED_BYTES_MAX", "FileKind", "Inspection", "inspect"]

INSPECTED_BYTES_MAX: Final = JOURNAL_BYTES_MAX + 2 * COMMIT_GROUP_BYTES_MAX
"""No journal and no batch is longer."""

_JOURNAL: Final = b"HFjr"
_BATCH: Final = b"HFba"
_FRAME: Final = b"HFfr"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sB3sII")
_RESERVED: Final = bytes(3)
_SHOWN_BYTES: Final = 8


class FileKind(StrEnum):
    """What a file is, by its first bytes."""

    JOURNAL = "journal"
    BATCH = "batch"
    PIECE = "piece"
    """Frames without a head: what quarantine keeps, or a journal whose head is gone."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is, and what stands in it.

    Args:
        kind: what it is.
        size: its length in bytes.
        head: what its head says; ``None`` where that is gone.
        owner: store and epoch of its frames; ``None`` where nothing tells.
        wrong: what is wrong with its head, or with a batch as a whole; empty when nothing is.
        lost: numbers that a batch names and no longer gives back.
        stretches: its frames and what lies between them, made as they are asked for, once.
    """

    kind: FileKind
    size: int
    head: JournalHeader | BatchHeader | None
    owner: Owner | None
    wrong: str
    lost: Ranges
    stretches: Iterator[Stretch] = field(repr=False)


def inspect(data: bytes, number: int | None = None) -> Inspection:
    """What these bytes are, all of a file.

    Args:
        data: the file.
        number: of the journal, where its name tells; else its head does, or its first frame.

    Raises:
        Refused: ``too_large``; ``bad_version``: of a format that is not known here; ``malformed``:
            neither a journal nor a batch, and no frame in it.
    """
    if len(data) > INSPECTED_BYTES_MAX:
        raise Refused(
            RefusedBecause.TOO_LARGE,
            f"{len(data)} bytes; no journal or batch has more than {INSPECTED_BYTES_MAX}",
        )
    if data.startswith(_BATCH):
        return _batch(data)
    if data.startswith(_JOURNAL):
        return _journal(data, number)
    first = first_header(data, 0)
    if first is None:
        shown = data[:_SHOWN_BYTES].hex(" ") or "nothing"
        raise Refused(
            RefusedBecause.MALFORMED,
            f"neither a journal nor a batch, and no frame in {len(data)} bytes that begin with "
            f"{shown}",
        )
    wrong = "" if data.startswith(_FRAME) else "it does not begin as a journal does"
    found = stretches(data, first.owner, _or(number, first.journal), 0)
    return Inspection(FileKind.PIECE, len(data), None, first.owner, wrong, Ranges(), found)


def _or(number: int | None, otherwise: int) -> int:
    return otherwise if number is None else number


# --- journals --------------------------------------------------------------------------------


def _journal(data: bytes, number: int | None) -> Inspection:
    head, begin = journal.parse_head(data)
    if head is not None:
        owner: Owner | None = Owner(head.store, head.epoch, head.boot)
        found = stretches(data, owner, _or(number, head.number), begin)
        return Inspection(FileKind.JOURNAL, len(data), head, owner, "", Ranges(), found)
    _, wrong = _head(data, JOURNAL_HEADER_BYTES_MAX)
    first = first_header(data, _HEAD.size)
    owner = None if first is None else first.owner
    found = stretches(data, owner, _or(number, 0 if first is None else first.journal), _HEAD.size)
    wrong = wrong or "its head is not understood"
    return Inspection(FileKind.JOURNAL, len(data), None, owner, wrong, Ranges(), found)


def _head(data: bytes, size_max: int) -> tuple[bytes, str]:
    """The message in the head of a journal or a batch, and what is wrong with it.

    Raises:
        Refused: ``bad_version``.
    """
    if len(data) < _HEAD.size:
        return b"", f"{len(data)} bytes are too few for a head"
    _, version, reserved, size, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + min(size, size_max)]
    if version != _VERSION:
        raise Refused(RefusedBecause.BAD_VERSION, f"version {version}, known here is {_VERSION}")
    if reserved != _RESERVED:
        return b"", f"its head has {reserved.hex()} in reserved bytes, not zeros"
    if size > size_max or len(body) != size or zlib.crc32(body) != crc:
        return b"", "its head does not match its checksum"
    return body, ""


# --- batches ---------------------------------------------------------------------------------


def _batch(data: bytes) -> Inspection:
    """A batch; its header is shown even where the rest does not verify."""
    if len(data) > BATCH_BYTES_MAX:
        raise Refused(
            RefusedBecause.TOO_LARGE, f"a batch of {len(data)} bytes, at most {BATCH_BYTES_MAX}"
        )
    records: Sequence[bytes] = ()
    head, wrong = _head(data, BATCH_HEADER_BYTES_MAX)
    if wrong:
        return Inspection(FileKind.BATCH, len(data), None, None, wrong, Ranges(), iter(()))
    header = wire.decode_as(BatchHeader, head)
    try:
        records = batches.open_records(batches.parse(data))
    except Refused as refused:
        if refused.reason in {RefusedBecause.BAD_VERSION, RefusedBecause.UNKNOWN_EXTENSION}:
            raise
        wrong = str(refused)
    owner = Owner(header.store, header.epoch, header.boot)
    lost = header.present if wrong else Ranges()
    frames = _batch_frames(header, records)
    return Inspection(FileKind.BATCH, len(data), header, owner, wrong, lost, frames)


def _batch_frames(header: BatchHeader, records: Sequence[bytes]) -> Iterator[Stretch]:
    """The frames that a batch was made of; none where it does not open."""
    if not records:
        return
    numbers = iter(header.present)
    link, taken, offset = header.chain_before, 0, 0
    for count in header.frames:
        body = b"".join(records[taken : taken + count])
        first = next(numbers)
        deque(islice(numbers, count - 1), maxlen=0)
        after = chain(link, body)
        yield Stretch(
            offset,
            offset + len(body),
            header.lane,
            first,
            count,
            chain_before=link,
            chain_after=after,
            body=body,
        )
        link, taken, offset = after, taken + count, offset + len(body)
