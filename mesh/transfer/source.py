"""What a forwarder drains: a spool of our own records, or what a gateway holds for others.

Both hold batches by *life*, one life of one node's spool, and lane; both release on a receipt, and
on nothing else. The forwarder knows no other difference between them.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from mesh.spool.batch import Batch
from schemas.messages import Epoch, Lane, Receipt
from schemas.ranges import Ranges

__all__ = ["Life", "Source"]


class Life(NamedTuple):
    """One life of one node's spool."""

    site: str
    node: str
    epoch: Epoch

    def __str__(self) -> str:
        return f"{self.site}/{self.node}/{self.epoch}"


class Source(Protocol):
    """Holds batches until the next holder's receipt releases them."""

    def lives(self) -> Sequence[Life]:
        """The lives of which something is pending; of one node the oldest first."""
        ...

    def stop_of(self, life: Life, lane: Lane) -> int:
        """All numbers of a lane that are, or ever were, durable here lie below this.

        A receipt that speaks of others is not believed. 0 for a life that is not known.
        """
        ...

    def released(self, life: Life, lane: Lane) -> Ranges:
        """What was released of a lane."""
        ...

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """A holder has released the numbers below this, as far as is known; 0 for none."""
        ...

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        ...

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """The first pending batch that holds a number at or above ``start``.

        Returns:
            ``None`` when there is none.

        Raises:
            DiskFailed: it cannot be read now.
        """
        ...

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Takes what a receipt said: the next holder has these numbers durably.

        Args:
            life: of which life.
            lane: which lane.
            numbers: which numbers.
            receipt: who said so, and how far it has been taken.
        """
        ...

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """The next holder has lost these numbers, which it had: they are offered again.

        Args:
            life: of which life.
            lane: which lane.
            numbers: which numbers, released before.
            holder: who lost them.

        Returns:
            Those that are retained here, and are pending again. The others are given up for good,
            and stated as such.
        """
        ...

    async def disown(self, life: Life, reason: str) -> None:
        """The next holder knows another past of this life than this source.

        Raises:
            DiskFailed: that could not be noted.
        """
        ...

    def set_linked(self, *, up: bool) -> None:
        """Tells whether a link is up."""
        ...

    async def wait_grown(self) -> Collection[Life]:
        """Returns once something has become pending since the last call: of which lives.

        One waiter.
        """
        ...
