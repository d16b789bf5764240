"""What a spool tells its observer: frozen past nouns."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.messages import Explained, Lane

__all__ = [
    "AccountDelayed",
    "ChoreFailed",
    "DamageFound",
    "Evicted",
    "Quarantined",
    "SpoolDegraded",
    "SpoolOpened",
    "SpoolRecovered",
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
    """Records were given up for space: which."""

    lane: Lane
    numbers: str


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
