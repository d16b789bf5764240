"""An edge of the world: a real spool and a real forwarder on a simulated disk, link and clock.

It lives in *lives*: each opens the spool, forwards, and appends records in bursts until the power
goes. What it appends and what is acknowledged is told to the oracle; what was promised after the
power went is not, because nobody heard it.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from mesh.spool.batch import Labels
from mesh.spool.spool import DEFAULT_LANES, Appended, Spool, SpoolSettings
from nodes.spool_source import SpoolSource
from schemas import wire
from schemas.errors import DiskFailed, Overloaded, Stop, StoreUnusable
from schemas.messages import Event, Lane, Severity
from schemas.ranges import Ranges
from simulator.clock import SimClock
from simulator.crash import stage
from simulator.crash.oracle import pending, records_of
from simulator.disk import SimDisk
from simulator.link import SimNetwork
from simulator.world import forwarding
from simulator.world.faults import DAY
from simulator.world.observer import Ear
from simulator.world.oracle import Oracle
from simulator.world.place import Place
from simulator.world.process import Process
from simulator.world.trace import Trace

__all__ = ["LANES", "EdgeSettings", "SimEdge", "spool_settings"]

LANES: Final = (Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.METRICS, Lane.LOGS)
"""Those that the world writes to; the lane of accounts belongs to the spool."""

_RESERVED: Final = (8, 32)
_SPARE_BYTES: Final = 32 * 1024
_HEADROOM_BYTES: Final = 96 * 1024
_JOURNAL_BYTES: Final = (2_000, 20_000, 200_000)
_TORN_AFTER_MAX: Final = 12
_OPEN_AGAIN_SECONDS: Final = 60.0
_ANEW_SECONDS: Final = 1.0
_USUAL_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 3600.0
_ANEW_DOUBLED_MAX: Final = 12
_ANEW_MAX: Final = 10
_LARGE_BURST: Final = 40
_GROUP_MAX: Final = 8
_LARGE_SHARE: Final = 0.02
_BURST_RECORDS: Final = 11.0


def spool_settings(
    site: str, node: str, bytes_max: int, journal_bytes: int, reserved: int
) -> SpoolSettings:
    """A spool as a device has it, with small journals, reservations, spare and quota."""
    return SpoolSettings(
        Labels(site, node),
        bytes_max=bytes_max,
        lanes={lane: replace(DEFAULT_LANES[lane], reserved=reserved) for lane in Lane},
        journal_bytes_max=journal_bytes,
        spare_bytes=_SPARE_BYTES,
        headroom_bytes=_HEADROOM_BYTES,
    )


def _look_rarely(spool: Spool) -> None:
    """Looks for what is old once an hour: once a minute is most of what an idle edge costs."""
    chores = spool._chores  # noqa: SLF001  # no setting says how often
    seconds = chores._look_again_seconds  # noqa: SLF001

    def look_again_seconds() -> float | None:
        found = seconds()
        return _LOOK_SECONDS if found is not None and found >= _USUAL_SECONDS else found

    chores._look_again_seconds = look_again_seconds  # type: ignore[method-assign]  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What an edge is.

    Args:
        site: its site.
        node: its name; also that of its path.
        machine: 16 bytes; two machines with one name are a clone and its original.
        records_per_day: how many it appends, about.
        account_seconds: how often it states its accounts.
        bytes_max: the quota of its spool.
    """

    site: str
    node: str
    machine: bytes
    records_per_day: float
    account_seconds: float = DAY
    bytes_max: int = 8 << 20


class SimEdge:
    """A node that records, forwards, crashes, and starts again.

    Args:
        settings: what it is.
        network: to whom it forwards.
        clock: its clock.
        rng: draws all that is random to it.
        oracle: is told.
        trace: is told.
        tasks: where it runs.
        report: is told of what it raises.
        disk: what its store begins as.
        forward: makes its forwarder.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        network: SimNetwork,
        clock: SimClock,
        rng: random.Random,
        oracle: Oracle,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        report: Callable[[str, str], None],
        disk: SimDisk | None = None,
        forward: forwarding.Forward = forwarding.forwarder,
    ) -> None:
        self.settings = settings
        self.network = network
        self.clock = clock
        self.disk = disk or SimDisk()
        self.name = f"{settings.site}/{settings.node}/{settings.machine.hex()[:4]}"
        self.lives = 0
        self.crashes = 0
        self.quiet = False
        """Whether it records nothing."""
        self._rng = rng
        self._oracle = oracle
        self._trace = trace
        self._forward = forward
        self._report = report
        self._process = Process(tasks, self.name, report)
        self._spool: Spool | None = None
        self._outdated = asyncio.Event()
        self._ear = self._listen()
        self._said = 0

    def __repr__(self) -> str:
        return f"<SimEdge {self.name} in life {self.lives}>"

    @property
    def path(self) -> str:
        """The name of its way to the next holder."""
        return self.settings.node

    @property
    def origin(self) -> tuple[str, str]:
        """Its site and node."""
        return self.settings.site, self.settings.node

    @property
    def spool(self) -> Spool | None:
        """Its spool, while one is open."""
        return self._spool

    # --- living and dying ---------------------------------------------------------------------

    def start(self) -> None:
        """Begins a life."""
        self._process.start(self._live())

    async def crash(self) -> None:
        """The power goes in the middle of its writing; what the disk kept is what is left."""
        self.crashes += 1
        if self._spool is not None:
            self.disk.faults.cut_power(self._rng.randrange(_TORN_AFTER_MAX))
            self._burst(1 + self._rng.randrange(3))
            await asyncio.sleep(self._rng.random())
        await self.stop()

    async def end(self) -> None:
        """The world is over."""
        self._ear.mute()
        await self._process.kill()

    async def stop(self) -> None:
        """The process is gone, and the machine with it."""
        image = self.disk.crash(self._rng, block_bytes=self._rng.choice((512, 4096)))
        # Whatever the dead process still does, it does to a disk that nobody will ever read.
        self.lives += 1
        dead, self.disk = self.disk, image
        self._spool = None
        self._ear.mute()
        await self._process.kill()
        dead.faults.heal()
        self._trace.note("stopped", self.name, image.image_hash()[:16])

    def wipe(self) -> None:
        """Somebody writes its image anew: the disk is empty."""
        assert not self._process.running, "an image is written while nothing runs"
        self.disk = SimDisk()

    async def _live(self) -> None:
        self.lives += 1
        self._ear = self._listen()
        resources = stage.resources(
            *(self.disk, self._rng, self._ear, self.settings.machine, self.clock)
        )
        settings = spool_settings(
            *(*self.origin, self.settings.bytes_max),
            *(self._rng.choice(_JOURNAL_BYTES), self._rng.choice(_RESERVED)),
        )
        again = 0
        while True:
            self._outdated.clear()
            try:
                spool = await Spool.open(resources, settings)
            except (DiskFailed, StoreUnusable) as refused:
                # A disk that is full or failing at the start: whoever started it tries again.
                self._trace.note("not opened", self.name, type(refused).__name__)
                await asyncio.sleep(_OPEN_AGAIN_SECONDS)
                continue
            _look_rarely(spool)
            self._spool = spool
            self._trace.note("opened", self.name, spool.epoch)
            await self._work(spool)
            self._trace.note("begins anew", self.name)
            self._spool = None
            with suppress(Stop, DiskFailed):
                await spool.close()
            again += 1
            if again == _ANEW_MAX:
                self._report(self.name, f"it began anew {again} times in one life of its process")
            await asyncio.sleep(_ANEW_SECONDS * 2.0 ** min(again, _ANEW_DOUBLED_MAX))

    async def _work(self, spool: Spool) -> None:
        """Until the spool turns out to be an older copy of itself."""
        link = self.network.link(*self.origin)
        async with asyncio.TaskGroup() as tasks, link:
            source = SpoolSource(*self.origin, spool)
            forward = self._forward(source, link, self.clock, self._ear, self._outdated.set)
            work = [
                tasks.create_task(spool.maintain()),
                tasks.create_task(forward.run()),
                tasks.create_task(self._record()),
                tasks.create_task(self._state_accounts(spool)),
            ]
            await self._outdated.wait()
            for task in work:
                task.cancel()

    def _listen(self) -> Ear:
        return Ear(
            self.name,
            self._trace,
            lambda site, node: self._oracle.alarmed.add((site, node)),
            self.origin,
        )

    # --- recording ----------------------------------------------------------------------------

    async def _record(self) -> None:
        pause = DAY * _BURST_RECORDS / max(self.settings.records_per_day, 1e-9)
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / pause))
            if not self.quiet:
                large = self._rng.random() < _LARGE_SHARE
                self._burst(_LARGE_BURST if large else self._rng.randint(1, 4))

    async def _state_accounts(self, spool: Spool) -> None:
        while True:
            await asyncio.sleep(self.settings.account_seconds * self._rng.uniform(0.5, 1.0))
            await spool.state_accounts()

    def _burst(self, groups: int) -> None:
        for _ in range(groups):
            self.append(self._rng.choice(LANES), self._rng.randint(1, _GROUP_MAX))

    def append(self, lane: Lane, count: int) -> bool:
        """Records something; what the spool does not take is forgone. Whether it was taken."""
        spool = self._spool
        if spool is None:
            return False
        now = self.clock.now()
        records = []
        for _ in range(count):
            self._said += 1
            text = f"{self.name} {self._said} {self._rng.getrandbits(32):08x}"
            event = Event(now.wall_ns, now.mono_ns, "tested", Severity.NOTICE, text)
            records.append(wire.encode(event))
        try:
            appended = spool.append(lane, records)
        except (Overloaded, DiskFailed):
            spool.forgo(lane, count)
            return False
        place = Place(*self.origin, appended.epoch, lane)
        self._trace.note("appended", self.name, f"{lane} {appended.first}+{count}")
        self._oracle.appended(place, appended.first, records)
        acknowledge = partial(self._acknowledge, self.lives, place, appended, records)
        appended.settled.add_done_callback(acknowledge)
        return True

    def _acknowledge(
        self,
        life: int,
        place: Place,
        appended: Appended,
        records: list[bytes],
        settled: "asyncio.Future[bool]",
    ) -> None:
        if life == self.lives and not settled.cancelled() and settled.result():
            self._oracle.acknowledged(place, appended.first, records)

    # --- looking ------------------------------------------------------------------------------

    def pending(self) -> int:
        """How many records wait for a receipt; all of them while no spool is open."""
        if self._spool is None:
            return 1
        lanes = self._spool.status().lanes.values()
        return sum(lane.pending_records + lane.waiting_records for lane in lanes)

    async def state(self) -> None:
        """States the accounts of all its lives."""
        if self._spool is not None:
            await self._spool.state_accounts(past=True)

    async def held(self) -> dict[Place, dict[int, bytes]]:
        """All records that can be read and wait for a receipt, by place and number."""
        spool = self._spool
        found: dict[Place, dict[int, bytes]] = {}
        for epoch in () if spool is None else spool.epochs:
            for lane in Lane:
                assert spool is not None
                records = records_of(await pending(spool, lane, epoch))
                if records:
                    found[Place(*self.origin, epoch, lane)] = records
        return found

    async def audit(self) -> None:
        """Holds what its spool has against what was promised; nothing where a crash comes between.

        Raises:
            Violation: it lies.
        """
        spool, life = self._spool, self.lives
        if spool is None:
            return
        places = [
            Place(*self.origin, epoch, lane)
            for epoch in spool.epochs
            for lane in Lane
            if lane is not Lane.ACCOUNT
        ]
        promised = {place: dict(self._oracle.books[place].acknowledged) for place in places}
        try:
            held = await self.held()
        except (DiskFailed, FileNotFoundError):
            return
        if life != self.lives:
            return
        for place in places:
            self._oracle.judge_spool(
                place,
                promised[place],
                held.get(place, {}),
                spool.released(place.lane, place.epoch),
                self._explained(spool, place),
            )

    @staticmethod
    def _explained(spool: Spool, place: Place) -> dict[str, Ranges]:
        # Its newest statement may be on its way; what it will say next is known in here only.
        lanes = spool._lives.get(place.epoch, {})  # noqa: SLF001
        return dict(lanes[place.lane].explained) if place.lane in lanes else {}
