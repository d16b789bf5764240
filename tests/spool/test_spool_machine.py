"""The spool against a plain list, in any order of what can happen to it, crashes included."""

import asyncio
import errno
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from mesh.spool.events import Reclaimed
from mesh.spool.spool import Spool
from schemas.errors import DiskFailed, Overloaded
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import VirtualLoop
from simulator.crash import oracle, stage
from simulator.crash.annals import Annals, Said
from simulator.crash.operations import numbers_of
from simulator.crash.oracle import Terms
from simulator.crash.times import Times, Wake, Wall
from simulator.disk import SimDisk
from tests.spool.world import SMALL, Watcher, audit, explained_of, record

T = TypeVar("T")
LANES = st.sampled_from([Lane.ALARMS, Lane.EVENTS, Lane.LOGS])
KEPT = {
    **SMALL.lanes,
    Lane.ACCOUNT: replace(SMALL.lanes[Lane.ACCOUNT], reserved=128),
    Lane.LOGS: replace(SMALL.lanes[Lane.LOGS], age_seconds_max=60.0),
}
"""Logs age; an opening can state each lane of each life."""
RESTART = Wake(boot=False, away_seconds=1.0, wall=Wall.RIGHT)


class Teller(Watcher):
    """Counts for ``--hypothesis-show-statistics`` what the lives came to.

    Notes which losses of the next holder are durable, while there is power.
    """

    def __init__(self, disk: SimDisk, annals: Annals) -> None:
        super().__init__()
        self._disk = disk
        self._annals = annals

    def observe(self, event: object) -> None:
        """Takes one event."""
        hypothesis.event(type(event).__name__)
        if isinstance(event, Reclaimed) and self._disk.faults._changes_left is None:
            said = self._annals.epochs[Epoch.parse(event.epoch)]
            said.settle(event.lane, numbers_of(event.pending) | numbers_of(event.forgotten))


class SpoolMachine(RuleBasedStateMachine):
    """A spool, its disk, and what was said."""

    appended = Bundle("appended")

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.annals = Annals()
        self.times = Times()
        self.machine = 0
        self.texts = 0
        self.life = 0
        self.left = False
        self.runner: asyncio.Runner | None = None

    @initialize(
        seed=st.integers(0, 2**32),
        block_bytes=st.sampled_from([512, 4096]),
        bytes_max=st.sampled_from([32_768, 65_536]),
        retained_bytes_max=st.sampled_from([0, 8192, 65_536]),
    )
    def begin(self, seed: int, block_bytes: int, bytes_max: int, retained_bytes_max: int) -> None:
        """A new store."""
        self.bytes_max = bytes_max
        self.retained_bytes_max = retained_bytes_max
        self.generator = random.Random(seed)
        self.block_bytes = block_bytes
        self._open()

    def _open(self, journal_bytes_max: int = 4096, wake: Wake = RESTART) -> None:
        self.life += 1
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        chosen = replace(
            SMALL,
            lanes=KEPT,
            journal_bytes_max=journal_bytes_max,
            bytes_max=self.bytes_max,
            retained_bytes_max=self.retained_bytes_max,
        )

        async def start() -> Spool:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop), "as made above"
            held = stage.resources(
                self.disk,
                random.Random(self.life),
                Teller(self.disk, self.annals),
                bytes([self.machine + 1]) * 16,
                self.times.begin(loop, wake),
                self.times.boot,
            )
            spool = await Spool.open(held, chosen)
            # What opening states of the lives before must be the truth; and all of it is stated.
            await oracle.audit(spool, self.annals, Terms(KEPT, self.times.now_ns))
            return spool

        self.spool = self._do(start())
        self.left = False
        self.chores = self.runner.get_loop().create_task(self.spool.maintain())
        self._do(self._audit())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        assert self.runner is not None, "a life has begun"
        return self.runner.run(work)

    @property
    def said(self) -> Said:
        """What was said in the present epoch."""
        return self.annals.present(self.spool)

    async def _audit(self) -> None:
        self.said.note(self.spool)
        await audit(self.spool, self.said)

    @rule(
        target=appended, lane=LANES, count=st.integers(1, 5), size=st.sampled_from([3000, 300, 1])
    )
    def append(self, lane: Lane, count: int, size: int) -> object:
        """Appends and waits."""
        # What cannot be compressed fills the quota, so that something must be given up.
        texts = [
            f"{self.texts + i}:{self.generator.randbytes(size // 2).hex()}" for i in range(count)
        ]
        self.texts += count
        try:
            self._do(self._append(lane, texts))
        except (Overloaded, DiskFailed):
            return multiple()
        return (lane, self.spool.next_seq(lane))

    async def _append(self, lane: Lane, texts: list[str]) -> None:
        records = [record(text) for text in texts]
        await self.said.hand_over(self.spool, lane, records, now_ns=self.times.now_ns)
        self.said.note(self.spool)

    @rule(lane=LANES)
    def append_and_leave(self, lane: Lane) -> None:
        """Appends and does not wait: a crash may come first."""
        self.texts += 1
        self.left = True
        data = record(f"{self.texts}")

        async def leave() -> None:
            try:
                now_ns = self.times.now_ns
                self.said.hand_over(self.spool, lane, [data], awaited=False, now_ns=now_ns)
            except (Overloaded, DiskFailed):
                return

        self._do(leave())

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 20.0, 200.0]))
    def wait(self, seconds: float) -> None:
        """Chores get their turn."""
        self.left = False
        self._do(asyncio.sleep(seconds))

    @rule(
        which=appended,
        shape=st.sampled_from(["below", "one", "middle", "two"]),
        share=st.floats(0, 1),
    )
    def release(self, which: tuple[Lane, int], shape: str, share: float) -> None:
        """A receipt: all below a number, the one before it, some in the middle, or two spans."""
        lane, stop = which
        stop = min(stop, self.spool.durable(lane))
        if not stop:
            # Of a past epoch: the present one has not come so far.
            return
        start = int(share * (stop - 1))
        spans = {
            "below": [(0, stop)],
            "one": [(stop - 1, stop)],
            "middle": [(start, (start + stop + 1) // 2)],
            "two": [(0, start), (stop - 1, stop)],
        }
        numbers = Ranges.of(spans[shape])

        async def give() -> None:
            self.said.release(self.spool, lane, numbers)

        self._do(give())

    @rule(back=st.integers(0, 2), lane=LANES, share=st.floats(0, 1), whole=st.booleans())
    def reclaim(self, back: int, lane: Lane, share: float, *, whole: bool) -> None:
        """The next holder has lost some of what it had, or all that it had of a lane."""
        known = list(self.annals.epochs)
        epoch = known[-1 - min(back, len(known) - 1)]
        had = list(self.spool.released(lane, epoch))
        if not had:
            return
        at = int(share * (len(had) - 1))
        lost = had if whole else had[at // 2 : at + 1]

        async def lose() -> None:
            numbers = Ranges.of([(number, number + 1) for number in lost])
            self.annals.epochs[epoch].reclaim(self.spool, lane, numbers, epoch)

        self._do(lose())

    @rule(back=st.integers(1, 4), lane=LANES)
    def release_a_past_epoch(self, back: int, lane: Lane) -> None:
        """A receipt for all that is pending of a lane in a past epoch."""
        past = self.spool.epochs[:-1]
        if not past:
            return
        epoch = past[-min(back, len(past))]

        async def give() -> None:
            held = oracle.records_of(await oracle.pending(self.spool, lane, epoch))
            if held:
                numbers = Ranges.of([(number, number + 1) for number in held])
                self.annals.epochs[epoch].release(self.spool, lane, numbers, epoch)

        self._do(give())

    @rule(up=st.booleans())
    def link(self, *, up: bool) -> None:
        """A link comes up, or goes down: closed journals wait for their release meanwhile."""
        self.spool.set_linked(up=up)

    @rule(wall=st.sampled_from(Wall))
    def set_clock(self, wall: Wall) -> None:
        """Somebody sets the wall clock."""
        self.times.set(wall)

    @rule()
    def give_up_epoch(self) -> None:
        """Upstream has more than was ever written here: the next opening begins a new life."""

        async def mark() -> None:
            try:
                await self.spool.give_up_epoch("headquarters has more")
            except DiskFailed:
                return

        self._do(mark())

    @rule(
        operation=st.sampled_from(
            ["sync", "write", "create", "rename", "unlink", "sync_directory"]
        ),
        error=st.sampled_from([errno.EIO, errno.ENOSPC]),
        after=st.integers(0, 2),
        times=st.integers(1, 3),
    )
    def fail(self, operation: str, error: int, after: int, times: int) -> None:
        """The disk will fail."""
        self.disk.faults.fail(operation, error, after=after, times=times)  # type: ignore[arg-type]

    @rule(room_bytes=st.sampled_from([0, 8192]), seconds=st.sampled_from([0.5, 8.0]))
    def fill(self, room_bytes: int, seconds: float) -> None:
        """Others fill the disk for some time."""
        spacious = self.disk.capacity_bytes
        self.disk.capacity_bytes = spacious - self.disk.free_bytes() + room_bytes
        self._do(asyncio.sleep(seconds))
        self.disk.capacity_bytes = spacious

    @rule(
        times=st.integers(0, 40),
        whole=st.booleans(),
        away_seconds=st.sampled_from([0.0, 30.0, 7200.0]),
        wall=st.sampled_from(Wall),
        moved=st.integers(0, 5),
    )
    def crash(
        self, times: int, *, whole: bool, away_seconds: float, wall: Wall, moved: int
    ) -> None:
        """The power goes after some more changes, or now; then the spool is opened again.

        Some time later, and one time in six on another machine.
        """
        self.disk.faults.cut_power(0 if whole else times)
        self._stop(asyncio.sleep(1.0))
        self.disk = self.disk.crash(self.generator, block_bytes=self.block_bytes)
        self.machine += moved == 1
        self._open(wake=Wake(boot=True, away_seconds=away_seconds, wall=wall))

    @rule(times=st.integers(0, 40))
    def kill(self, times: int) -> None:
        """The process dies after some more changes; what it had written is seen, durable or not."""
        self.disk.faults.cut_power(times)
        self._stop(asyncio.sleep(1.0))
        self.disk.faults._changes_left = None
        self.disk.faults._planted.clear()
        self.disk.unlock("LOCK")
        self._open()

    def _stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets the old life run into the wall; whatever it raises is no concern of the new one."""
        runner, self.runner = self.runner, None
        if runner is None:
            work.close()
            return
        self.chores.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            runner.run(work)
        finally:
            self.times.end()
            runner.get_loop().set_exception_handler(lambda *_: None)
            runner.close()

    @rule(journal_bytes_max=st.sampled_from([1, 4096, 1 << 20]))
    def close_and_open(self, journal_bytes_max: int) -> None:
        """In order: nothing becomes void, unless the disk failed."""
        before = {lane: explained_of(self.spool, lane).get(Explained.VOID) for lane in Lane}
        clean = not self.disk.faults._planted and not self.spool.degraded
        epoch = self.spool.epoch

        async def end() -> None:
            self.chores.cancel()
            await asyncio.wait([self.chores])
            await self.spool.close()

        self._do(end())
        self._stop(asyncio.sleep(0))
        self.disk.faults._planted.clear()
        self._open(journal_bytes_max)
        if clean and self.spool.epoch == epoch:
            after = {lane: explained_of(self.spool, lane).get(Explained.VOID) for lane in Lane}
            assert after == before, "a clean close leaves nothing void"

    @precondition(lambda self: self.runner is not None)
    @invariant()
    def accounted(self) -> None:
        """The equation holds at rest; what was just left alone may meet a crash first."""
        if not self.left:
            self._do(self._settle())

    async def _settle(self) -> None:
        if not self.disk.faults._planted and not self.spool.degraded:
            await self.spool.commit()
            await self._audit()

    def teardown(self) -> None:
        """The last life ends."""
        self._stop(asyncio.sleep(0))


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
