"""Room: what fits of what is waiting, as a plan. Pure.

The most urgent comes first, the oldest of it first, and nothing overtakes: where something does not
fit all that is behind it stays, so what is taken has no holes that were not there before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from schemas.messages import Lane

__all__ = ["Plan", "Room", "Sized", "Stay", "Staying", "plan", "staying"]


@dataclass(frozen=True, slots=True)
class Sized:
    """Something that can be taken: of which lane, how many records, at most how many bytes."""

    lane: Lane
    records: int
    size_bytes: int


_P = TypeVar("_P", bound=Sized)


class Stay(StrEnum):
    """Why something stays where it is."""

    LIMIT = "beyond the limit that was asked for"
    FILES = "the folder takes no more files"
    SPACE = "no more space"


@dataclass(frozen=True, slots=True)
class Room:
    """How much may be taken.

    Args:
        limit_bytes: what was asked for; ``None`` for all.
        free_bytes: what there is space for.
        files: how many more files.
        cluster_bytes: what a file is rounded up to.
    """

    limit_bytes: int | None
    free_bytes: int
    files: int
    cluster_bytes: int = 1


@dataclass(frozen=True, slots=True)
class Staying:
    """What stays of a lane, and why."""

    lane: Lane
    why: str
    records: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan(Generic[_P]):
    """What to take, in this order, and what stays."""

    take: tuple[_P, ...]
    stay: tuple[Staying, ...]


def plan(pieces: Sequence[_P], room: Room) -> Plan[_P]:
    """What fits of the pieces, in their order: at the first that does not fit all the rest stays.

    Args:
        pieces: the most urgent lane first, its oldest first.
        room: how much may be taken.
    """
    taken = allocated = 0
    why: Stay | None = None
    place = len(pieces)
    for index, piece in enumerate(pieces):
        taken += piece.size_bytes
        allocated += -(-piece.size_bytes // room.cluster_bytes) * room.cluster_bytes
        why = _why(room, index + 1, taken, allocated)
        if why is not None:
            place = index
            break
    return Plan(tuple(pieces[:place]), staying(pieces[place:], why or Stay.SPACE))


def _why(room: Room, files: int, taken: int, allocated: int) -> Stay | None:
    if room.limit_bytes is not None and taken > room.limit_bytes:
        return Stay.LIMIT
    if files > room.files:
        return Stay.FILES
    return Stay.SPACE if allocated > room.free_bytes else None


def staying(pieces: Iterable[Sized], why: str) -> tuple[Staying, ...]:
    """What stays, lane by lane, for one reason."""
    records: dict[Lane, int] = {}
    sizes: dict[Lane, int] = {}
    for piece in pieces:
        records[piece.lane] = records.get(piece.lane, 0) + piece.records
        sizes[piece.lane] = sizes.get(piece.lane, 0) + piece.size_bytes
    return tuple(Staying(lane, why, records[lane], sizes[lane]) for lane in records)
