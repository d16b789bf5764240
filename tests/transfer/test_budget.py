"""When a link may be used, and how much it may carry."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.transfer.budget import Bucket, Day, LinkRule, Spent, Window, seconds_to_open
from schemas.messages import Lane

WORKDAYS = frozenset(range(5))
NIGHT = Window(WORKDAYS, 22 * 60, 6 * 60)
DAY_SECONDS = 86_400
DAY_NS = DAY_SECONDS * 10**9


def _wall(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-23 21:59:59", False),  # a Monday
        ("2026-11-23 22:00:00", True),
        ("2026-11-24 05:59:59", True),
        ("2026-11-24 06:00:00", False),
        ("2026-11-28 05:00:00", True),  # the night that began on Friday
        ("2026-11-28 23:00:00", False),
        ("2026-11-23 05:00:00", False),  # the night that would have begun on Sunday
    ],
)
def test_a_window_that_passes_midnight_belongs_to_the_day_on_which_it_begins(
    moment: str,
    is_open: bool,  # noqa: FBT001 - a parameter of the table above
) -> None:
    """Mon-Fri 22:00-06:00 holds on the early Saturday, and not on the early Monday."""
    assert NIGHT.is_open(_wall(moment)) is is_open


windows = st.builds(
    Window,
    st.frozensets(st.integers(0, 6)),
    st.integers(0, 1439),
    st.integers(0, 1440),
)


@given(st.lists(windows, min_size=1, max_size=3), st.integers(0, 60_000 * 60 * 24 * 365 * 80))
def test_a_closed_link_opens_exactly_when_it_says(given_windows: list[Window], ms: int) -> None:
    """It is closed until then, and open at that moment; one without days never opens."""
    wall_ns = ms * 10**6
    seconds = seconds_to_open(given_windows, wall_ns)
    if seconds is None:
        assert not any(window.days for window in given_windows)
        return
    opens = wall_ns + round(seconds * 1000) * 10**6
    assert any(window.is_open(opens) for window in given_windows)
    if seconds:
        assert not any(
            window.is_open(at) for window in given_windows for at in (wall_ns, opens - 10**6)
        )


def test_without_windows_a_link_is_always_open() -> None:
    """No windows are no limit."""
    assert seconds_to_open((), 0) == 0.0


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 5)), max_size=60),
    st.integers(1, 10_000),
    st.integers(1, 4000),
)
def test_a_bucket_never_passes_its_rate(
    sends: list[tuple[int, float]], rate: int, burst: int
) -> None:
    """In any time, at most the burst, the rate, and the part that made the debt."""
    bucket, now, sent = Bucket(rate, burst), 0.0, 0
    for size, pause in sends:
        now += pause + bucket.seconds_to(size, now + pause)
        assert bucket.seconds_to(size, now) == pytest.approx(0, abs=1e-6)
        bucket.take(size, now)
        sent += size
        assert sent <= burst + rate * now + size + 1e-3


def test_what_is_larger_than_the_burst_goes_and_is_paid_for() -> None:
    """Nothing is too large for ever; the rate holds in the long run."""
    bucket = Bucket(100.0, 50)
    assert bucket.seconds_to(500, 0.0) == 0.0
    bucket.take(500, 0.0)
    assert bucket.level(0.0) == -450
    assert bucket.seconds_to(500, 0.0) == pytest.approx(5.0)


def test_a_bucket_without_a_rate_is_never_waited_for() -> None:
    """No rate is no limit."""
    bucket = Bucket(None, 1)
    bucket.take(1 << 40, 0.0)
    assert (bucket.level(0.0), bucket.seconds_to(1 << 40, 0.0)) == (None, 0.0)


def test_the_budget_comes_back_at_midnight() -> None:
    """What was spent yesterday does not count today."""
    day = Day(1000)
    day.take(900, 0.0, 10 * DAY_NS - 1)
    assert day.left(0.0, 10 * DAY_NS - 1) == 100
    assert day.left(0.0, 10 * DAY_NS) == 1000
    assert day.seconds_to_midnight(10 * DAY_NS - 10**9) == 1.0


def test_a_restart_does_not_bring_the_budget_back() -> None:
    """What was spent before the process began counts."""
    day = Day(1000)
    day.take(900, 0.0, 10 * DAY_NS)
    assert Day(1000, day.spent).left(0.0, 10 * DAY_NS + 5) == 100


def test_a_clock_that_jumps_back_brings_nothing_back() -> None:
    """Row 30: neither on the earlier day, nor when the clock is right again on the same day."""
    day = Day(1000, Spent(20_000, 900))
    assert day.left(0.0, 0) == 100
    day.take(50, 1.0, 0)
    assert day.left(2.0, 20_000 * DAY_NS) == 50
    assert day.spent == Spent(20_000, 950)


def test_a_day_that_never_was_does_not_close_the_link_for_ever() -> None:
    """After 24 hours of an earlier date the later one was the mistake."""
    day = Day(1000, Spent(90_000, 1000))
    assert day.left(0.0, 20_000 * DAY_NS) == 0
    assert day.left(DAY_SECONDS - 1.0, 20_001 * DAY_NS) == 0
    assert day.left(DAY_SECONDS, 20_001 * DAY_NS) == 1000
    assert day.spent == Spent(20_001, 0)


@given(
    st.lists(
        st.tuples(st.floats(0, 7200), st.integers(-3 * DAY_NS, 0), st.integers(0, 100)),
        min_size=1,
        max_size=200,
    )
)
def test_a_clock_that_lags_never_gets_more_than_the_days_that_there_were(
    steps: list[tuple[float, int, int]],
) -> None:
    """However the wall clock falls behind and comes back, a day has one budget."""
    day, now, sent = Day(100), 0.0, 0
    for pause, lag, size in steps:
        now += pause
        wall_ns = 20_000 * DAY_NS + int(now * 1e9) + lag
        left = day.left(now, wall_ns)
        assert left is not None
        taken = min(size, left)
        day.take(taken, now, wall_ns)
        sent += taken
    # One for each midnight that passed, for the days before the first, and for the first.
    assert sent <= 100 * (int(now // DAY_SECONDS) + 2 + 3)


def test_a_link_serves_the_lanes_that_are_worth_its_cost() -> None:
    """``least`` is the least urgent of them."""
    dear = LinkRule("sat", least=Lane.ALARMS)
    assert [lane for lane in Lane if dear.serves(lane)] == [Lane.ACCOUNT, Lane.ALARMS]
    assert all(LinkRule("lan").serves(lane) for lane in Lane)


def test_a_part_does_not_use_up_a_throttled_link() -> None:
    """At most a quarter of a second of its rate, whatever the wire could carry."""
    assert LinkRule("lan").part_bytes_max is None
    assert LinkRule("sat", bytes_per_second=8000).part_bytes_max == 2000
    assert LinkRule("sat", bytes_per_second=10).part_bytes_max == 512
