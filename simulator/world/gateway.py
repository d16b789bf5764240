"""A gateway of the world: it takes custody for its edges, forwards, and loses its power.

``GatewayProgram`` is the small interface behind which whoever takes custody can stand: it is made
anew for each life on the disk that the last one left, runs until it is killed, and says what it
holds. ``CustodyGateway`` is the real one: a store of custody, the role, and a forwarder.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mesh.ports import Arrival, Clock, Disk, Intake, Link, Observer, Refusal
from mesh.transfer.custody.custody import Custody
from mesh.transfer.custody.lane import Holding
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from nodes.gateway.gateway import Gateway
from nodes.gateway.hearing import Hearing
from schemas.errors import DiskFailed
from schemas.messages import Epoch, Receipt
from schemas.ranges import Ranges
from simulator.crash.annals import Violation
from simulator.crash.stage import Thread
from simulator.disk import SimDisk
from simulator.link import SimNetwork
from simulator.world.forwarding import Forward, forwarder
from simulator.world.observer import Ear
from simulator.world.oracle import Oracle
from simulator.world.place import Place, stated
from simulator.world.process import Process
from simulator.world.trace import Trace

__all__ = ["CustodyGateway", "GatewayParts", "GatewayProgram", "SimGateway"]

_RETRY_SECONDS: Final = 1.0
_BYTES_MAX: Final = 64 << 20
_JOURNAL_BYTES: Final = 200_000


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
        machine: 16 bytes that name the machine.
        observer: is told what happens.
    """

    name: str
    disk: Disk
    intake: Intake
    link: Link
    clock: Clock
    rng: random.Random
    machine: bytes
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

    @property
    def life(self) -> Epoch | None:
        """The life in which it speaks, once it does."""
        ...

    def held(self) -> Mapping[Place, Ranges]:
        """The numbers that it holds and that nobody has released."""
        ...

    def has_released(self) -> Mapping[Place, Ranges]:
        """The numbers that it has let go."""
        ...


class CustodyGateway:
    """The real one.

    Args:
        parts: what it is made of.
        forward: makes its forwarder; another one where a fault is planted.
    """

    def __init__(self, parts: GatewayParts, forward: Forward = forwarder) -> None:
        self._parts = parts
        self._custody: Custody | None = None
        self._forward = forward

    @property
    def is_open(self) -> bool:
        """Whether its custody was opened."""
        return self._custody is not None

    @property
    def life(self) -> Epoch | None:
        """The life in which it speaks, once it does."""
        return None if self._custody is None else self._custody.stated_life

    def held(self) -> Mapping[Place, Ranges]:
        """The numbers that it holds and that nobody has released."""
        return self._each(_pending)

    def has_released(self) -> Mapping[Place, Ranges]:
        """The numbers that it has let go."""
        return self._each(lambda holding: holding.released)

    def _each(self, of: Callable[[Holding], Ranges]) -> dict[Place, Ranges]:
        if self._custody is None:
            return {}
        holdings = self._custody._vault.holdings.items()  # noqa: SLF001  # an oracle looks inside
        return {
            Place(*key.life, key.lane): numbers
            for key, holding in holdings
            if (numbers := of(holding))
        }

    async def run(self) -> None:
        """Takes, receipts, forwards and releases, until it is cancelled."""
        parts = self._parts
        resources = CustodyResources(
            *(parts.disk, parts.clock, Thread(), Thread()),
            *(parts.rng.randbytes, parts.rng, parts.machine, parts.observer),
        )
        settings = CustodySettings(parts.name, _BYTES_MAX, _JOURNAL_BYTES)
        self._custody = custody = await Custody.open(resources, settings)
        link = Hearing(parts.link, custody)
        forward = self._forward(custody, link, parts.clock, parts.observer, None)
        await Gateway(custody, [parts.intake], forward, parts.observer).run()


def _pending(holding: Holding) -> Ranges:
    spans = [span for kept in holding.pending for span in kept.present.spans]
    return Ranges.of(spans) - holding.released


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
        program: Callable[[GatewayParts], GatewayProgram] = CustodyGateway,
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
        self._machine = rng.randbytes(16)
        self._promised: dict[Place, Ranges] = {}
        self._life: Epoch | None = None
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
                *(self.below.clock, self._rng, self._machine, self._ear),
            )
            self._program = self._make(parts)
            try:
                async with link:
                    await self._program.run()
            except* DiskFailed:
                self._trace.note("starts again", self.name)
                await asyncio.sleep(_RETRY_SECONDS)

    def promise(self, receipt: Receipt) -> None:
        """It issues a receipt: what it says must be in its custody, whatever happens now.

        Raises:
            Violation: it takes back what it has promised, and nobody gave it a reason to.
        """
        self._oracle.issued(receipt)
        if receipt.holder != self.name:
            return
        if self._life not in {None, receipt.life}:
            if not self._oracle.was_put_back:
                raise Violation(f"{self.name} begins the life {receipt.life}, and lost nothing")
            self._promised.clear()
        self._life = receipt.life
        place = Place.of(receipt)
        self._promised[place] = self._promised.get(place, Ranges()) | stated(receipt)

    def keep_refused(self, arrival: Arrival) -> None:
        """What it refuses is set aside, with an alarm."""
        self._oracle.keep_refused(arrival)

    def audit(self, archived: Callable[[Place], Ranges]) -> None:
        """Whether it holds what it promised, unless headquarters has it.

        Args:
            archived: the numbers of a place that headquarters has, or had.

        Raises:
            Violation: nobody holds it.
        """
        if self._program is None or not self._process.running:
            return
        if not self._program.is_open or self._program.life != self._life:
            # In another life it has to promise anew.
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

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            self._gateway.promise(receipt)
        await self._intake.publish(receipts)

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        self._gateway.keep_refused(arrival)
        await self._intake.refuse(arrival, refusal)
