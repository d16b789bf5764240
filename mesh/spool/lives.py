"""The lives of a spool: the lanes of each of its epochs, as the loop keeps them."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mesh.spool.lane import LaneState
from mesh.spool.shelf import Sealed
from mesh.spool.store import Survey
from schemas.messages import Epoch, Lane

__all__ = ["Lives", "Shelved", "Worker", "found_in", "states"]

Lives = Mapping[Epoch, Mapping[Lane, LaneState]]
"""The lanes of each epoch, the oldest first, the present one last."""


Worker = Callable[..., Awaitable[Any]]
"""Runs in the worker thread what blocks, one job after another; gives its result."""


class Shelved(NamedTuple):
    """A batch on the shelf, and where it belongs."""

    epoch: Epoch
    lane: Lane
    batch: Sealed


def states(lives: Lives) -> Iterator[tuple[Epoch, Lane, LaneState]]:
    """All lanes, those of the oldest epoch first."""
    for epoch, lanes in lives.items():
        for lane, state in lanes.items():
            yield epoch, lane, state


def found_in(
    survey: Survey, present: Epoch, which: Callable[..., tuple[Sealed, ...]]
) -> list[Shelved]:
    """What an opening found on the shelves, of each lane what ``which`` picks of it."""
    lives = [*survey.past.items(), (present, survey.lanes)]
    return [
        Shelved(epoch, lane, batch)
        for epoch, lanes in lives
        for lane, found in lanes.items()
        for batch in which(found)
    ]
