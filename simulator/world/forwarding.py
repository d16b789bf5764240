"""How a party of the world forwards: the one place that knows how a forwarder is made."""

from collections.abc import Callable
from typing import Final

from mesh.ports import Clock, Link, Observer
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from mesh.transfer.source import Source
from nodes.forwarder import Forwarder, Uplink

__all__ = ["Forward", "forwarder"]

_DELIVERY: Final = DeliverySettings(window_batches=4, receipt_seconds=300.0, full_bytes=2000)
"""A small window; a missing receipt is worth a second try, not a storm."""

Forward = Callable[[Source, Link, Clock, Observer, Callable[[], None] | None], Forwarder]
"""Makes a forwarder: what ``forwarder`` takes."""


def forwarder(
    source: Source,
    link: Link,
    clock: Clock,
    observer: Observer,
    outdated: Callable[[], None] | None,
) -> Forwarder:
    """A forwarder over one link, with default rules for lanes.

    Args:
        source: what to drain.
        link: over which link.
        clock: for budgets by the day.
        observer: is told what happens.
        outdated: called when the source has turned out to be an older copy; ``None`` where the
            source holds what others recorded.
    """
    uplinks = [Uplink(link, LinkRule(link.state.name))]
    if outdated is None:
        return Forwarder(source, uplinks, {}, _DELIVERY, clock, observer, relays=True)
    return Forwarder(source, uplinks, {}, _DELIVERY, clock, observer, outdated)
