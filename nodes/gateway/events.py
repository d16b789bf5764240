"""What a gateway tells its observer: frozen past nouns."""

from dataclasses import dataclass

from schemas.messages import Severity

__all__ = ["ArrivalsPutOff", "EntranceChanged", "ReceiptsDelayed", "Received"]


@dataclass(frozen=True, slots=True)
class Received:
    """Batches were taken into custody: how many, with how many new records."""

    batches: int
    records: int


@dataclass(frozen=True, slots=True)
class ArrivalsPutOff:
    """There is no room: these arrivals wait where they are, and come again."""

    batches: int
    reason: str

    @property
    def severity(self) -> Severity:
        """Somebody should know."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class EntranceChanged:
    """A way by which edges come was opened, or is shut for another reason than before."""

    url: str
    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptsDelayed:
    """Receipts could not be handed over; what they are for is accepted later."""

    receipts: int
    reason: str
