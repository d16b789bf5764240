"""A forwarder over one link, on the running virtual loop; and how such a link stands."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.ports import Link, LinkState, Observer
from mesh.spool.spool import Spool
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from nodes.forwarder import Forwarder, Uplink
from nodes.spool_source import SpoolSource
from simulator.clock import SimClock, VirtualLoop

__all__ = ["Standing", "forward"]


@dataclass(kw_only=True)
class Standing:
    """How a link in a test stands, for who waits until that changes."""

    state: LinkState = field(
        default_factory=lambda: LinkState("up", up=True, reason="", since_mono_ns=0, connections=1)
    )
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Once it differs."""
        while (self.state.up, self.state.connections) == (seen.up, seen.connections):
            self.changed.clear()
            await self.changed.wait()
        return self.state


def forward(
    node: str,
    spool: Spool,
    link: Link,
    settings: DeliverySettings,
    observer: Observer,
    outdated: Callable[[], None] = lambda: None,
) -> Forwarder:
    """Drains a spool of site ``hall`` as lanes are drained by default."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    source = SpoolSource("hall", node, spool)
    uplinks = [Uplink(link, LinkRule(link.state.name))]
    return Forwarder(source, uplinks, {}, settings, SimClock(loop), observer, outdated)
