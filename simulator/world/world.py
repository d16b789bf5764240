"""The world: builds edges, gateways and headquarters, lets faults strike, mends, drains, judges.

Everything random comes from one generator; every wait is a timer of one virtual loop. So a seed is
a history, and the trace's hash says whether two runs were the same one.

What is checked, and when: each row and each receipt of headquarters as it is made; each edge and
gateway after a fault of its own has healed, and all of them once a day; everything, when the last
fault has healed, all links are up, all disks are sound, and nothing is under way any more.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from nodes.headquarters.ingest import Ingest
from schemas.ranges import Ranges
from simulator.clock import SimClock, VirtualLoop
from simulator.crash.annals import Violation
from simulator.disk import SimDisk
from simulator.link import NetworkSettings, SimNetwork
from simulator.world import forwarding
from simulator.world.archive import ArchiveDisk, SimArchive
from simulator.world.edge import EdgeSettings, SimEdge
from simulator.world.faults import DAY, Fault, Shape
from simulator.world.gateway import CustodyGateway, GatewayParts, GatewayProgram, SimGateway
from simulator.world.headquarters import SimHeadquarters
from simulator.world.oracle import Oracle
from simulator.world.place import Place
from simulator.world.process import Fuse
from simulator.world.trace import Trace

__all__ = ["Outcome", "Program", "World"]

_NETWORK: Final = NetworkSettings(
    delay_seconds_min=0.005,
    delay_seconds_max=0.05,
    reconnect_seconds_max=60.0,
    ack_seconds=60.0,
    ping_seconds=10.0,
)
_DRAIN_SECONDS: Final = 4 * DAY
_LOOK_SECONDS: Final = (5.0, 3600.0)
_VIOLATIONS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in the world; each may be replaced by one in which a fault is planted."""

    forward: forwarding.Forward = forwarding.forwarder
    gateway: Callable[[GatewayParts], GatewayProgram] = CustodyGateway
    archive: Callable[[ArchiveDisk, Fuse], SimArchive] = SimArchive
    ingest: type[Ingest] = Ingest


@dataclass(slots=True)
class Outcome:
    """What a world came to.

    Args:
        violations: what was wrong.
        records: how many were appended.
        rows: how many are in the archive, accounts included.
        crashes: of edges, gateways and workers.
        cuts: how often a link of a node was cut.
        faults: how often each kind struck.
        forks_dropped: records under a number with two that are nowhere to be seen, with an alarm.
        trace: hash of all events.
    """

    violations: list[str] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    crashes: int = 0
    cuts: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    forks_dropped: int = 0
    trace: str = ""


class World:
    """One world, built and not started.

    Args:
        shape: how large it is.
        rng: all its randomness.
        trace: takes its events.
        tasks: where it runs.
        program: what runs in it.
    """

    def __init__(
        self,
        shape: Shape,
        rng: random.Random,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        program: Program | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a world of its own has a time of its own"
        self.shape = shape
        self.rng = rng
        self.trace = trace
        self.outcome = Outcome()
        self._loop = loop
        self._tasks = tasks
        self._program = program or Program()
        self.archive = ArchiveDisk()
        self.oracle = Oracle(self.archive)
        self.archive.check = self.oracle.check_row
        self.top = SimNetwork(SimClock(loop), self._draw(), _NETWORK)
        self.headquarters = SimHeadquarters(
            *(self.top, SimClock(loop), self._draw(), self.oracle, self.archive),
            *(trace, tasks, self.report),
            archive=self._program.archive,
            ingest=self._program.ingest,
        )
        self.gateways = [self._gateway(number) for number in range(shape.gateways)]
        self.edges = [self._edge(number) for number in range(shape.edges)]

    def __repr__(self) -> str:
        return f"<World of {len(self.edges)} edges, {len(self.gateways)} gateways>"

    @property
    def elapsed_ns(self) -> int:
        """The true time since the world began."""
        return self._loop.elapsed_ns

    def _draw(self) -> random.Random:
        """A generator of its own for one party, so that none depends on how often others draw."""
        return random.Random(self.rng.getrandbits(64))  # noqa: S311  # a simulation

    def _gateway(self, number: int) -> SimGateway:
        below = SimNetwork(SimClock(self._loop), self._draw(), _NETWORK)
        return SimGateway(
            *(f"gateway{number}", below, self.top, self._draw()),
            *(self.oracle, self.trace, self._tasks, self.report),
            program=self._program.gateway,
        )

    def _edge(self, number: int) -> SimEdge:
        place = number % (len(self.gateways) + 1)
        network = self.gateways[place - 1].below if place else self.top
        settings = EdgeSettings(
            f"site{place}", f"e{number:05d}", self.rng.randbytes(16), self.shape.records_per_day
        )
        return self._made(settings, network, None)

    def _made(self, settings: EdgeSettings, network: SimNetwork, disk: SimDisk | None) -> SimEdge:
        return SimEdge(
            *(settings, network, SimClock(self._loop), self._draw()),
            *(self.oracle, self.trace, self._tasks, self.report),
            disk=disk,
            forward=self._program.forward,
        )

    # --- what happens -------------------------------------------------------------------------

    def report(self, who: str, what: str) -> None:
        """Somebody has found what must not be."""
        self.trace.note("violation", who, what)
        if len(self.outcome.violations) < _VIOLATIONS_MAX:
            self.outcome.violations.append(f"{who}: {what}")

    def start(self) -> None:
        """Everybody begins."""
        self.headquarters.start()
        for gateway in self.gateways:
            gateway.start()
        for edge in self.edges:
            edge.start()

    async def stop(self) -> None:
        """Everybody ends."""
        for edge in self.edges:
            await edge.end()
        for gateway in self.gateways:
            await gateway.stop()
        await self.headquarters.stop()

    def clone(self, edge: SimEdge) -> SimEdge:
        """Copies the store of an edge to another machine, which begins under the same name."""
        self.oracle.copied.add(edge.origin)
        settings = replace(edge.settings, machine=self.rng.randbytes(16))
        copy = self._made(settings, edge.network, edge.disk.crash(self.rng))
        self.edges.append(copy)
        copy.start()
        return copy

    def cut(self, network: SimNetwork, path: str) -> None:
        """Cuts a path."""
        if network.is_open(path):
            self.outcome.cuts += 1
        network.cut(path)

    # --- what is checked ----------------------------------------------------------------------

    async def check(self, edge: SimEdge) -> None:
        """Audits an edge; reports what is wrong."""
        try:
            await edge.audit()
        except Violation as wrong:
            self.report(edge.name, str(wrong))

    def check_gateway(self, gateway: SimGateway) -> None:
        """Audits a gateway; reports what is wrong."""
        try:
            gateway.audit(self._ever_archived)
        except Violation as wrong:
            self.report(gateway.name, str(wrong))

    def _ever_archived(self, place: Place) -> Ranges:
        return self.archive.numbers(place) | self.oracle.taken_back(place)

    async def keep_checking(self) -> None:
        """Audits everybody, once a day."""
        while True:
            await asyncio.sleep(DAY)
            for edge in list(self.edges):
                await self.check(edge)
            for gateway in self.gateways:
                self.check_gateway(gateway)

    # --- the end ------------------------------------------------------------------------------

    async def finish(self) -> Outcome:
        """All is mended already: states, drains, judges."""
        for edge in self.edges:
            edge.quiet = True
        for edge in self.edges:
            await edge.state()
        await self._drain()
        for edge in list(self.edges):
            await self.check(edge)
        for gateway in self.gateways:
            self.check_gateway(gateway)
        await self._judge()
        outcome = self.outcome
        outcome.records = self.oracle.records
        outcome.rows = sum(map(len, self.archive.rows.values()))
        outcome.crashes = self.headquarters.crashes
        outcome.crashes += sum(edge.crashes for edge in self.edges)
        outcome.crashes += sum(gateway.crashes for gateway in self.gateways)
        outcome.trace = self.trace.digest
        return outcome

    async def _drain(self) -> None:
        """Waits until nothing is under way; what is still there then is told as stuck."""
        pause, end = _LOOK_SECONDS[0], self._loop.time() + _DRAIN_SECONDS
        while stuck := self._stuck():
            if self._loop.time() > end:
                for one in stuck:
                    self.report("drain", one)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS[1])

    def _stuck(self) -> list[str]:
        """Who still has something to send, and what is missing."""
        waiting = [
            f"{edge.name} still holds {count} records"
            for edge in self.edges
            if (count := edge.pending()) and edge.origin not in self.oracle.alarmed
        ]
        waiting += [
            f"{gateway.name} still holds {count} records"
            for gateway in self.gateways
            if (count := gateway.pending())
        ]
        return waiting or self.oracle.unsettled(self.headquarters.lanes())

    async def _judge(self) -> None:
        pending: dict[Place, list[bytes]] = {}
        for edge in self.edges:
            for place, records in (await edge.held()).items():
                pending.setdefault(place, []).extend(records.values())
        try:
            kept: dict[Place, Ranges] = {}
            for gateway in self.gateways:
                for place, numbers in gateway.held().items():
                    kept[place] = kept.get(place, Ranges()) | numbers
            dropped = self.oracle.judge_end(self.headquarters.lanes(), pending, kept)
        except Violation as wrong:
            self.report("end", str(wrong))
        else:
            self.outcome.forks_dropped = dropped
