"""The reception: from one intake into custody, and receipts back.

The order for the arrivals that came together:

1. *verify*: header and digest, unopened; what does not verify is refused and set aside, and is
   never receipted;
2. *take*: durable in the store, the ledger's change with it;
3. *receipt*: what the store states now goes to the origins;
4. *accept*: the transport may forget the batches.

Killed before 2 is done: nobody was told anything, and the origin holds all of it. Killed before 3:
both hold it; the batches come again, bring nothing new, and are receipted. Killed before 4: the
same. So there is a custodian at each moment. A receipt that the transport does not take is left to
the voice, which goes on trying: the batches come again only after a while. What finds no room is
neither accepted nor refused: it waits in the transport, which refuses more when it is full itself,
and the origin keeps the rest.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from mesh.ports import Arrival, Intake, Observer, Refusal
from mesh.transfer.custody.custody import Custody, Outcome
from nodes.gateway.events import ArrivalsPutOff, ReceiptsDelayed, Received
from nodes.gateway.voice import Voice
from schemas.errors import LinkDown, Refused

__all__ = ["Reception"]

_PAUSE_SECONDS: Final = 2.0


class Reception:
    """Takes what one intake brings.

    Args:
        intake: where batches come from.
        custody: where they go.
        voice: says over the same intake what could not be said at once.
        observer: is told what happens.
        pause_seconds: how long nothing is taken after something found no room.
    """

    def __init__(
        self,
        intake: Intake,
        custody: Custody,
        voice: Voice,
        observer: Observer,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._intake = intake
        self._custody = custody
        self._voice = voice
        self._observer = observer
        self._pause_seconds = pause_seconds

    async def run(self) -> None:
        """Receives until cancelled."""
        async for arrivals in self._intake.batches():
            if not await self.receive(arrivals):
                await asyncio.sleep(self._pause_seconds)

    async def receive(self, arrivals: Sequence[Arrival]) -> bool:
        """Takes a group of arrivals; returns whether there was room for all of it."""
        outcomes = await self._custody.take(arrivals)
        await self._answer([outcome for outcome in outcomes if outcome.refused is None])
        for outcome in outcomes:
            if outcome.refused is not None and not outcome.later:
                reason, detail = outcome.refused.reason, outcome.refused.detail
                await self._intake.refuse(outcome.arrival, Refusal(reason, detail, 0.0))
        later = [outcome for outcome in outcomes if outcome.later]
        if later:
            self._observer.observe(ArrivalsPutOff(len(later), str(later[0].refused)))
        return not later

    async def _answer(self, taken: Sequence[Outcome]) -> None:
        """Receipts, and only then the transport may forget."""
        keys = {outcome.key: None for outcome in taken if outcome.key is not None}
        if not keys:
            return
        receipts = self._custody.receipts(keys)
        if len(receipts) < len(keys):
            # The store has just lost something, and says so first: what came, comes again.
            return
        try:
            await self._intake.publish(receipts)
        except (LinkDown, Refused) as failure:
            self._observer.observe(ReceiptsDelayed(len(receipts), str(failure)))
            self._voice.repeat(keys)
            return
        await self._intake.accept([outcome.arrival for outcome in taken])
        self._observer.observe(Received(len(taken), sum(outcome.new for outcome in taken)))
