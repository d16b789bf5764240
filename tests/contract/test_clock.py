"""What every clock promises, real and simulated."""

from collections.abc import Callable

import pytest

from mesh.adapters.system import PLAUSIBLE_WALL_NS, SystemClock
from mesh.ports import Clock
from simulator.clock import SimClock

CLOCKS: dict[str, Callable[[], Clock]] = {"system": SystemClock, "simulated": SimClock}


@pytest.fixture(params=CLOCKS)
def clock(request: pytest.FixtureRequest) -> Clock:
    """One clock of each kind."""
    return CLOCKS[request.param]()


def test_monotonic_time_never_goes_back(clock: Clock) -> None:
    """Each look shows a monotonic time at or after the one before."""
    looks = [clock.now().mono_ns for _ in range(1000)]
    assert looks == sorted(looks)
    assert looks[0] >= 0


def test_times_are_whole_nanoseconds(clock: Clock) -> None:
    """Both times are integers, and the wall clock counts nanoseconds since 1970."""
    now = clock.now()
    assert type(now.wall_ns) is int
    assert type(now.mono_ns) is int
    assert type(now.trusted) is bool
    assert PLAUSIBLE_WALL_NS < now.wall_ns < 2 * PLAUSIBLE_WALL_NS


def test_both_clocks_tell_of_the_same_passing(clock: Clock) -> None:
    """Between two looks wall and monotonic time pass alike, while nobody sets the clock."""
    first = clock.now()
    for _ in range(1000):
        second = clock.now()
    wall_ns = second.wall_ns - first.wall_ns
    assert abs(wall_ns - (second.mono_ns - first.mono_ns)) < 50_000_000
