"""A history: the lives of one spool, drawn from a seed, as values. Pure.

Each life opens the store, does some steps, and ends: closed in order, killed, or with the power.
The bounds are small, so that a few records make journals rotate and batches be sealed and given up.
"""

import errno
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.messages import Lane
from simulator.disk_faults import OperationName

__all__ = [
    "Append",
    "Bounds",
    "Ending",
    "Fail",
    "Fill",
    "History",
    "Life",
    "Release",
    "Rest",
    "Shape",
    "Step",
    "draw",
]

_LANES: Final = (Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.METRICS, Lane.LOGS)
_RELEASED: Final = (*_LANES, Lane.ACCOUNT)
"""Accounts are appended by the spool itself."""
_SIZES_BYTES: Final = (1, 40, 400, 1500, 3000)
_STEPS_MAX: Final = 14
_LIVES_MAX: Final = 4
_OPENING_CHANGES: Final = (9, 18)
"""Among these changes of its first life a store gets its name, its epoch and its first journal."""
_LIFE_CHANGES_MAX: Final = 120


class Shape(StrEnum):
    """Which of the acknowledged numbers a receipt names."""

    ALL = "all"
    BELOW = "below"
    ONE = "one"
    MIDDLE = "middle"


class Ending(StrEnum):
    """How a life ends."""

    CLOSED = "closed"
    """In order."""
    KILLED = "killed"
    """The process is gone; what it wrote is seen by the next one, durable or not."""
    CRASHED = "crashed"
    """The power is gone, and some of what was not synced with it."""


@dataclass(frozen=True, slots=True)
class Append:
    """Records of these sizes in bytes; nobody may wait for them."""

    lane: Lane
    sizes_bytes: tuple[int, ...]
    awaited: bool


@dataclass(frozen=True, slots=True)
class Release:
    """A receipt; ``share`` says where among the acknowledged numbers it cuts, 0 to 1."""

    lane: Lane
    shape: Shape
    share: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Time for the chores."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The disk will fail: which operation, with which ``errno``, after how many, how often."""

    operation: OperationName
    error: int
    after: int
    times: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Others fill the disk but for this room; they clear it again after some time."""

    room_bytes: int
    seconds: float


Step = Append | Release | Rest | Fail | Fill


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a spool.

    Args:
        machine: which machine it opens on.
        before: what the disk will do while it opens.
        steps: what happens then.
        ending: how it ends.
        changes_max: where it is killed or crashes, it does so after so many changes of the disk, or
            with its last step.
    """

    machine: int
    before: tuple[Fail, ...]
    steps: tuple[Step, ...]
    ending: Ending
    changes_max: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the spool is configured with.

    Args:
        bytes_max: what it may take.
        journal_bytes_max: a journal of so many bytes is followed by the next.
        numbers_reserved: how many numbers each lane reserves at once.
    """

    bytes_max: int
    journal_bytes_max: int
    numbers_reserved: int


@dataclass(frozen=True, slots=True)
class History:
    """All lives of one spool, on a device that writes blocks of this size as a whole."""

    seed: int
    block_bytes: int
    bounds: Bounds
    lives: tuple[Life, ...]


def draw(seed: int) -> History:
    """The history of a seed."""
    # Whoever knows a seed shall get the same history.
    generator = random.Random(f"history {seed}")  # noqa: S311
    bounds = Bounds(
        bytes_max=generator.choice([8_000, 16_000, 16_000, 1 << 20]),
        journal_bytes_max=generator.choice([1, 1500, 6000]),
        numbers_reserved=generator.choice([24, 64]),
    )
    count = generator.randint(1, _LIVES_MAX)
    lives = tuple(_life(generator, first=index == 0) for index in range(count))
    return History(seed, generator.choice([512, 4096]), bounds, lives)


def _life(generator: random.Random, *, first: bool) -> Life:
    early = generator.random() < (0.35 if first else 0.1)
    changes = _OPENING_CHANGES if early else (1, _LIFE_CHANGES_MAX)
    endings = [Ending.KILLED, Ending.CRASHED] if early else list(Ending)
    return Life(
        machine=generator.choice([0, 0, 0, 1]),
        before=(_fail(generator),) if not early and generator.random() < 0.1 else (),  # noqa: PLR2004
        steps=tuple(_step(generator) for _ in range(generator.randint(3, _STEPS_MAX))),
        ending=generator.choice(endings),
        changes_max=generator.randint(*changes),
    )


def _step(generator: random.Random) -> Step:
    lane = generator.choice(_LANES)
    kind = generator.choices([Append, Release, Rest, Fail, Fill], [10, 5, 5, 1, 1])[0]
    if kind is Append:
        sizes = generator.choices(_SIZES_BYTES, k=generator.randint(1, 4))
        return Append(lane, tuple(sizes), generator.random() < 0.7)  # noqa: PLR2004
    if kind is Release:
        return Release(
            generator.choice(_RELEASED), generator.choice(list(Shape)), generator.random()
        )
    if kind is Rest:
        return Rest(generator.choice([0.0, 0.05, 1.0, 1.0, 12.0]))
    if kind is Fail:
        return _fail(generator)
    return Fill(generator.choice([0, 4096, 12_288]), generator.choice([0.5, 8.0]))


def _fail(generator: random.Random) -> Fail:
    operation: OperationName = generator.choice(
        ["sync", "sync", "write", "create", "rename", "unlink", "sync_directory"]
    )
    error = errno.EIO if operation in {"sync", "unlink"} else errno.ENOSPC
    return Fail(operation, error, generator.randint(0, 3), generator.randint(1, 3))
