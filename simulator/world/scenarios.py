"""Named scenarios: one thing goes wrong, at a time that matters, and the world is judged."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from mesh.ports import Part
from mesh.transfer.parts import part_of
from mesh.transfer.source import Life
from nodes.spool_source import SpoolSource
from schemas.messages import Lane
from simulator.crash.oracle import pending
from simulator.world.edge import LANES, SimEdge
from simulator.world.faults import DAY, Fault, Shape
from simulator.world.place import stated
from simulator.world.run import Say, stage
from simulator.world.world import Outcome, World

__all__ = ["SCENARIOS"]

_HOUR: Final = 3600.0
_FLAP_SECONDS: Final = (1.0, 5.0)
_CHANGES_MAX: Final = 24
_FULL_BYTES: Final = 512 * 1024
_PENDING_MIN: Final = 1000


def _ninety_day_outage(seed: int, say: Say | None) -> Outcome:
    """Row 31: ninety days without a link, then all of it, nothing twice."""

    async def act(world: World, rng: random.Random) -> None:
        del rng
        (edge,) = world.edges
        world.cut(edge.network, edge.path)
        await asyncio.sleep(90 * DAY)
        if edge.pending() < _PENDING_MIN:
            world.report(edge.name, f"only {edge.pending()} records wait after ninety days")
        edge.network.mend(edge.path)

    return stage(seed, _shape(1, 0, 90, records_per_day=30.0), act, None, say)


def _flapping_link(seed: int, say: Say | None) -> Outcome:
    """Row 32: a link that comes and goes every few seconds carries all the same."""

    async def act(world: World, rng: random.Random) -> None:
        edge = world.edges[1]
        end = asyncio.get_running_loop().time() + _HOUR / 4
        before = len(world.archive.rows)
        while asyncio.get_running_loop().time() < end:
            edge.append(rng.choice(LANES), 3)
            world.cut(edge.network, edge.path)
            await asyncio.sleep(rng.uniform(*_FLAP_SECONDS))
            edge.network.mend(edge.path)
            await asyncio.sleep(rng.uniform(*_FLAP_SECONDS))
        if len(world.archive.rows) == before:
            world.report(edge.name, "nothing came through a flapping link")

    return stage(seed, _shape(2, 1, 1), act, None, say)


def _gateway_lost_in_handover(seed: int, say: Say | None) -> Outcome:
    """Row 39: a gateway loses its power after each number of changes of its disk."""

    async def act(world: World, rng: random.Random) -> None:
        (gateway,) = world.gateways
        for changes in range(_CHANGES_MAX):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(gateway.crash(changes))
                for edge in world.edges:
                    edge.append(rng.choice(LANES), 3)
            await asyncio.sleep(rng.uniform(0, 5))
            gateway.start()
            await asyncio.sleep(rng.uniform(1, 120))
            world.check_gateway(gateway)

    return stage(seed, _shape(4, 1, 1), act, None, say)


def _stick_carried_twice(seed: int, say: Say | None) -> Outcome:
    """An edge without a link: its batches are carried, twice, and the receipts are carried back."""

    async def act(world: World, rng: random.Random) -> None:
        (edge,) = world.edges
        world.cut(edge.network, edge.path)
        stick: list[Part] = []
        for _ in range(2):
            for _ in range(20):
                edge.append(rng.choice(LANES), 3)
                await asyncio.sleep(60)
            stick += await _carry_out(edge)
            rng.shuffle(stick)
            for part in [*stick, *stick]:
                world.top.queue.put(part, asyncio.get_running_loop().time())
            await asyncio.sleep(_HOUR)
            _carry_back(world, edge)
        if edge.pending():
            world.report(edge.name, f"{edge.pending()} records wait though all were carried")
        edge.network.mend(edge.path)

    return stage(seed, _shape(1, 0, 1, records_per_day=0.0), act, None, say)


async def _carry_out(edge: SimEdge) -> list[Part]:
    spool = edge.spool
    assert spool is not None, "it runs"
    found = [batch for lane in Lane for batch in await pending(spool, lane)]
    return [part_of(one.header, one.data, one.digest, 0, len(one.data)) for one in found]


def _carry_back(world: World, edge: SimEdge) -> None:
    spool = edge.spool
    assert spool is not None, "it runs"
    source = SpoolSource(*edge.origin, spool)
    for receipt in world.top.receipts.get(edge.origin, {}).values():
        life = Life(*edge.origin, receipt.epoch)
        source.release(life, receipt.lane, stated(receipt), receipt)


def _three_days_down_with_a_full_disk(seed: int, say: Say | None) -> Outcome:
    """Row 16: no link for three days, and a spool too small for what is recorded meanwhile."""

    async def act(world: World, rng: random.Random) -> None:
        (edge,) = world.edges
        world.cut(edge.network, edge.path)
        await asyncio.sleep(1)
        await edge.stop()
        edge.settings = replace(edge.settings, bytes_max=_FULL_BYTES)
        edge.start()
        end = asyncio.get_running_loop().time() + 3 * DAY
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(rng.expovariate(1 / _HOUR))
            for lane in LANES:
                edge.append(lane, 24)
        edge.network.mend(edge.path)

    return stage(seed, _shape(1, 0, 3, records_per_day=0.0), act, None, say)


def _headquarters_restored(seed: int, say: Say | None) -> Outcome:
    """Row 35: the archive is put back from a backup that is a day old."""

    async def act(world: World, rng: random.Random) -> None:
        del rng
        await asyncio.sleep(2 * DAY)
        backup = world.archive.copy()
        await asyncio.sleep(DAY)
        await world.headquarters.restore(backup)
        await asyncio.sleep(DAY)

    return stage(seed, _shape(4, 1, 4, records_per_day=60.0), act, None, say)


def _re_imaged_edge(seed: int, say: Say | None) -> Outcome:
    """Row 25: an edge gets an empty disk, and goes on under its old name."""

    async def act(world: World, rng: random.Random) -> None:
        await asyncio.sleep(DAY)
        for edge in world.edges:
            world.oracle.destroy(*edge.origin)
            await edge.stop()
            edge.wipe()
            await asyncio.sleep(rng.uniform(0, _HOUR))
            edge.start()
        await asyncio.sleep(DAY)

    return stage(seed, _shape(2, 1, 2, records_per_day=60.0), act, None, say)


def _shape(edges: int, gateways: int, days: float, records_per_day: float = 20.0) -> Shape:
    none: tuple[Fault, ...] = ()
    return Shape(edges, gateways, days, records_per_day, none)


SCENARIOS: Final[Mapping[str, Callable[[int, Say | None], Outcome]]] = MappingProxyType(
    {
        "flapping-link": _flapping_link,
        "gateway-lost-in-handover": _gateway_lost_in_handover,
        "headquarters-restored-from-a-day-old-backup": _headquarters_restored,
        "ninety-day-outage": _ninety_day_outage,
        "re-imaged-edge-under-the-old-name": _re_imaged_edge,
        "stick-carried-twice": _stick_carried_twice,
        "three-days-down-with-a-full-disk": _three_days_down_with_a_full_disk,
    }
)
