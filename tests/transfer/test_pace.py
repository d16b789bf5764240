"""How fast a link is, measured on simulated pipes of all kinds."""

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.transfer.pace import Pace
from schemas.limits import BATCH_BYTES_MAX, KIB, PART_BYTES_MIN


@dataclass
class Pipe:
    """A wire that carries one byte after the other, with acceptances on the way back.

    Args:
        rate: bytes/s.
        latency: from the last byte of a part to its acceptance, in seconds.
        burst: acceptances come in groups so many seconds apart; 0 for at once.
    """

    rate: float
    latency: float
    burst: float = 0.0
    pace: Pace = field(default_factory=Pace)
    now: float = 0.0
    free_at: float = 0.0
    under_way: list[tuple[float, int, int]] = field(default_factory=list)
    parts: int = 0

    def send(self, size: int | None = None) -> None:
        """One part."""
        size = self.pace.part_bytes if size is None else size
        self.pace.on_sent(size, self.now)
        self.free_at = max(self.free_at, self.now) + size / self.rate
        accepted_at = self.free_at + self.latency
        if self.burst:
            accepted_at = (accepted_at // self.burst + 1) * self.burst
        heapq.heappush(self.under_way, (accepted_at, self.parts, size))
        self.parts += 1

    def accept(self) -> None:
        """The next acceptance comes."""
        self.now, _, size = heapq.heappop(self.under_way)
        self.pace.on_accepted(size, self.now)

    def drain(self, seconds: float) -> tuple[float, float]:
        """Sends an endless backlog.

        Returns:
            How much of the time the wire was busy, and how long something urgent would have waited
            at most for the wire.
        """
        begun, carried, longest = self.now, -max(0.0, self.free_at - self.now), 0.0
        while self.now < begun + seconds:
            while self.pace.room_bytes > 0:
                before = max(self.free_at, self.now)
                self.send()
                carried += self.free_at - before
            longest = max(longest, self.free_at - self.now)
            self.accept()
        return (carried - max(0.0, self.free_at - self.now)) / (self.now - begun), longest


KBIT, GBIT = 125.0, 125e6
rates = st.floats(0, 1).map(lambda place: 2 * KBIT * (GBIT / (2 * KBIT)) ** place)


def _warm_seconds(rate: float) -> float:
    """The first part is sent before anything is known."""
    return 20.0 + 4 * 4 * KIB / rate


@given(rates, st.floats(0.001, 0.6), st.sampled_from([0.0, 0.02, 0.1]))
@example(2 * KBIT, 0.6, 0.0)
@example(GBIT, 0.6, 0.1)
@example(64 * KBIT, 0.001, 0.1)
def test_a_link_is_kept_busy_and_nothing_urgent_waits_long(
    rate: float, latency: float, burst: float
) -> None:
    """Row 37: 2 kbit/s to 1 Gbit/s, 1 to 600 ms: busy for 80 %, an urgent part waits 1.3 s at most.

    Where the smallest part takes longer than a quarter of a second, it is that part that is waited
    for, and between two such parts the latency passes.
    """
    pipe = Pipe(rate, latency, burst)
    pipe.drain(_warm_seconds(rate))
    busy, longest = pipe.drain(60.0 if rate < 1e7 else 6.0)
    smallest = PART_BYTES_MIN / rate
    assert busy >= min(0.8, 0.9 * smallest / (smallest + latency + burst))
    assert longest <= 1.05 + max(0.25, 2 * smallest) + burst + 0.1


@given(rates, st.floats(0.001, 0.6), st.sampled_from([0.0, 0.1]))
def test_sizes_keep_their_bounds(rate: float, latency: float, burst: float) -> None:
    """A part is at most a quarter of a second, a window at least a part, at most two seconds."""
    pipe = Pipe(rate, latency, burst)
    assert (pipe.pace.rate, pipe.pace.part_bytes, pipe.pace.window_bytes) == (
        None,
        4 * KIB,
        4 * KIB,
    )
    for _ in range(200):
        while pipe.pace.room_bytes > 0:
            pipe.send()
        pipe.accept()
        pace = pipe.pace
        assert pace.rate is not None
        assert PART_BYTES_MIN <= pace.part_bytes <= BATCH_BYTES_MAX
        assert pace.part_bytes <= max(PART_BYTES_MIN, 0.25 * pace.rate)
        assert pace.part_bytes <= pace.window_bytes <= max(PART_BYTES_MIN, 2 * pace.rate)


@pytest.mark.parametrize("rate", [2_000.0, 8_000.0, 100_000.0])
def test_a_link_that_just_came_up_makes_nothing_urgent_wait(rate: float) -> None:
    """The first seconds, in which the rate is still being found, on a short and narrow path."""
    pipe = Pipe(rate, 0.03)
    pipe.send(280)
    busy, longest = pipe.drain(15.0)
    assert busy > 0.8
    # The one part that is sent before anything is known may take longer.
    assert longest <= max(1.0, (280 + 4 * KIB) / rate)


@pytest.mark.parametrize(("rate", "latency"), [(64 * KBIT, 0.05), (1e6, 0.02), (1e7, 0.2)])
def test_on_a_short_path_something_urgent_waits_half_a_second(rate: float, latency: float) -> None:
    """An alarm behind an endless backlog, on links as people have them."""
    pipe = Pipe(rate, latency)
    pipe.drain(30.0)
    busy, longest = pipe.drain(30.0)
    assert busy > 0.95
    assert longest <= 0.8


@pytest.mark.parametrize("latency", [0.9, 1.2])
def test_a_path_longer_than_a_second_is_filled_too(latency: float) -> None:
    """Two hops over satellites: the window grows by what the path takes."""
    pipe = Pipe(1e6, latency)
    pipe.drain(60.0)
    busy, longest = pipe.drain(60.0)
    assert busy > 0.8
    assert longest < 1.3


@pytest.mark.parametrize("burst", [0.05, 0.2, 0.5])
def test_acceptances_in_bursts_fool_nobody(burst: float) -> None:
    """Ten at once after a pause are not a hundred times the speed."""
    pipe = Pipe(100_000.0, 0.02, burst)
    pipe.drain(20.0)
    for _ in range(500):
        while pipe.pace.room_bytes > 0:
            pipe.send()
        pipe.accept()
        assert pipe.pace.rate == pytest.approx(100_000, rel=0.5)


def test_a_slow_spell_is_noticed_and_got_over() -> None:
    """A hundredth of the speed for a minute: the rate follows down, and up again."""
    pipe = Pipe(1e6, 0.05)
    pipe.drain(10.0)
    assert pipe.pace.rate == pytest.approx(1e6, rel=0.1)
    pipe.rate = 1e4
    pipe.drain(150.0)
    assert pipe.pace.rate == pytest.approx(1e4, rel=0.1)
    assert pipe.drain(20.0)[1] < 1.3
    pipe.rate = 1e6
    pipe.drain(10.0)
    assert pipe.pace.rate == pytest.approx(1e6, rel=0.1)


def test_little_to_send_says_nothing_against_a_link() -> None:
    """A record every ten seconds, and an hour of nothing, leave the rate as it was."""
    pipe = Pipe(1e6, 0.05)
    pipe.drain(10.0)
    while pipe.under_way:
        pipe.accept()
    for _ in range(100):
        pipe.now += 10.0
        pipe.send(200)
        pipe.accept()
    pipe.now += 3600.0
    assert pipe.pace.rate == pytest.approx(1e6, rel=0.1)
    assert pipe.drain(10.0)[0] > 0.95


def test_after_a_break_the_link_is_measured_anew() -> None:
    """The way that comes back may be slow: it begins small, and never larger than it was."""
    pipe = Pipe(1e6, 0.05)
    pipe.drain(10.0)
    pipe.pace.on_break(pipe.now)
    assert (pipe.pace.rate, pipe.pace.window_bytes) == (None, 4 * KIB)
    assert pipe.pace.room_bytes == 4 * KIB
    slow = Pipe(4000.0, 0.05)
    slow.drain(30.0)
    slow.pace.on_break(slow.now)
    assert slow.pace.window_bytes == pytest.approx(1000, rel=0.1)


def test_what_is_lost_makes_room_and_measures_nothing() -> None:
    """Nor does an acceptance of what is not under way."""
    pace = Pace()
    pace.on_sent(1000, 0.0)
    pace.on_accepted(999, 1.0)
    assert pace.rate is None
    pace.on_lost(1000)
    assert (pace.rate, pace.room_bytes) == (None, 4 * KIB)
    pace.on_accepted(1000, 2.0)
    assert pace.rate is None


def test_parts_are_accepted_in_any_order() -> None:
    """An urgent part that overtakes is not taken for another one."""
    pace = Pace()
    pace.on_sent(10_000, 0.0)
    pace.on_sent(500, 0.0)
    pace.on_accepted(500, 1.0)
    pace.on_accepted(10_000, 2.0)
    assert pace.room_bytes == pace.window_bytes
    assert pace.rate == pytest.approx(5250)
