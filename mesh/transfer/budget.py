"""Budgets: when a link may be used, and how much it may carry. Pure.

Three limits hold at once. The *windows* say when, by the wall clock in UTC. The *bucket* says how
fast, by the monotonic clock, so that no step of the wall clock fills it. The *day* says how much
between two midnights in UTC.

A day's budget is never given twice. A wall clock that shows an earlier day than before, as a board
without a battery does when it boots, goes on with what is left; should it still be behind after 24
hours on the monotonic clock, the later day was the mistake, and a day begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.limits import KIB, PART_BYTES_MIN
from schemas.messages import Lane

__all__ = ["Bucket", "Day", "LinkRule", "Spent", "Window", "seconds_to_open"]

_NS: Final = 1_000_000_000
_DAY_SECONDS: Final = 86_400
_DAY_NS: Final = _DAY_SECONDS * _NS
_DAY_MINUTES: Final = 1440
_MINUTE_NS: Final = 60 * _NS
_WEEK_DAYS: Final = 7
_FIRST_WEEKDAY: Final = 3
"""1970 began on a Thursday."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a link may be used, in UTC.

    Args:
        days: on which days it begins; 0 is Monday.
        start_minute: its first minute of the day, 0 to 1439.
        stop_minute: the first minute after it, 0 to 1440; where that is not later than the start,
            it ends on the following day.
    """

    days: frozenset[int]
    start_minute: int
    stop_minute: int

    def __post_init__(self) -> None:
        assert self.days <= frozenset(range(_WEEK_DAYS)), f"days {sorted(self.days)} of 0 to 6"
        assert 0 <= self.start_minute < _DAY_MINUTES, f"start {self.start_minute} of 0 to 1439"
        assert 0 <= self.stop_minute <= _DAY_MINUTES, f"stop {self.stop_minute} of 0 to 1440"

    def is_open(self, wall_ns: int) -> bool:
        """Whether it is open at a moment, UTC in ns since 1970."""
        day, minute = _weekday(wall_ns), wall_ns % _DAY_NS // _MINUTE_NS
        begun = day in self.days and minute >= self.start_minute
        if self.start_minute < self.stop_minute:
            return begun and minute < self.stop_minute
        yesterday = (day - 1) % _WEEK_DAYS
        return begun or (yesterday in self.days and minute < self.stop_minute)

    def seconds_to_start(self, wall_ns: int) -> float | None:
        """How long until it begins the next time; ``None`` for never."""
        starts = (
            ahead * _DAY_NS + self.start_minute * _MINUTE_NS - wall_ns % _DAY_NS
            for ahead in range(_WEEK_DAYS + 1)
            if (_weekday(wall_ns) + ahead) % _WEEK_DAYS in self.days
        )
        return min((start / _NS for start in starts if start > 0), default=None)


def seconds_to_open(windows: Sequence[Window], wall_ns: int) -> float | None:
    """How long until one of several windows is open: 0 where one is, or where there are none.

    Args:
        windows: the windows.
        wall_ns: the moment, UTC in ns since 1970.

    Returns:
        Seconds; ``None`` where none ever opens.
    """
    if not windows or any(window.is_open(wall_ns) for window in windows):
        return 0.0
    starts = [window.seconds_to_start(wall_ns) for window in windows]
    return min((start for start in starts if start is not None), default=None)


@dataclass(frozen=True, slots=True)
class LinkRule:
    """How a link may be used.

    Args:
        name: of the link.
        bytes_per_second: how fast in the long run; ``None`` for as fast as it goes.
        burst_bytes: how much may go at once after a rest.
        bytes_per_day: how much on one day in UTC; ``None`` for any amount.
        windows: when; at all times where there are none.
        least: the least urgent lane that is worth its cost; ``None`` for all of them.
    """

    name: str
    bytes_per_second: float | None = None
    burst_bytes: int = 64 * KIB
    bytes_per_day: int | None = None
    windows: tuple[Window, ...] = ()
    least: Lane | None = None

    def __post_init__(self) -> None:
        assert self.bytes_per_second is None or self.bytes_per_second > 0, "a rate is above 0"
        assert self.burst_bytes > 0, "something may go at once"

    @property
    def part_bytes_max(self) -> int | None:
        """How large a part should be at most, so that none uses up more than a quarter of a second.

        ``None`` for any size.
        """
        if self.bytes_per_second is None:
            return None
        return max(PART_BYTES_MIN, min(self.burst_bytes, int(self.bytes_per_second / 4)))

    def serves(self, lane: Lane) -> bool:
        """Whether a lane is worth the link's cost."""
        return self.least is None or lane.priority <= self.least.priority


class Bucket:
    """A token bucket: a steady rate, and a burst after a rest.

    What is larger than the burst goes when the bucket is full, and leaves a debt: the rate holds in
    the long run, and nothing is too large for ever.

    Args:
        bytes_per_second: the rate; ``None`` for no limit.
        burst_bytes: what it holds.
    """

    def __init__(self, bytes_per_second: float | None, burst_bytes: int) -> None:
        self._rate = bytes_per_second
        self._burst = burst_bytes
        self._level = float(burst_bytes)
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<Bucket {self._level:.0f} of {self._burst} bytes>"

    def level(self, now: float) -> float | None:
        """How many bytes may go at once; below 0 for a debt; ``None`` for any amount.

        Args:
            now: seconds on a monotonic clock.
        """
        if self._rate is None:
            return None
        rested = 0.0 if self._at is None else max(0.0, now - self._at)
        return min(float(self._burst), self._level + rested * self._rate)

    def seconds_to(self, size: int, now: float) -> float:
        """How long until so many bytes may go; 0 for now."""
        level = self.level(now)
        if level is None or self._rate is None:
            return 0.0
        return max(0.0, (min(size, self._burst) - level) / self._rate)

    def take(self, size: int, now: float) -> None:
        """So many bytes go."""
        level = self.level(now)
        if level is not None:
            self._level = level - size
            self._at = now if self._at is None else max(self._at, now)


class Spent(NamedTuple):
    """What was sent on a day: the day's number since 1970, and bytes."""

    day: int
    bytes: int


class Day:
    """The budget of a day in UTC.

    Args:
        bytes_max: how much; ``None`` for any amount, which is counted all the same.
        spent: what was sent before this process began.
    """

    def __init__(self, bytes_max: int | None, spent: Spent | None = None) -> None:
        self._bytes_max = bytes_max
        self._spent = spent
        self._behind_since: float | None = None

    def __repr__(self) -> str:
        return f"<Day {self._spent} of {self._bytes_max} bytes>"

    @property
    def spent(self) -> Spent | None:
        """What was sent on the newest day; ``None`` before the first look at the clock."""
        return self._spent

    def left(self, now: float, wall_ns: int) -> int | None:
        """How many bytes are left; ``None`` for any amount.

        Args:
            now: seconds on a monotonic clock.
            wall_ns: UTC in ns since 1970.
        """
        spent = self._roll(now, wall_ns)
        return None if self._bytes_max is None else max(0, self._bytes_max - spent.bytes)

    def take(self, size: int, now: float, wall_ns: int) -> None:
        """So many bytes go."""
        spent = self._roll(now, wall_ns)
        self._spent = spent._replace(bytes=spent.bytes + size)

    @staticmethod
    def seconds_to_midnight(wall_ns: int) -> float:
        """How long the present day lasts."""
        return (_DAY_NS - wall_ns % _DAY_NS) / _NS

    def _roll(self, now: float, wall_ns: int) -> Spent:
        today, spent = wall_ns // _DAY_NS, self._spent
        if spent is not None and today < spent.day:
            if self._behind_since is None:
                self._behind_since = now
            if now - self._behind_since < _DAY_SECONDS:
                return spent
        self._behind_since = None
        if spent is None or spent.day != today:
            spent = Spent(today, 0)
        self._spent = spent
        return spent


def _weekday(wall_ns: int) -> int:
    return (wall_ns // _DAY_NS + _FIRST_WEEKDAY) % _WEEK_DAYS
