"""The sender: what happens while a batch is being read."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.ports import Accepted, Part
from mesh.spool.batch import Batch
from mesh.spool.spool import Spool
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from mesh.transfer.source import Life
from nodes.forwarder import Forwarder, Uplink
from nodes.spool_source import SpoolSource
from schemas.messages import Lane, Receipt
from simulator.clock import SimClock, VirtualLoop
from simulator.disk import SimDisk
from tests.nodes.forwards import Standing
from tests.spool.world import CALM, Said, Watcher, opened, play

READ_SECONDS = 5.0


@dataclass
class Wire(Standing):
    """Port ``Link``: takes all, says nothing."""

    sent: list[Part] = field(default_factory=list)

    def reset(self, reason: str) -> None:
        """Comes up anew."""
        assert reason
        self.state = replace(self.state, connections=self.state.connections + 1)
        self.changed.set()

    async def send(self, part: Part) -> Accepted:
        """At once."""
        self.sent.append(part)
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """None."""
        await asyncio.Event().wait()
        yield  # type: ignore[misc]  # an iterator that ends with its task


class SlowSource(SpoolSource):
    """A spool on a medium that takes its time over logs."""

    reads = 0

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """After a while."""
        if lane is Lane.LOGS:
            self.reads += 1
            await asyncio.sleep(READ_SECONDS)
        return await super().next_batch(life, lane, start)


def _play(scenario: Callable[[Spool, SlowSource, Wire], Any]) -> None:
    async def main(_: random.Random) -> None:
        async with opened(SimDisk(), CALM) as spool:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            source, wire = SlowSource("hall", "pump", spool), Wire()
            uplinks = [Uplink(wire, LinkRule("up"))]
            forwarder = Forwarder(
                source, uplinks, {}, DeliverySettings(), SimClock(loop), Watcher()
            )
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(forwarder.run())
                await scenario(spool, source, wire)
                running.cancel()

    play(main)


def test_an_alarm_that_comes_while_history_is_read_goes_before_it() -> None:
    """The batch that was read waits for its turn, and is not read again."""

    async def scenario(spool: Spool, source: SlowSource, wire: Wire) -> None:
        said = Said()
        await said.append(spool, Lane.LOGS, ["history"])
        await asyncio.sleep(READ_SECONDS / 2)
        assert source.reads == 1
        await said.append(spool, Lane.ALARMS, ["alarm"])
        await asyncio.sleep(READ_SECONDS)
        lanes = [part.lane for part in wire.sent if part.lane is not Lane.ACCOUNT]
        assert lanes == [Lane.ALARMS, Lane.LOGS]
        assert source.reads == 1

    _play(scenario)


def test_a_batch_that_was_read_while_the_link_broke_is_chosen_anew() -> None:
    """Its lane goes on from where it is now, and nothing counts as sent that was not."""

    async def scenario(spool: Spool, source: SlowSource, wire: Wire) -> None:
        await Said().append(spool, Lane.LOGS, ["first"])
        await asyncio.sleep(READ_SECONDS / 2)
        wire.reset("a cable")
        await asyncio.sleep(READ_SECONDS)
        assert Lane.LOGS not in [part.lane for part in wire.sent]
        await asyncio.sleep(READ_SECONDS)
        assert [part.lane for part in wire.sent].count(Lane.LOGS) == 1
        assert source.reads == 2

    _play(scenario)
