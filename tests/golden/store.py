"""A golden store: a whole spool of two lives in files, and what it must be found to hold.

The story: a first life on one machine leaves batches in rows and in columns, something released and
something fresh. A copy of it begins a second life on another machine, which rotates until a journal
begins in the blocks of an older one, gives up log lines for want of room, loses a batch to a
flipped bit and sets it aside, and is killed in the middle of a write with a closed journal waiting
for its release.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mesh.spool import journal, shelf
from mesh.spool.spool import Spool
from schemas import wire
from schemas.messages import Account, Epoch, Lane, Reading
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import CALM, Said, opened, pending, play, records_of

__all__ = ["LATER", "MACHINE", "Files", "build", "joined", "pieces", "restored", "seen"]

Files = Mapping[str, bytes]
MACHINE: Final = b"2" * 16
"""On which the second life goes on."""
_FIRST_MACHINE: Final = b"1" * 16
_ZEROS: Final = bytes(4096)
_TORN: Final = b"HFfr\x01\x00\x04\x00torn"
LATER: Final = replace(CALM, spare_bytes=4096)
"""How a later program keeps it: nothing rotates or goes by itself."""
_TIGHT: Final = replace(
    LATER, lanes={**LATER.lanes, Lane.LOGS: replace(LATER.lanes[Lane.LOGS], bytes_max=4096)}
)


def build() -> tuple[Files, dict[str, Any]]:
    """The files of the store, and what an opening must find."""
    disk, annals = SimDisk(), defaultdict[Epoch, Said](Said)

    async def live(_: random.Random) -> None:
        async with opened(disk, LATER, machine=_FIRST_MACHINE) as spool:
            await _first_life(spool, annals[spool.epoch])
        async with opened(disk, _TIGHT, seed=1, machine=MACHINE, close=False) as spool:
            await _second_life(disk, spool, annals[spool.epoch])

    play(live)
    disk.unlock("LOCK")
    files = {path: data for path, data in disk.contents().items() if path != "LOCK"}
    return files, _expected(files, annals)


def _reading(number: int) -> bytes:
    dice = random.Random(number)
    values = {"flow": dice.randrange(1000) / 100, "pressure": dice.gauss(3, 1)}
    wall_ns = 1_767_225_600_000_000_000 + number * 10**9
    return wire.encode(Reading(wall_ns, number * 10**9, "plant/p1", values))


async def _first_life(spool: Spool, said: Said) -> None:
    assert await said.append(spool, Lane.EVENTS, ["shelved 0", "shelved 1", "shelved 2"])
    assert await said.hand_over(spool, Lane.READINGS, [_reading(n) for n in range(40)])
    spool._pump.rotate()
    await asyncio.sleep(1)
    assert await said.append(spool, Lane.EVENTS, ["fresh 3", "fresh 4"])
    assert await said.append(spool, Lane.DECISIONS, ["fresh 0"])
    said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
    await asyncio.sleep(1)


async def _second_life(disk: SimDisk, spool: Spool, said: Said) -> None:
    noise = [random.Random(n).randbytes(700).hex() for n in range(8)]
    for n in range(3):
        assert await said.append(spool, Lane.EVENTS, [f"{n} {noise[n]}", noise[n]])
        assert await said.append(spool, Lane.LOGS, [f"line {n} {noise[n]}"])
        assert await said.append(spool, Lane.ALARMS, [f"alarm {n}"])
        assert await said.hand_over(spool, Lane.METRICS, [_reading(40 * n + m) for m in range(40)])
        spool._pump.rotate()
        await asyncio.sleep(1)
    said.release(spool, Lane.ALARMS, Ranges(((0, 2),)))
    (spoiled, *_) = shelf.sealed(disk, Lane.EVENTS, spool.epoch)
    path = shelf.batch_path(Lane.EVENTS, spool.epoch, spoiled.first, spoiled.stop)
    disk.flip_bit(path, 8 * 900)
    await pending(spool, Lane.EVENTS)
    await asyncio.sleep(1)
    spool.set_linked(up=True)
    assert await said.append(spool, Lane.EVENTS, ["waits for its release"])
    spool._pump.rotate()
    assert await said.append(spool, Lane.EVENTS, ["in the newest journal"])
    assert await said.append(spool, Lane.ALARMS, ["alarm 3"])
    disk.open(journal.journal_path(spool._pump.journal), "update").write(
        _TORN, spool._pump.journal_bytes
    )


def _expected(files: Files, annals: Mapping[Epoch, Said]) -> dict[str, Any]:
    """What an opening finds; it must be what was said."""
    found: dict[str, Any] = {}

    async def look(_: random.Random) -> None:
        async with opened(restored(files), LATER, machine=MACHINE, maintain=False) as spool:
            found.update(await seen(spool))

    play(look)
    for epoch, said in annals.items():
        for lane, produced in said.produced.items():
            name = f"{epoch}/{lane}"
            gone = Ranges.of([(n, n + 1) for n in said.released.get(lane, ())])
            for numbers in found["accounts"][name]["explained"].values():
                gone |= Ranges.of([(first, stop) for first, stop in numbers])
            # A batch that is released in part is handed on whole.
            held = {int(n): data for n, data in found["records"][name].items()}
            wanted = {n: data.hex() for n, data in produced.items() if n not in gone}
            assert held.items() >= wanted.items(), name
            assert all(produced[n].hex() == data for n, data in held.items()), name
    return found


async def seen(spool: Spool) -> dict[str, Any]:
    """All that a spool holds and says, of each epoch and lane, in plain values.

    Just opened after an end that was not clean; what it says of its own opening is left out.
    """
    records = {}
    released = {}
    for epoch in spool.epochs:
        for lane in Lane:
            held = records_of(await pending(spool, lane, epoch))
            if held:
                records[f"{epoch}/{lane}"] = {str(n): data.hex() for n, data in held.items()}
            if numbers := spool.released(lane, epoch):
                released[f"{epoch}/{lane}"] = _plain(numbers)
    told: dict[str, Account] = {}
    for name, held in records.items():
        if name.endswith(f"/{Lane.ACCOUNT}"):
            for data in held.values():
                account = wire.decode_as(Account, bytes.fromhex(data))
                about = f"{account.epoch}/{account.lane}"
                if about not in told or told[about].number < account.number:
                    told[about] = account
    accounts = {about: _told(account) for about, account in told.items()}
    # What an opening states of itself is new each time.
    own = f"{spool.epoch}/{Lane.ACCOUNT}"
    begun = accounts[own]["explained"]["void"][-1][1]
    records[own] = {n: data for n, data in records[own].items() if int(n) < begun}
    del accounts[own]["next"]
    return {
        "epochs": [str(epoch) for epoch in spool.epochs],
        "records": records,
        "released": released,
        "accounts": accounts,
        "next": {str(lane): spool.next_seq(lane) for lane in Lane if lane is not Lane.ACCOUNT},
    }


def _told(account: Account) -> dict[str, Any]:
    explained = {str(why): _plain(numbers) for why, numbers in account.explained.items()}
    return {"next": account.next_seq, "explained": explained, "released": dict(account.released)}


def _plain(numbers: Ranges) -> list[list[int]]:
    return [list(span) for span in numbers.spans]


# --- as files ----------------------------------------------------------------------------------


def pieces(files: Files) -> tuple[Files, dict[str, int]]:
    """The same in small: what is zero is cut out, block by block; and how long each file is.

    A piece is called ``<path>@<offset>``, or as the file where it is its beginning.
    """
    found = {}
    for path, data in files.items():
        start: int | None = None
        blocks = range(0, len(data), len(_ZEROS))
        for offset in (*blocks, len(data)):
            empty = not data[offset : offset + len(_ZEROS)].strip(b"\0")
            if empty and start is not None:
                name = f"{path}@{start}" if start else path
                found[name] = data[start:offset]
                start = None
            elif not empty and start is None:
                start = offset
    return found, {path: len(data) for path, data in files.items()}


def joined(folder: Path, sizes: Mapping[str, int]) -> Files:
    """The files of which the pieces lie in a folder."""
    found = {path: bytearray(size) for path, size in sizes.items()}
    for piece in sorted(folder.rglob("*")):
        if piece.is_file():
            path, _, offset = piece.relative_to(folder).as_posix().partition("@")
            data, at = piece.read_bytes(), int(offset or 0)
            found[path][at : at + len(data)] = data
    return {path: bytes(data) for path, data in found.items()}


def restored(files: Files) -> SimDisk:
    """A disk that holds these files."""
    disk = SimDisk()
    for path, data in files.items():
        disk.make_directory(path.rpartition("/")[0])
        disk.open(path, "create").write(data, 0)
    return disk
