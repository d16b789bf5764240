"""What a forwarder tells: events, named as past nouns."""

from dataclasses import dataclass

from schemas.messages import Severity

__all__ = [
    "BatchParked",
    "BatchRefused",
    "CustodyLost",
    "LinkChanged",
    "LinkStalled",
    "ReceiptRefused",
    "SendFailed",
]


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link came up or went down."""

    name: str
    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class LinkStalled:
    """A link was up and carried nothing: it was torn down, and is made anew."""

    name: str
    reason: str

    @property
    def severity(self) -> Severity:
        """It mends itself, or a person has to look."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A batch was not taken upstream; it is kept and offered again."""

    link: str
    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class BatchParked:
    """A batch was refused too often for what it is; it is kept, and its lane goes on without it."""

    link: str
    batch: str
    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: it will not arrive by itself."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class SendFailed:
    """A batch may not have arrived; it is sent again. Told once for each life of the link."""

    link: str
    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptRefused:
    """Receipts were not believed; the data is kept.

    For this very node and epoch that means that its past is not what headquarters knows: the spool
    was restored from an older copy, or another node has the same name.
    """

    link: str
    lane: str
    reason: str
    count: int

    @property
    def severity(self) -> Severity:
        """An alarm: somebody has to look."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class CustodyLost:
    """A holder no longer has what it once stated: what is retained here is offered again.

    Args:
        holder: who lost it.
        lane: of which lane, as ``<site>/<node>/<epoch>/<lane>``.
        lost: how many records it lost.
        retained: how many of them are offered again; the others are forgotten.
    """

    holder: str
    lane: str
    lost: int
    retained: int

    @property
    def severity(self) -> Severity:
        """An alarm: a holder was restored from an older copy, or broke its word."""
        return Severity.ERROR
