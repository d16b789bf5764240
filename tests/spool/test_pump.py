"""Commits when the disk fails, stalls, fills: what is promised, what is given up, what goes on."""

import asyncio
import errno
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from mesh.ports import Disk, DiskFile, OpenMode
from mesh.spool import commit, events, journal
from mesh.spool.commit import Committed, Group, Writer
from mesh.spool.spool import Resources, Spool, SpoolSettings
from schemas.errors import DiskFailed, Overloaded, Refused
from schemas.limits import (
    COMMIT_GROUP_BYTES_MAX,
    NUMBERS_RESERVED,
    PENDING_BYTES_MAX,
    RECORD_BYTES_MAX,
)
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import SimClock, Stalled
from simulator.disk import SimDisk
from tests.spool.world import (
    CALM,
    SMALL,
    Said,
    Watcher,
    audit,
    explained_of,
    opened,
    pending,
    play,
    record,
    records_of,
)

Main = Callable[[random.Random], Coroutine[Any, Any, None]]


def test_one_failed_sync_costs_nothing_and_is_never_repeated() -> None:
    """Row 13: the group goes to a new file; the descriptor that failed is not synced again."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            disk.faults.fail("sync")
            assert await said.append(spool, Lane.EVENTS, ["through"])
            syncs = [call.path for call in disk.faults.calls if call.operation == "sync"]
            syncs = [path for path in syncs if path != journal.SPARE]
            assert syncs[-3:] == [journal.journal_path(n) for n in (1, 2, 2)]
            assert await said.append(spool, Lane.EVENTS, ["after"])
            syncs = [call.path for call in disk.faults.calls if call.operation == "sync"]
            assert syncs.count(journal.journal_path(1)) == 5, (
                "head, reservation, accounts, before, and the one that failed"
            )
            await asyncio.sleep(1)
            assert journal.numbers(disk) == [2], "the first was sealed"
            await audit(spool, said)
            assert len(records_of(await pending(spool, Lane.EVENTS))) == 3

    play(main)


@pytest.mark.parametrize("operation", ["sync", "write", "create", "sync_directory"])
def test_a_disk_that_keeps_failing_degrades_and_heals(operation: str) -> None:
    """Row 14: custody is refused, numbers go on and are unique, and the spool comes back."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, watcher=watcher) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            spool._pump.spares.clear()
            disk.unlink(journal.SPARE)
            disk.faults.fail("sync")
            disk.faults.fail(operation, times=1000, after=operation == "sync")  # type: ignore[arg-type]
            assert not await said.append(spool, Lane.EVENTS, ["lost", "too"])
            assert spool.degraded
            with pytest.raises(DiskFailed):
                spool.append(Lane.ALARMS, [record("refused")])
            assert not await spool.commit(), "and says so"
            gone = [spool.forgo(Lane.EVENTS, count) for count in (1, 3, 1)]
            assert [identity.seq for identity in gone] == [0, 1, 4]
            assert {identity.epoch for identity in gone} != {spool.epoch}
            assert explained_of(spool, Lane.EVENTS) == {Explained.SHED: Ranges(((1, 3),))}
            assert len(records_of(await pending(spool, Lane.EVENTS))) == 1, "reading goes on"
            disk.faults._planted.clear()
            await asyncio.sleep(10)
            assert not spool.degraded
            assert len(watcher.of(events.SpoolDegraded)) == 1
            assert len(watcher.of(events.SpoolRecovered)) == 1
            assert await said.append(spool, Lane.EVENTS, ["after"])
            await asyncio.sleep(1)
            assert len(journal.numbers(disk)) == 1, "what failed was cleared away"
            await audit(spool, said)
        async with opened(disk) as spool:
            await audit(spool, said)
            assert explained_of(spool, Lane.EVENTS) == {Explained.SHED: Ranges(((1, 3),))}

    play(main)


def test_failing_is_tried_again_at_a_steady_pace() -> None:
    """However often somebody asks for a commit: one attempt every few seconds, and no new file."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, maintain=False, close=False) as spool:
            disk.faults.fail("sync", times=10_000)
            for _ in range(20):
                await spool.commit()
                spool._pump.rotate()
                await spool.commit()
            before = disk.faults.counts["create"]
            await asyncio.sleep(60)
            assert 22 <= disk.faults.counts["create"] - before <= 26, "two files an attempt"
            assert len(disk.list("journal")) <= 2

    play(main)


def test_what_a_failed_group_left_on_the_disk_stays_given_up() -> None:
    """Row 15: its bytes may have reached the disk; the chain goes on without them."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, maintain=False, close=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            # Of the journal, of the head of the next one, and of the one after that.
            disk.faults.fail("sync", times=1)
            disk.faults.fail("sync_directory", times=2)
            assert not await said.append(spool, Lane.EVENTS, ["given up"])
            await asyncio.sleep(10)
            assert await said.append(spool, Lane.EVENTS, ["after"])
            before = await pending(spool, Lane.EVENTS)
        kept = [image for image in disk.crash_images(random.Random(0)) if _holds(image, "given up")]
        assert kept, "there is a crash that leaves them"
        for image in kept:
            async with opened(image) as spool:
                await audit(spool, said)
                found = records_of(await pending(spool, Lane.EVENTS))
                assert sorted(found) == sorted(records_of(before)) == [0, 2]

    play(main)


def _holds(disk: SimDisk, text: str) -> bool:
    return any(text.encode() in data for data in disk.contents().values())


def test_a_group_that_was_given_up_before_anybody_said_so_may_come_back() -> None:
    """Nothing was promised: the crash came before the loss could be stated."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, maintain=False, close=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            disk.faults.fail("sync", times=1000)
            assert not await said.append(spool, Lane.EVENTS, ["given up"])
        for image in disk.crash_images(random.Random(0)):
            async with opened(image) as spool:
                await audit(spool, said)

    play(main)


def test_a_full_disk_recovers_when_there_is_space() -> None:
    """Row 16: what does not fit is not acknowledged, what fits into the reserve is kept."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(capacity_bytes=1 << 20), Said()
        async with opened(disk, CALM) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            await asyncio.sleep(1)
            disk.capacity_bytes = disk.capacity_bytes - disk.free_bytes()
            assert not await said.append(spool, Lane.EVENTS, ["x" * 20_000])
            await asyncio.sleep(60)
            assert len(journal.numbers(disk)) <= 4, "nothing is left over"
            assert await said.append(spool, Lane.ALARMS, ["short"])
            assert not spool.degraded
            disk.capacity_bytes = 1 << 20
            await asyncio.sleep(10)
            assert not spool.degraded
            assert await said.append(spool, Lane.EVENTS, ["y" * 9000])
            await audit(spool, said)
        async with opened(disk, CALM) as spool:
            await audit(spool, said)

    play(main)


def test_a_file_system_that_became_read_only_is_not_a_crash() -> None:
    """Row 18: degraded, reading goes on, closing ends."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            disk.faults.read_only = True
            assert not await said.append(spool, Lane.EVENTS, ["after"])
            assert "EROFS" in spool.degraded
            await asyncio.sleep(30)
            await audit(spool, said)
        disk.faults.read_only = False
        async with opened(disk) as spool:
            await audit(spool, said)

    play(main)


def test_closing_while_degraded_ends_as_a_crash_does() -> None:
    """The lock is given back, nobody tries again later, and the next life finds what is void."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await said.append(spool, Lane.EVENTS, ["before"])
            said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
            disk.faults.fail("sync", times=10_000)
            assert not await said.append(spool, Lane.EVENTS, ["lost"])
        attempts = disk.faults.counts["sync"]
        await asyncio.sleep(100)
        assert disk.faults.counts["sync"] == attempts
        disk.faults._planted.clear()
        async with opened(disk) as spool:
            await audit(spool, said)

    play(main)


def test_a_closed_spool_takes_nothing() -> None:
    """Neither does it hang."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk) as spool:
            left = spool.append(Lane.LOGS, [record("lingers")], awaited=False)
        assert left.settled.result()
        with pytest.raises(DiskFailed):
            spool.append(Lane.EVENTS, [record("late")])
        assert not await spool.commit()

    play(main)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), FileExistsError("there")])
def test_any_other_error_of_the_writer_is_a_failure_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever, nothing is acknowledged, the half-written journal is left alone."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await said.append(spool, Lane.EVENTS, ["before"])
            with monkeypatch.context() as patched:
                patched.setattr(commit, "pack", _raising(error))
                assert not await said.append(spool, Lane.EVENTS, ["lost"])
                assert spool.degraded
            await asyncio.sleep(10)
            assert await said.append(spool, Lane.EVENTS, ["after"])
            await asyncio.sleep(1)
            assert len(journal.numbers(disk)) == 1
            await audit(spool, said)

    play(main)


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> object:
        raise error

    return fail


# --- groups ---------------------------------------------------------------------------------------


def test_each_group_has_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one group gathers behind a slow one; the middle one fails, only its are told."""
    commit_group = Writer.commit
    groups: list[Group] = []

    def fail_third(self: Writer, group: Group) -> Committed:
        groups.append(group)
        if len(groups) == 2:
            raise DiskFailed("the middle one")
        return commit_group(self, group)

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        said = Said()
        async with opened(disk, _roomy()) as spool:
            await spool.commit()
            monkeypatch.setattr(Writer, "commit", fail_third)
            big = [record("x" * 4000)] * 262
            appended = [spool.append(Lane.READINGS, big) for _ in range(9)]
            assert len({id(item.settled) for item in appended}) == 3
            answers = [await item.settled for item in appended]
            assert answers == [True] * 3 + [False] * 3 + [True] * 3
            assert explained_of(spool, Lane.READINGS) == {
                Explained.SHED: Ranges(((3 * 262, 6 * 262),))
            }
            assert await spool.commit()
            held = records_of(await pending(spool, Lane.READINGS))
            assert sorted(held) == [*range(3 * 262), *range(6 * 262, 9 * 262)]
            for number, data in held.items():
                said.produced.setdefault(Lane.READINGS, {})[number] = data
            await audit(spool, said)
        sizes = [sum(len(r) for e in group.entries for r in e.records) for group in groups]
        assert max(sizes) <= COMMIT_GROUP_BYTES_MAX

    play(main)


def test_bounds_of_one_append() -> None:
    """A record, an append, and what waits: each has a bound, and beyond it none is taken."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, _roomy()) as spool:
            for records in (
                [bytes(RECORD_BYTES_MAX + 1)],
                [record("fine"), bytes(RECORD_BYTES_MAX + 1)],
                [bytes(RECORD_BYTES_MAX)] * (COMMIT_GROUP_BYTES_MAX // RECORD_BYTES_MAX + 1),
                [b"\xc0"] * (NUMBERS_RESERVED + 1),
            ):
                with pytest.raises(Refused):
                    spool.append(Lane.EVENTS, records)
            for _ in range(PENDING_BYTES_MAX // RECORD_BYTES_MAX // 8):
                spool.append(Lane.EVENTS, [bytes(RECORD_BYTES_MAX)] * 8)
            with pytest.raises(Overloaded):
                spool.append(Lane.EVENTS, [record("one more")])
            assert spool.next_seq(Lane.EVENTS) == PENDING_BYTES_MAX // RECORD_BYTES_MAX
            assert await spool.commit()
            assert spool.append(Lane.EVENTS, [record("again")])

    play(main)


def _roomy() -> SpoolSettings:
    return replace(
        CALM, lanes={lane: replace(CALM.lanes[lane], reserved=NUMBERS_RESERVED) for lane in Lane}
    )


def test_an_append_at_the_edge_of_the_reservation_is_taken_the_next_time() -> None:
    """More than is reserved, though more than half is left: refused once, then reserved."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, SMALL) as spool:
            assert await said.append(spool, Lane.EVENTS, ["x"] * 20)
            with pytest.raises(Overloaded):
                spool.append(Lane.EVENTS, [record("x")] * 60)
            await asyncio.sleep(0.1)
            assert await said.append(spool, Lane.EVENTS, ["x"] * 60)
            with pytest.raises(Overloaded):
                spool.append(Lane.EVENTS, [record("x")] * 1000)
            await asyncio.sleep(0.1)
            assert await said.append(spool, Lane.EVENTS, ["x"] * 1000)
            await audit(spool, said)

    play(main)


def test_no_number_is_handed_out_beyond_what_is_durably_reserved() -> None:
    """However the appends come: at each moment the journal allows what was handed out."""

    async def main(rng: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, SMALL, close=False) as spool:
            for _ in range(200):
                try:
                    spool.append(Lane.EVENTS, [record("x")] * rng.randint(1, 40), awaited=False)
                except Overloaded:
                    await asyncio.sleep(rng.choice([0, 0.001, 1]))
                newest = journal.numbers(disk)[-1]
                content = journal.read(disk, newest, spool._identity.store, spool.epoch)
                assert content.header is not None
                limits = [content.header.lanes[Lane.EVENTS].reserved]
                limits += [item.lanes.get(Lane.EVENTS, 0) for item in content.reserved]
                assert spool.next_seq(Lane.EVENTS) <= max(limits)

    play(main)


# --- threads --------------------------------------------------------------------------------------


class _Stuck(SimDisk):
    """A card that collects its garbage: a sync returns when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.asked = threading.Event()

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file that may get stuck."""
        return _StuckFile(super().open(path, mode), self)


class _StuckFile:
    def __init__(self, file: DiskFile, disk: _Stuck) -> None:
        self._file = file
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def sync(self) -> None:
        """Waits, then syncs."""
        self._disk.asked.set()
        assert self._disk.free.wait(20), "the test sets it free"
        self._file.sync()


def test_a_disk_that_stalls_holds_up_nobody() -> None:
    """Row 27, with real threads: the loop turns, other lanes are taken, then bounds push back."""

    async def main() -> None:
        disk: Disk = _Stuck()
        assert isinstance(disk, _Stuck)
        with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as worker:
            made = Resources(
                disk,
                SimClock(),
                writer,
                worker,
                random.Random(0).randbytes,
                b"b" * 16,
                b"m" * 16,
                Watcher(),
            )
            spool = await Spool.open(made, _roomy())
            disk.asked.clear()
            disk.free.clear()
            first = spool.append(Lane.EVENTS, [record("first")])
            assert await asyncio.to_thread(disk.asked.wait, 20)
            for _ in range(PENDING_BYTES_MAX // RECORD_BYTES_MAX // 8):
                spool.append(Lane.LOGS, [bytes(RECORD_BYTES_MAX)] * 8, awaited=False)
                await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                spool.append(Lane.LOGS, [record("one more")])
            assert not first.settled.done(), "nothing is acknowledged meanwhile"
            disk.free.set()
            assert await first.settled
            assert await spool.commit()
            await spool.close()

    asyncio.run(main())


def test_a_stopped_writer_leaves_nobody_waiting() -> None:
    """An executor that was shut down cancels its jobs; what waited is given up, not forgotten."""

    async def main() -> None:
        disk = _Stuck()
        worker, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        made = Resources(
            disk,
            SimClock(),
            writer,
            worker,
            random.Random(0).randbytes,
            b"b" * 16,
            b"m" * 16,
            Watcher(),
        )
        spool = await Spool.open(made, _roomy())
        disk.asked.clear()
        disk.free.clear()
        blocked = writer.submit(disk.free.wait, 20)
        appended = spool.append(Lane.EVENTS, [record("never written")])
        await asyncio.sleep(0.01)
        writer.shutdown(wait=False, cancel_futures=True)
        disk.free.set()
        async with asyncio.timeout(5):
            assert not await appended.settled
        assert blocked.result()
        assert explained_of(spool, Lane.EVENTS) == {Explained.SHED: Ranges(((0, 1),))}
        worker.shutdown()

    asyncio.run(main())


def test_nothing_stirs_when_nothing_happens() -> None:
    """No timer runs in an idle spool: the virtual loop would go on for ever."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()):
            await asyncio.get_running_loop().create_future()

    with pytest.raises(Stalled):
        play(main, seconds_max=None)


def test_epochs_of_what_is_never_recorded_differ_between_lives() -> None:
    """What was forgone in one life has no namesake in another."""
    seen: set[Epoch] = set()

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        for life in range(3):
            async with opened(disk, seed=life) as spool:
                seen.add(spool.forgo(Lane.EVENTS, 1).epoch)
                seen.add(spool.epoch)

    play(main)
    assert len(seen) == 4


def test_the_errno_of_a_full_disk_is_told() -> None:
    """A person at three in the morning reads why."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk) as spool:
            disk.faults.fail("write", errno.ENOSPC, times=3)
            assert not await Said().append(spool, Lane.EVENTS, ["x"])
            assert "ENOSPC" in spool.degraded

    play(main)
