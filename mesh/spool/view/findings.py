"""Findings: what a check of a spool found, and what the node will do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.messages import Lane
from schemas.ranges import Ranges

__all__ = ["Finding", "Grade"]


class Grade(StrEnum):
    """How bad it is."""

    DAMAGE = "damage"
    """Something that once was durable is not given back."""
    REMARK = "remark"
    """A crash left it in good order, or the node has stated it already."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Args:
        grade: how bad it is.
        file: where: a path in the spool's folder.
        what: what is wrong there.
        then: what the node will do about it.
        lost: the numbers that it costs, by lane.
    """

    grade: Grade
    file: str
    what: str
    then: str
    lost: Mapping[Lane, Ranges] = field(default_factory=dict)

    def __str__(self) -> str:
        lost = "; ".join(f"{lane} {numbers}" for lane, numbers in self.lost.items() if numbers)
        return f"{self.file}: {self.what}{f': {lost}' if lost else ''} ({self.then})"
