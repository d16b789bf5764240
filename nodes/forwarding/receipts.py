"""What receipts do: they release, tell what a holder has lost, or show that a life is outdated."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from mesh.ports import Link, Observer
from mesh.transfer.delivery import Released
from mesh.transfer.source import Life, Source
from nodes.forwarding.events import BatchRefused, CustodyLost, ReceiptRefused
from nodes.forwarding.lives import Flow, Lives
from schemas.errors import DiskFailed, Refused, RefusedBecause
from schemas.messages import Lane, Receipt

__all__ = ["Receipts"]

_DOUBT_SECONDS: Final = 60.0
_OUTDATED: Final = frozenset({RefusedBecause.BEYOND_SENT, RefusedBecause.BAD_CHAIN})


class Receipts:
    """Takes the receipts that links bring.

    A holder that lost what it had stated is offered again what is retained here. A receipt of a
    life that is pending, which speaks of what was never written, or of other records under its
    numbers, means that this source is an older copy: the life is disowned.

    Args:
        source: what they release.
        lives: who judges them.
        observer: is told what happens.
        outdated: called when the present life was disowned.
        relays: whether receipts for other nodes are normal, as they are at a gateway.
        inboxes: links whose receipts people carry.
    """

    def __init__(
        self,
        source: Source,
        lives: Lives,
        observer: Observer,
        outdated: Callable[[], None],
        *,
        relays: bool,
        inboxes: Sequence[Link],
    ) -> None:
        self._source = source
        self._lives = lives
        self._observer = observer
        self._outdated = outdated
        self._relays = relays
        self._inboxes = inboxes
        self._disowned: set[Life] = set()
        self._doubts: dict[tuple[Lane, RefusedBecause], tuple[int, float]] = {}
        self._released = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Receipts for {self._lives}>"

    async def drained(self) -> None:
        """Returns once nothing durable is left to release."""
        source = self._source
        while any(source.has_pending(life, lane, 0) for life in source.lives() for lane in Lane):
            self._released.clear()
            await self._released.wait()

    async def take(self, link: Link) -> None:
        """Takes what a link brings, until cancelled."""
        async for receipt in link.receipts():
            flow = self._judge(Life(receipt.site, receipt.node, receipt.epoch))
            if flow is None:
                continue
            try:
                self._take(link, flow, receipt)
            except Refused as refused:
                self._doubt(link, receipt.lane, refused)
                mine = flow.life == (receipt.site, receipt.node, receipt.epoch)
                if mine and refused.reason in _OUTDATED and self._lives.is_pending(flow):
                    await self._disown(link, flow, str(refused))
            self._lives.look_at(flow)

    def _judge(self, life: Life) -> Flow | None:
        """Who judges a receipt for a life; ``None`` where it concerns nobody here."""
        known = self._lives.find(life)
        if known is not None or self._relays:
            return known
        # It is refused, as foreign.
        return self._lives.newest

    def _take(self, link: Link, flow: Flow, receipt: Receipt) -> None:
        source, life, lane = self._source, flow.life, receipt.lane
        # What people carry may be old: it never tells that a holder has lost something.
        carried = link in self._inboxes
        outcome = flow.delivery.on_receipt(
            receipt,
            source.stop_of(life, lane),
            asyncio.get_running_loop().time(),
            0 if carried else source.held_by(life, lane, receipt.holder),
        )
        if outcome.lost:
            flow.returns += 1
            self._reclaim(life, outcome)
        if outcome.numbers:
            source.release(life, lane, outcome.numbers, receipt)
            self._released.set()

    def _reclaim(self, life: Life, outcome: Released) -> None:
        retained = self._source.reclaim(life, outcome.lane, outcome.lost, outcome.holder)
        where = f"{life}/{outcome.lane}"
        self._observer.observe(CustodyLost(outcome.holder, where, len(outcome.lost), len(retained)))

    async def _disown(self, link: Link, flow: Flow, reason: str) -> None:
        """Once: the next holder knows another past of this life than this source."""
        if flow.life in self._disowned:
            return
        try:
            await self._source.disown(flow.life, reason)
        except DiskFailed as failure:
            self._observer.observe(BatchRefused(link.state.name, str(flow.life), str(failure)))
            return
        self._disowned.add(flow.life)
        if flow is self._lives.newest:
            # A past life is over already: nothing has to begin anew for it.
            self._outdated()

    def _doubt(self, link: Link, lane: Lane, refused: Refused) -> None:
        """Tells of refused receipts, once in a minute: telling is itself sent and receipted."""
        now = asyncio.get_running_loop().time()
        count, due = self._doubts.get((lane, refused.reason), (0, now))
        count += 1
        if now >= due:
            self._observer.observe(ReceiptRefused(link.state.name, lane, str(refused), count))
            count, due = 0, now + _DOUBT_SECONDS
        self._doubts[lane, refused.reason] = (count, due)
