"""What became of the readings: an account whose sum must come out, and bounded complaints.

Each reading of each rule that it belongs to ends as exactly one of: *used* as new input of a
decision, *waiting* in a window, *refused* with a reason, or *shed* by a rule. So

    received = used + waiting + sum(refused) + sum(shed)

holds after every group; a reading that two rules take is received twice.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from schemas.errors import Refused, RefusedBecause
from schemas.messages import Severity

__all__ = ["Complaints", "ReadingAccount", "ReadingsRefused", "ReadingsShed", "ShedBecause"]

_PAUSE_NS: Final = 10_000_000_000
_DETAIL_CHARS_MAX: Final = 500


class ShedBecause(StrEnum):
    """The rules by which a good reading is not decided on."""

    STALE = "stale"
    """Older than ``stale_after_ms``, and the source has fresher ones or was told of already."""
    RETAINED = "retained"
    """Retained by the broker, and without a time of its own: nobody knows how old it is."""
    SKIPPED = "skipped"
    """Between two windows, by a hop larger than the window."""
    RESTARTED = "restarted"
    """Waited in a window when its source fell silent."""
    OWN_TOPIC = "own_topic"
    """Said by this very node."""
    NO_RULE = "no_rule"
    """No rule reads this topic."""


@dataclass(slots=True)
class ReadingAccount:
    """How many readings came, and what became of them."""

    received: int = 0
    used: int = 0
    waiting: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)

    @property
    def balance(self) -> int:
        """Received and not accounted for: 0."""
        return self.received - self.used - self.waiting - self.refused.total() - self.shed.total()

    def as_plain(self) -> Mapping[str, object]:
        """As JSON can say it."""
        return {
            "received": self.received,
            "used": self.used,
            "waiting": self.waiting,
            "refused": {str(reason): count for reason, count in self.refused.items()},
            "shed": {str(reason): count for reason, count in self.shed.items()},
        }


@dataclass(frozen=True, slots=True)
class ReadingsRefused:
    """Readings were refused: how many since the last time this was said, and the newest of them."""

    reason: RefusedBecause
    count: int
    topic: str
    detail: str

    @property
    def severity(self) -> Severity:
        """A warning: somebody has to look at the sensor."""
        return Severity.WARNING


@dataclass(frozen=True, slots=True)
class ReadingsShed:
    """Good readings were not decided on: as above."""

    reason: ShedBecause
    count: int
    topic: str
    detail: str

    @property
    def severity(self) -> Severity:
        """A notice: this is as configured."""
        return Severity.NOTICE


@dataclass(slots=True)
class _Complaint:
    count: int = 0
    topic: str = ""
    detail: str = ""
    quiet_until_ns: int | None = None


class Complaints:
    """One event for each reason in ten seconds, at once for the first. Pure: ``now`` comes in."""

    def __init__(self) -> None:
        self._complaints: dict[RefusedBecause | ShedBecause, _Complaint] = {}
        self.pending = False
        """Whether ``due`` may have something to say, now or later."""

    def refuse(self, topic: str, refusal: Refused) -> None:
        """Notes a refusal."""
        self._note(refusal.reason, topic, refusal.detail)

    def shed(self, topic: str, reason: ShedBecause, detail: str = "") -> None:
        """Notes a reading that a rule shed."""
        self._note(reason, topic, detail)

    def _note(self, reason: RefusedBecause | ShedBecause, topic: str, detail: str) -> None:
        complaint = self._complaints.setdefault(reason, _Complaint())
        complaint.count += 1
        complaint.topic = topic
        complaint.detail = detail
        self.pending = True

    def due(self, now_ns: int) -> list[ReadingsRefused | ReadingsShed]:
        """What is to be said now, on the monotonic clock; said once."""
        said: list[ReadingsRefused | ReadingsShed] = []
        self.pending = False
        for reason, complaint in self._complaints.items():
            if not complaint.count:
                continue
            if complaint.quiet_until_ns is not None and now_ns < complaint.quiet_until_ns:
                self.pending = True
                continue
            topic, detail = _harmless(complaint.topic), _harmless(complaint.detail)
            if isinstance(reason, RefusedBecause):
                said.append(ReadingsRefused(reason, complaint.count, topic, detail))
            else:
                said.append(ReadingsShed(reason, complaint.count, topic, detail))
            complaint.count = 0
            complaint.quiet_until_ns = now_ns + _PAUSE_NS
        return said


def _harmless(text: str) -> str:
    """Text of a stranger, bounded, with what could steer a terminal or a log escaped."""
    text = text[:_DETAIL_CHARS_MAX]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
