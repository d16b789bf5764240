"""The gateway: takes custody for a site over its intakes, and forwards what it holds.

Receptions take, the store holds, a forwarder drains the store over the uplinks by the same schedule
as an edge, one origin's turn after the other's. What the next holder says releases; what the
archive says is passed down. Gateways chain: to the next one this one is a node like any other, for
batches keep their origin's name on every leg.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from mesh.ports import Intake, Observer
from mesh.transfer.custody.custody import Custody
from nodes.gateway.reception import Reception
from nodes.gateway.voice import Voice

__all__ = ["Forwards", "Gateway"]


class Forwards(Protocol):
    """What drains the store: a forwarder."""

    async def run(self) -> None:
        """Forwards until cancelled."""
        ...


class Gateway:
    """A gateway.

    Args:
        custody: open; its owner closes it.
        intakes: where batches come from; one or several.
        forwarder: drains the store.
        observer: is told what happens.
    """

    def __init__(
        self,
        custody: Custody,
        intakes: Sequence[Intake],
        forwarder: Forwards,
        observer: Observer,
    ) -> None:
        self._custody = custody
        self._forwarder = forwarder
        self._voices = [Voice(intake, custody, observer) for intake in intakes]
        self._receptions = [
            Reception(intake, custody, voice, observer)
            for intake, voice in zip(intakes, self._voices, strict=True)
        ]

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._custody.maintain(), name="custody")
            tasks.create_task(self._forwarder.run(), name="forwarder")
            tasks.create_task(self._listen(), name="receipts")
            for voice in self._voices:
                tasks.create_task(voice.run(), name="voice")
            for reception in self._receptions:
                tasks.create_task(reception.run(), name="reception")

    async def _listen(self) -> None:
        """Lets the voices say what is new."""
        stated: object = None
        while True:
            life = self._custody.stated_life
            if life is not None and life != stated:
                stated = life
                for voice in self._voices:
                    voice.announce()
            relays = self._custody.take_relays()
            if relays:
                for voice in self._voices:
                    voice.pass_down(relays)
            await self._custody.wait_spoken()
