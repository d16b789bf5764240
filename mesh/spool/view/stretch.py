"""A stretch: one frame of a file, or bytes between frames, told as they stand. Pure.

Numbers of a broken frame are known where its header is whole. Otherwise they follow from the
neighbours: ``missing`` of a frame says which numbers of its lane stand in this file neither before
it nor in it, though others before it do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mesh.spool.frame import HEADER_BYTES, FrameHeader, Owner, Whole, parse_header, scan
from schemas import wire
from schemas.errors import Damaged, Refused
from schemas.messages import Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import Closed, Reserved

__all__ = ["Stretch", "first_header", "stretches"]

_FRAME: Final = b"HFfr"
_END_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """One frame, or bytes that are none.

    Args:
        offset: where it begins: in the file, or in the opened body of a batch.
        end: where the next begins.
        lane: which lane; ``None`` for a control frame, and for bytes that are no frame.
        first: number of its first record.
        count: how many records.
        at: when it was committed; ``None`` where a batch does not say so for each frame.
        boot: boot id; ``None`` likewise.
        chain_before: the lane's chain before it; empty for bytes that are no frame.
        chain_after: the lane's chain after it; likewise.
        wrong: what does not verify; empty when all does.
        unused: whether these bytes come after the end, which zeros mark: allocated and not yet
            written, or left of what the file held before.
        missing: numbers of its lane that stand between it and what came before it in this file.
        unlinked: whether it follows directly on a frame of this file and does not go on from that
            one's chain: one of the two was given up, or is not what it was.
        control: what a control frame says.
        body: the canonical bytes of its records; empty where it does not verify.
    """

    offset: int
    end: int
    lane: Lane | None = None
    first: int = 0
    count: int = 0
    at: Instant | None = None
    boot: bytes | None = None
    chain_before: bytes = b""
    chain_after: bytes = b""
    wrong: str = ""
    unused: bool = False
    missing: Ranges = field(default_factory=Ranges)
    unlinked: bool = False
    control: Reserved | Closed | None = None
    body: bytes = field(default=b"", repr=False)

    @property
    def lost(self) -> Ranges:
        """The numbers that its own header names and that do not verify."""
        return Ranges.of([(self.first, self.first + self.count)]) if self.wrong else Ranges()

    def records(self) -> list[bytes]:
        """The canonical bytes of each record.

        Raises:
            Refused: ``malformed``.
        """
        return wire.split(self.body, self.count) if self.body else []


def first_header(data: bytes, offset: int) -> FrameHeader | None:
    """The first whole frame header at or behind ``offset``: whose frames these are."""
    return next((header for header, _ in _whole_headers(data, offset, len(data))), None)


def _whole_headers(data: bytes, start: int, end: int) -> Iterator[tuple[FrameHeader, int]]:
    while (start := data.find(_FRAME, start, end)) >= 0:
        try:
            header = parse_header(data, start)
        except Damaged:
            header = None
        if header is not None:
            yield header, start
        start += 1


def stretches(data: bytes, owner: Owner | None, journal: int, begin: int) -> Iterator[Stretch]:
    """The frames of an owner, and what lies between them and behind the last.

    Args:
        data: the file.
        owner: whose frames count; ``None`` where nothing tells.
        journal: which journal's frames count: a file that was used before holds others' too.
        begin: where the first frame begins.
    """
    if owner is None:
        if begin < len(data):
            yield Stretch(begin, len(data), wrong="no whole frame header")
        return
    last: dict[Lane, Stretch] = {}
    for item in scan(data, owner.store, owner.epoch, journal, begin):
        header = item.header
        if header is None:
            yield _bare(data, item.offset, item.end)
            continue
        wrong = "" if isinstance(item, Whole) else _broken(data, item.offset, header)
        body = b"" if wrong else data[item.end - header.body_bytes : item.end]
        made = _stretch(item.offset, item.end, header, wrong, body, last)
        if header.lane is not None:
            last[header.lane] = made
        yield made


def _stretch(
    offset: int,
    end: int,
    header: FrameHeader,
    wrong: str,
    body: bytes,
    last: dict[Lane, Stretch],
) -> Stretch:
    control, missing, unlinked = None, Ranges(), False
    if header.lane is None:
        control, wrong = _control(body, wrong)
    elif header.lane in last:
        before = last[header.lane]
        stop = before.first + before.count
        missing = Ranges.of([(stop, header.first)])
        unlinked = stop == header.first and before.chain_after != header.chain_before
    return Stretch(
        offset,
        end,
        header.lane,
        header.first,
        header.count,
        header.at,
        header.owner.boot,
        header.chain_before,
        header.chain_after,
        wrong,
        missing=missing,
        unlinked=unlinked,
        control=control,
        body=b"" if header.lane is None else body,
    )


def _control(body: bytes, wrong: str) -> tuple[Reserved | Closed | None, str]:
    if wrong:
        return None, wrong
    try:
        said = wire.decode(body)
    except Refused as refused:
        return None, f"a control frame that is not known here: {refused}"
    if isinstance(said, Reserved | Closed):
        return said, ""
    return None, f"a control frame that holds a {type(said).__name__}"


def _broken(data: bytes, offset: int, header: FrameHeader) -> str:
    """What is wrong with a frame whose header is whole."""
    body = data[offset + HEADER_BYTES : offset + HEADER_BYTES + header.body_bytes]
    if len(body) < header.body_bytes:
        return f"cut short: {len(body)} of {header.body_bytes} bytes of its body are there"
    return "its body is not the one that was written with its header"


def _bare(data: bytes, start: int, end: int) -> Stretch:
    """Bytes that are no frame of this owner: behind the end, or broken."""
    if end == len(data) and not data[start : start + _END_BYTES].strip(b"\0"):
        return Stretch(start, end, unused=True)
    return Stretch(start, end, wrong=_foreign(data, start, end))


def _foreign(data: bytes, start: int, end: int) -> str:
    """What bytes without a header of this owner are: zeros, garbage, or somebody else's frames."""
    for header, offset in _whole_headers(data, start, end):
        lane = header.lane or "control"
        return (
            f"no frame of this journal; at byte {offset} {lane} {header.first}-"
            f"{max(header.first, header.stop - 1)} of store {header.owner.store.hex()[:8]}, "
            f"epoch {header.owner.epoch}, journal {header.journal}"
        )
    return "no whole frame header" + ("" if data[start:end].strip(b"\0") else ", zeros only")
