"""A backlog drains by itself after whatever was done to the link, over a real server and proxy."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy
from mesh.adapters.thread import LoopThread
from mesh.spool import batch as batches
from mesh.spool.batch import Labels
from mesh.spool.spool import Resources, Spool, SpoolSettings
from mesh.transfer import ledger
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from nodes.forwarder import Forwarder, Uplink
from nodes.spool_source import SpoolSource
from schemas import wire
from schemas.errors import LinkDown
from schemas.messages import Epoch, Event, Lane, Severity, Stage
from schemas.stored import PartitionLedger
from simulator.wan import WanProxy

pytestmark = pytest.mark.integration

DRAIN_SECONDS = 30.0
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


@dataclass
class Site:
    """An edge's spool and link, a proxy, a server, and a receiver behind it."""

    server: EmbeddedServer
    wan: WanProxy
    spool: Spool
    link: JetStreamLink
    told: list[object] = field(default_factory=list)
    made: int = 0

    async def record(self, seconds: float, per_second: int = 50) -> None:
        """Appends events all the time."""
        for _ in range(int(seconds * per_second)):
            self.made += 1
            event = Event(self.made, self.made, "tick", Severity.NOTICE, f"number {self.made}")
            self.spool.append(Lane.EVENTS, [wire.encode(event)])
            await asyncio.sleep(1 / per_second)

    async def drained(self) -> None:
        """Returns once nothing waits for a receipt; fails through its deadline."""
        async with asyncio.timeout(DRAIN_SECONDS):
            while any(  # noqa: ASYNC110 - nothing announces it
                lane.pending_records or lane.waiting_records
                for lane in self.spool.status().lanes.values()
            ):
                await asyncio.sleep(0.05)

    def observe(self, event: object) -> None:
        """Keeps it."""
        self.told.append(event)


def _play(directory: Path, scenario: Callable[[Site], Awaitable[None]], seconds: float) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds), _site(directory) as site:
            await scenario(site)

    asyncio.run(main())


@asynccontextmanager
async def _site(directory: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        settings = ServerSettings("upstream", directory / "server", restart_seconds_min=0.05)
        server = await stack.enter_async_context(EmbeddedServer(settings, random.Random(1)))
        port = urlsplit(server.client_url).port
        assert port is not None
        wan = await stack.enter_async_context(WanProxy("127.0.0.1", 0, "127.0.0.1", port))
        near = SessionSettings("near", (server.client_url,), ping_seconds=1.0)
        far = SessionSettings(
            "up",
            (f"nats://127.0.0.1:{wan.port}",),
            connect_seconds=2.0,
            request_seconds=3.0,
            ping_seconds=1.0,
            reconnect_seconds_min=0.05,
            reconnect_seconds_max=1.0,
        )
        clock = SystemClock()
        intake = await stack.enter_async_context(
            JetStreamIntake(
                IntakeSettings(near, up_bytes_max=2**24, ack_seconds=5.0), clock, random.Random(2)
            )
        )
        link = await stack.enter_async_context(
            JetStreamLink(
                LinkSettings(far, "hall", "pump", send_seconds=3.0), clock, random.Random(3)
            )
        )
        spool = await _spool(directory / "spool", stack)
        site = Site(server, wan, spool, link)
        forwarder = Forwarder(
            SpoolSource("hall", "pump", spool),
            [Uplink(link, LinkRule("up"))],
            {},
            DeliverySettings(receipt_seconds=5.0),
            clock,
            site,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work)
                for work in (_hold(intake), forwarder.run(), spool.maintain())
            ]
            yield site
            for task in running:
                task.cancel()


async def _spool(directory: Path, stack: AsyncExitStack) -> Spool:
    class Silent:
        def observe(self, event: object) -> None:
            """Says nothing."""

    writer = stack.enter_context(LoopThread("writer"))
    worker = stack.enter_context(ThreadPoolExecutor(1))
    resources = Resources(
        SystemDisk(directory),
        SystemClock(),
        writer,
        worker,
        entropy,
        boot_id(),
        bytes(16),
        Silent(),
    )
    spool = await Spool.open(resources, SpoolSettings(Labels("hall", "pump")))
    stack.push_async_callback(spool.close)
    return spool


async def _hold(intake: JetStreamIntake) -> None:
    """Takes each batch into a ledger in memory, answers with a receipt, and forgets the bytes."""
    partition = PartitionLedger("hq", Epoch(1, 7))
    number = 0
    while True:
        try:
            async with aclosing(intake.batches()) as groups:
                async for group in groups:
                    for arrival in group:
                        header = batches.parse(arrival.payload).header
                        place = (header.site, header.node, header.epoch, header.lane)
                        taken = ledger.take(ledger.find(partition, *place), header, 0)
                        partition = ledger.store(partition, [taken.ledger])
                        number += 1
                        receipt = ledger.receipt(partition, taken.ledger, number, Stage.ARCHIVED)
                        await intake.publish([receipt])
                        await intake.accept([arrival])
        except LinkDown:
            await asyncio.sleep(0.2)


async def _hang(site: Site, seconds: float) -> None:
    """The server is stopped as a whole for a while."""
    pid = site.server.state.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await site.record(seconds)
        assert not site.link.state.up, "noticed long before"
    finally:
        os.kill(pid, signal.SIGCONT)


async def _swallow(site: Site, seconds: float) -> None:
    """The proxy keeps its sockets and throws away what they bring."""
    await site.wan.half_open()
    noticed = asyncio.get_running_loop().time()
    while site.link.state.up:
        await site.record(0.1)
    assert asyncio.get_running_loop().time() - noticed < 4.0
    await site.record(seconds)
    await site.wan.restore()


async def _flap(site: Site, times: int) -> None:
    """Up for a second and down for a second, so many times; the memory stays what it was."""
    warm = times // 4
    before = 0
    for number in range(times):
        if number == warm:
            before = _resident_bytes()
        await site.wan.cut()
        await site.record(1.0)
        await site.wan.restore()
        await site.record(1.0)
    grown = _resident_bytes() - before
    assert grown < 8_000_000, f"{grown} bytes more after {times - warm} flaps"
    assert len(asyncio.all_tasks()) < 60


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE_BYTES


def _scenario(
    fault: Callable[[Site, float], Awaitable[None]], amount: float
) -> Callable[..., Awaitable[None]]:
    async def scenario(site: Site) -> None:
        await site.record(2.0)
        await site.drained()
        await fault(site, amount)
        await site.drained()
        await site.record(1.0)
        await site.drained()

    return scenario


def test_a_server_that_hangs(tmp_path: Path) -> None:
    """Row 34: stopped, then going on; everything arrives, nobody restarts anything."""
    _play(tmp_path, _scenario(_hang, 5.0), 90.0)


def test_a_network_that_swallows(tmp_path: Path) -> None:
    """Row 33: half-open sockets are noticed within four times a ping, and the backlog drains."""
    _play(tmp_path, _scenario(_swallow, 3.0), 90.0)


def test_a_network_that_flaps(tmp_path: Path) -> None:
    """Row 32: down and up every second; between two cuts something goes through."""
    _play(tmp_path, _scenario(_flap_some, 4), 90.0)


async def _flap_some(site: Site, times: float) -> None:
    await _flap(site, int(times))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_server_that_hangs_for_a_minute(tmp_path: Path) -> None:
    """Row 34: for 60 seconds."""
    _play(tmp_path, _scenario(_hang, 60.0), 180.0)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_network_that_swallows_for_a_minute(tmp_path: Path) -> None:
    """Row 33: for 60 seconds."""
    _play(tmp_path, _scenario(_swallow, 60.0), 180.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_network_that_flaps_two_hundred_times(tmp_path: Path) -> None:
    """Row 32: 200 flaps of two seconds, and the memory stays flat."""
    _play(tmp_path, _scenario(_flap_some, 200), 560.0)
