"""What the code under test says of itself: every event goes to the trace, alarms to the oracle."""

from collections.abc import Callable
from typing import Final

from mesh.spool.events import StoreOutdated
from mesh.transfer.custody.events import BatchTurnedAway, LifeDisowned
from nodes.forwarder import ReceiptRefused
from nodes.headquarters.ingest import BatchSetAside
from simulator.world.trace import Trace

__all__ = ["Ear"]

_ALARMS: Final = (StoreOutdated, ReceiptRefused)


class Ear:
    """Port ``Observer`` of one party.

    Args:
        who: whose.
        trace: takes every event.
        alarm: is told of a site and node whose past is in doubt.
        origin: the site and node that this party is, where it is one.
    """

    def __init__(
        self,
        who: str,
        trace: Trace,
        alarm: Callable[[str, str], None],
        origin: tuple[str, str] | None = None,
    ) -> None:
        self._who = who
        self._trace = trace
        self._alarm = alarm
        self._origin = origin
        self._muted = False

    def mute(self) -> None:
        """Its process is dead: what it still says is said to nobody."""
        self._muted = True

    def observe(self, event: object) -> None:
        """Takes one event."""
        if self._muted:
            return
        self._trace.note(type(event).__name__, self._who)
        if isinstance(event, BatchSetAside | BatchTurnedAway):
            site, node, _ = event.origin.split("/")
            self._alarm(site, node)
        elif isinstance(event, LifeDisowned):
            site, node, _ = event.life.split("/")
            self._alarm(site, node)
        elif isinstance(event, _ALARMS) and self._origin is not None:
            self._alarm(*self._origin)
