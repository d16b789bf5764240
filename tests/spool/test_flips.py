"""Single-bit flips: each bit of a journal and of a batch of 64 KiB, judged by the readers in use.

The journal is read anew for each bit. What a reader makes of it can only be one of a few things
for each frame, so each of these is judged once, by the survey that every opening makes: which
numbers it calls lost, and with which it goes on. The exhaustive runs are marked slow; the regular
run takes a sample, and every bit of the heads and of the last frame's header.
"""

import random
from collections.abc import Iterable
from functools import cache
from typing import Final, NamedTuple

import pytest

from mesh.ports import Disk, DiskFile, OpenMode
from mesh.spool import batch, journal, shelf, store
from mesh.spool.batch import Labels
from mesh.spool.frame import CHAIN_START, HEADER_BYTES, Broken, FrameHeader, Whole, pack
from mesh.spool.journal import END, Journal, JournalContent
from mesh.spool.shelf import Sealed
from schemas import wire
from schemas.errors import Damaged
from schemas.messages import Codec, Explained, Lane, Reading
from schemas.ranges import Ranges
from schemas.stored import JournalHeader, LaneMark, Numbers, Reserved, StoreIdentity
from simulator.disk import SimDisk
from tests.spool.frames import AT, EPOCH, OWNER
from tests.spool.world import record

BYTES: Final = 64 * 1024
BITS: Final = 8 * BYTES
PARTS: Final = 16
SAMPLE: Final = 3000
PATH: Final = journal.journal_path(1)
LANES: Final = (Lane.EVENTS, Lane.ALARMS, Lane.LOGS, Lane.DECISIONS)
RESERVED: Final = 4096
IDENTITY: Final = StoreIdentity(OWNER.store, "hall", "pump", EPOCH, None, b"M" * 16)


class _File(DiskFile):
    """Port ``DiskFile``: bytes that a test changes under its reader."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        """What is there now."""
        return bytes(self._data[offset : offset + size])

    def size(self) -> int:
        """How much that is."""
        return len(self._data)

    def close(self) -> None:
        """Nothing to give back."""


class _OneFile(Disk):
    """Port ``Disk``: every path is the same file."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """The file."""
        assert path
        assert mode == "read"
        return _File(self._data)


# --- the journal -------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """A frame of the journal, its place, and whether it holds records."""

    offset: int
    end: int
    header: FrameHeader


class _Made(NamedTuple):
    """The journal, where its first frame begins, and its frames."""

    data: bytes
    begins: int
    frames: tuple[_Frame, ...]


@cache
def _journal() -> _Made:
    """Frames of several lanes, from one short record to many, reservations between them."""
    disk = SimDisk()
    disk.make_directory("journal")
    lanes = {lane: Numbers(LaneMark(0, CHAIN_START), RESERVED) for lane in LANES}
    header = JournalHeader(OWNER.store, EPOCH, OWNER.boot, 1, 5, 6, 7, lanes)
    made = Journal.create(disk, header)
    begins, dice = made.size, random.Random(1)
    marks = dict.fromkeys(LANES, LaneMark(0, CHAIN_START))
    frames: list[_Frame] = []
    offset, data = begins, b""

    def add(lane: Lane | None, records: list[bytes], count: int) -> None:
        nonlocal offset, data
        mark = marks[lane] if lane is not None else LaneMark(0, CHAIN_START)
        body = b"".join(records)
        head, told = pack(OWNER, 1, lane, mark.next_seq, count, body, mark.chain, AT)
        if lane is not None:
            marks[lane] = LaneMark(told.stop, told.chain_after)
        data += head + body
        frames.append(_Frame(offset, offset + len(head) + len(body), told))
        offset = frames[-1].end

    for n in range(24):
        lane = LANES[n % len(LANES)]
        count = dice.choice([1, 1, 2, 5, 12])
        add(
            lane,
            [record(dice.randbytes(dice.randrange(1, 300)).hex()) for _ in range(count)],
            count,
        )
        if n % 8 == 7:
            add(None, [wire.encode(Reserved({Lane.EVENTS: RESERVED + n}))], 0)
    room = BYTES - offset - HEADER_BYTES - len(END)
    texts = [record("x" * 4000)] * (room // len(record("x" * 4000)))
    rest = room - sum(map(len, texts))
    texts.append(record("y" * (rest - len(record("y" * 300)) + 300)))
    add(Lane.EVENTS, texts, len(texts))
    made.append(data + END)
    whole = disk.contents()[PATH]
    assert len(whole) == BYTES
    return _Made(whole, begins, tuple(frames))


class _Hit(NamedTuple):
    """What a bit belongs to: the head or the end (no frame), or the header or body of a frame."""

    frame: int | None
    part: str


def _hit(bit: int) -> _Hit:
    made, byte = _journal(), bit // 8
    if byte < made.begins:
        return _Hit(None, "head")
    for index, item in enumerate(made.frames):
        if byte < item.end:
            return _Hit(index, "header" if byte < item.offset + HEADER_BYTES else "body")
    return _Hit(None, "end")


@cache
def _expected(hit: _Hit) -> tuple[tuple[Whole, ...], tuple[Broken, ...], bool]:
    """The frames, the broken places and the torn tail that a reader must find."""
    made = _journal()
    kept = tuple(
        Whole(item.offset, item.header)
        for index, item in enumerate(made.frames)
        if index != hit.frame and item.header.lane is not None
    )
    last = made.frames[-1]
    if hit.frame is None:
        place = (0, made.begins) if hit.part == "head" else (last.end, BYTES)
        return kept, (Broken(*place, None),), hit.part == "end"
    item = made.frames[hit.frame]
    if hit.part == "body":
        return kept, (Broken(item.offset, item.end, item.header),), False
    torn = item is last
    return kept, (Broken(item.offset, BYTES if torn else item.end, None),), torn


@cache
def _judged(hit: _Hit, bit: int) -> None:
    """Surveys the journal with one of the bits that were hit so, as an opening does."""
    made = _journal()
    disk = SimDisk()
    disk.make_directory("journal")
    disk.open(PATH, "create").write(made.data, 0)
    disk.flip_bit(PATH, bit)
    found = store.survey(disk, IDENTITY).lanes
    for lane in LANES:
        frames = [item.header for item in made.frames if item.header.lane is lane]
        lost = Ranges()
        if hit.frame is not None and made.frames[hit.frame].header.lane is lane:
            header = made.frames[hit.frame].header
            lost = Ranges(((header.first, header.stop),))
        stated = Ranges.of([span for why in found[lane].explained.values() for span in why.spans])
        below = Ranges(((0, frames[-1].stop),))
        assert stated & below == lost, f"{lane}, bit {bit}: {stated} stated, {lost} lost"
        if hit.part == "body":
            damaged = found[lane].explained.get(Explained.DAMAGED, Ranges())
            assert damaged & below == lost, f"{lane}, bit {bit}: its header is whole"
        held = {item.frame.header.first for item in found[lane].fresh}
        assert held == {item.first for item in frames if item.first not in lost}
        handed_out = RESERVED + 23 if lane is Lane.EVENTS else RESERVED
        assert found[lane].mark.next_seq >= handed_out, f"{lane}, bit {bit}: a number comes twice"


def _read(data: bytearray) -> JournalContent:
    return journal.read(_OneFile(data), 1, OWNER.store, EPOCH, keep_data=False)


def _flip_journal(bits: Iterable[int]) -> int:
    data, first = bytearray(_journal().data), dict[_Hit, int]()
    count = 0
    for bit in bits:
        data[bit >> 3] ^= 1 << (bit & 7)
        content = _read(data)
        data[bit >> 3] ^= 1 << (bit & 7)
        hit = _hit(bit)
        frames, broken, torn = _expected(hit)
        assert content.frames == frames, f"bit {bit}, {hit}"
        assert content.broken == broken, f"bit {bit}, {hit}"
        assert content.torn_tail == torn, f"bit {bit}, {hit}"
        assert (content.header is None) == (hit.part == "head"), f"bit {bit}, {hit}"
        _judged(hit, first.setdefault(hit, bit))
        count += 1
    assert data == _journal().data
    return count


def test_a_journal_without_a_flip_is_whole() -> None:
    """What the flips are compared with: nothing broken, every frame there."""
    made = _journal()
    content = _read(bytearray(made.data))
    assert content.header is not None
    assert not content.broken
    records = [item for item in made.frames if item.header.lane is not None]
    assert [(item.offset, item.header) for item in content.frames] == [
        (item.offset, item.header) for item in records
    ]
    assert {item.header.lane for item in made.frames} == {*LANES, None}
    sizes = [item.end - item.offset for item in made.frames]
    assert min(sizes) < 256
    assert max(sizes) > 4096


def test_a_sample_of_flips_in_a_journal_costs_what_was_hit() -> None:
    """Rows 8, 9: all bits of the last frame's header, and some thousand others."""
    last = _journal().frames[-1].offset
    bits = {*range(8 * last, 8 * (last + HEADER_BYTES)), *range(8 * 16)}
    bits |= {*random.Random(2).sample(range(BITS), SAMPLE), *range(BITS - 8 * len(END), BITS)}
    assert _flip_journal(sorted(bits)) > SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_flip_in_a_journal_costs_what_was_hit(part: int) -> None:
    """Rows 8, 9: all 524,288 bits; detected, nothing else is lost, the range is exact."""
    step = BITS // PARTS
    assert _flip_journal(range(part * step, (part + 1) * step)) == step


# --- batches -----------------------------------------------------------------------------------


class _Shelved(NamedTuple):
    """A batch as it stands on the shelf."""

    lane: Lane
    item: Sealed
    data: bytes


@cache
def _batch(codec: Codec) -> _Shelved:
    """A batch of at least 64 KiB, of what compresses badly."""
    dice = random.Random(3)
    lane = Lane.EVENTS if codec is Codec.ROWS_ZSTD else Lane.READINGS
    count, first, before = 8, 100, CHAIN_START
    headers, bodies = [], []
    while True:
        records = [_noise(dice, lane, first + n) for n in range(count)]
        body = b"".join(records)
        header = pack(OWNER, 1, lane, first, count, body, before, AT)[1]
        headers.append(header)
        bodies.append(body)
        first, before = header.stop, header.chain_after
        if sum(map(len, bodies)) > BYTES:
            made = batch.pack(Labels("hall", "pump"), headers, bodies)
            if len(made.data) >= BYTES:
                break
    assert made.header.codec is codec
    assert batch.open_records(batch.parse(made.data)) == wire.split(b"".join(bodies), first - 100)
    return _Shelved(lane, Sealed(100, first, len(made.data)), made.data)


def _noise(dice: random.Random, lane: Lane, number: int) -> bytes:
    if lane is Lane.EVENTS:
        return record(dice.randbytes(400).hex())
    values = {name: dice.gauss(0, 1) for name in "abcdefgh"}
    return wire.encode(Reading(number * 10**9, number, "plant/p1", values))


def _flip_batch(shelved: _Shelved, bits: Iterable[int]) -> int:
    data = bytearray(shelved.data)
    disk = _OneFile(data)
    path = shelf.batch_path(shelved.lane, EPOCH, shelved.item.first, shelved.item.stop)
    count = 0
    for bit in bits:
        data[bit >> 3] ^= 1 << (bit & 7)
        try:
            shelf.read(disk, shelved.lane, EPOCH, shelved.item)
        except Damaged as damage:
            named = path in str(damage)
        else:
            named = False
        assert named, f"bit {bit} of {8 * len(data)} was not seen, or of another batch"
        data[bit >> 3] ^= 1 << (bit & 7)
        count += 1
    assert shelf.read(disk, shelved.lane, EPOCH, shelved.item).data == shelved.data
    return count


CODECS = [Codec.ROWS_ZSTD, Codec.COLUMNS]


@pytest.mark.parametrize("codec", CODECS)
def test_a_sample_of_flips_in_a_batch_is_seen(codec: Codec) -> None:
    """Row 8: every bit of its head, and some thousand others; the batch that is lost is named."""
    shelved = _batch(codec)
    bits = {*range(8 * 16), *random.Random(4).sample(range(8 * len(shelved.data)), SAMPLE)}
    assert _flip_batch(shelved, sorted(bits)) > SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("codec", CODECS)
def test_every_flip_in_a_batch_is_seen(codec: Codec, part: int) -> None:
    """Row 8: all bits of 64 KiB and more, whichever way the records are packed."""
    shelved = _batch(codec)
    bits = range(8 * len(shelved.data))
    step = -(-len(bits) // 4)
    mine = bits[part * step : (part + 1) * step]
    assert len(bits) >= BITS
    assert _flip_batch(shelved, mine) == len(mine)
