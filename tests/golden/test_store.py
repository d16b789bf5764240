"""A whole store of version 1 opens as on the day it was made; nothing is rewritten in silence."""

import asyncio
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from mesh.spool import cursor, frame, journal, store
from mesh.spool.frame import Whole
from mesh.spool.spool import Spool
from schemas import wire
from schemas.errors import StoreUnusable
from schemas.messages import Codec, Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.golden.make import FOLDER
from tests.golden.store import LATER, MACHINE, joined, pieces, restored, seen
from tests.spool.world import Said, explained_of, opened, pending, play, resources

_READ: dict[str, Any] = json.loads((FOLDER / "store.1.json").read_text(encoding="utf-8"))
FILES = joined(FOLDER / "store.1", _READ["bytes"])
FOUND: dict[str, Any] = _READ["found"]
CLOSED, NEWEST = sorted(path for path in FILES if path.startswith("journal/0"))


def _opened(disk: SimDisk, main: Callable[[Spool], Any], *, maintain: bool = False) -> None:
    async def open_it(_: random.Random) -> None:
        async with opened(disk, LATER, seed=5, machine=MACHINE, maintain=maintain) as spool:
            await main(spool)

    play(open_it)


def test_the_golden_store_has_all_that_a_store_can_have() -> None:
    """Row 48: both codecs, two lives, both slots, a quarantine, stale bytes behind an end."""
    disk = restored(FILES)
    identity = store.identity(disk)
    assert identity is not None
    assert [str(life.epoch) for life in identity.past] == FOUND["epochs"][:1]
    assert [path for path in FILES if path.startswith("quarantine/")]
    slots = [FILES["cursor"][: 1 << 18], FILES["cursor"][1 << 18 :]]
    assert sorted(cursor.parse(slot).generation > 0 for slot in slots) == [True, True]
    codecs = {wire.decode(data[16 : 16 + size]).codec for data, size in _batch_heads()}  # type: ignore[union-attr]
    assert codecs == {Codec.ROWS_ZSTD, Codec.COLUMNS}
    for path, torn in ((CLOSED, False), (NEWEST, True)):
        number = int(path.rpartition("/")[2])
        content = journal.read(disk, number, identity.store, identity.epoch)
        assert content.torn_tail == torn
        stale = FILES[path][content.frames[-1].end :]
        at = stale.rindex(b"HFfr", 0, stale.rindex(b"HFfr"))
        assert frame.parse_header(stale, at).journal < number, "of the file's earlier life"


def _batch_heads() -> list[tuple[bytes, int]]:
    batches = [data for path, data in FILES.items() if path.startswith("lanes/")]
    return [(data, int.from_bytes(data[8:12], "little")) for data in batches]


def test_a_store_of_version_1_opens_to_what_was_in_it() -> None:
    """Row 48: records, numbers, lives, what was released, what every account says."""
    found = {}

    async def look(spool: Spool) -> None:
        found.update(await seen(spool))

    _opened(restored(FILES), look)
    assert found == FOUND


def test_opening_a_store_of_version_1_rewrites_nothing_in_silence() -> None:
    """Row 48: STORE, batches, journals, what was set aside: the same bytes; new is what is new."""
    disk = restored(FILES)

    async def nothing(_: Spool) -> None:
        """Opened and closed."""

    _opened(disk, nothing)
    after = {path: data for path, data in disk.contents().items() if path != "LOCK"}
    kept = {path: data for path, data in FILES.items() if not path.startswith(journal.SPARE)}
    changed = {path for path, data in kept.items() if after[path] != data}
    assert changed <= {"cursor"}, "the cursor is written once more before it is acted upon"
    assert cursor.load(disk).released == cursor.load(restored(FILES)).released
    new = sorted(after.keys() - FILES.keys())
    gone = FILES.keys() - after.keys()
    assert all(name.startswith(journal.SPARE) for name in gone), "the new journal begins in one"
    number = int(NEWEST.rpartition("/")[2])
    torn = [name for name in new if name.startswith(f"quarantine/journal-{number:016d}-")]
    assert new == sorted([journal.journal_path(number + 1), *torn])
    assert len(torn) == 1, "the torn end is kept"


def test_a_store_of_version_1_is_worked_on_and_handed_on() -> None:
    """Row 48: its journals are sealed, new records follow, and all the old ones stay the same."""
    disk = restored(FILES)
    kept: dict[str, Any] = {}

    async def work(spool: Spool) -> None:
        await asyncio.sleep(30)
        assert CLOSED not in disk.contents()
        assert await Said().append(spool, Lane.EVENTS, ["new"])
        kept.update(await seen(spool))

    _opened(disk, work, maintain=True)
    new = kept["records"].pop(f"{FOUND['epochs'][-1]}/events")
    wanted = dict(FOUND["records"])
    assert new.items() > wanted.pop(f"{FOUND['epochs'][-1]}/events").items()
    assert kept["records"] == wanted


# --- version 2 ---------------------------------------------------------------------------------


def _with_version_2(data: bytes) -> bytes:
    """The same file, whole, whose head says version 2."""
    return _resealed(data[:4] + b"\2" + data[5:])


def _message_of_version_2(data: bytes) -> bytes:
    """The same file, whole, whose message says version 2."""
    version = 16 + (4 if data[16] == 0xDC else 2)
    assert data[version] == 1, "an array; kind, then version"
    return _resealed(data[:version] + b"\2" + data[version + 1 :])


def _resealed(data: bytes) -> bytes:
    """With a checksum that matches; that of a STORE covers its head too."""
    body = data[16 : 16 + int.from_bytes(data[8:12], "little")]
    crc = zlib.crc32(body, zlib.crc32(data[:12]) if data[:4] == b"HFst" else 0)
    return data[:12] + crc.to_bytes(4, "little") + data[16:]


@pytest.mark.parametrize("newer", [_with_version_2, _message_of_version_2])
def test_a_store_that_says_version_2_is_refused_and_not_touched(
    newer: Callable[[bytes], bytes],
) -> None:
    """Row 48: whoever wrote it can go on with it; what would be right is said."""
    disk = restored({**FILES, "STORE": newer(FILES["STORE"])})
    before = disk.contents()

    async def refuse(_: random.Random) -> None:
        for _ in range(2):
            with pytest.raises(StoreUnusable, match=r"version 2.*use the version"):
                await Spool.open(resources(disk, machine=MACHINE), LATER)

    play(refuse)
    assert {path: data for path, data in disk.contents().items() if path != "LOCK"} == before


@pytest.mark.parametrize("newer", [_with_version_2, _message_of_version_2])
def test_a_batch_that_says_version_2_is_stated_and_kept(newer: Callable[[bytes], bytes]) -> None:
    """Row 48: it is not guessed at; the loss is its own numbers, its bytes are set aside whole."""
    path = next(path for path in FILES if path.startswith(f"lanes/events/{FOUND['epochs'][1]}/"))
    data = newer(FILES[path])
    first, last = map(int, path.rpartition("/")[2].removesuffix(".batch").split("-"))
    disk = restored({**FILES, path: data})

    async def look(spool: Spool) -> None:
        held = FOUND["records"][f"{spool.epoch}/events"]
        numbers = {n for item in await pending(spool, Lane.EVENTS) for n in item.header.present}
        assert numbers == {int(n) for n in held if not first <= int(n) <= last}
        lost = Ranges(((first, last + 1),)) | Ranges.of([(0, 2)])
        assert explained_of(spool, Lane.EVENTS)[Explained.DAMAGED] == lost
        await asyncio.sleep(1)

    _opened(disk, look, maintain=True)
    assert data in [kept for name, kept in disk.contents().items() if "quarantine" in name]


def test_a_journal_whose_head_says_version_2_is_not_believed() -> None:
    """Row 48: its whole frames are; what its head reserved is not known, so numbers leap ahead."""
    disk = restored({**FILES, NEWEST: _with_version_2(FILES[NEWEST])})

    async def look(spool: Spool) -> None:
        for name, held in FOUND["records"].items():
            epoch, _, lane = name.partition("/")
            batches = await pending(spool, Lane(lane), Epoch.parse(epoch))
            assert {str(n) for item in batches for n in item.header.present} >= held.keys()
        assert spool.next_seq(Lane.EVENTS) >= 2**32
        assert FILES[CLOSED] == disk.contents()[CLOSED]

    _opened(disk, look)


def test_a_cursor_that_says_version_2_is_passed_over() -> None:
    """Row 48: the other slot holds; what that one does not know is sent again."""
    data = FILES["cursor"]
    slots = [bytearray(data[: 1 << 18]), bytearray(data[1 << 18 :])]
    generations = [cursor.parse(bytes(slot)).generation for slot in slots]
    newest = slots[generations.index(max(generations))]
    body = newest[12 : 12 + int.from_bytes(newest[4:8], "little")]
    assert body[2] == 1, "kind, then version"
    body[2] = 2
    newest[8:12] = zlib.crc32(body).to_bytes(4, "little")
    newest[12 : 12 + len(body)] = body
    disk = restored({**FILES, "cursor": bytes(slots[0] + slots[1])})
    assert cursor.load(disk).generation == min(generations)


def test_pieces_are_put_together_again() -> None:
    """What is cut out is zeros and nothing else."""
    files = {"a/b": bytes(5000) + b"x" * 5000 + bytes(9000) + b"y", "c": b"", "d": bytes(10)}
    small, sizes = pieces(files)
    assert set(small) == {"a/b@4096", "a/b@16384"}
    assert sizes == {path: len(data) for path, data in files.items()}
    assert sum(map(len, small.values())) < 20_000


def test_a_frame_of_version_2_is_no_frame() -> None:
    """Row 48: it is not guessed at, and those around it are found."""
    identity = store.identity(restored(FILES))
    assert identity is not None
    number = int(NEWEST.rpartition("/")[2])
    content = journal.read(restored(FILES), number, identity.store, identity.epoch)
    data = bytearray(FILES[NEWEST])
    at = content.frames[0].offset
    data[at + 4] = 2
    data[at + 124 : at + 128] = zlib.crc32(bytes(data[at : at + 124])).to_bytes(4, "little")
    found = [
        item
        for item in frame.scan(
            bytes(data), identity.store, identity.epoch, number, content.frames[0].offset
        )
        if isinstance(item, Whole) and item.header.lane is not None
    ]
    assert found == list(content.frames[1:])
