"""A node's own spool, as what a forwarder drains."""

from collections.abc import Collection, Sequence

from mesh.spool.batch import Batch
from mesh.spool.spool import Spool
from mesh.transfer.source import Life
from schemas.messages import Lane, Receipt
from schemas.ranges import Ranges

__all__ = ["SpoolSource"]


class SpoolSource:
    """Port ``Source`` over a spool.

    Args:
        site: of this node.
        node: this node.
        spool: open.
    """

    def __init__(self, site: str, node: str, spool: Spool) -> None:
        self._site = site
        self._node = node
        self._spool = spool

    def __repr__(self) -> str:
        return f"<SpoolSource {self._site}/{self._node}>"

    def lives(self) -> Sequence[Life]:
        """The lives that have something pending, the present one always, last."""
        return [Life(self._site, self._node, epoch) for epoch in self._spool.epochs]

    def stop_of(self, life: Life, lane: Lane) -> int:
        """All numbers that are, or ever were, durable lie below this."""
        return self._spool.durable(lane, life.epoch) if self._is_ours(life) else 0

    def released(self, life: Life, lane: Lane) -> Ranges:
        """What was released of a lane."""
        return self._spool.released(lane, life.epoch) if self._is_ours(life) else Ranges()

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """A holder has released the numbers below this."""
        return self._spool.held_by(lane, holder, life.epoch) if self._is_ours(life) else 0

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        return self._is_ours(life) and self._spool.has_pending(lane, start, life.epoch)

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """The first pending batch that holds a number at or above ``start``.

        Raises:
            DiskFailed: it cannot be read now.
        """
        return await self._spool.next_batch(lane, start, life.epoch)

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Takes what a receipt said.

        Raises:
            Refused: ``beyond_sent``: a number was never made durable.
        """
        self._spool.release(lane, numbers, receipt.holder, life.epoch)

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """The holder has lost these numbers; returns those that are pending again."""
        return self._spool.reclaim(lane, numbers, holder, life.epoch)

    async def disown(self, life: Life, reason: str) -> None:
        """Upstream knows another past of this life: the next opening begins another one.

        Raises:
            DiskFailed: that could not be noted.
        """
        if life.epoch == self._spool.epoch:
            await self._spool.give_up_epoch(reason)

    def set_linked(self, *, up: bool) -> None:
        """Tells whether a link is up: then what is fresh is sent before it is sealed."""
        self._spool.set_linked(up=up)

    async def wait_grown(self) -> Collection[Life]:
        """Returns once something has become pending since the last call: of which lives."""
        await self._spool.wait_grown()
        return self.lives()

    def _is_ours(self, life: Life) -> bool:
        return (life.site, life.node) == (self._site, self._node)
