"""The far end of a simulated network: what arrived and was neither accepted nor refused.

Parts of a batch wait until the batch is whole, bounded as ``mesh.transfer.parts`` bounds them. All
of it is as a default broker's memory: ``lose`` forgets what was accepted, as a power cut does.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Accepted, Arrival, Part, Refusal
from mesh.transfer.parts import Assembly
from schemas.errors import Refused, RefusedBecause
from schemas.limits import INTAKE_BATCHES_MAX

__all__ = ["ArrivalQueue"]

_LOOKS: Final = 16
"""What is due and cannot be told is looked at again after this part of the deadline."""


@dataclass(slots=True)
class _Waiting:
    """A batch in the queue."""

    number: int
    part: Part
    payload: bytes
    due_at: float = 0.0
    deliveries: int = 0

    def deliver(self, again_at: float) -> Arrival:
        self.deliveries += 1
        self.due_at = again_at
        return Arrival(
            site=self.part.site,
            node=self.part.node,
            lane=str(self.part.lane),
            payload=self.payload,
            redelivered=self.deliveries > 1,
            token=self.number,
        )


@dataclass(slots=True)
class ArrivalQueue:
    """Batches on their way to an intake, oldest first.

    Args:
        bytes_max: how much may wait before more is refused.
        full_seconds: what a refusal for want of room tells the sender to wait.
        ack_seconds: after how long an arrival that was not accepted comes again.
    """

    bytes_max: int
    full_seconds: float
    ack_seconds: float
    refused: int = 0
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    _assembly: Assembly = field(default_factory=Assembly)
    _bytes: int = 0
    _taken: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        return f"queue of {len(self._waiting)} batches, {self._bytes} bytes, {self._assembly}"

    def put(self, part: Part, now: float) -> Accepted | Refusal:
        """Takes a part, or says why not. What cannot be made whole never arrives."""
        if self._bytes + self._assembly.held_bytes + len(part.payload) > self.bytes_max:
            detail = f"{self._bytes} of {self.bytes_max} bytes are taken"
            return Refusal(RefusedBecause.FULL, detail, self.full_seconds)
        try:
            payload = self._assembly.take(part, now)
        except Refused:
            self.refused += 1
            return Accepted()
        if payload is not None:
            self._taken += 1
            self._waiting[self._taken] = _Waiting(self._taken, part, payload)
            self._bytes += len(payload)
            self.wake()
        return Accepted()

    def take_due(self) -> list[Arrival]:
        """What is due now, at most ``INTAKE_BATCHES_MAX``; each comes again unless forgotten."""
        now = asyncio.get_running_loop().time()
        found: list[Arrival] = []
        for waiting in self._waiting.values():
            if waiting.due_at <= now:
                found.append(waiting.deliver(now + self.ack_seconds))
                if len(found) == INTAKE_BATCHES_MAX:
                    break
        return found

    def forget(self, number: int) -> None:
        """A batch was accepted, or refused for good."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self._bytes -= len(waiting.payload)

    def lose(self) -> int:
        """All that was accepted is gone; returns how many batches that were."""
        lost = len(self._waiting)
        self._waiting.clear()
        self._assembly = Assembly()
        self._bytes = 0
        return lost

    async def wait_due(self, *, is_open: bool) -> None:
        """Until something is put, mended, or falls due; while the path is closed until it opens."""
        self._changed.clear()
        deadline = None
        if is_open and self._waiting:
            now = asyncio.get_running_loop().time()
            deadline = min(waiting.due_at for waiting in self._waiting.values())
            deadline = max(deadline, now + self.ack_seconds / _LOOKS)
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        """Something may have changed for whoever waits."""
        self._changed.set()
