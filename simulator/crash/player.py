"""The player: lets a history happen to a spool, notes what is said, and has crashes photographed.

A photograph is taken in mid-life, and the life goes on: what a crash leaves depends on nothing but
the disk as it stands and on what had been said by then, so both are copied, and no life has to be
lived again for each crash. Some operations come up a hundred times as often as others; how often
one is photographed is set against that.
"""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from mesh.spool.batch import Labels
from mesh.spool.events import Evicted
from mesh.spool.lane import LaneSettings
from mesh.spool.spool import DEFAULT_LANES, Spool, SpoolSettings
from schemas.errors import DiskFailed, Overloaded, StoreUnusable
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.crash.annals import Annals, ranges, record
from simulator.crash.history import (
    Append,
    Bounds,
    Ending,
    Fail,
    Fill,
    History,
    Life,
    Release,
    Rest,
    Shape,
    Step,
)
from simulator.crash.operations import Operation, Watched
from simulator.crash.oracle import audit, pending, records_of
from simulator.crash.stage import resources, working
from simulator.disk import SimDisk
from simulator.disk_faults import PowerCut

__all__ = ["Photograph", "Player", "settings_of"]

_SHARES: Final[Mapping[Operation, float]] = {
    Operation.APPEND: 0.04,
    Operation.ROTATE: 0.04,
    Operation.SEAL: 0.02,
    Operation.RELEASE: 0.25,
    Operation.EVICT: 0.3,
    Operation.EPOCH_CHANGE: 1.0,
    Operation.OPEN: 0.03,
    Operation.REST: 0.08,
}
_IMAGES_MAX: Final = 6
_LOOKED_AT_MAX: Final = 64
_SPACIOUS_BYTES: Final = 1 << 40
_CALL_SECONDS_MAX: Final = 0.01
_LIFE_SECONDS_MAX: Final = 100_000.0


class Photograph(NamedTuple):
    """What a power cut before a change could leave.

    Args:
        cut: the number of that change.
        operation: what was under way.
        images: disks that differ from each other and from what was durable.
        said: what had been said.
    """

    cut: int
    operation: Operation
    images: tuple[SimDisk, ...]
    said: Annals


class _Witness:
    """Port ``Observer``: tells the watched disk what was given up."""

    def __init__(self, faults: Watched) -> None:
        self._faults = faults

    def observe(self, event: object) -> None:
        if isinstance(event, Evicted):
            self._faults.note(event)


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
        self._said = Annals()

    def play(self) -> None:
        """Plays all lives; what can be photographed stands in ``photographs`` afterwards.

        Raises:
            Violation: the spool lied in mid-life.
        """
        for number, life in enumerate(self._history.lives):
            self.faults.begin_life(there="STORE" in self._disk.contents())
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
            self._end(life.ending)

    def _end(self, ending: Ending) -> None:
        self._disk.capacity_bytes = _SPACIOUS_BYTES
        self._disk.unlock("LOCK")
        if ending is Ending.CRASHED:
            left = self._disk.crash(self._generator, block_bytes=self._history.block_bytes)
            self._disk = self._on(left)

    def _on(self, disk: SimDisk) -> SimDisk:
        """One record of faults and calls goes through all lives."""
        disk.faults = self.faults
        return disk

    # --- a life ------------------------------------------------------------------------------

    async def _live(self, life: Life) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        machine = bytes([life.machine]) * 16
        held = resources(self._disk, self._generator, _Witness(self.faults), machine)
        for fault in life.before:
            self._plant(fault)
        # A disk that fails while the store is made, or opened, may end a life.
        with suppress(DiskFailed, StoreUnusable):
            spool = await Spool.open(held, settings_of(self._history.bounds))
            self._said.present(spool).note(spool)
            if not spool.degraded and not life.before:
                await audit(spool, self._said)
            async with working(spool):
                for step in life.steps:
                    await self._do(spool, step)
                    self._said.present(spool).note(spool)
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
            case Rest(seconds):
                await asyncio.sleep(seconds)
            case Fail():
                self._plant(step)
            case Fill(room_bytes, seconds):
                taken = _SPACIOUS_BYTES - self._disk.free_bytes()
                self._disk.capacity_bytes = taken + room_bytes
                await asyncio.sleep(seconds)
                self._disk.capacity_bytes = _SPACIOUS_BYTES

    def _plant(self, fault: Fail) -> None:
        self.faults.fail(fault.operation, fault.error, after=fault.after, times=fault.times)

    async def _append(self, spool: Spool, step: Append) -> None:
        said = self._said.present(spool)
        records = [
            record(self._generator.randbytes(size // 2).hex() or "x") for size in step.sizes_bytes
        ]
        try:
            settled = said.hand_over(spool, step.lane, records, awaited=step.awaited)
        except (Overloaded, DiskFailed):
            return
        if step.awaited:
            await settled

    async def _release(self, spool: Spool, step: Release) -> None:
        said = self._said.present(spool)
        held = ranges(said.acknowledged.get(step.lane, ()))
        if step.lane is Lane.ACCOUNT:
            held = ranges(records_of(await pending(spool, Lane.ACCOUNT)))
        if held:
            said.release(spool, step.lane, _chosen(held, step))

    # --- photographs -------------------------------------------------------------------------

    def _photograph(self, cut: int, operation: Operation) -> None:
        # One draw a change, whatever becomes of it: a changed share does not change the history.
        generator = random.Random(f"photograph {self._history.seed} {cut}")  # noqa: S311
        if generator.random() >= _SHARES[operation]:
            return
        possible = self._disk.crash_images(
            generator, block_bytes=self._history.block_bytes, samples_max=_LOOKED_AT_MAX
        )
        # The first is what is durable: nothing of what was not synced.
        durable, *others = islice(possible, _LOOKED_AT_MAX)
        if len(others) > _IMAGES_MAX:
            others = [*generator.sample(others[:-1], _IMAGES_MAX - 1), others[-1]]
        images = tuple(image for image in others if image.image_hash() != durable.image_hash())
        for image in images:
            image.capacity_bytes = _SPACIOUS_BYTES
        if images:
            self.photographs.append(Photograph(cut, operation, images, self._said.copy()))


def settings_of(bounds: Bounds) -> SpoolSettings:
    """What a spool in a history is configured with."""
    return SpoolSettings(
        Labels("hall", "pump"),
        bytes_max=bounds.bytes_max,
        lanes={
            lane: LaneSettings(DEFAULT_LANES[lane].linger_seconds, bounds.numbers_reserved)
            for lane in Lane
        },
        journal_bytes_max=bounds.journal_bytes_max,
    )


def _chosen(held: Ranges, step: Release) -> Ranges:
    """The numbers that a receipt names, of those that the next holder can have."""
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
