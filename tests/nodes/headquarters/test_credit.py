"""Credit: a storm is spread, urgent lanes wait for nobody, and nobody is left without a batch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.headquarters.credit import URGENT, Room, credit
from schemas.limits import BATCH_BYTES_MAX, MIB
from schemas.messages import Lane

_STORM = 10_000
_FULL = Room(460 * MIB, 512 * MIB)


def test_a_storm_of_ten_thousand_is_spread() -> None:
    """Over the time that the way in takes to drain, evenly; together they get what is left."""
    rng = random.Random(1)
    granted = [credit(Lane.LOGS, _FULL, _STORM, 20 * MIB, rng) for _ in range(_STORM)]
    # 204 MiB above the half at 20 MiB a second, and as long again.
    seconds = [it.not_before_ms / 1000 for it in granted]
    assert 19 < max(seconds) < 21
    tenths = [sum(n * 2.04 <= it < (n + 1) * 2.04 for it in seconds) for n in range(10)]
    assert min(tenths) > 0.8 * _STORM / 10
    assert max(tenths) < 1.2 * _STORM / 10
    assert {it.credit_bytes for it in granted} == {BATCH_BYTES_MAX}


@pytest.mark.parametrize("lane", sorted(URGENT))
def test_urgent_lanes_wait_for_nobody(lane: Lane) -> None:
    """However full it is."""
    for room in (_FULL, Room(512 * MIB, 512 * MIB)):
        assert credit(lane, room, _STORM, 1.0, random.Random(1)).not_before_ms == 0


def test_the_less_urgent_a_lane_the_longer_it_waits() -> None:
    """So what matters more comes first out of a storm."""
    longest = [
        max(credit(lane, _FULL, 1, MIB, random.Random(seed)).not_before_ms for seed in range(50))
        for lane in Lane
        if lane not in URGENT
    ]
    assert longest == sorted(longest)
    assert longest[0] < longest[-1] / 2


@given(
    st.sampled_from(list(Lane)),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, 100_000),
    st.floats(0, 1e12),
)
def test_what_is_granted_is_bounded(
    lane: Lane, waiting: int, most: int, senders: int, per_second: float
) -> None:
    """A batch at least where anything is stated, ten minutes at most."""
    given_ = credit(lane, Room(waiting, most), senders, per_second, random.Random(1))
    assert 0 <= given_.not_before_ms <= 600_000
    assert given_.credit_bytes == 0 or given_.credit_bytes >= BATCH_BYTES_MAX
    assert (given_.credit_bytes == 0) == (most == 0)
    if 2 * waiting <= most:
        assert given_.not_before_ms == 0
