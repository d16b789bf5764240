"""Holdfast on the bench: what its spool has promised over all rounds, and what it holds after each.

One store lives through all rounds, so each opening finds what the cut before has left, and goes on
numbering. A record once acknowledged, or once found after a cut, must be found after each later cut
under the same number with the same bytes; unless the next holder was about to release it, or the
spool's own account states it as evicted. ``void`` and ``damaged`` excuse nothing here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.adapters.system import SystemDisk
from mesh.spool.batch import open_records
from mesh.spool.spool import Spool
from schemas import wire
from schemas.messages import Account, Explained, Lane
from schemas.ranges import Ranges
from tests.bench.powercut.spool import SETTINGS, resources
from tests.bench.powercut.work import Name, Number, Told, Verdict, recognise
from tests.bench.powercut.writer import Writer, writing

__all__ = ["Found", "Holdfast", "Promises"]

_NOTHING: Final = Ranges()
_Life = tuple[str, str]
"""Epoch and lane."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a spool holds after a cut.

    Args:
        records: each pending record under its number; lane by lane, numbers ascending.
        evicted: what the newest accounts state to have been given up for space.
        unaccounted: numbers that were handed out, and are neither pending, nor released, nor
            explained.
    """

    records: Sequence[tuple[Number, bytes]]
    evicted: Mapping[_Life, Ranges]
    unaccounted: int = 0


class Promises:
    """What a store must still hold. Pure.

    Args:
        seed: of the records.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[Number, Name] = {}
        self._named: dict[Number, Name] = {}
        self._released: dict[_Life, Ranges] = {}

    def take(self, told: Told) -> int:
        """Takes what a writer told.

        Returns:
            How many acknowledgements named a number that had named another record.
        """
        reused = 0
        for name, number in told.acknowledged:
            assert number is not None, "a spool says which"
            reused += self._named.setdefault(number, name) != name
            self._kept[number] = name
        for epoch, lane, first, stop in told.released:
            life = (epoch, lane)
            self._released[life] = self._released.get(life, _NOTHING).add(first, stop)
        return reused

    def judge(self, found: Found) -> Verdict:
        """Compares; what is lost counts once, and what is there must stay from now on."""
        there, wrong = self._look_at(found.records)
        lost = released = evicted = 0
        for number in self._kept.keys() - there.keys():
            life = (number.epoch, number.lane)
            if number.seq in self._released.get(life, _NOTHING):
                released += 1
            elif number.seq in found.evicted.get(life, _NOTHING):
                evicted += 1
            else:
                lost += 1
        self._kept = there
        wrong += found.unaccounted
        return Verdict(0, lost, opened=True, wrong=wrong, released=released, evicted=evicted)

    def give_up(self) -> Verdict:
        """The store does not open: all that it should hold is lost."""
        lost, self._kept = len(self._kept), {}
        return Verdict(0, lost, opened=False)

    def _look_at(self, records: Sequence[tuple[Number, bytes]]) -> tuple[dict[Number, Name], int]:
        """The records by number; and how many are not what was produced, or not where it was."""
        there: dict[Number, Name] = {}
        newest: dict[tuple[str, int], Name] = {}
        wrong = 0
        for number, data in records:
            name = recognise(self._seed, data)
            if name is None or self._named.setdefault(number, name) != name:
                wrong += 1
                continue
            # A producer has one record outstanding, so within a lane its records stand in order.
            source = (number.lane, name.producer)
            if source in newest and newest[source] >= name:
                wrong += 1
            newest[source] = name
            there[number] = name
        return there, wrong


class Holdfast:
    """A spool, cut again and again.

    Args:
        seed: of the records.
        module: of this folder; the program that works on the spool.
    """

    name = "Holdfast"
    lasting = True

    def __init__(self, seed: int, module: str = "spool") -> None:
        self._seed = seed
        self._module = module
        self._promises = Promises(seed)

    def obstacle(self) -> str:
        """Why it cannot be tried; never."""
        return ""

    @contextmanager
    def running(
        self, root: Path, scratch: Path, cut_round: int, settle: Callable[[], None]
    ) -> Iterator[Writer]:
        """Runs the writer. Nothing is made durable for it beforehand: a spool sees to itself."""
        del settle
        arguments = (root / "spool", self._seed, cut_round)
        with writing(scratch / "holdfast.log", self._module, arguments) as writer:
            yield writer

    def judge(self, root: Path, scratch: Path, told: Told) -> Verdict:
        """Opens the spool and reads all of it."""
        del scratch
        reused = self._promises.take(told)
        try:
            found = asyncio.run(_look(root / "spool"))
        except Exception as problem:  # noqa: BLE001 - whatever it is, the store did not open
            verdict, note = self._promises.give_up(), repr(problem)
        else:
            verdict = self._promises.judge(found)
            note = f"{found.unaccounted} numbers unaccounted for" if found.unaccounted else ""
        return Verdict(
            len(told.acknowledged),
            verdict.lost,
            verdict.opened,
            verdict.wrong + reused,
            verdict.released,
            verdict.evicted,
            note,
        )


async def _look(folder: Path) -> Found:
    records: list[tuple[Number, bytes]] = []
    evicted: dict[_Life, Ranges] = {}
    unaccounted = 0
    with resources(SystemDisk(folder)) as given:
        spool = await Spool.open(given, SETTINGS)
        try:
            accounts: dict[Lane, Account] = {}
            for data in [data async for _, data in _pending(spool, Lane.ACCOUNT)]:
                account = wire.decode_as(Account, data)
                if account.epoch == spool.epoch:
                    accounts[account.lane] = account
            for lane in Lane:
                if lane is Lane.ACCOUNT:
                    continue
                explained = accounts[lane].explained if lane in accounts else {}
                evicted[str(spool.epoch), lane] = explained.get(Explained.EVICTED, _NOTHING)
                pending = [item async for item in _pending(spool, lane)]
                records += pending
                rest = Ranges.of([(0, spool.next_seq(lane))]) - spool.released(lane)
                for numbers in explained.values():
                    rest -= numbers
                rest -= Ranges.of([(number.seq, number.seq + 1) for number, _ in pending])
                unaccounted += len(rest)
        finally:
            await spool.close()
    return Found(records, evicted, unaccounted)


async def _pending(spool: Spool, lane: Lane) -> AsyncIterator[tuple[Number, bytes]]:
    """All pending records of a lane, as a link would take them."""
    start = 0
    while (batch := await spool.next_batch(lane, start)) is not None:
        header = batch.header
        for seq, data in zip(header.present, open_records(batch), strict=True):
            yield Number(str(header.epoch), lane, seq), data
        start = header.last + 1
