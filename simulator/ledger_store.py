"""Ledgers in memory, port ``LedgerStore``: as a replicated store, with its failures.

The failure that matters is the answer that is lost: the write was made, the writer is told
``LinkDown`` and cannot know. Versions come from one counter over all partitions, as the revisions
of a JetStream bucket do, so nobody gets used to a version being one more than the last.
"""

import asyncio
import random
from typing import Final

from mesh.ports import Stored
from schemas.errors import Conflict, LinkDown
from schemas.limits import PARTITIONS

__all__ = ["MemoryLedgerStore"]

_HALF: Final = 0.5


class MemoryLedgerStore:
    """A ledger store that outlives those who use it, unless it is thrown away.

    Args:
        rng: decides delays and failures.
        delay_seconds_max: the longest that the way there or back takes.
        loss: chance that a call fails, on the way there or on the way back.
    """

    def __init__(
        self, rng: random.Random, delay_seconds_max: float = 0.0, loss: float = 0.0
    ) -> None:
        self._rng = rng
        self._delay_seconds_max = delay_seconds_max
        self.loss = loss
        self.down = False
        self._stored: dict[int, Stored] = {}
        self._revision = 0

    def __repr__(self) -> str:
        down = " down" if self.down else ""
        return f"<MemoryLedgerStore {len(self._stored)} partitions at {self._revision}{down}>"

    async def load(self, partition: int) -> Stored:
        """The newest state.

        Raises:
            LinkDown: the store cannot be asked.
        """
        lost_there, lost_back = self._fate()
        await self._travel(partition, lost_there)
        stored = self._stored.get(partition, Stored())
        await self._travel(partition, lost_back)
        return stored

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        """Replaces the state if its version is still ``version``; returns the new version.

        Raises:
            Conflict: another one came in between; nothing was changed.
            LinkDown: not known whether it was replaced: load, and look.
        """
        lost_there, lost_back = self._fate()
        await self._travel(partition, lost_there)
        found = self._stored.get(partition, Stored()).version
        if found == version:
            self._revision += 1
            self._stored[partition] = Stored(self._revision, bytes(state))
            found = self._revision
            await self._travel(partition, lost_back)
            return found
        await self._travel(partition, lost_back)
        raise Conflict(f"partition {partition} is at version {found}, no longer at {version}")

    def peek(self, partition: int) -> Stored:
        """The newest state, for who looks on: at once, and whatever the store's manners are."""
        return self._stored.get(partition, Stored())

    def wipe(self) -> None:
        """All states are gone, as with the folder of the store."""
        self._stored.clear()

    def _fate(self) -> tuple[bool, bool]:
        lost = self._rng.random() < self.loss
        there = self._rng.random() < _HALF
        return lost and there, lost and not there

    async def _travel(self, partition: int, lost: bool) -> None:  # noqa: FBT001  # one way of two, both called here
        assert 0 <= partition < PARTITIONS, f"partition {partition} of {PARTITIONS}"
        await asyncio.sleep(self._rng.uniform(0, self._delay_seconds_max))
        if lost or self.down:
            raise LinkDown(f"partition {partition}: the store does not answer")
