"""What each fault does to a world, and how it heals."""

import asyncio
import random
from dataclasses import replace
from typing import Final

from simulator.clock import START_WALL_NS
from simulator.link import NetworkSettings, SimNetwork
from simulator.world.edge import SimEdge
from simulator.world.faults import DAY, Fault, Strike
from simulator.world.world import World

__all__ = ["Striker"]

_FLAP_SECONDS: Final = (1.0, 5.0)
_SLOW_BYTES: Final = 250.0
_TEN_YEARS: Final = 3_652 * DAY
_BACKUP_SECONDS: Final = DAY
_CHANGES_MAX: Final = 40
_HEADQUARTERS: Final = "headquarters"


class Striker:
    """Lets faults strike a world, and heals them.

    Args:
        world: which.
        rng: draws what a strike leaves open.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._busy: set[str] = set()
        self._backup = world.archive.copy()

    async def keep_backups(self) -> None:
        """A backup of the archive once a day."""
        while True:
            self._backup = self._world.archive.copy()
            await asyncio.sleep(_BACKUP_SECONDS)

    async def strike(self, one: Strike) -> None:
        """Waits for its time, strikes, waits, heals, and looks at whom it struck."""
        await asyncio.sleep(one.at)
        world = self._world
        match one.fault:
            case Fault.UPLINK_CUT | Fault.GATEWAY_CRASH:
                await self._strike_gateway(one)
            case Fault.COMMON_CUT:
                self._begin(one)
                await self._cut_all(one.seconds)
            case (
                Fault.LOST_QUEUE
                | Fault.LEDGERS_AWAY
                | Fault.WORKER_CRASH
                | Fault.HEADQUARTERS_RESTORED
            ):
                await self._strike_headquarters(one)
            case _:
                edge = world.edges[one.target]
                if edge.name in self._busy:
                    # One at a time: what has not come back cannot be struck.
                    return
                self._busy.add(edge.name)
                self._begin(one)
                await self._strike_edge(one, edge)
                self._busy.discard(edge.name)
                await world.check(edge)

    def _begin(self, one: Strike) -> None:
        self._world.outcome.faults[one.fault] += 1
        self._world.trace.note("strikes", str(one))

    # --- edges --------------------------------------------------------------------------------

    async def _strike_edge(self, one: Strike, edge: SimEdge) -> None:
        match one.fault:
            case Fault.CUT:
                self._world.cut(edge.network, edge.path)
                await asyncio.sleep(one.seconds)
                edge.network.mend(edge.path)
            case Fault.FLAP:
                await self._flap(one, edge)
            case Fault.HALF_OPEN:
                edge.network.silence(edge.path)
                await asyncio.sleep(one.seconds)
                edge.network.mend(edge.path)
            case Fault.SLOW_LINK | Fault.DUPLICATED | Fault.REORDERED | Fault.LOST_MESSAGES:
                edge.network.alter(edge.path, _manners(one.fault, edge.network.settings))
                await asyncio.sleep(one.seconds)
                edge.network.alter(edge.path, None)
            case Fault.EDGE_CRASH:
                await edge.crash()
                await asyncio.sleep(one.seconds)
                edge.start()
            case Fault.FULL_DISK:
                room = self._rng.choice((0, 4096, 32_768))
                whole = edge.disk.capacity_bytes
                edge.disk.capacity_bytes = whole - edge.disk.free_bytes() + room
                await asyncio.sleep(one.seconds)
                edge.disk.capacity_bytes = whole
            case Fault.FAILING_DISK:
                edge.disk.faults.fail("sync", times=self._rng.randint(1, 4))
                edge.disk.faults.fail("write", after=self._rng.randint(0, 9))
                await asyncio.sleep(one.seconds)
                edge.disk.faults.heal()
            case Fault.CLOCK_JUMP:
                edge.clock.jump(self._rng.choice((-_TEN_YEARS, _TEN_YEARS)))
                edge.clock.distrust()
            case Fault.CLOCK_1970:
                await edge.crash()
                await asyncio.sleep(one.seconds)
                edge.clock = edge.clock.reboot(wall_ns=0)
                edge.start()
                await asyncio.sleep(one.seconds)
                edge.clock.set_wall(START_WALL_NS + self._world.elapsed_ns)
                edge.clock.trust()
            case Fault.CLONE:
                self._world.clone(edge)
            case Fault.EDGE_RESTORED:
                await self._restore(one, edge)
            case Fault.EDGE_REIMAGED:
                self._world.oracle.destroy(*edge.origin)
                await edge.stop()
                edge.wipe()
                await asyncio.sleep(one.seconds)
                edge.start()
            case _:
                raise AssertionError(f"{one.fault} does not strike an edge")

    async def _flap(self, one: Strike, edge: SimEdge) -> None:
        end = asyncio.get_running_loop().time() + one.seconds
        while asyncio.get_running_loop().time() < end:
            self._world.cut(edge.network, edge.path)
            await asyncio.sleep(self._rng.uniform(*_FLAP_SECONDS))
            edge.network.mend(edge.path)
            await asyncio.sleep(self._rng.uniform(*_FLAP_SECONDS))

    async def _restore(self, one: Strike, edge: SimEdge) -> None:
        backup = edge.disk.crash(self._rng)
        await asyncio.sleep(one.seconds)
        self._world.oracle.destroy(*edge.origin)
        await edge.stop()
        edge.disk = backup
        edge.start()

    # --- gateways and headquarters -----------------------------------------------------------

    async def _strike_gateway(self, one: Strike) -> None:
        gateway = self._world.gateways[one.target]
        if gateway.name in self._busy:
            return
        self._busy.add(gateway.name)
        self._begin(one)
        if one.fault is Fault.UPLINK_CUT:
            self._world.cut(self._world.top, gateway.name)
            await asyncio.sleep(one.seconds)
            self._world.top.mend(gateway.name)
        else:
            await gateway.crash(self._rng.randrange(_CHANGES_MAX))
            await asyncio.sleep(one.seconds)
            gateway.start()
            await asyncio.sleep(1)
        self._busy.discard(gateway.name)
        self._world.check_gateway(gateway)

    async def _strike_headquarters(self, one: Strike) -> None:
        headquarters = self._world.headquarters
        if one.fault is Fault.LOST_QUEUE:
            self._begin(one)
            for network in (self._world.top, *(one.below for one in self._world.gateways)):
                network.queue.lose()
            return
        if _HEADQUARTERS in self._busy:
            return
        self._busy.add(_HEADQUARTERS)
        self._begin(one)
        if one.fault is Fault.LEDGERS_AWAY:
            headquarters.ledgers.loss = 0.3
            await asyncio.sleep(one.seconds / 2)
            headquarters.ledgers.down = True
            await asyncio.sleep(one.seconds / 2)
            headquarters.ledgers.down, headquarters.ledgers.loss = False, 0.0
        elif one.fault is Fault.WORKER_CRASH:
            await headquarters.crash()
            await asyncio.sleep(one.seconds)
            headquarters.start()
        else:
            await headquarters.restore(self._backup)
        self._busy.discard(_HEADQUARTERS)

    async def _cut_all(self, seconds: float) -> None:
        world = self._world
        ways: list[tuple[SimNetwork, str]] = [(edge.network, edge.path) for edge in world.edges]
        for network, path in ways:
            world.cut(network, path)
        await asyncio.sleep(seconds)
        for network, path in ways:
            network.mend(path)


def _manners(fault: Fault, usual: NetworkSettings) -> NetworkSettings:
    """How a path behaves while a fault lasts."""
    match fault:
        case Fault.SLOW_LINK:
            return replace(usual, bytes_per_second=_SLOW_BYTES, delay_seconds_max=0.6)
        case Fault.DUPLICATED:
            return replace(usual, repetition=0.5, delay_seconds_max=2.0)
        case Fault.REORDERED:
            return replace(usual, delay_seconds_max=15.0)
        case _:
            return replace(usual, loss=0.3)
