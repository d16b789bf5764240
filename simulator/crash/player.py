"""The player: lets a history happen to a spool, notes what is said, and has crashes photographed.

A photograph is taken in mid-life, and the life goes on: what a crash leaves depends on nothing but
the disk as it stands and on what had been said by then, so both are copied, and no life has to be
lived again for each crash. What becomes of ``STORE`` between two lives is done behind the back of
everybody: no call is recorded, and no fault strikes.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import Final

from mesh.spool.batch import Labels
from mesh.spool.events import Evicted, Reclaimed
from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.spool import DEFAULT_LANES, Spool, SpoolSettings
from schemas import wire
from schemas.errors import DiskFailed, Overloaded, StoreUnusable
from schemas.limits import PAST_EPOCHS_MAX
from schemas.messages import Account, Epoch, Lane
from schemas.ranges import Ranges
from simulator.clock import VirtualLoop, run
from simulator.crash.annals import Annals, ranges, record
from simulator.crash.history import (
    Append,
    Bounds,
    Ending,
    Fail,
    Fill,
    GiveUpEpoch,
    History,
    Life,
    Linked,
    Reclaim,
    Release,
    Rest,
    SetClock,
    Shape,
    Step,
    Store,
)
from simulator.crash.operations import Operation, Watched, numbers_of
from simulator.crash.oracle import Terms, audit, pending, records_of
from simulator.crash.photograph import SPACIOUS_BYTES, Photograph, images_of, is_wanted
from simulator.crash.stage import resources, working
from simulator.crash.times import Times
from simulator.disk import SimDisk
from simulator.disk_faults import DiskFaults, PowerCut

__all__ = ["Player", "machine_id", "settings_of"]

_ACCOUNTS_RESERVED: Final = (2 * PAST_EPOCHS_MAX + 2) * len(Lane)
_STORE: Final = "STORE"
_CALL_SECONDS_MAX: Final = 0.01
_LIFE_SECONDS_MAX: Final = 100_000.0


class _Witness:
    """Port ``Observer``: tells the watched disk what was given up, the annals what was lost."""

    def __init__(self, faults: Watched, annals: Annals) -> None:
        self._faults = faults
        self._annals = annals

    def observe(self, event: object) -> None:
        if isinstance(event, Evicted):
            self._faults.note(event)
        elif isinstance(event, Reclaimed) and not self._faults.dead:
            self._faults.note_settled()
            said = self._annals.epochs[Epoch.parse(event.epoch)]
            said.settle(event.lane, numbers_of(event.pending) | numbers_of(event.forgotten))


class Player:
    """Plays one history, once.

    Args:
        history: which.
        make: makes the disk that it begins on.
    """

    def __init__(self, history: History, make: type[SimDisk] = SimDisk) -> None:
        self._history = history
        self._make = make
        # The same history shall be played the same way each time.
        self._generator = random.Random(f"play {history.seed}")  # noqa: S311
        self.faults = Watched(self._photograph)
        self.photographs: list[Photograph] = []
        self._disk = self._on(make())
        self._annals = Annals()
        self._times = Times()
        self._machine = 0

    def play(self) -> None:
        """Plays all lives; what can be photographed stands in ``photographs`` afterwards.

        Raises:
            Violation: the spool lied in mid-life.
        """
        for number, life in enumerate(self._history.lives):
            self._lose(life.store)
            self._machine = life.machine
            self.faults.begin_life(there=_STORE in self._disk.contents())
            if life.ending is not Ending.CLOSED:
                self.faults.cut_power(life.changes_max)
            try:
                run(
                    lambda _, life=life: self._live(life),  # type: ignore[misc]
                    number,
                    seconds_max=_LIFE_SECONDS_MAX,
                    call_seconds=lambda: self._generator.random() * _CALL_SECONDS_MAX,
                )
            except (Exception, PowerCut):
                # Whatever a process says after its power went is heard by nobody.
                if not self.faults.dead:
                    raise
            finally:
                self._times.end()
            self._end(life.ending)

    def _end(self, ending: Ending) -> None:
        self._disk.capacity_bytes = SPACIOUS_BYTES
        self._disk.unlock("LOCK")
        if ending is Ending.CRASHED:
            left = self._disk.crash(self._generator, block_bytes=self._history.block_bytes)
            self._disk = self._on(left)

    def _on(self, disk: SimDisk) -> SimDisk:
        """One record of faults and calls goes through all lives."""
        disk.faults = self.faults
        return disk

    def _lose(self, store: Store) -> None:
        """Lets ``STORE`` rot, or removes it, if there is one."""
        size = len(self._disk.contents().get(_STORE, b""))
        if store is Store.SOUND or not size:
            return
        self._annals.lose_store()
        self._disk.faults = DiskFaults(lambda _: None)
        if store is Store.ROTTED:
            self._disk.flip_bit(_STORE, self._generator.randrange(8 * size))
        else:
            self._disk.unlink(_STORE)
            self._disk.sync_directory("")
        self._on(self._disk)

    # --- a life ------------------------------------------------------------------------------

    async def _live(self, life: Life) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a life is played on virtual time"
        loop.set_exception_handler(lambda *_: None)
        held = resources(
            self._disk,
            self._generator,
            _Witness(self.faults, self._annals),
            machine_id(life.machine),
            self._times.begin(loop, life.wake),
            self._times.boot,
        )
        settings = settings_of(self._history.bounds)
        for fault in life.before:
            self._plant(fault)
        # A disk that fails while the store is made, or opened, may end a life.
        with suppress(DiskFailed, StoreUnusable):
            spool = await Spool.open(held, settings)
            self._annals.present(spool).note(spool)
            if not spool.degraded and not life.before:
                await audit(spool, self._annals, Terms(settings.lanes, self._times.now_ns))
            async with working(spool):
                for step in life.steps:
                    await self._do(spool, step)
                    self._annals.present(spool).note(spool)
                    if self.faults.dead:
                        return
                self.faults.clear()
            if life.ending is Ending.CLOSED:
                await spool.close()

    async def _do(self, spool: Spool, step: Step) -> None:
        match step:
            case Append():
                await self._append(spool, step)
            case Release():
                await self._release(spool, step)
            case Reclaim():
                self._reclaim(spool, step)
            case Rest(seconds):
                await asyncio.sleep(seconds)
            case Fail():
                self._plant(step)
            case Linked(up):
                spool.set_linked(up=up)
            case SetClock(wall):
                self._times.set(wall)
            case GiveUpEpoch():
                # Where that fails, the present life goes on.
                with suppress(DiskFailed):
                    await spool.give_up_epoch("headquarters has more")
            case Fill(room_bytes, seconds):
                taken = SPACIOUS_BYTES - self._disk.free_bytes()
                self._disk.capacity_bytes = taken + room_bytes
                await asyncio.sleep(seconds)
                self._disk.capacity_bytes = SPACIOUS_BYTES

    def _plant(self, fault: Fail) -> None:
        self.faults.fail(fault.operation, fault.error, after=fault.after, times=fault.times)

    async def _append(self, spool: Spool, step: Append) -> None:
        said = self._annals.present(spool)
        records = [
            record(self._generator.randbytes(size // 2).hex() or "x") for size in step.sizes_bytes
        ]
        now_ns = self._times.now_ns
        try:
            settled = said.hand_over(spool, step.lane, records, awaited=step.awaited, now_ns=now_ns)
        except (Overloaded, DiskFailed):
            return
        if step.awaited:
            await settled

    async def _release(self, spool: Spool, step: Release) -> None:
        epoch = spool.epochs[-1 - min(step.epochs_back, len(spool.epochs) - 1)]
        said = self._annals.epochs[epoch]
        for lane in _from(step.lane):
            held = await self._releasable(spool, lane, epoch)
            if held:
                said.release(spool, lane, _chosen(held, step), epoch)
                return

    async def _releasable(self, spool: Spool, lane: Lane, epoch: Epoch) -> Ranges:
        """What the next holder can have and was not released."""
        released = spool.released(lane, epoch)
        if lane is not Lane.ACCOUNT and epoch == spool.epoch:
            return ranges(self._annals.epochs[epoch].acknowledged.get(lane, ())) - released
        # The next holder knows what was handed on to it, promised or not.
        handed_on = records_of(await pending(spool, lane, epoch))
        if lane is Lane.ACCOUNT:
            self._annals.hear(wire.decode_as(Account, data) for data in handed_on.values())
        return ranges(handed_on) - released

    def _reclaim(self, spool: Spool, step: Reclaim) -> None:
        known = list(self._annals.epochs)
        epoch = known[-1 - min(step.epochs_back, len(known) - 1)]
        for lane in _from(step.lane):
            had = spool.released(lane, epoch)
            if had:
                said = self._annals.epochs[epoch]
                if said.reclaim(spool, lane, _chosen(had, step), epoch):
                    self.faults.note_reclaim()
                return

    # --- photographs -------------------------------------------------------------------------

    def _photograph(self, cut: int, operation: Operation) -> None:
        # One draw a change, whatever becomes of it: a changed share does not change the history.
        generator = random.Random(f"photograph {self._history.seed} {cut}")  # noqa: S311
        if not is_wanted(operation, generator):
            return
        images = images_of(self._disk, generator, self._history.block_bytes)
        if images:
            self.photographs.append(
                Photograph(
                    cut,
                    operation,
                    images,
                    self._annals.copy(),
                    self._times.copy(),
                    self._machine,
                )
            )


def machine_id(number: int) -> bytes:
    """The name of a machine, 16 bytes."""
    return (number + 1).to_bytes(16, "big")


def settings_of(bounds: Bounds) -> SpoolSettings:
    """What a spool in a history is configured with: alarms refuse, metrics and logs age."""
    lanes = {
        lane: LaneSettings(DEFAULT_LANES[lane].linger_seconds, bounds.numbers_reserved)
        for lane in Lane
    }
    # An opening states each lane of each life at once.
    accounts = replace(lanes[Lane.ACCOUNT], reserved=_ACCOUNTS_RESERVED)
    quota, age = bounds.lane_bytes_max, bounds.age_seconds_max
    alarms = replace(lanes[Lane.ALARMS], bytes_max=quota, when_full=WhenFull.REFUSE)
    logs = replace(lanes[Lane.LOGS], bytes_max=quota, age_seconds_max=age)
    metrics = replace(lanes[Lane.METRICS], age_seconds_max=age)
    return SpoolSettings(
        Labels("hall", "pump"),
        bytes_max=bounds.bytes_max,
        lanes={
            **lanes,
            Lane.ACCOUNT: accounts,
            Lane.ALARMS: alarms,
            Lane.LOGS: logs,
            Lane.METRICS: metrics,
        },
        journal_bytes_max=bounds.journal_bytes_max,
        journal_seconds_max=60.0,
        release_seconds=bounds.release_seconds,
        spare_bytes=bounds.spare_bytes,
        retained_bytes_max=bounds.retained_bytes_max,
        journals_retained_max=bounds.journals_retained_max,
        headroom_bytes=0,
    )


def _from(lane: Lane) -> list[Lane]:
    """All lanes, this one first."""
    lanes = list(Lane)
    at = lanes.index(lane)
    return lanes[at:] + lanes[:at]


def _chosen(held: Ranges, step: Release | Reclaim) -> Ranges:
    """The numbers that a receipt names or misses, of those that the next holder can have."""
    numbers = list(held)
    at = int(step.share * (len(numbers) - 1))
    match step.shape:
        case Shape.ALL:
            return held
        case Shape.BELOW:
            return ranges(numbers[: at + 1])
        case Shape.ONE:
            return ranges(numbers[at : at + 1])
        case Shape.MIDDLE:
            return ranges(numbers[at // 2 : at + 1])
