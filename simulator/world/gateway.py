"""A gateway of the world: it takes custody for its edges, forwards, and loses its power.

``GatewayProgram`` is the small interface behind which whoever takes custody can stand: it is made
anew for each life on the disk that the last one left, runs until it is killed, and says what it
holds. ``PlainGateway`` is the one that is there: ``simulator.world.custody`` and a forwarder.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mesh.ports import Arrival, Clock, Disk, Intake, Link, Observer, Refusal
from mesh.transfer.source import Life
from nodes.headquarters.ingest import BatchSetAside
from schemas.errors import DiskFailed, LinkDown
from schemas.messages import Epoch, Lane, Receipt
from schemas.ranges import Ranges
from simulator.crash.annals import Violation
from simulator.crash.stage import Thread
from simulator.disk import SimDisk
from simulator.link import SimNetwork
from simulator.world.custody import Custody
from simulator.world.forwarding import Forward, forwarder
from simulator.world.observer import Ear
from simulator.world.oracle import Oracle
from simulator.world.place import Place, stated
from simulator.world.process import Process
from simulator.world.trace import Trace

__all__ = ["GatewayParts", "GatewayProgram", "PlainGateway", "SimGateway"]

_RETRY_SECONDS: Final = 1.0
_SPARSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What a gateway is made of.

    Args:
        name: who signs its receipts.
        disk: its folder.
        intake: where its edges' batches come from.
        link: to the next holder.
        clock: its clock.
        rng: for jitter and entropy.
        observer: is told what happens.
    """

    name: str
    disk: Disk
    intake: Intake
    link: Link
    clock: Clock
    rng: random.Random
    observer: Observer


class GatewayProgram(Protocol):
    """What the world asks of a gateway."""

    @property
    def is_open(self) -> bool:
        """Whether its custody was opened."""
        ...

    async def run(self) -> None:
        """Takes, receipts, forwards and releases, until it is cancelled."""
        ...

    def held(self) -> Mapping[Place, Ranges]:
        """The numbers that it holds and that nobody has released."""
        ...

    def has_released(self) -> Mapping[Place, Ranges]:
        """The numbers that it has let go."""
        ...


class PlainGateway:
    """A gateway on the plain custody.

    Args:
        parts: what it is made of.
        custody: makes its custody of a disk; another one where a fault is planted.
        forward: makes its forwarder; the same.
    """

    def __init__(
        self,
        parts: GatewayParts,
        custody: Callable[[Disk, str, Epoch], Custody] = Custody,
        forward: Forward = forwarder,
    ) -> None:
        self._parts = parts
        self._make = custody
        self._custody: Custody | None = None
        self._forward = forward
        self._thread = Thread()

    @property
    def is_open(self) -> bool:
        """Whether its custody was opened."""
        return self._custody is not None

    def held(self) -> Mapping[Place, Ranges]:
        """The numbers that it holds and that nobody has released."""
        custody = self._custody
        return {} if custody is None else self._each(custody, custody.numbers)

    def has_released(self) -> Mapping[Place, Ranges]:
        """The numbers that it has let go."""
        custody = self._custody
        return {} if custody is None else self._each(custody, custody.released)

    @staticmethod
    def _each(custody: Custody, of: Callable[[Life, Lane], Ranges]) -> dict[Place, Ranges]:
        return {
            Place(*life, lane): numbers
            for life, lane in custody.known()
            if (numbers := of(life, lane))
        }

    async def run(self) -> None:
        """Takes, receipts, forwards and releases, until it is cancelled."""
        loop = asyncio.get_running_loop()
        parts = self._parts
        life = Epoch(1, 1)
        custody = await loop.run_in_executor(self._thread, self._make, parts.disk, parts.name, life)
        self._custody = custody
        await self._publish(custody.statements())
        forward = self._forward(custody, parts.link, parts.clock, parts.observer, None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(custody))
            tasks.create_task(forward.run())

    async def _take(self, custody: Custody) -> None:
        loop = asyncio.get_running_loop()
        async for arrivals in self._parts.intake.batches():
            outcome = await loop.run_in_executor(self._thread, custody.take, arrivals)
            await self._publish(outcome.receipts)
            await self._parts.intake.accept(outcome.taken)
            for arrival, refused in outcome.refused:
                await self._refuse(arrival, Refusal(refused.reason, refused.detail, 0.0))
            await asyncio.sleep(_SPARSE_SECONDS)

    async def _refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        origin = f"{arrival.site}/{arrival.node}/{arrival.lane}"
        self._parts.observer.observe(BatchSetAside(origin, str(refusal), ""))
        await self._parts.intake.refuse(arrival, refusal)

    async def _publish(self, receipts: Sequence[Receipt]) -> None:
        while receipts:
            try:
                await self._parts.intake.publish(receipts)
            except LinkDown:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return


class SimGateway:
    """A gateway on a simulated disk, with the broker of its site; it crashes and starts again.

    Args:
        name: its name, and that of its path upward.
        below: the network of its site.
        above: the network to the next holder.
        rng: draws all that is random to it.
        oracle: is told.
        trace: is told.
        tasks: where it runs.
        report: is told of what it raises.
        program: makes its program.
    """

    def __init__(
        self,
        name: str,
        below: SimNetwork,
        above: SimNetwork,
        rng: random.Random,
        oracle: Oracle,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        report: Callable[[str, str], None],
        program: Callable[[GatewayParts], GatewayProgram] = PlainGateway,
    ) -> None:
        self.name = name
        self.below = below
        self.disk = SimDisk()
        self.crashes = 0
        self._above = above
        self._rng = rng
        self._oracle = oracle
        self._trace = trace
        self._report = report
        self._make = program
        self._process = Process(tasks, name, report)
        self._program: GatewayProgram | None = None
        self._promised: dict[Place, Ranges] = {}
        self._ear: Ear | None = None

    def __repr__(self) -> str:
        return f"<SimGateway {self.name} after {self.crashes} crashes>"

    def start(self) -> None:
        """Begins a life."""
        self._process.start(self._live())

    async def crash(self, changes: int) -> None:
        """The power goes after so many more changes of its disk, or a minute later."""
        self.crashes += 1
        self.disk.faults.cut_power(changes)
        for _ in range(60):
            if not self._process.running:
                break
            await asyncio.sleep(1)
        await self.stop()

    async def stop(self) -> None:
        """The process is gone, and the machine with it; what the disk kept is what is left."""
        image = self.disk.crash(self._rng, block_bytes=self._rng.choice((512, 4096)))
        if self._ear is not None:
            self._ear.mute()
        await self._process.kill()
        self._program = None
        self.disk = image
        self._trace.note("stopped", self.name, image.image_hash()[:16])

    async def _live(self) -> None:
        self._ear = Ear(
            self.name,
            self._trace,
            lambda site, node: self._oracle.alarmed.add((site, node)),
        )
        while True:
            link = self._above.link(None, None, self.name)
            parts = GatewayParts(
                *(self.name, self.disk, _Witness(self), link),
                *(self.below.clock, self._rng, self._ear),
            )
            self._program = self._make(parts)
            try:
                async with link:
                    await self._program.run()
            except* DiskFailed:
                self._trace.note("starts again", self.name)
                await asyncio.sleep(_RETRY_SECONDS)

    def promise(self, receipt: Receipt) -> None:
        """It issues a receipt: what it says must be in its custody, whatever happens now."""
        place = Place.of(receipt)
        self._promised[place] = self._promised.get(place, Ranges()) | stated(receipt)
        self._oracle.issued(receipt)

    def audit(self, archived: Callable[[Place], Ranges]) -> None:
        """Whether it holds what it promised, unless headquarters has it.

        Args:
            archived: the numbers of a place that headquarters has, or had.

        Raises:
            Violation: nobody holds it.
        """
        if self._program is None or not self._process.running:
            return
        if not self._program.is_open:
            return
        held, gone = self._program.held(), self._program.has_released()
        for place, promised in self._promised.items():
            nobody = promised - archived(place) - held.get(place, Ranges())
            nobody -= gone.get(place, Ranges())
            if nobody:
                raise Violation(f"{self.name} has receipted {place} {nobody}, and nobody holds it")

    def pending(self) -> int:
        """How many records wait for a receipt."""
        program = self._program
        if program is None or not program.is_open:
            return 1
        # Of a node whose past is in doubt it may hold what nobody upstream can take.
        return sum(
            len(numbers)
            for place, numbers in program.held().items()
            if place.origin not in self._oracle.alarmed
        )

    def held(self) -> Mapping[Place, Ranges]:
        """The numbers that it holds and that nobody has released."""
        return {} if self._program is None else self._program.held()


class _Witness:
    """The intake of a gateway; each receipt that leaves is noted."""

    def __init__(self, gateway: SimGateway) -> None:
        self._gateway = gateway
        self._intake = gateway.below.intake(f"{gateway.name}-intake")
        self.batches = self._intake.batches
        self.accept = self._intake.accept
        self.refuse = self._intake.refuse

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            self._gateway.promise(receipt)
        await self._intake.publish(receipts)
