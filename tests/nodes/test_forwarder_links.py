"""The forwarder over several links and narrow ones: failover, parts, and links that get nowhere."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from mesh.ports import Accepted, LinkState, Part, Refusal
from mesh.spool.spool import DEFAULT_LANES, Spool
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.parts import Assembly
from mesh.transfer.schedule import LinkRule
from nodes.forwarder import CustodyLost, Forwarder, LinkStalled, Uplink
from nodes.spool_source import SpoolSource
from schemas.errors import LinkDown, RefusedBecause
from schemas.messages import Epoch, Lane, Receipt, Stage
from simulator.clock import SimClock, VirtualLoop
from simulator.disk import SimDisk
from tests.spool.world import CALM, Said, Watcher, opened, play

SETTINGS = DeliverySettings(receipt_seconds=60.0)


@dataclass
class Pipe:
    """Port ``Link``: so many bytes a second, one after another; puts parts together, and receipts.

    Args:
        name: of the link.
        rate: bytes a second.
        bytes_max: the largest part that it takes.
        deaf: whether it answers nothing.
    """

    name: str
    rate: float = 1e9
    bytes_max: int = 1 << 20
    deaf: bool = False
    up: bool = True
    resets: int = 0
    arrived: list[tuple[float, Lane, int]] = field(default_factory=list)
    state: LinkState = field(init=False)
    news: "asyncio.Queue[Receipt]" = field(default_factory=asyncio.Queue)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    free_at: float = 0.0
    parts: int = 0

    def __post_init__(self) -> None:
        self.assembly = Assembly()
        self.state = LinkState(self.name, up=self.up, reason="", since_mono_ns=0, connections=1)

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Once it differs."""
        while (self.state.up, self.state.connections) == (seen.up, seen.connections):
            self.changed.clear()
            await self.changed.wait()
        return self.state

    def turn(self, *, up: bool) -> None:
        """Up or down."""
        self.state = replace(self.state, up=up, connections=self.state.connections + up)
        self.changed.set()

    def reset(self, reason: str) -> None:
        """Comes up anew, and hears again."""
        assert reason
        self.resets += 1
        self.deaf = False
        self.turn(up=False)
        asyncio.get_running_loop().call_later(1.0, lambda: self.turn(up=True))

    async def send(self, part: Part) -> Accepted | Refusal:
        """Takes its time."""
        loop = asyncio.get_running_loop()
        if not self.state.up:
            raise LinkDown(f"{self.name} is down")
        connections = self.state.connections
        if len(part.payload) > self.bytes_max:
            return Refusal(RefusedBecause.TOO_LARGE, f"at most {self.bytes_max}", 0.0)
        if self.deaf:
            await asyncio.sleep(20.0)
            raise LinkDown("no answer")
        self.free_at = max(self.free_at, loop.time()) + len(part.payload) / self.rate
        await asyncio.sleep(self.free_at - loop.time() + 0.01)
        if connections != self.state.connections or not self.state.up:
            raise LinkDown(f"{self.name} broke")
        self.parts += 1
        whole = self.assembly.take(part, loop.time())
        if whole is not None:
            self.arrived.append((loop.time(), part.lane, len(whole)))
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """As they come."""
        while True:
            yield await self.news.get()

    def lanes(self) -> list[Lane]:
        """Of the batches that arrived, in order."""
        return [lane for _, lane, _ in self.arrived]


class World:
    """A spool, links, a forwarder."""

    def __init__(self, spool: Spool, *uplinks: Uplink) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.spool = spool
        self.said = Said()
        self.watcher = Watcher()
        self.number = 0
        self.forwarder = Forwarder(
            SpoolSource("hall", "pump", spool), uplinks, {}, SETTINGS, SimClock(loop), self.watcher
        )

    async def append(self, lane: Lane, count: int, size: int = 100) -> None:
        """Records of random text, which does not shrink."""
        rng = random.Random(count)
        await self.said.append(
            self.spool, lane, [rng.randbytes(size // 2).hex() for _ in range(count)]
        )

    def receipt(self, pipe: Pipe, lane: Lane, watermark: int, life: int = 1) -> None:
        """Comes over a link."""
        self.number += 1
        pipe.news.put_nowait(
            Receipt(
                pipe.name,
                Epoch(life, 9),
                self.number,
                Stage.ARCHIVED,
                "hall",
                "pump",
                self.spool.epoch,
                lane,
                watermark,
                b"",
                0,
            )
        )


def _play(scenario: Callable[[World], Awaitable[None]], *pipes: Pipe | Uplink) -> None:
    async def main(_: random.Random) -> None:
        uplinks = [
            pipe if isinstance(pipe, Uplink) else Uplink(pipe, LinkRule(pipe.name))
            for pipe in pipes
        ]
        async with opened(SimDisk(), replace(CALM, lanes=DEFAULT_LANES)) as spool:
            world = World(spool, *uplinks)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(world.forwarder.run())
                await scenario(world)
                running.cancel()

    play(main)


def test_an_alarm_overtakes_history_on_a_narrow_link() -> None:
    """Row 37: at 2,000 bytes a second, half a minute of history before it, two seconds at most."""
    pipe = Pipe("up", rate=2000.0)

    async def scenario(world: World) -> None:
        await world.append(Lane.LOGS, 900)
        await asyncio.sleep(20.0)
        raised = asyncio.get_running_loop().time()
        await world.append(Lane.ALARMS, 1)
        await asyncio.sleep(4.0)
        at = next(at for at, lane, _ in pipe.arrived if lane is Lane.ALARMS)
        assert at - raised < 2.0
        assert Lane.LOGS not in pipe.lanes(), "its batch is still on its way"
        await asyncio.sleep(60.0)
        assert Lane.LOGS in pipe.lanes(), "and arrives, whole"
        assert pipe.parts > 20

    _play(scenario, pipe)


def test_a_fast_link_carries_whole_batches() -> None:
    """Parts are for links that need them."""
    pipe = Pipe("up")

    async def scenario(world: World) -> None:
        for _ in range(20):
            await world.append(Lane.LOGS, 900)
        await asyncio.sleep(5.0)
        assert len(pipe.arrived) > 8
        assert pipe.parts < len(pipe.arrived) + 12, "the first ones, before its pace is known"

    _play(scenario, pipe)


def test_the_preferred_link_carries_and_the_other_takes_over() -> None:
    """Failover at once, return when the first has stayed up for a while."""
    first, second = Pipe("fibre"), Pipe("radio")

    async def scenario(world: World) -> None:
        await world.append(Lane.EVENTS, 1)
        await asyncio.sleep(1.0)
        assert Lane.EVENTS in first.lanes()
        assert not second.arrived
        first.turn(up=False)
        await asyncio.sleep(1.0)
        assert Lane.EVENTS in second.lanes(), "it had no receipt"
        world.receipt(second, Lane.EVENTS, 1)
        await world.append(Lane.EVENTS, 1)
        await asyncio.sleep(1.0)
        assert second.lanes().count(Lane.EVENTS) == 2
        world.receipt(second, Lane.EVENTS, 2)
        first.turn(up=True)
        await asyncio.sleep(1.0)
        first.arrived.clear()
        await world.append(Lane.EVENTS, 1)
        await asyncio.sleep(1.0)
        assert Lane.EVENTS not in first.lanes(), "it may flap"
        await asyncio.sleep(10.0)
        await world.append(Lane.EVENTS, 1)
        await asyncio.sleep(1.0)
        assert Lane.EVENTS in first.lanes()

    _play(scenario, first, second)


def test_a_costly_link_carries_what_is_urgent_only() -> None:
    """And nothing else while the other is down."""
    first, second = Pipe("fibre", up=False), Pipe("satellite")
    costly = Uplink(second, LinkRule("satellite", least=Lane.ALARMS))

    async def scenario(world: World) -> None:
        await world.append(Lane.LOGS, 5)
        await world.append(Lane.ALARMS, 1)
        await asyncio.sleep(100.0)
        assert set(second.lanes()) == {Lane.ACCOUNT, Lane.ALARMS}
        first.turn(up=True)
        await asyncio.sleep(2.0)
        assert Lane.LOGS in first.lanes()

    _play(scenario, first, costly)


def test_a_link_that_is_up_and_carries_nothing_is_made_anew() -> None:
    """Rows 33 and 34: torn down within two deadlines, and the backlog drains without a restart."""
    pipe = Pipe("up", deaf=True)

    async def scenario(world: World) -> None:
        for _ in range(3):
            await world.append(Lane.LOGS, 900)
        await world.append(Lane.ALARMS, 1)
        await asyncio.sleep(50.0)
        assert pipe.resets == 1
        assert len(world.watcher.of(LinkStalled)) == 1
        assert {Lane.LOGS, Lane.ALARMS} <= set(pipe.lanes())

    _play(scenario, pipe)


def test_a_link_that_takes_small_parts_only_gets_small_ones() -> None:
    """A broker's limit on the size of a message holds nothing up for good."""
    pipe = Pipe("up", bytes_max=5000)

    async def scenario(world: World) -> None:
        await world.append(Lane.LOGS, 900)
        await asyncio.sleep(10.0)
        assert Lane.LOGS in pipe.lanes()
        assert world.forwarder.progress()[Lane.LOGS].under_way == 0

    _play(scenario, pipe)


def test_a_day_s_budget_is_kept() -> None:
    """What does not fit waits for tomorrow; what is told says why."""
    pipe = Pipe("up")
    budget = Uplink(pipe, LinkRule("up", bytes_per_day=30_000))

    async def scenario(world: World) -> None:
        for _ in range(10):
            await world.append(Lane.LOGS, 100)
            await asyncio.sleep(2.0)
        await asyncio.sleep(60.0)
        assert sum(size for _, _, size in pipe.arrived) <= 30_000
        waits = world.forwarder.view().plan.waits
        assert "budget" in str(waits["up", Lane.LOGS])

    _play(scenario, budget)


def test_a_token_bucket_holds_its_rate() -> None:
    """Over a minute no more goes than the burst and a minute's tokens."""
    pipe = Pipe("up")
    slow = Uplink(pipe, LinkRule("up", bytes_per_second=1000.0, burst_bytes=8192))

    async def scenario(world: World) -> None:
        for _ in range(4):
            await world.append(Lane.LOGS, 900)
        await asyncio.sleep(60.0)
        sent = pipe.assembly.held_bytes + sum(size for _, _, size in pipe.arrived)
        assert 0.8 * 60_000 < sent <= 60_000 + 8192 + 1024

    _play(scenario, slow)


def test_what_a_holder_lost_is_offered_again() -> None:
    """Row 35: a receipt of another life that states less; told as an alarm."""
    pipe = Pipe("up")

    async def scenario(world: World) -> None:
        await world.append(Lane.EVENTS, 5)
        await asyncio.sleep(1.0)
        world.receipt(pipe, Lane.EVENTS, 5)
        await asyncio.sleep(1.0)
        world.receipt(pipe, Lane.EVENTS, 2, life=2)
        await asyncio.sleep(1.0)
        (lost,) = world.watcher.of(CustodyLost)
        assert isinstance(lost, CustodyLost)
        assert lost.lost == 3

    _play(scenario, pipe)


def test_accounting_of_sends_survives_any_order_of_breaks() -> None:
    """Row 32: links that flap in turn for an hour; then everything drains, and nothing is open."""
    first, second = Pipe("a", rate=3000.0), Pipe("b", rate=3000.0)
    rng = random.Random(5)

    async def scenario(world: World) -> None:
        for _ in range(300):
            if rng.random() < 0.3:
                await world.append(rng.choice([Lane.LOGS, Lane.EVENTS]), rng.randint(1, 60))
            pipe = rng.choice([first, second])
            pipe.turn(up=not pipe.state.up)
            await asyncio.sleep(rng.uniform(0.1, 12.0))
        for pipe in (first, second):
            pipe.turn(up=True)
        for _ in range(200):
            await asyncio.sleep(10.0)
            for lane in Lane:
                taken = world.forwarder.progress()[lane].sent_to
                world.receipt(first, lane, min(taken, world.spool.durable(lane)))
        async with asyncio.timeout(10):
            await world.forwarder.drained()
        await asyncio.sleep(5)
        assert world.forwarder._sender.sends == 0
        assert not world.forwarder._sender.transfers()

    _play(scenario, first, second)
