"""What a spool tells its observer: frozen past nouns."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.messages import Explained, Lane, Severity

__all__ = [
    "AccountDelayed",
    "ChoreFailed",
    "DamageFound",
    "EpochBegun",
    "Evicted",
    "LaneOff",
    "PackerLost",
    "Quarantined",
    "Reclaimed",
    "SpoolDegraded",
    "SpoolOpened",
    "SpoolRecovered",
    "StoreOutdated",
]


@dataclass(frozen=True, slots=True)
class SpoolOpened:
    """The spool is open.

    Its epoch, what is pending by lane, and what opening found lost, by lane and reason.
    """

    epoch: str
    pending: Mapping[Lane, int]
    lost: Mapping[Lane, Mapping[str, int]]

    @property
    def told(self) -> str:
        """For a person: what opening found, the worst first."""
        void = self.lost.get(Lane.DECISIONS, {}).get(Explained.VOID, 0)
        damaged = sum(reasons.get(Explained.DAMAGED, 0) for reasons in self.lost.values())
        parts = [
            f"{damaged} records are damaged" if damaged else "",
            f"the last end was not clean: decisions published, not recorded: at most {void}"
            if void
            else "",
            f"{sum(self.pending.values())} records are pending",
        ]
        return f"spool open in epoch {self.epoch}; " + "; ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """The spool began a new life: numbers begin at zero, the old ones keep their names."""

    epoch: str
    reason: str

    @property
    def severity(self) -> Severity:
        """Somebody should know: a store was copied, restored, or lost."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class LaneOff:
    """A lane that is switched off still holds records; they are kept and handed on."""

    lane: Lane
    pending: int

    @property
    def severity(self) -> Severity:
        """Somebody may have forgotten it."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class PackerLost:
    """The process that packs columns was lost for good: batches are larger from now on."""

    reason: str

    @property
    def severity(self) -> Severity:
        """Nothing is lost, but space and traffic go up until the node is started anew."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class StoreOutdated:
    """Upstream holds more than was ever written here: the store was restored from an older copy.

    A new life begins with the next opening.
    """

    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: somebody restored a store, or two nodes have one name."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class SpoolDegraded:
    """The disk failed twice in a row: no record is taken until a new journal can be begun."""

    reason: str


@dataclass(frozen=True, slots=True)
class SpoolRecovered:
    """A new journal was begun after the spool had been degraded."""


@dataclass(frozen=True, slots=True)
class DamageFound:
    """Records that were durable can no longer be read: which, and why."""

    lane: Lane
    numbers: str
    detail: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """Records were given up, for space or for their age: which."""

    lane: Lane
    numbers: str
    why: str = Explained.EVICTED


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A holder has lost records that it had taken over, and that is durably noted.

    Those that were still there are pending again, the others are stated as forgotten.
    """

    epoch: str
    lane: Lane
    holder: str
    pending: str
    forgotten: str

    @property
    def severity(self) -> Severity:
        """An alarm: what was in custody elsewhere is there no more."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Broken bytes were kept under this name in the spool's folder."""

    path: str


@dataclass(frozen=True, slots=True)
class ChoreFailed:
    """Sealing, writing the cursor or evicting failed; it will be tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class AccountDelayed:
    """An account could not be appended now; the next one says the same."""

    reason: str
