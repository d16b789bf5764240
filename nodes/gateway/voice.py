"""The voice: what a gateway says to the origins behind one intake without being asked.

At its start, and when the holder begins a new life, it states what is held of every lane; of some,
when their receipts found the transport down. What the archive says of a lane is passed down, and
followed by the gateway's own receipt: a transport keeps the newest of a lane for those who connect
later, and what they need first is what the next holder says. Credit and pauses are between two
neighbours and are not passed on.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Final

from mesh.ports import Intake, Observer
from mesh.transfer.custody.custody import Custody
from mesh.transfer.custody.lane import LaneKey
from mesh.transfer.source import Life
from nodes.gateway.events import ReceiptsDelayed
from schemas.errors import LinkDown, Refused
from schemas.messages import Receipt

__all__ = ["Voice"]

_RECEIPTS_MAX: Final = 256
_RETRY_SECONDS: Final = 1.0


class Voice:
    """Says what is to be said over one intake. Bounded by the number of lanes.

    Args:
        intake: where the origins hear it.
        custody: whose receipts.
        observer: is told what happens.
    """

    def __init__(self, intake: Intake, custody: Custody, observer: Observer) -> None:
        self._intake = intake
        self._custody = custody
        self._observer = observer
        self._relays: dict[LaneKey, Receipt] = {}
        self._own: dict[LaneKey, None] = {}
        self._due = asyncio.Event()

    def announce(self) -> None:
        """States what is held of every lane."""
        self.repeat(self._custody.keys())

    def repeat(self, keys: Iterable[LaneKey]) -> None:
        """States what is held of some lanes, which could not be said when it was due."""
        self._own |= dict.fromkeys(keys)
        self._due.set()

    def pass_down(self, relays: Iterable[Receipt]) -> None:
        """Says what the archive has said."""
        for receipt in relays:
            key = LaneKey(Life(receipt.site, receipt.node, receipt.epoch), receipt.lane)
            self._relays[key] = replace(receipt, credit_bytes=0, not_before_ms=0)
            self._own[key] = None
        self._due.set()

    async def run(self) -> None:
        """Speaks until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._relays or self._own:
                await self._speak()

    async def _speak(self) -> None:
        relays = dict(islice(self._relays.items(), _RECEIPTS_MAX))
        own = list(relays or islice(self._own, _RECEIPTS_MAX))
        stated = self._custody.receipts(own)
        try:
            if relays:
                await self._intake.publish(list(relays.values()))
            if stated:
                await self._intake.publish(stated)
        except (LinkDown, Refused) as failure:
            self._observer.observe(ReceiptsDelayed(len(relays) + len(stated), str(failure)))
            await asyncio.sleep(_RETRY_SECONDS)
            return
        for key, receipt in relays.items():
            if self._relays.get(key) is receipt:
                del self._relays[key]
        for key in own:
            # What cannot be stated now is announced once it can be.
            self._own.pop(key, None)
