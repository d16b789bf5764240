"""Where a lane sends from: live before history, one at a time while no receipts come, credit."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.ports import Refusal
from mesh.transfer.delivery import Delivery, DeliverySettings, Front
from mesh.transfer.turns import LaneRule
from schemas.errors import RefusedBecause
from schemas.messages import BatchHeader, Epoch, Lane, Receipt
from schemas.ranges import Ranges
from tests.transfer.headers import EPOCH, header, receipt_of

SETTINGS = DeliverySettings(receipt_seconds=10.0, full_bytes=0, tries_max=3)
LIVE = {Lane.EVENTS: LaneRule(live=True)}


def _delivery(rules: dict[Lane, LaneRule] | None = None, *, released: int = 0) -> Delivery:
    cursor = {Lane.EVENTS: Ranges.of([(0, released)])}
    return Delivery("hall", "pump", EPOCH, cursor, SETTINGS, rules or {})


def _send(delivery: Delivery, start: int, stop: int, now: float = 0.0) -> int:
    return delivery.on_sent(header(start, stop), now, more=True, start=start)


def _accept(delivery: Delivery, start: int, stop: int, now: float = 0.0) -> None:
    delivery.on_accepted(Lane.EVENTS, _send(delivery, start, stop, now), now)


def test_a_lane_that_does_not_ask_sends_in_order() -> None:
    """However far behind it is."""
    delivery = _delivery()
    delivery.on_grown(Lane.EVENTS, 10_000)
    assert delivery.fronts(Lane.EVENTS, 0.0) == (Front(0, live=False),)


def test_a_live_lane_that_keeps_up_has_one_front() -> None:
    """Its oldest is its newest."""
    delivery = _delivery(LIVE)
    delivery.on_grown(Lane.EVENTS, 100)
    assert delivery.fronts(Lane.EVENTS, 0.0) == (Front(0, live=True),)


def test_a_live_lane_that_fell_behind_goes_on_with_its_newest() -> None:
    """History follows, up to where live began; then they are one again."""
    delivery = _delivery(LIVE, released=5)
    delivery.on_grown(Lane.EVENTS, 10_000)
    live, history = delivery.fronts(Lane.EVENTS, 0.0)
    assert (live.live, history) == (True, Front(5, live=False))
    assert 9_900 <= live.start < 10_000
    delivery.on_skipped(Lane.EVENTS, live.start, 10_000)
    assert delivery.fronts(Lane.EVENTS, 0.0)[0].start == 10_000
    delivery.on_skipped(Lane.EVENTS, 5, live.start)
    assert delivery.fronts(Lane.EVENTS, 0.0) == (Front(10_000, live=True),)


def test_what_is_live_gathers_while_history_goes_on() -> None:
    """A trickle of new records becomes few batches, and nothing behind it waits for that."""
    rules = {Lane.EVENTS: LaneRule(live=True, linger_seconds=5.0)}
    delivery = Delivery("hall", "pump", EPOCH, {}, DeliverySettings(), rules)
    delivery.on_grown(Lane.EVENTS, 1000)
    live, history = delivery.fronts(Lane.EVENTS, 0.0)
    delivery.on_sent(_plain(live.start, 1000), 0.0, more=False)
    assert delivery.fronts(Lane.EVENTS, 1.0) == (history,)
    assert Lane.EVENTS in delivery.lanes_due(1.0)
    assert delivery.get_timer(1.0) == 5.0
    assert delivery.fronts(Lane.EVENTS, 5.0)[0] == Front(1000, live=True)


def test_a_live_front_that_falls_behind_itself_jumps_again() -> None:
    """A link too narrow even for what is new: what was jumped over is history too."""
    delivery = _delivery(LIVE)
    delivery.on_grown(Lane.EVENTS, 1000)
    first = delivery.fronts(Lane.EVENTS, 0.0)[0].start
    _accept(delivery, first, 1000)
    delivery.on_grown(Lane.EVENTS, 1100)
    assert delivery.fronts(Lane.EVENTS, 0.0)[0].start == 1000, "not far behind"
    delivery.on_grown(Lane.EVENTS, 5000)
    live, history = delivery.fronts(Lane.EVENTS, 0.0)
    assert live.start > 4900
    assert history.start == 0
    delivery.on_skipped(Lane.EVENTS, 0, first)
    assert delivery.fronts(Lane.EVENTS, 0.0)[1].start == 1000, (
        "what was sent as live is not history"
    )


def test_numbers_of_which_nothing_is_pending_do_not_stop_a_front() -> None:
    """A hole before a batch counts as sent with it, and is offered again with it."""
    delivery = _delivery()
    ticket = delivery.on_sent(header(4, 9), 0.0, more=True, start=0)
    assert delivery.start(Lane.EVENTS) == 9
    delivery.on_failed(Lane.EVENTS, ticket)
    assert delivery.start(Lane.EVENTS) == 0


def test_one_failure_sends_one_batch_again() -> None:
    """The others are under way and may well arrive."""
    delivery = _delivery()
    _send(delivery, 0, 4)
    second = _send(delivery, 4, 8)
    _send(delivery, 8, 12)
    delivery.on_failed(Lane.EVENTS, second)
    assert delivery.start(Lane.EVENTS) == 4
    assert delivery.is_taken(Lane.EVENTS, 8, 12)
    _send(delivery, 4, 8)
    assert delivery.start(Lane.EVENTS) == 12


def test_while_no_receipts_come_one_batch_at_a_time_is_tried() -> None:
    """Row 34: a receiver that is away does not get the backlog again and again."""
    delivery = _delivery()
    _accept(delivery, 0, 4)
    _accept(delivery, 4, 8)
    assert delivery.on_timer(10.0)
    assert delivery.start(Lane.EVENTS) == 0
    assert Lane.EVENTS in delivery.lanes_due(10.0)
    _accept(delivery, 0, 4, 10.0)
    assert Lane.EVENTS not in delivery.lanes_due(10.0), "this one tells whether receipts come"
    assert not delivery.on_timer(29.0), "twice as long"
    assert delivery.on_timer(30.0)
    assert delivery.start(Lane.EVENTS) == 4, "perhaps it was that batch"
    _accept(delivery, 4, 8, 30.0)
    delivery.on_receipt(receipt_of(0, Ranges(((4, 8),))), 8, 31.0)
    assert Lane.EVENTS in delivery.lanes_due(31.0)
    assert delivery.start(Lane.EVENTS) == 0, "receipts come again: all is tried"
    assert delivery.get_timer(31.0) is None


def test_what_the_transport_lost_in_the_middle_is_sent_again_while_the_rest_flows() -> None:
    """Rows 35 and 46: when much later ones have receipts; parked when it was tried often enough."""
    delivery = _delivery()
    _accept(delivery, 0, 2)
    number, tries, now = 2, 0, 0.0
    for step in range(1, 200):
        now = float(step)
        _accept(delivery, number, number + 1, now)
        number += 1
        held = Ranges(((2, number),))
        delivery.on_receipt(receipt_of(0, held, number=step, chain=b""), number, now + 0.5)
        assert not delivery.on_timer(now + 0.5), "receipts come"
        if delivery.start(Lane.EVENTS) == 0:
            tries += 1
            _accept(delivery, 0, 2, now + 0.5)
        assert delivery.start(Lane.EVENTS) == number
    assert tries == SETTINGS.tries_max - 1
    assert delivery.parked(Lane.EVENTS) == Ranges(((0, 2),))
    delivery.on_break()
    assert delivery.start(Lane.EVENTS) == 0


def test_what_was_passed_over_is_tried_again_when_nothing_else_is_left() -> None:
    """Rows 34 and 46: for ever, and never parked: silence is nobody's fault."""
    delivery = _delivery()
    now = 0.0
    for _ in range(50):
        _accept(delivery, 0, 4, now)
        now = delivery.get_timer(now) or 0.0
        assert delivery.on_timer(now)
        assert delivery.start(Lane.EVENTS) == 0 or delivery.on_dry(Lane.EVENTS)
        assert Lane.EVENTS in delivery.lanes_due(now)
    assert not delivery.parked(Lane.EVENTS)


def test_numbers_of_which_nothing_is_pending_are_no_probe() -> None:
    """What was only skipped has nothing under way that could end the waiting."""
    delivery = _delivery()
    _accept(delivery, 0, 4)
    assert delivery.on_timer(10.0)
    delivery.on_skipped(Lane.EVENTS, 0, 9)
    assert Lane.EVENTS in delivery.lanes_due(10.0)


def test_what_is_parked_is_tried_again_after_an_hour() -> None:
    """Row 46: the receiver may have learned, though the link stayed up."""
    delivery = _delivery()
    refusal = Refusal(RefusedBecause.MALFORMED, "not understood", 0.0)
    for _ in range(SETTINGS.tries_max):
        delivery.on_refused(Lane.EVENTS, _send(delivery, 0, 4), refusal, 7.0)
    assert delivery.parked(Lane.EVENTS)
    assert delivery.get_timer(8.0) == 3607.0
    delivery.on_timer(3607.0)
    assert delivery.start(Lane.EVENTS) == 0


def test_a_receipt_of_a_life_that_is_over_changes_nothing() -> None:
    """Rows 35 and 43: a stick may bring it long after the holder began anew."""
    delivery = _delivery()
    _accept(delivery, 0, 9)
    delivery.on_receipt(receipt_of(9), 9, 0.0)
    delivery.on_receipt(receipt_of(4, life=Epoch(2, 0)), 9, 1.0)
    late = delivery.on_receipt(receipt_of(9, number=99), 9, 2.0)
    assert not late.numbers
    assert not late.lost
    assert delivery.start(Lane.EVENTS) == 4


def test_a_pause_that_a_receipt_asks_for_is_bounded() -> None:
    """Refusal 15: nobody can silence a lane for a year."""
    delivery = _delivery()
    _send(delivery, 0, 4)
    year_ms = 365 * 24 * 3_600_000
    delivery.on_receipt(receipt_of(4, not_before_ms=year_ms), 9, 0.0)
    assert Lane.EVENTS not in delivery.lanes_due(599.0)
    assert Lane.EVENTS in delivery.lanes_due(600.0)


def test_credit_that_nothing_can_renew_is_dropped() -> None:
    """All that was sent has its receipt, and none of them gives credit."""
    delivery = _delivery()
    _accept(delivery, 0, 4)
    delivery.on_receipt(_with_credit(receipt_of(4), 50), 100, 0.0)
    _accept(delivery, 4, 8)
    assert Lane.LOGS not in delivery.lanes_due(0.0)
    delivery.on_receipt(receipt_of(8, number=2), 100, 1.0)
    assert Lane.LOGS in delivery.lanes_due(1.0)


def test_credit_holds_back_all_but_the_most_urgent() -> None:
    """Row 40: a receiver says how much it takes; alarms go on, and the next receipt tells anew."""
    delivery = _delivery()
    _send(delivery, 0, 4)
    told = receipt_of(4)
    delivery.on_receipt(_with_credit(told, 150), 100, 0.0)
    assert Lane.EVENTS in delivery.lanes_due(0.0)
    _accept(delivery, 4, 8)
    assert Lane.EVENTS in delivery.lanes_due(0.0), "100 of 150 bytes"
    _accept(delivery, 8, 12)
    assert delivery.lanes_due(0.0) == [Lane.ACCOUNT, Lane.ALARMS]
    delivery.on_receipt(_with_credit(receipt_of(8, number=2), 150), 100, 0.0)
    assert Lane.LOGS in delivery.lanes_due(0.0)


def test_credit_ends_with_whoever_gave_it() -> None:
    """When no receipt comes, or the link breaks, nobody is left to give more."""
    for ending in ("break", "timer"):
        delivery = _delivery()
        _send(delivery, 0, 4)
        delivery.on_receipt(_with_credit(receipt_of(4), 50), 100, 0.0)
        _accept(delivery, 4, 8, 1.0)
        assert Lane.LOGS not in delivery.lanes_due(1.0)
        if ending == "break":
            delivery.on_break()
        else:
            delivery.on_timer(11.0)
        assert Lane.LOGS in delivery.lanes_due(11.0)


def test_a_holder_in_a_new_life_has_lost_what_it_no_longer_states() -> None:
    """Row 35: it is offered again; what the holder still states stays released."""
    delivery = _delivery()
    _accept(delivery, 0, 9)
    delivery.on_receipt(receipt_of(9), 9, 0.0)
    anew = receipt_of(4, Ranges(((6, 7),)), life=Epoch(2, 0))
    outcome = delivery.on_receipt(anew, 9, 1.0)
    assert outcome.lost == Ranges(((4, 6), (7, 9)))
    assert not outcome.numbers
    assert delivery.start(Lane.EVENTS) == 4
    assert not delivery.on_receipt(anew, 9, 1.0).lost, "said once"
    _accept(delivery, 4, 9, 1.0)
    assert delivery.on_receipt(receipt_of(9, number=2, life=Epoch(2, 0)), 9, 2.0).numbers == Ranges(
        ((0, 9),)
    )


def test_what_another_holder_states_is_not_lost() -> None:
    """Two ways upstream end at two holders."""
    delivery = _delivery()
    _accept(delivery, 0, 9)
    delivery.on_receipt(receipt_of(9), 9, 0.0)
    delivery.on_receipt(receipt_of(7, holder="gateway"), 9, 0.0)
    outcome = delivery.on_receipt(receipt_of(0, life=Epoch(2, 0), chain=b""), 9, 1.0)
    assert outcome.lost == Ranges(((7, 9),))


def test_what_the_cursor_knows_of_a_holder_is_compared_with_its_first_receipt() -> None:
    """Row 35: after a restart of this program, too."""
    delivery = _delivery(released=9)
    outcome = delivery.on_receipt(receipt_of(4), 9, 0.0, held_before=9)
    assert outcome.lost == Ranges(((4, 9),))
    other = _delivery(released=9)
    assert not other.on_receipt(receipt_of(4), 9, 0.0, held_before=0).lost


def test_an_older_receipt_of_a_known_life_loses_nothing() -> None:
    """Row 36: late and repeated receipts say less, and mean nothing by it."""
    delivery = _delivery()
    _accept(delivery, 0, 9)
    delivery.on_receipt(receipt_of(9, number=7), 9, 0.0)
    for number in (3, 7):
        assert not delivery.on_receipt(receipt_of(4, number=number), 9, 0.0).lost
    assert delivery.start(Lane.EVENTS) == 9


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("grow"), st.integers(1, 700)),
            st.tuples(st.just("send"), st.integers(1, 200)),
            st.tuples(st.just("fail"), st.integers(0, 9)),
            st.tuples(st.just("refuse"), st.integers(0, 9)),
            st.tuples(st.just("accept"), st.integers(0, 9)),
            st.tuples(st.just("receipt"), st.integers(0, 9)),
            st.tuples(st.just("timer"), st.integers(0, 300)),
            st.tuples(st.just("break"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_live_first_leaves_nothing_behind(happenings: list[tuple[str, int]]) -> None:
    """Whatever happens, sending from the fronts until they are dry sends all that is pending."""
    delivery = _delivery(LIVE)
    stop, now = 0, 0.0
    under_way: list[tuple[int, int, int]] = []
    arrived: list[tuple[int, int]] = []

    def send(size: int) -> bool:
        for front in reversed(delivery.fronts(Lane.EVENTS, 0.0)):
            if front.start < stop and delivery.has_room:
                end = min(stop, front.start + size)
                ticket = delivery.on_sent(_plain(front.start, end), now, more=True)
                under_way.append((ticket, front.start, end))
                return True
        return False

    for what, value in happenings:
        now += 1.0
        match what:
            case "grow":
                stop += value
                delivery.on_grown(Lane.EVENTS, stop)
            case "send":
                send(value)
            case "fail" | "refuse" | "accept" if under_way:
                ticket, first, end = under_way.pop(value % len(under_way))
                if what == "fail":
                    delivery.on_failed(Lane.EVENTS, ticket)
                elif what == "refuse":
                    full = Refusal(RefusedBecause.FULL, "", 0.0)
                    delivery.on_refused(Lane.EVENTS, ticket, full, now)
                else:
                    delivery.on_accepted(Lane.EVENTS, ticket, now)
                    arrived.append((first, end))
            case "receipt" if arrived:
                held = Ranges.of(arrived)
                mark = held.watermark()
                delivery.on_receipt(receipt_of(mark, held, chain=b""), stop, now)
            case "timer":
                now += value
                delivery.on_timer(now)
            case "break":
                delivery.on_break()
    delivery.on_break()
    under_way.clear()
    while send(500):
        ticket, first, end = under_way.pop()
        delivery.on_accepted(Lane.EVENTS, ticket, now)
        arrived.append((first, end))
    assert Ranges.of(arrived).covers(0, stop)


def _plain(start: int, stop: int) -> BatchHeader:
    return replace(header(0, 1), first=start, last=stop - 1, count=stop - start)


def _with_credit(receipt: Receipt, credit: int) -> Receipt:
    return replace(receipt, credit_bytes=credit)
