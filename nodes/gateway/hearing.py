"""A gateway's uplink: receipts are cut to what this gateway ever held.

The next holder speaks of the whole lane. It may have numbers that came another way, and count as
covered what their origin has given up; a gateway has part of it, and cannot know the rest. A sender
of its own records refuses a receipt for what it never sent; here that is normal, so what lies
beyond is cut off before anybody judges it.

What this gateway says itself is no word of a next holder, whichever way it comes back: an uplink
that leads to where its edges come, or brokers that pass on to each other what they hear. It would
release what nobody else has. It is passed over, and told once.
"""

from collections.abc import AsyncIterator
from dataclasses import replace

from mesh.ports import Accepted, Link, LinkState, Part, Refusal
from mesh.transfer.custody.custody import Custody
from mesh.transfer.source import Life
from schemas.messages import Receipt
from schemas.ranges import Ranges

__all__ = ["Hearing"]


class Hearing:
    """Port ``Link`` over another link.

    Args:
        link: the uplink.
        custody: what is held here.
    """

    def __init__(self, link: Link, custody: Custody) -> None:
        self._link = link
        self._custody = custody
        self._heard_itself = False

    def __repr__(self) -> str:
        return f"<Hearing {self._link}>"

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        return self._link.state

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        return await self._link.wait_changed(seen)

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew."""
        self._link.reset(reason)

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part.

        Raises:
            LinkDown: as of the link.
        """
        return await self._link.send(part)

    async def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts as they come, of lanes that are known here."""
        async for receipt in self._link.receipts():
            life = Life(receipt.site, receipt.node, receipt.epoch)
            stop = self._custody.stop_of(life, receipt.lane)
            if receipt.holder == self._custody.holder:
                self._pass_over()
            elif stop:
                yield _cut(receipt, stop)

    def _pass_over(self) -> None:
        if not self._heard_itself:
            self._heard_itself = True
            self._custody.disbelieve(self._link.state.name)


def _cut(receipt: Receipt, stop: int) -> Receipt:
    """A receipt, as far as it speaks of the numbers below ``stop``."""
    if max(receipt.watermark, receipt.held.end, receipt.chain_at) <= stop:
        return receipt
    is_chain_known = receipt.chain_at <= stop
    return replace(
        receipt,
        watermark=min(receipt.watermark, stop),
        held=receipt.held & Ranges(((0, stop),)),
        chain=receipt.chain if is_chain_known else b"",
        chain_at=receipt.chain_at if is_chain_known else 0,
    )
