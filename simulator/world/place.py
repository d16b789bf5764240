"""A place: one lane of one epoch of one node, the word under which everything is counted."""

from typing import NamedTuple

from schemas.messages import BatchHeader, Epoch, Lane, Receipt
from schemas.ranges import Ranges
from schemas.stored import LaneLedger

__all__ = ["Place", "stated"]


class Place(NamedTuple):
    """One lane of one epoch of one node."""

    site: str
    node: str
    epoch: Epoch
    lane: Lane

    def __str__(self) -> str:
        return f"{self.site}/{self.node}/{self.epoch}/{self.lane}"

    @property
    def origin(self) -> tuple[str, str]:
        """Its site and node."""
        return self.site, self.node

    @classmethod
    def of(cls, told: BatchHeader | Receipt | LaneLedger) -> "Place":
        """The place of which something is told."""
        return cls(told.site, told.node, told.epoch, told.lane)


def stated(receipt: Receipt) -> Ranges:
    """All numbers of which a receipt speaks."""
    return Ranges.of([(0, receipt.watermark)]) | receipt.held
