"""Edges, gateways and a shore on virtual time: all crash, and the network does what it can."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.ports import Accepted, Arrival, LinkState, Part, Refusal
from mesh.spool import batch as batches
from mesh.transfer import ledger
from mesh.transfer.custody.custody import Custody, Outcome
from mesh.transfer.custody.lane import LaneKey, key_of
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from mesh.transfer.source import Life
from nodes.forwarder import Forwarder, Uplink
from nodes.gateway.gateway import Gateway
from nodes.gateway.hearing import Hearing
from schemas import wire
from schemas.errors import Refused
from schemas.messages import Account, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger
from simulator.clock import SimClock, VirtualLoop
from simulator.crash.stage import Thread
from simulator.disk import SimDisk
from simulator.disk_faults import PowerCut
from simulator.link import SimIntake, SimLink, SimNetwork
from tests.scenarios.world import CrashNow, Edge
from tests.spool.world import Watcher

__all__ = ["Fuse", "GatewayNode", "Shore", "audit", "drain"]

_DELIVERY = DeliverySettings(window_batches=4, receipt_seconds=8.0, full_bytes=2000)
_FOREVER = 10**9


class Fuse:
    """Lets so many calls through, then the process is gone."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def burn(self) -> None:
        """One call."""
        self.left -= 1
        if self.left < 0:
            raise CrashNow


class _Custody(Custody):
    """A store whose process may be gone before and after each thing that is asked of it."""

    fuse = Fuse(_FOREVER)

    async def take(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        self.fuse.burn()
        outcomes = await super().take(arrivals)
        self.fuse.burn()
        return outcomes

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        self.fuse.burn()
        super().release(life, lane, numbers, receipt)
        self.fuse.burn()


class _Intake:
    """Checks each receipt before it leaves."""

    def __init__(self, intake: SimIntake, node: "GatewayNode", fuse: Fuse) -> None:
        self._intake = intake
        self._node = node
        self._fuse = fuse
        self.batches = intake.batches

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        self._fuse.burn()
        await self._node.check(receipts)
        await self._intake.publish(receipts)
        self._fuse.burn()

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        self._fuse.burn()
        await self._intake.accept(arrivals)
        self._fuse.burn()

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        self._node.refused.append(refusal)
        await self._intake.refuse(arrival, refusal)


class _Link:
    """An uplink that may be where the process ends."""

    def __init__(self, link: SimLink, fuse: Fuse) -> None:
        self._link = link
        self._fuse = fuse
        self.wait_changed = link.wait_changed
        self.reset = link.reset

    @property
    def state(self) -> LinkState:
        return self._link.state

    async def send(self, part: Part) -> Accepted | Refusal:
        self._fuse.burn()
        answer = await self._link.send(part)
        self._fuse.burn()
        return answer

    async def receipts(self) -> AsyncIterator[Receipt]:
        async for receipt in self._link.receipts():
            yield receipt


@dataclass
class GatewayNode:
    """A gateway that dies after so many calls or changes of its disk, and starts again.

    Args:
        rng: draws what is random.
        below: the network of its site.
        above: the network of its uplink.
        name: as its receipts are signed.
        calls: how many calls each life lasts.
        changes: how many changes of its disk each life lasts.
        settings: of its store.
    """

    rng: random.Random
    below: SimNetwork
    above: SimNetwork
    name: str = "gateway"
    calls: Callable[[], int] = lambda: _FOREVER
    changes: Callable[[], int] = lambda: _FOREVER
    settings: CustodySettings | None = None
    disk: SimDisk = field(default_factory=SimDisk)
    watcher: Watcher = field(default_factory=Watcher)
    refused: list[Refusal] = field(default_factory=list)
    deaths: int = 0
    checks: int = 0
    custody: Custody | None = None
    _released: dict[LaneKey, Ranges] = field(default_factory=dict)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.disk.faults.cut_power(self.changes())
            try:
                await self._live(Fuse(self.calls()))
            except* (CrashNow, PowerCut):
                self.deaths += 1
            self.custody = None
            self.disk = self.disk.crash(self.rng, block_bytes=self.rng.choice([512, 4096]))
            await asyncio.sleep(self.rng.uniform(0, 3))

    async def _live(self, fuse: Fuse) -> None:
        self.custody = custody = await _Custody.open(self._resources(self.disk), self._settings())
        custody.fuse = fuse  # type: ignore[attr-defined]
        link = self.above.link(None, None, "up", path=self.name)
        async with link:
            forwarder = Forwarder(
                custody,
                [Uplink(Hearing(_Link(link, fuse), custody), LinkRule("up"))],
                *({}, _DELIVERY, self._clock(), self.watcher),
                relays=True,
            )
            intake: Any = _Intake(self.below.intake(self.name), self, fuse)
            await Gateway(custody, [intake], forwarder, self.watcher).run()

    async def check(self, receipts: Sequence[Receipt]) -> None:
        """A receipt is never ahead of the disk: a crash now takes nothing that it states."""
        if self.custody is None or self.rng.random() > 0.05:
            return
        released = {
            key: self.custody.released(*key)
            for key in self.custody.keys()  # noqa: SIM118
        }
        image = self.disk.crash(self.rng, block_bytes=512)
        there = await Custody.open(self._resources(image), self._settings())
        self.checks += 1
        for receipt in receipts:
            key = LaneKey(Life(receipt.site, receipt.node, receipt.epoch), receipt.lane)
            if receipt.stage is not Stage.HELD or receipt.holder != self.name:
                continue
            stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
            holding = there._vault.holdings.get(key)
            kept = Ranges.of(
                span
                for one in (holding.kept() if holding is not None else ())
                for span in one.present.spans
            )
            further = released.get(key, Ranges())
            gone = stated - kept - further
            assert not gone, f"{receipt} is ahead of the disk: {gone}"
        await there.close()

    def pending(self) -> int:
        """How many batches wait for a receipt; one while it is away."""
        return 1 if self.custody is None else self.custody.status().batches

    def _settings(self) -> CustodySettings:
        size = self.rng.choice([1, 2000, 100_000])
        return self.settings or CustodySettings(
            self.name, bytes_max=8 << 20, journal_bytes_max=size, retained_share=0.01
        )

    def _clock(self) -> SimClock:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return SimClock(loop)

    def _resources(self, disk: SimDisk) -> CustodyResources:
        rng = random.Random(self.rng.randrange(2**32))
        return CustodyResources(
            *(disk, self._clock(), Thread(), Thread(), rng.randbytes, rng, b"m" * 16),
            self.watcher,
        )


@dataclass
class Shore:
    """The end of the way: keeps each record once, in memory that never fails."""

    net: SimNetwork
    ledgers: dict[LaneKey, LaneLedger] = field(default_factory=dict)
    records: dict[tuple[str, str, Lane, int], bytes] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    numbers: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        intake = self.net.intake("shore")
        async for arrivals in intake.batches():
            touched = [key for arrival in arrivals for key in self._take(arrival)]
            await intake.publish([self._receipt(key) for key in dict.fromkeys(touched)])
            await intake.accept(arrivals)

    def _take(self, arrival: Arrival) -> list[LaneKey]:
        batch = batches.parse(arrival.payload)
        header, key = batch.header, key_of(batch.header)
        known = self.ledgers.get(key) or LaneLedger(*key.life, key.lane)
        try:
            taken = ledger.take(known, header, 0)
        except Refused as refused:
            self.refused.append(refused)
            return []
        self.ledgers[key] = taken.ledger
        for seq, record in zip(header.present, batches.open_records(batch), strict=True):
            if seq not in taken.new:
                continue
            identity = (header.node, str(header.epoch), header.lane, seq)
            assert identity not in self.records, "a number is taken once"
            self.records[identity] = record
            said = wire.decode(record)
            if isinstance(said, Account):
                self._explain(key.life, said)
        return [key]

    def _explain(self, life: Life, account: Account) -> None:
        key = LaneKey(life._replace(epoch=account.epoch), account.lane)
        known = self.ledgers.get(key) or LaneLedger(*key.life, key.lane)
        self.ledgers[key] = ledger.explain(known, account)

    def _receipt(self, key: LaneKey) -> Receipt:
        self.numbers += 1
        partition = PartitionLedger("hq", Epoch(1, 1))
        return ledger.receipt(partition, self.ledgers[key], self.numbers, Stage.ARCHIVED)

    def unsettled(self) -> list[str]:
        """What is neither here nor explained."""
        lines = {key: ledger.account_line(known) for key, known in self.ledgers.items()}
        return [f"{key}: {line}" for key, line in lines.items() if line.missing]


async def drain(edges: Sequence[Edge], gateways: Sequence[GatewayNode], shore: Shore) -> None:
    """The trouble ends: then all goes through, in bounded time."""
    for gateway in gateways:
        gateway.calls = gateway.changes = lambda: _FOREVER
        gateway.above.mend(gateway.name)
    for edge in edges:
        edge.net.mend(edge.node)
        await edge.spool.commit()
        await edge.spool.state_accounts()
    async with asyncio.timeout(7200):
        while (  # noqa: ASYNC110 - virtual
            any(edge.pending() for edge in edges)
            or any(gateway.pending() for gateway in gateways)
            or shore.unsettled()
        ):
            await asyncio.sleep(1)


def audit(edges: Sequence[Edge], gateways: Sequence[GatewayNode], shore: Shore) -> int:
    """Each identity once or explained, as it was; returns how many records there are."""
    for edge in edges:
        for lane, produced in edge.said.produced.items():
            there = {
                seq: record
                for (node, _, name, seq), record in shore.records.items()
                if (node, name) == (edge.node, lane)
            }
            for seq, record in there.items():
                assert produced[seq] == record, f"{lane}/{seq} is another record"
            lost = edge.said.acknowledged.get(lane, set()) - there.keys()
            assert not lost, f"acknowledged and lost: {edge.node} {lane} {sorted(lost)}"
    assert shore.unsettled() == []
    assert shore.refused == []
    for gateway in gateways:
        assert gateway.refused == []
    return len(shore.records)
