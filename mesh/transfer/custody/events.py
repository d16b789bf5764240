"""What a store of custody tells its observer: frozen past nouns."""

from dataclasses import dataclass

from schemas.messages import Severity

__all__ = [
    "BatchTurnedAway",
    "BatchesLost",
    "CustodyDegraded",
    "CustodyOpened",
    "CustodyRecovered",
    "LifeBegun",
    "LifeDisowned",
    "OwnReceiptHeard",
]


@dataclass(frozen=True, slots=True)
class CustodyOpened:
    """The store is open: how many batches and records are pending, how many were found lost."""

    life: str
    batches: int
    pending: int
    lost: int


@dataclass(frozen=True, slots=True)
class LifeBegun:
    """The holder began a new life: what it had stated under the old one no longer holds."""

    life: str
    reason: str

    @property
    def severity(self) -> Severity:
        """Somebody should know."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class BatchesLost:
    """Numbers that were held are gone, for their age or for damage; their origin is told."""

    lane: str
    numbers: str
    reason: str
    kept_as: str = ""

    @property
    def severity(self) -> Severity:
        """An alarm: what the origin no longer has is lost."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class BatchTurnedAway:
    """A batch was refused; where it did not verify it is kept under this name."""

    origin: str
    reason: str
    kept_as: str

    @property
    def severity(self) -> Severity:
        """An alarm: what does not verify does not arrive by itself."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class LifeDisowned:
    """The next holder knows other records under the numbers of a life; nothing is dropped."""

    life: str
    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: two nodes have one name, or one of them is an older copy."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class OwnReceiptHeard:
    """A link brings what this holder says itself: it leads back here, and releases nothing."""

    link: str
    holder: str

    @property
    def severity(self) -> Severity:
        """An alarm: over this link nothing goes on, or another holder has the same name."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class CustodyDegraded:
    """The disk does not take what it should: custody is refused, what is held is served."""

    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: somebody has to look."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class CustodyRecovered:
    """The disk takes again."""
