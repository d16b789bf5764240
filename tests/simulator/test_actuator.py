"""The actuator: it obeys what is right and in time, complains of the rest, and falls back."""

import pytest

from simulator.actuator import Actuator, Complained, FellBack, Obeyed, Reason

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def actuator() -> Actuator:
    """An actuator that knows two verdicts and falls back after five seconds."""
    return Actuator({"normal": "open", "anomaly": "half"}, safe="closed", silence_seconds=5)


def decision(**changes: object) -> dict[str, object]:
    """A decision that is fine at ``NOW``, but for the changes; identity may be changed too."""
    identity: dict[str, object] = {
        "node": "edge-1",
        "epoch": "7-ab",
        "lane": "decisions",
        "seq": 10,
    }
    identity |= {key: changes.pop(key) for key in list(changes) if key in identity}
    whole = {
        "identity": identity,
        "verdict": "normal",
        "valid_until": NOW // 1_000_000 + 1000,
        "replay": False,
    }
    return whole | changes


def test_obeys_a_decision_in_time() -> None:
    """A valid decision moves the actuator as its verdict says, and is named in the event."""
    machine = actuator()
    assert machine.position == "closed"
    assert machine.receive(decision(verdict="anomaly"), NOW) == Obeyed(
        NOW, "anomaly", "half", "edge-1", "7-ab", "decisions", 10
    )
    assert machine.position == "half"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (decision(replay=True), Reason.REPLAYED),
        (decision(valid_until=NOW // 1_000_000 - 1), Reason.STALE),
        (decision(seq=8), Reason.OUT_OF_ORDER),
        (decision(verdict="perhaps"), Reason.UNKNOWN_VERDICT),
        (decision(seq=True), Reason.MALFORMED),
        (decision(seq=-1), Reason.MALFORMED),
        (decision(seq="10"), Reason.MALFORMED),
        (decision(epoch=7), Reason.MALFORMED),
        (decision(valid_until=True), Reason.MALFORMED),
        (decision(valid_until=1.5), Reason.MALFORMED),
        (decision(replay=None), Reason.MALFORMED),
        (decision(verdict=["normal"]), Reason.MALFORMED),
        ({"verdict": "normal"}, Reason.MALFORMED),
        ([1, 2], Reason.MALFORMED),
        (None, Reason.MALFORMED),
    ],
)
def test_complaint_changes_nothing(what: object, reason: Reason) -> None:
    """What cannot be right is complained of with its reason; position and timer stay."""
    machine = actuator()
    machine.receive(decision(seq=9, verdict="anomaly"), NOW - 1)
    timer = machine.timer()
    answer = machine.receive(what, NOW)
    assert isinstance(answer, Complained)
    assert answer.reason is reason
    assert answer.at_ns == NOW
    assert answer.detail
    assert (machine.position, machine.timer()) == ("half", timer)


def test_last_instant_of_a_decision_counts() -> None:
    """A decision holds up to and including ``valid_until``, and not a nanosecond longer."""
    until = NOW // 1_000_000
    assert isinstance(actuator().receive(decision(valid_until=until), NOW), Obeyed)
    late = actuator().receive(decision(valid_until=until), NOW + 1)
    assert isinstance(late, Complained)
    assert late.reason is Reason.STALE


def test_order_is_judged_within_an_epoch_a_lane_and_a_node() -> None:
    """A lower number is only late beside its own epoch, lane and node; an old epoch stays known."""
    machine = actuator()
    for stream in ({"epoch": "8-cd"}, {"lane": "events"}, {"node": "edge-2"}):
        machine.receive(decision(seq=10), NOW)
        assert isinstance(machine.receive(decision(seq=1, **stream), NOW), Obeyed)
        assert isinstance(machine.receive(decision(seq=9), NOW), Complained)


def test_redelivery_is_obeyed_again() -> None:
    """The same decision delivered twice is no complaint: it says the same."""
    machine = actuator()
    first = machine.receive(decision(), NOW)
    assert machine.receive(decision(), NOW) == first


def test_complaint_about_a_decision_does_not_hide_older_ones() -> None:
    """Only what was obeyed sets the order: a refused decision does not make others late."""
    machine = actuator()
    machine.receive(decision(seq=100, verdict="perhaps"), NOW)
    assert isinstance(machine.receive(decision(seq=10), NOW), Obeyed)


def test_silence_leads_to_the_safe_position_once() -> None:
    """After ``silence_seconds`` without a decision obeyed it falls back, and says so once."""
    machine = actuator()
    assert machine.timer() is None
    assert machine.tick(NOW + 100 * SECOND) is None
    machine.receive(decision(), NOW)
    due = NOW + 5 * SECOND
    assert machine.timer() == due
    assert machine.tick(due - 1) is None
    assert machine.position == "open"
    machine.receive(decision(replay=True), due - 1)
    assert machine.tick(due) == FellBack(due, "closed", 5 * SECOND)
    assert machine.position == "closed"
    assert machine.tick(due + 100 * SECOND) is None
    assert machine.timer() is None


def test_decisions_put_silence_off() -> None:
    """Each decision obeyed starts the silence anew."""
    machine = actuator()
    machine.receive(decision(seq=1), NOW)
    machine.receive(decision(seq=2), NOW + SECOND // 2)
    assert machine.tick(NOW + 5 * SECOND) is None
    assert machine.timer() == NOW + SECOND // 2 + 5 * SECOND


def test_verdict_fallback_is_the_safe_position() -> None:
    """``fallback`` is obeyed: safe by default, or the position that was named for it."""
    machine = actuator()
    machine.receive(decision(), NOW)
    assert isinstance(machine.receive(decision(seq=11, verdict="fallback"), NOW), Obeyed)
    assert machine.position == "closed"
    slow = Actuator({"fallback": "slow"}, safe="closed", silence_seconds=5)
    slow.receive(decision(verdict="fallback"), NOW)
    assert slow.position == "slow"


def test_memory_is_bounded() -> None:
    """However many nodes and epochs speak, only the latest streams are remembered."""
    machine = actuator()
    for number in range(1000):
        assert isinstance(machine.receive(decision(epoch=str(number)), NOW), Obeyed)
    assert len(machine._newest) <= 64
    assert isinstance(machine.receive(decision(epoch="999", seq=1), NOW), Complained)


def test_silence_must_be_a_time() -> None:
    """An actuator that would never or always fall back is refused."""
    with pytest.raises(ValueError, match="silence_seconds"):
        Actuator({}, safe="closed", silence_seconds=0)
