"""A history: the lives of one spool, drawn from a seed, as values. Pure.

Each life opens the store, does some steps, and ends: closed in order, killed, or with the power.
The bounds are small, so that a few records make journals rotate and batches be sealed and given up.
A store may be carried to another machine, and its ``STORE`` be lost, between two lives; clocks are
wrong, and a device may be off for long.
"""

import errno
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.messages import Lane
from simulator.crash.times import Wake, Wall
from simulator.disk_faults import OperationName

__all__ = [
    "Append",
    "Bounds",
    "Ending",
    "Fail",
    "Fill",
    "GiveUpEpoch",
    "History",
    "Life",
    "Linked",
    "Reclaim",
    "Release",
    "Rest",
    "SetClock",
    "Shape",
    "Step",
    "Store",
    "draw",
    "wake",
]

_LANES: Final = (Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.METRICS, Lane.LOGS)
_RELEASED: Final = (*_LANES, Lane.ACCOUNT)
"""Accounts are appended by the spool itself."""
_SIZES_BYTES: Final = (1, 40, 400, 1500, 3000)
_STEPS_MAX: Final = 14
_LIVES_MAX: Final = 4
_WANDERING_LIVES: Final = (6, 8)
"""A store that is carried on and on: more lives than are kept."""
_OPENING_CHANGES: Final = (9, 27)
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


class Store(StrEnum):
    """What becomes of ``STORE`` while nobody looks."""

    SOUND = "sound"
    ROTTED = "rotted"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Append:
    """Records of these sizes in bytes; nobody may wait for them."""

    lane: Lane
    sizes_bytes: tuple[int, ...]
    awaited: bool


@dataclass(frozen=True, slots=True)
class Release:
    """A receipt; ``share`` says where among the acknowledged numbers it cuts, 0 to 1.

    It speaks of the lane, or of the next one of which there is something to say, in the epoch that
    is so many back, or in the oldest that has something pending.
    """

    lane: Lane
    shape: Shape
    share: float
    epochs_back: int = 0


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The next holder was restored from a backup, and says what it no longer has.

    ``share`` cuts among the numbers that it had, as for ``Release``. It speaks of the lane, or of
    the next one of which it had something, in the epoch that is so many back, whether or not that
    has something pending.
    """

    lane: Lane
    shape: Shape
    share: float
    epochs_back: int = 0


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


@dataclass(frozen=True, slots=True)
class Linked:
    """A link comes up, or goes down."""

    up: bool


@dataclass(frozen=True, slots=True)
class SetClock:
    """Somebody sets the wall clock."""

    wall: Wall


@dataclass(frozen=True, slots=True)
class GiveUpEpoch:
    """Upstream says that the store is an older copy."""


Step = Append | Release | Reclaim | Rest | Fail | Fill | Linked | SetClock | GiveUpEpoch
_KINDS: Final = (Append, Release, Reclaim, Rest, Linked, SetClock, GiveUpEpoch, Fail, Fill)
_OFTEN: Final = (20, 10, 6, 10, 2, 2, 1, 2, 2)


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a spool.

    Args:
        machine: which machine it opens on.
        store: what became of ``STORE`` before.
        wake: how it finds the time.
        before: what the disk will do while it opens.
        steps: what happens then.
        ending: how it ends.
        changes_max: where it is killed or crashes, it does so after so many changes of the disk, or
            with its last step.
    """

    machine: int
    store: Store
    wake: Wake
    before: tuple[Fail, ...]
    steps: tuple[Step, ...]
    ending: Ending
    changes_max: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the spool is configured with.

    Args:
        bytes_max: what it may take, in blocks.
        lane_bytes_max: what logs may take, and alarms before they refuse.
        journal_bytes_max: a journal of so many bytes is followed by the next.
        numbers_reserved: how many numbers each lane reserves at once.
        age_seconds_max: for how long metrics and logs are kept.
        release_seconds: how long a closed journal waits for its release while a link is up.
        spare_bytes: what is kept allocated for the next journal.
        retained_bytes_max: how much of what was released may stay.
        journals_retained_max: how many journals of that.
    """

    bytes_max: int
    lane_bytes_max: int
    journal_bytes_max: int
    numbers_reserved: int
    age_seconds_max: float
    release_seconds: float
    spare_bytes: int
    retained_bytes_max: int
    journals_retained_max: int


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
        bytes_max=generator.choice([32_768, 49_152, 65_536, 1 << 20]),
        lane_bytes_max=generator.choice([8192, 16_384, 1 << 20]),
        journal_bytes_max=generator.choice([1, 1500, 6000]),
        numbers_reserved=generator.choice([24, 64]),
        age_seconds_max=generator.choice([20.0, 90.0, 86_400.0]),
        release_seconds=generator.choice([2.0, 10.0]),
        spare_bytes=generator.choice([4096, 8192]),
        retained_bytes_max=generator.choice([0, 4096, 16_384, 1 << 20]),
        journals_retained_max=generator.choice([0, 1, 3]),
    )
    wanders = generator.random() < 0.05  # noqa: PLR2004  # one in twenty
    count = generator.randint(*_WANDERING_LIVES) if wanders else generator.randint(1, _LIVES_MAX)
    lives = tuple(_life(generator, index, wanders=wanders) for index in range(count))
    return History(seed, generator.choice([512, 4096]), bounds, lives)


def wake(generator: random.Random) -> Wake:
    """How a process finds the time: most often the device was started, and knows it soon."""
    return Wake(
        boot=generator.random() < 0.7,  # noqa: PLR2004
        away_seconds=generator.choice([0.0, 1.0, 30.0, 7200.0]),
        wall=generator.choice([Wall.RIGHT, Wall.RIGHT, Wall.KEPT, *Wall]),
    )


def _life(generator: random.Random, number: int, *, wanders: bool) -> Life:
    early = generator.random() < (0.1 if number else 0.35)
    changes = _OPENING_CHANGES if early else (1, _LIFE_CHANGES_MAX)
    endings = [Ending.KILLED, Ending.CRASHED] if early else list(Ending)
    return Life(
        machine=number if wanders else generator.choice([0, 0, 0, 1]),
        store=generator.choices(list(Store), [40, 1, 1])[0],
        wake=wake(generator),
        before=(_fail(generator),) if not early and generator.random() < 0.1 else (),  # noqa: PLR2004
        steps=tuple(_step(generator) for _ in range(generator.randint(3, _STEPS_MAX))),
        ending=generator.choice(endings),
        changes_max=generator.randint(*changes),
    )


def _step(generator: random.Random) -> Step:
    lane = generator.choice(_LANES)
    kind = generator.choices(_KINDS, _OFTEN)[0]
    if kind is Append:
        sizes = generator.choices(_SIZES_BYTES, k=generator.randint(1, 4))
        return Append(lane, tuple(sizes), generator.random() < 0.7)  # noqa: PLR2004
    if kind is Release:
        return Release(
            generator.choice(_RELEASED),
            generator.choice(list(Shape)),
            generator.random(),
            generator.choice([0, 0, 1, 2]),
        )
    if kind is Reclaim:
        return Reclaim(
            generator.choice(_RELEASED),
            generator.choice(list(Shape)),
            generator.random(),
            generator.choice([0, 0, 0, 1]),
        )
    if kind is Rest:
        return Rest(generator.choice([0.0, 0.05, 1.0, 1.0, 12.0, 100.0]))
    if kind is Linked:
        return Linked(generator.random() < 0.7)  # noqa: PLR2004
    if kind is SetClock:
        return SetClock(generator.choice(list(Wall)))
    if kind is GiveUpEpoch:
        return GiveUpEpoch()
    if kind is Fail:
        return _fail(generator)
    return Fill(generator.choice([0, 4096, 12_288]), generator.choice([0.5, 8.0]))


def _fail(generator: random.Random) -> Fail:
    operation: OperationName = generator.choice(
        ["sync", "sync", "write", "create", "rename", "unlink", "sync_directory"]
    )
    error = errno.EIO if operation in {"sync", "unlink"} else errno.ENOSPC
    return Fail(operation, error, generator.randint(0, 3), generator.randint(1, 3))
