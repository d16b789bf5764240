"""A forwarder over one link, on the running virtual loop."""

import asyncio
from collections.abc import Callable

from mesh.ports import Link, Observer
from mesh.spool.spool import Spool
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from nodes.forwarder import Forwarder, Uplink
from nodes.spool_source import SpoolSource
from simulator.clock import SimClock, VirtualLoop

__all__ = ["forward"]


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
