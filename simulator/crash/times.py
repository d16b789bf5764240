"""Times: the true time through all lives of a device, and what its clock makes of it.

A device that starts again may have no idea how long it was off, and a clock may be set wrong while
it runs. A clock is trusted only where it is right, as after an answer from a time server; so the
truth is known here and nowhere in the spool, and what the spool calls too old can be held against
it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mesh.ports import Clock
from simulator.clock import START_WALL_NS, SimClock, VirtualLoop

__all__ = ["Times", "Wake", "Wall"]

_NS: Final = 1_000_000_000
_TEN_YEARS_NS: Final = 3_652 * 86_400 * _NS


class Wall(StrEnum):
    """What a wall clock shows after somebody, or a start without a battery, has set it."""

    RIGHT = "right"
    """The truth, and somebody vouches for it."""
    KEPT = "kept"
    """It goes on from where it was, and nobody vouches for it."""
    AHEAD = "ten years ahead"
    BEHIND = "ten years behind"
    ZERO = "1970"


@dataclass(frozen=True, slots=True)
class Wake:
    """How a process finds the time when it starts.

    Args:
        boot: whether the device was started too; otherwise its monotonic clock goes on.
        away_seconds: how long nothing ran.
        wall: what the wall clock shows.
    """

    boot: bool
    away_seconds: float
    wall: Wall


@dataclass(slots=True)
class Times:
    """The time now, in nanoseconds: the true one, and that of the device.

    Args:
        true_ns: since the first life.
        mono_ns: of the device's monotonic clock.
        wall_ns: of its wall clock.
        trusted: whether somebody vouches for that.
        boots: how often the device was started.
    """

    true_ns: int = 0
    mono_ns: int = 0
    wall_ns: int = START_WALL_NS
    trusted: bool = True
    boots: int = 0
    _loop: VirtualLoop | None = None
    _clock: SimClock | None = None

    @property
    def boot(self) -> bytes:
        """The boot id, 16 bytes."""
        return self.boots.to_bytes(16, "big")

    @property
    def now_ns(self) -> int:
        """The true time."""
        return self.true_ns + (0 if self._loop is None else self._loop.elapsed_ns)

    def copy(self) -> "Times":
        """The same, to go on apart, with nothing running."""
        return replace(self, **self._now(), _loop=None, _clock=None)  # type: ignore[arg-type]

    def begin(self, loop: VirtualLoop, wake: Wake) -> Clock:
        """A process starts, on a loop that has just been made; returns its clock."""
        away_ns = round(wake.away_seconds * _NS)
        self.true_ns += away_ns
        self.wall_ns += away_ns
        self.mono_ns = 0 if wake.boot else self.mono_ns + away_ns
        self.boots += wake.boot
        self._loop = loop
        self._clock = SimClock(loop)
        self._clock.advance(self.mono_ns / _NS)
        self._clock.set_wall(self.wall_ns)
        self.set(wake.wall)
        return self._clock

    def set(self, wall: Wall) -> None:
        """Somebody sets the wall clock of the running device."""
        assert self._clock is not None, "a process runs"
        shown_ns = self._clock.now().wall_ns
        self._clock.set_wall(
            {
                Wall.RIGHT: START_WALL_NS + self.now_ns,
                Wall.KEPT: shown_ns,
                Wall.AHEAD: shown_ns + _TEN_YEARS_NS,
                Wall.BEHIND: max(0, shown_ns - _TEN_YEARS_NS),
                Wall.ZERO: 0,
            }[wall]
        )
        if wall is Wall.RIGHT:
            self._clock.trust()
        else:
            self._clock.distrust()

    def end(self) -> None:
        """The process has ended."""
        for name, value in self._now().items():
            setattr(self, name, value)
        self._loop = self._clock = None

    def _now(self) -> dict[str, int | bool]:
        if self._clock is None:
            return {}
        shown = self._clock.now()
        return {
            "true_ns": self.now_ns,
            "mono_ns": shown.mono_ns,
            "wall_ns": shown.wall_ns,
            "trusted": shown.trusted,
        }
