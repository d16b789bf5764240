"""Reading ahead: what is handed out is what was asked for, and no more is held than may be."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mesh.spool.ahead import ReadAhead
from mesh.spool.batch import Batch
from schemas.errors import DiskFailed
from schemas.limits import BATCH_BYTES_MAX, READ_AHEAD_BATCHES_MAX, READ_AHEAD_BYTES_MAX
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import Said, opened, play
from tests.transfer.headers import header

HELD_MAX = READ_AHEAD_BYTES_MAX // BATCH_BYTES_MAX


class Shelf:
    """Pieces are numbers; a batch says in its bytes which one it is, and each read is counted."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int]] = []
        self.failures: list[Exception] = []

    def read(self, lane: str, piece: int) -> Batch:
        """As told."""
        self.reads.append((lane, piece))
        if self.failures:
            raise self.failures.pop(0)
        return Batch(header(piece, piece + 1), str(piece).encode(), 0)


def _play(scenario: Callable[[ReadAhead[str, int], Shelf], Any]) -> None:
    async def main(_: random.Random) -> None:
        shelf = Shelf()
        with ThreadPoolExecutor(1) as worker:
            await scenario(ReadAhead(worker, shelf.read, lambda _: BATCH_BYTES_MAX), shelf)

    play(main)


def test_what_was_read_ahead_is_read_once() -> None:
    """And handed out in any order."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        ahead.prepare("logs", range(1, 4))
        for piece in (2, 1, 3):
            assert (await ahead.take("logs", piece)).data == str(piece).encode()
        assert sorted(shelf.reads) == [("logs", 1), ("logs", 2), ("logs", 3)]
        assert not len(ahead)

    _play(scenario)


def test_who_gives_up_takes_nothing_from_who_comes_next() -> None:
    """A forwarder that is stopped while it waits, and the next one on the same spool."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        ahead.prepare("logs", range(1, 3))
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(ahead.take("logs", 1))
            await asyncio.sleep(0)
            taking.cancel()
        assert taking.cancelled()
        assert (await ahead.take("logs", 2)).data == b"2"
        assert shelf.reads == [("logs", 1), ("logs", 2)]

    _play(scenario)


def test_of_one_lane_so_many_are_read_ahead() -> None:
    """However much room there is: what is far away may never be asked for."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        for piece in range(30):
            await ahead.take("logs", piece)
            if ahead.wants("logs"):
                ahead.prepare("logs", range(piece + 1, piece + 1 + READ_AHEAD_BATCHES_MAX))
            assert len(ahead) <= READ_AHEAD_BATCHES_MAX
        assert max(piece for _, piece in shelf.reads) <= 29 + READ_AHEAD_BATCHES_MAX
        assert len(shelf.reads) == len(set(shelf.reads))

    _play(scenario)


def test_who_goes_on_from_elsewhere_gets_what_stands_there() -> None:
    """What was read ahead is dropped once it is clear that it does not come next."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        ahead.prepare("logs", range(10, 14))
        assert (await ahead.take("logs", 1)).data == b"1"
        assert ahead.wants("logs"), "it is to look anew, however much it holds"
        ahead.prepare("logs", range(2, 4))
        assert len(ahead) == 2
        assert (await ahead.take("logs", 10)).data == b"10"
        assert shelf.reads.count(("logs", 10)) == 2

    _play(scenario)


def test_thousands_of_lanes_that_take_turns_hold_no_more_and_read_nothing_twice() -> None:
    """As at a gateway: those that found no room are read when they are asked for."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        lanes = [f"lane-{number}" for number in range(1000)]
        for piece in range(3):
            for lane in lanes:
                await ahead.take(lane, piece)
                if ahead.wants(lane):
                    ahead.prepare(lane, range(piece + 1, piece + 9))
                assert ahead.size <= READ_AHEAD_BYTES_MAX
        asked = {(lane, piece) for lane in lanes for piece in range(3)}
        assert all(shelf.reads.count(one) == 1 for one in list(asked)[:100])
        assert len(shelf.reads) <= len(asked) + HELD_MAX

    _play(scenario)


def test_what_nobody_asks_for_makes_room() -> None:
    """A lane that was drained another way holds up no other for long."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        for lane in "abc":
            ahead.prepare(lane, range(4))
        before = len(ahead)
        ahead.prepare("e", range(4))
        assert len(ahead) == before <= HELD_MAX
        assert ahead.wants("e")
        await asyncio.sleep(11)
        ahead.prepare("e", range(4))
        assert len(ahead) == before
        await ahead.take("e", 0)
        assert shelf.reads.count(("e", 0)) == 1
        ahead.drop()
        assert not len(ahead)

    _play(scenario)


def test_what_could_not_be_read_ahead_is_judged_when_it_is_asked_for() -> None:
    """Many a bad read is gone the second time; one that is not is the caller's to judge."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        shelf.failures = [DiskFailed("now"), FileNotFoundError()]
        ahead.prepare("logs", range(3))
        await asyncio.sleep(1)
        assert (await ahead.take("logs", 0)).data == b"0"
        shelf.failures = [DiskFailed("still")]
        with pytest.raises(DiskFailed, match="still"):
            await ahead.take("logs", 1)
        assert (await ahead.take("logs", 2)).data == b"2"
        assert shelf.reads.count(("logs", 2)) == 1, "the others are not lost with it"

    _play(scenario)


def test_a_failure_of_which_nobody_hears_disturbs_nobody() -> None:
    """Not even one that is no failure of the disk: who asks for the piece gets it."""

    async def scenario(ahead: ReadAhead[str, int], shelf: Shelf) -> None:
        shelf.failures = [ZeroDivisionError()]
        ahead.prepare("logs", range(1))
        await asyncio.sleep(1)
        with pytest.raises(ZeroDivisionError):
            await ahead.take("logs", 0)
        shelf.failures = [ZeroDivisionError()]
        ahead.prepare("logs", range(1))
        ahead.drop()

    _play(scenario)


def test_a_spool_hands_out_what_comes_next_whatever_it_had_read() -> None:
    """Row 35: after a release, a reclaim and a break, with a batch for each two records."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            for number in range(12):
                await said.append(spool, Lane.EVENTS, [f"{number}a", f"{number}b"])
                spool._pump.rotate()
                await asyncio.sleep(2)

            async def first_from(start: int) -> int:
                found = await spool.next_batch(Lane.EVENTS, start)
                assert found is not None
                return found.header.first

            assert [await first_from(0), await first_from(2)] == [0, 2]
            assert len(spool._ahead) > 4, "the next ones are here already"
            said.release(spool, Lane.EVENTS, Ranges(((0, 10),)))
            assert await first_from(4) == 10
            spool.reclaim(Lane.EVENTS, Ranges(((4, 6),)), "hq")
            assert [await first_from(0), await first_from(6)] == [4, 10]
            assert [await first_from(12), await first_from(14)] == [12, 14]
            spool.set_linked(up=True)
            spool.set_linked(up=False)
            assert not len(spool._ahead), "nothing is kept for a link that is away"

    play(main)
