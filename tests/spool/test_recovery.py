"""Opening after every crash, and after every kind of damage to what was durable."""

import asyncio
import random
from dataclasses import replace

import pytest

from mesh.ports import Disk
from mesh.spool import cursor as cursors
from mesh.spool import recovery, shelf
from mesh.spool.journal import Journal
from mesh.spool.spool import Spool
from schemas.errors import DiskFailed
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from simulator.disk_faults import PowerCut
from tests.spool.exploring import alive, explore
from tests.spool.world import CALM, SMALL, Said, opened


async def one_life(disk: SimDisk, said: Said) -> None:
    """Append, seal, release, append beyond a reservation, close."""
    async with opened(disk, SMALL) as spool:
        said.note(spool)
        await _append(disk, said, spool, Lane.EVENTS, "abc")
        await _append(disk, said, spool, Lane.ALARMS, "d")
        await asyncio.sleep(1)
        said.note(spool)
        alive(disk)
        said.release(spool, Lane.EVENTS, Ranges(((0, 3),)))
        await asyncio.sleep(1)
        alive(disk)
        await _append(disk, said, spool, Lane.EVENTS, "efghijklmnopqrstuvwxyz" * 2)
        await asyncio.sleep(1)
        alive(disk)
        said.note(spool)
        said.release(spool, Lane.EVENTS, Ranges(((0, spool.next_seq(Lane.EVENTS)),)))
        await asyncio.sleep(1)
    alive(disk)


async def two_lives(disk: SimDisk, said: Said) -> None:
    """The second begins with what the first left in its journal."""
    async with opened(disk, CALM) as spool:
        await _append(disk, said, spool, Lane.EVENTS, "ab")
        await _append(disk, said, spool, Lane.LOGS, "c")
        said.note(spool)
        alive(disk)
    alive(disk)
    async with opened(disk, CALM, seed=1) as spool:
        await _append(disk, said, spool, Lane.LOGS, "d")
        said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
        await asyncio.sleep(1)
        said.note(spool)
        alive(disk)
    alive(disk)


async def eviction(disk: SimDisk, said: Said) -> None:
    """More than the quota."""
    said.evicted = True
    async with opened(disk, replace(SMALL, bytes_max=4096)) as spool:
        for text in ("x" * 1000, "y" * 1000, "z" * 1000):
            for lane in (Lane.LOGS, Lane.EVENTS):
                noise = random.Random(text).randbytes(500).hex()
                await _append(disk, said, spool, lane, [text + noise])
            await asyncio.sleep(1)
            alive(disk)
        said.note(spool)
    alive(disk)


async def _append(
    disk: SimDisk, said: Said, spool: Spool, lane: Lane, texts: str | list[str]
) -> None:
    try:
        await said.append(spool, lane, list(texts))
    except DiskFailed as failed:
        raise PowerCut("the spool took it for a failing disk") from failed
    alive(disk)


@pytest.mark.parametrize("script", [one_life, two_lives, eviction])
def test_every_crash_loses_nothing_and_reuses_nothing(script: object) -> None:
    """Rows 4, 5, 6, 16, 20, 21, 22 of the faults: the power goes before each change."""
    explored = explore(script)  # type: ignore[arg-type]
    print(f"{script}: {explored}")
    assert explored.cuts > 40, "the history is long enough to be worth it"
    assert explored.images > explored.cuts, "and not everything was synced at each cut"


# --- planted: the explorer must find what it is there to find --------------------------------------


class _ForgetsFolders(SimDisk):
    """Leaves out the sync of folders once the store is made."""

    def sync_directory(self, path: str) -> None:
        """Syncs the root only."""
        if not path:
            super().sync_directory(path)


def test_a_missing_sync_of_a_folder_is_found() -> None:
    """Row 21, planted: the name of a journal is never made durable."""
    with pytest.raises(AssertionError, match=r"lost|damaged|handed out"):
        explore(two_lives, _ForgetsFolders)


def test_an_acknowledgement_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 2, planted: frames are written, and nobody waits for them."""

    def append(self: Journal, data: bytes) -> int:
        offset = self.size
        self._file.write(data, offset)
        self.size = offset + len(data)
        return offset

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(AssertionError, match=r"acknowledged and lost"):
        explore(two_lives)


def test_unlinking_before_the_cursor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 22, planted: what was released goes before the cursor says so."""
    store = cursors.store
    there: list[tuple[object, ...]] = []

    def hasty(disk: Disk, cursor: object) -> None:
        for lane in Lane:
            epoch = next(iter(disk.list(f"lanes/{lane}")), None)
            for name in disk.list(f"lanes/{lane}/{epoch}") if epoch else []:
                path = f"lanes/{lane}/{epoch}/{name}"
                if lane is Lane.EVENTS and name.startswith("0" * 20):
                    disk.unlink(path)
                    there.append((path,))
        store(disk, cursor)  # type: ignore[arg-type]

    monkeypatch.setattr(cursors, "store", hasty)
    with pytest.raises(AssertionError, match="damaged"):
        explore(one_life)
    assert there, "the fault was planted where it can strike"


def test_a_number_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: numbering goes on at the last durable record, not at the reservation."""
    monkeypatch.setattr(recovery, "_reserved", lambda *_: 0)
    monkeypatch.setattr(recovery, "_head_lost", lambda *_: False)
    with pytest.raises(AssertionError, match="handed out already"):
        explore(one_life)


def test_a_journal_that_goes_before_its_batches_are_named_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sealing, planted: the folder of a new batch is not synced before the journal goes."""
    put = shelf.put

    class _Careless:
        def __init__(self, disk: Disk) -> None:
            self._disk = disk

        def __getattr__(self, name: str) -> object:
            return getattr(self._disk, name)

        def sync_directory(self, path: str) -> None:
            """Does nothing."""

    monkeypatch.setattr(shelf, "put", lambda disk, batch: put(_Careless(disk), batch))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"lost|damaged"):
        explore(one_life)
