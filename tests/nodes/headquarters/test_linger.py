"""The linger: a trickle makes few files, and nothing else waits."""

from nodes.headquarters.linger import Linger
from schemas.limits import INGEST_RAW_BYTES_MAX, INTAKE_BATCHES_MAX


def test_a_trickle_waits_longer_each_time() -> None:
    """From a sixteenth of the longest wait up to all of it."""
    linger, now = Linger(2.0), 100.0
    waits = []
    for _ in range(7):
        waits.append(linger.after(1, 500, now, now + 0.01))
        now += 0.01 + waits[-1]
    assert waits == [0.125, 0.25, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_a_large_group_is_followed_at_once() -> None:
    """Large by count or by bytes: there is more; and the next small one waits shortly again."""
    for count, size in ((INTAKE_BATCHES_MAX // 4, 1), (1, INGEST_RAW_BYTES_MAX // 8)):
        linger = Linger(2.0)
        assert [linger.after(1, 500, 0.0, 0.0) for _ in range(3)] == [0.125, 0.25, 0.5]
        assert linger.after(count, size, 1.0, 1.1) == 0.0
        assert linger.after(1, 500, 1.2, 1.3) == 0.125


def test_what_comes_after_a_pause_is_a_beginning() -> None:
    """Once nothing came for longer than the longest wait."""
    linger = Linger(2.0)
    assert linger.after(1, 500, 0.0, 0.0) == 0.125
    assert linger.after(1, 500, 2.0, 2.0) == 0.25
    assert linger.after(1, 500, 2.0 + 0.25 + 2.1, 5.0) == 0.125


def test_none_is_none() -> None:
    """With 0 s nothing ever waits."""
    linger = Linger(0.0)
    assert {linger.after(1, 1, 0.0, 0.0) for _ in range(5)} == {0.0}
