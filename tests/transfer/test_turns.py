"""Who goes next: priority, shares, live first, fair between nodes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.transfer.source import Life
from mesh.transfer.turns import LaneRule, Queue, Turns
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Epoch, Lane

A, B = (Life("hall", node, Epoch(1, 1)) for node in ("a", "b"))


def _queue(lane: Lane, size: int = 1000, *, life: Life = A, live: bool = False) -> Queue:
    return Queue(life, lane, live, size)


def _run(turns: Turns, queues: list[Queue], count: int) -> Counter[Queue]:
    """Bytes by queue while all of them have more to send."""
    sent: Counter[Queue] = Counter()
    for _ in range(count):
        queue = turns.pick(queues)
        assert queue is not None
        turns.on_sent(queue, queue.bytes)
        sent[queue] += queue.bytes
    return sent


def test_the_most_urgent_goes_first() -> None:
    """Without shares nothing else counts, however long the rest has waited."""
    queues = [_queue(lane) for lane in reversed(Lane)]
    assert _run(Turns({}), queues, 50) == {_queue(Lane.ACCOUNT): 50_000}
    assert Turns({}).pick([]) is None


@pytest.mark.parametrize("size", [100, 1000, 50_000])
def test_a_share_is_kept_while_something_waits(size: int) -> None:
    """A lane gets its share of the bytes behind an endless backlog, and not more."""
    turns = Turns({Lane.LOGS: LaneRule(0.05), Lane.METRICS: LaneRule(0.2)})
    queues = [_queue(Lane.DECISIONS), _queue(Lane.METRICS, size), _queue(Lane.LOGS, size)]
    sent = _run(turns, queues, 20_000)
    total = sum(sent.values())
    assert sent[queues[1]] / total == pytest.approx(0.2, rel=0.05)
    assert sent[queues[2]] / total == pytest.approx(0.05, rel=0.05)


def test_an_alarm_goes_before_any_share() -> None:
    """What is owed waits while an alarm or an account does."""
    turns = Turns({Lane.LOGS: LaneRule(0.5)})
    logs, alarm = _queue(Lane.LOGS), _queue(Lane.ALARMS)
    assert _run(turns, [_queue(Lane.DECISIONS), logs], 2)[logs] == 0
    assert turns.owed(Lane.LOGS) == 1000
    assert _run(turns, [alarm, _queue(Lane.DECISIONS), logs], 9) == {alarm: 9000}
    assert turns.pick([_queue(Lane.DECISIONS), logs]) == logs


def test_a_lane_that_sent_alone_owes_nothing_for_it() -> None:
    """Using what nobody else wanted does not cost the share."""
    turns = Turns({Lane.LOGS: LaneRule(0.1)})
    _run(turns, [_queue(Lane.LOGS)], 5000)
    sent = _run(turns, [_queue(Lane.DECISIONS), _queue(Lane.LOGS)], 100)
    assert sent[_queue(Lane.LOGS)] >= 9000


@given(
    st.lists(st.tuples(st.sets(st.sampled_from(list(Lane)), min_size=1), st.integers(1, 300_000)))
)
def test_what_is_owed_is_bounded(steps: list[tuple[set[Lane], int]]) -> None:
    """Neither a long wait nor a long feast is remembered for more than a batch."""
    turns = Turns({Lane.LOGS: LaneRule(0.3), Lane.METRICS: LaneRule(0.4)})
    for lanes, size in steps:
        queue = turns.pick([_queue(lane, size) for lane in lanes])
        assert queue is not None
        turns.on_sent(queue, size)
        assert all(abs(turns.owed(lane)) <= BATCH_BYTES_MAX for lane in Lane)


def test_a_lane_with_nothing_to_send_saves_nothing() -> None:
    """Its share is of the bytes while something of it waits."""
    turns = Turns({Lane.LOGS: LaneRule(0.5)})
    _run(turns, [_queue(Lane.DECISIONS, 90_000), _queue(Lane.LOGS)], 1)
    assert turns.owed(Lane.LOGS) > 0
    turns.pick([_queue(Lane.DECISIONS)])
    assert turns.owed(Lane.LOGS) == 0


def test_live_goes_before_history() -> None:
    """Within a lane, and between lanes to which as much is owed."""
    turns = Turns({Lane.LOGS: LaneRule(0.2), Lane.METRICS: LaneRule(0.2)})
    history, live = _queue(Lane.LOGS), _queue(Lane.LOGS, life=B, live=True)
    assert turns.pick([history, live]) == live
    metrics, decision = _queue(Lane.METRICS), _queue(Lane.DECISIONS)
    _run(turns, [decision, metrics, history, live], 5)
    assert turns.owed(Lane.LOGS) == turns.owed(Lane.METRICS) == 1000
    assert turns.pick([decision, metrics, history]) == metrics
    assert turns.pick([decision, metrics, history, live]) == live


def test_nodes_take_turns_by_bytes() -> None:
    """One with large parts gets as many bytes as one with small parts."""
    small, large = _queue(Lane.EVENTS, 100), _queue(Lane.EVENTS, 4000, life=B)
    sent = _run(Turns({}), [large, small], 4100)
    assert sent[small] == pytest.approx(sent[large], abs=4000)


def test_who_comes_anew_has_not_saved_up_turns() -> None:
    """A node that rested does not shut out those that went on."""
    turns = Turns({})
    a, b = _queue(Lane.EVENTS), _queue(Lane.EVENTS, life=B)
    _run(turns, [a, b], 10)
    _run(turns, [a], 1000)
    sent = _run(turns, [a, b], 100)
    assert sent[a] == pytest.approx(sent[b], abs=1000)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), min_size=1), max_size=60)
)
def test_nobody_waits_longer_than_a_round(rounds: list[list[tuple[int, int]]]) -> None:
    """A node that always waits is never passed over by more than one part of each other."""
    turns, patient = Turns({}), _queue(Lane.EVENTS, 5000, life=Life("hall", "p", Epoch(1, 1)))
    passed: Counter[str] = Counter()
    for others in rounds:
        waiting = {
            node: _queue(Lane.EVENTS, size, life=Life("hall", f"n{node}", Epoch(1, 1)))
            for node, size in others
        }
        queue = turns.pick([patient, *waiting.values()])
        assert queue is not None
        turns.on_sent(queue, queue.bytes)
        if queue == patient:
            passed.clear()
        else:
            passed[queue.life.node] += queue.bytes
            # Up to its own last part, and the one that began just before.
            assert passed[queue.life.node] <= 2 * 5000
