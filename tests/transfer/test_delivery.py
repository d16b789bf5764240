"""The sending side: only receipts release, and everything else goes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ports import Refusal
from mesh.transfer.delivery import Delivery, DeliverySettings
from schemas.errors import Refused, RefusedBecause
from schemas.limits import HOLDERS_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from tests.transfer.headers import EPOCH, header, receipt_of

FULL = DeliverySettings(full_bytes=0)
"""No batch is small: nothing lingers."""

REFUSAL = Refusal(RefusedBecause.FULL, "no room", 5.0)


def _delivery(settings: DeliverySettings = FULL, **released: Ranges) -> Delivery:
    cursor = {Lane(name): numbers for name, numbers in released.items()}
    return Delivery("hall", "pump", EPOCH, cursor, settings)


def _sent(delivery: Delivery, *spans: tuple[int, int], lane: Lane = Lane.EVENTS) -> list[int]:
    return [delivery.on_sent(header(*span, lane), 0.0, more=True) for span in spans]


def _start(delivery: Delivery) -> int:
    return delivery.start(Lane.EVENTS)


def test_only_a_receipt_releases() -> None:
    """That the transport took it moves the window, and that is all."""
    delivery = _delivery()
    tickets = _sent(delivery, (0, 4), (4, 9))
    assert _start(delivery) == 9
    for ticket in tickets:
        delivery.on_accepted(Lane.EVENTS, ticket, 1.0)
    progress = delivery.progress()[Lane.EVENTS]
    assert (progress.sent_to, progress.released_to, progress.under_way) == (9, 0, 0)
    released = delivery.on_receipt(receipt_of(4), 9, 2.0)
    assert (released.lane, released.numbers, released.holder) == (
        Lane.EVENTS,
        Ranges(((0, 4),)),
        "hq",
    )
    assert delivery.progress()[Lane.EVENTS].released_to == 4
    assert _start(delivery) == 9


def test_a_cursor_tells_where_to_begin() -> None:
    """What was released in an earlier life is not sent; what lies in a hole is."""
    assert _start(_delivery(events=Ranges(((0, 7), (9, 12))))) == 7
    delivery = _delivery(events=Ranges(((0, 7), (9, 12))))
    _sent(delivery, (7, 9))
    assert _start(delivery) == 12


@pytest.mark.parametrize("how", ["break", "failure", "timer", "refusal"])
def test_what_has_no_receipt_is_sent_again(how: str) -> None:
    """From the first number that is not released, whatever went wrong."""
    delivery = _delivery()
    tickets = _sent(delivery, (0, 4), (4, 9))
    delivery.on_accepted(Lane.EVENTS, tickets[0], 0.5)
    delivery.on_receipt(receipt_of(4), 9, 1.0)
    match how:
        case "break":
            delivery.on_break()
        case "failure":
            delivery.on_failed(Lane.EVENTS, tickets[1])
        case "timer":
            delivery.on_accepted(Lane.EVENTS, tickets[1], 1.0)
            delivery.on_timer(30.9)
            assert _start(delivery) == 9, "not yet"
            delivery.on_timer(31.0)
        case "refusal":
            delivery.on_refused(Lane.EVENTS, tickets[1], REFUSAL, 1.0)
    assert _start(delivery) == 4
    assert delivery.progress()[Lane.EVENTS].resends == 1


def test_timers_are_data() -> None:
    """When to look again: a missing receipt, a pause, a linger; never without a reason."""
    delivery = _delivery()
    assert delivery.get_timer(0.0) is None
    (ticket,) = _sent(delivery, (0, 4))
    assert delivery.get_timer(0.0) is None, "the transport answers or fails by itself"
    delivery.on_accepted(Lane.EVENTS, ticket, 3.0)
    assert delivery.get_timer(3.0) == 33.0
    delivery.on_refused(Lane.LOGS, _sent(delivery, (0, 1), lane=Lane.LOGS)[0], REFUSAL, 4.0)
    assert delivery.get_timer(4.0) == 9.0
    assert delivery.get_timer(9.0) == 33.0
    delivery.on_receipt(receipt_of(4), 4, 10.0)
    assert delivery.get_timer(10.0) is None


def test_a_receipt_for_a_part_gives_the_rest_its_time() -> None:
    """The clock of a missing receipt starts anew while receipts come."""
    delivery = _delivery()
    for ticket in _sent(delivery, (0, 4), (4, 9)):
        delivery.on_accepted(Lane.EVENTS, ticket, 0.0)
    delivery.on_receipt(receipt_of(4), 9, 20.0)
    delivery.on_timer(31.0)
    assert _start(delivery) == 9
    delivery.on_timer(50.0)
    assert _start(delivery) == 4
    assert delivery.get_timer(50.0) is None, "what went back waits for nothing"


def test_a_refusal_pauses_its_lane_alone() -> None:
    """The others go on."""
    delivery = _delivery()
    (ticket,) = _sent(delivery, (0, 4))
    delivery.on_refused(Lane.EVENTS, ticket, REFUSAL, 1.0)
    assert Lane.EVENTS not in delivery.lanes_due(5.9)
    assert set(Lane) - set(delivery.lanes_due(5.9)) == {Lane.EVENTS}
    assert delivery.lanes_due(6.0) == list(Lane), "most urgent first"


def test_a_break_ends_all_pauses() -> None:
    """What comes up anew may have room."""
    delivery = _delivery()
    (ticket,) = _sent(delivery, (0, 4))
    delivery.on_refused(Lane.EVENTS, ticket, REFUSAL, 1.0)
    delivery.on_break()
    assert delivery.lanes_due(1.0) == list(Lane)


def test_the_window_is_bounded() -> None:
    """Over all lanes; an answer of any kind makes room, and so does a break."""
    delivery = _delivery(DeliverySettings(window_batches=2, full_bytes=0))
    (first,) = _sent(delivery, (0, 4))
    assert delivery.has_room
    (second,) = _sent(delivery, (0, 4), lane=Lane.LOGS)
    assert not delivery.has_room
    delivery.on_accepted(Lane.EVENTS, first, 0.0)
    assert delivery.has_room
    _sent(delivery, (4, 5))
    assert not delivery.has_room
    delivery.on_failed(Lane.LOGS, second)
    assert delivery.has_room
    delivery.on_break()
    assert [lane.under_way for lane in delivery.progress().values()] == [0] * len(Lane)


def test_news_from_before_a_break_changes_nothing() -> None:
    """The same batch is under way anew; what became of the old sending does not concern it."""
    delivery = _delivery()
    (old,) = _sent(delivery, (0, 4))
    delivery.on_break()
    _sent(delivery, (0, 4))
    delivery.on_failed(Lane.EVENTS, old)
    delivery.on_refused(Lane.EVENTS, old, REFUSAL, 0.0)
    delivery.on_accepted(Lane.EVENTS, old, 0.0)
    progress = delivery.progress()[Lane.EVENTS]
    assert (progress.sent_to, progress.under_way, progress.resends) == (4, 1, 1)
    assert delivery.get_timer(0.0) is None


def test_a_trickle_lingers_and_a_backlog_does_not() -> None:
    """After a small batch that was the last of its lane, and only then; alarms never."""
    delivery = _delivery(DeliverySettings())
    delivery.on_sent(header(0, 4), 10.0, more=True)
    assert Lane.EVENTS in delivery.lanes_due(10.0)
    delivery.on_sent(header(4, 5), 10.0, more=False)
    assert Lane.EVENTS not in delivery.lanes_due(10.1)
    assert delivery.get_timer(10.0) == pytest.approx(10.2)
    assert Lane.EVENTS in delivery.lanes_due(10.3)
    delivery.on_sent(header(0, 1, Lane.ALARMS), 10.0, more=False)
    assert Lane.ALARMS in delivery.lanes_due(10.0)


@pytest.mark.parametrize(
    ("receipt", "reason"),
    [
        (receipt_of(4, node="other"), RefusedBecause.FOREIGN),
        (receipt_of(4, epoch=Epoch(1, 6)), RefusedBecause.FOREIGN),
        (receipt_of(10), RefusedBecause.BEYOND_SENT),
        (receipt_of(4, Ranges(((5, 10),))), RefusedBecause.BEYOND_SENT),
        (receipt_of(4, chain_at_number=10), RefusedBecause.BEYOND_SENT),
        (receipt_of(4, chain=b"x" * 16), RefusedBecause.BAD_CHAIN),
        (receipt_of(9, chain=b"x" * 16, chain_at_number=0), RefusedBecause.BAD_CHAIN),
    ],
)
def test_a_receipt_that_is_not_believed_changes_nothing(
    receipt: object, reason: RefusedBecause
) -> None:
    """Refusal 15: of another node or epoch, of what was never written, of other records."""
    delivery = _delivery()
    tickets = _sent(delivery, (0, 4), (4, 9))
    delivery.on_accepted(Lane.EVENTS, tickets[0], 1.0)
    before = (delivery.progress(), delivery.get_timer(1.0), delivery.lanes_due(1.0))
    with pytest.raises(Refused) as refused:
        delivery.on_receipt(receipt, 9, 2.0)  # type: ignore[arg-type]
    assert refused.value.reason is reason
    assert (delivery.progress(), delivery.get_timer(1.0), delivery.lanes_due(1.0)) == before
    assert delivery.on_receipt(receipt_of(9), 9, 2.0).numbers == Ranges(((0, 9),))


def test_an_older_receipt_changes_nothing_and_a_new_life_may_count_anew() -> None:
    """Receipts are cumulative: late ones say less."""
    delivery = _delivery()
    _sent(delivery, (0, 9))
    delivery.on_receipt(receipt_of(9, number=5), 9, 0.0)
    late = receipt_of(4, number=4, not_before_ms=60_000)
    assert not delivery.on_receipt(late, 9, 0.0).numbers
    assert Lane.EVENTS in delivery.lanes_due(0.0)
    anew = receipt_of(4, number=1, life=Epoch(2, 0), not_before_ms=60_000)
    assert not delivery.on_receipt(anew, 9, 0.0).numbers
    assert Lane.EVENTS not in delivery.lanes_due(59.0)


@pytest.mark.parametrize("order", [(3, 2, 3), (2, 3, 2, 3)], ids=["overtaken", "interleaved"])
def test_the_life_that_began_last_is_the_present_one_in_whatever_order_receipts_come(
    order: tuple[int, ...],
) -> None:
    """A holder made its ledger anew twice, and the receipts overtook each other."""
    delivery = _delivery()
    _sent(delivery, (0, 2), (2, 4), (4, 6))
    for number, life in enumerate(order, start=1):
        delivery.on_receipt(receipt_of(2, number=number, life=Epoch(life, life)), 6, 1.0)
    late = delivery.on_receipt(receipt_of(4, number=9, life=Epoch(2, 2)), 6, 2.0)
    present = delivery.on_receipt(receipt_of(6, number=10, life=Epoch(3, 3)), 6, 3.0)
    assert (late.numbers, present.numbers) == (Ranges(), Ranges.of([(0, 6)]))


def test_a_holder_that_counts_its_lives_from_less_is_believed_when_the_other_is_silent() -> None:
    """It was restored from a copy; a receipt of the life before it came once more."""
    delivery = _delivery()
    _sent(delivery, (0, 2), (2, 4))
    before, restored = Epoch(5, 0), Epoch(3, 1)
    delivery.on_receipt(receipt_of(1, number=7, life=before), 4, 1.0)
    delivery.on_receipt(receipt_of(1, number=1, life=restored), 4, 2.0)
    delivery.on_receipt(receipt_of(1, number=8, life=before), 4, 3.0)
    doubted = delivery.on_receipt(receipt_of(4, number=2, life=restored), 4, 4.0)
    believed = delivery.on_receipt(receipt_of(4, number=3, life=restored), 4, 4000.0)
    repeated = delivery.on_receipt(receipt_of(1, number=8, life=before), 4, 4001.0)
    assert doubted.numbers == Ranges()
    assert believed.numbers == Ranges.of([(0, 4)])
    assert repeated.lost == Ranges()


def test_the_same_receipt_again_releases_nothing_more() -> None:
    """Idempotent, and re-requestable."""
    delivery = _delivery()
    _sent(delivery, (0, 9))
    assert delivery.on_receipt(receipt_of(4, Ranges(((6, 8),))), 9, 0.0).numbers == Ranges(
        ((0, 4), (6, 8))
    )
    assert not delivery.on_receipt(receipt_of(4, Ranges(((6, 8),))), 9, 0.0).numbers
    assert not delivery.on_receipt(receipt_of(0), 9, 0.0).numbers


def test_a_release_says_all_that_the_receipt_states() -> None:
    """What a spool could not take of an earlier one comes with the next."""
    delivery = _delivery()
    _sent(delivery, (0, 9))
    delivery.on_receipt(receipt_of(4, Ranges(((6, 8),))), 9, 0.0)
    assert delivery.on_receipt(receipt_of(9, number=2), 9, 0.0).numbers == Ranges(((0, 9),))


def test_a_lower_number_still_releases() -> None:
    """A holder that lost its count knows what it holds; it no longer says how long to wait."""
    delivery = _delivery()
    _sent(delivery, (0, 4), (4, 9))
    delivery.on_receipt(receipt_of(4, number=5), 9, 0.0)
    late = receipt_of(9, number=1, not_before_ms=60_000)
    assert delivery.on_receipt(late, 9, 0.0).numbers == Ranges(((0, 9),))
    assert delivery.progress()[Lane.EVENTS].released_to == 9
    assert Lane.EVENTS in delivery.lanes_due(0.0)


def test_holders_are_bounded() -> None:
    """A thousand names cost no memory."""
    delivery = _delivery()
    _sent(delivery, (0, 9))
    for n in range(1000):
        delivery.on_receipt(receipt_of(4, holder=f"h{n}"), 9, 0.0)
    assert len(delivery._lanes[Lane.EVENTS].holders._stated) == HOLDERS_MAX


def test_chains_are_kept_for_the_newest_sent() -> None:
    """Bounded; a receipt at a number whose chain is forgotten is believed for its numbers."""
    delivery = _delivery()
    sample = header(0, 1)
    for n in range(2000):
        delivery._lanes[Lane.EVENTS].remember(n, sample.chain_after)
    delivery._lanes[Lane.EVENTS].remember(1500, sample.chain_before)
    kept = delivery._lanes[Lane.EVENTS].chains
    assert len(kept) == 1024
    assert list(kept)[-1] == 1500


_happenings = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 5)),
        st.tuples(st.just("accept"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9)),
        st.tuples(st.just("refuse"), st.integers(0, 9)),
        st.tuples(st.just("break"), st.just(0)),
        st.tuples(st.just("timer"), st.integers(0, 60)),
        st.tuples(st.just("receipt"), st.integers(0, 40)),
    ),
    max_size=60,
)


@given(_happenings)
def test_whatever_happens_all_is_sent_until_it_is_released(
    happenings: list[tuple[str, int]],
) -> None:
    """Nothing unreleased is forgotten, the window holds, receipts alone move what is released."""
    delivery = _delivery(DeliverySettings(window_batches=4, full_bytes=0))
    total, released, now, number = 40, 0, 0.0, 0
    under_way: list[int] = []
    for what, value in happenings:
        now += 0.5
        match what:
            case "send":
                start = _start(delivery)
                if delivery.has_room and start < total and Lane.EVENTS in delivery.lanes_due(now):
                    stop = min(total, start + value)
                    under_way.append(delivery.on_sent(header(start, stop), now, more=True))
            case "accept" | "fail" | "refuse" if under_way:
                ticket = under_way.pop(value % len(under_way))
                if what == "accept":
                    delivery.on_accepted(Lane.EVENTS, ticket, now)
                elif what == "fail":
                    delivery.on_failed(Lane.EVENTS, ticket)
                else:
                    delivery.on_refused(Lane.EVENTS, ticket, REFUSAL, now)
            case "break":
                delivery.on_break()
            case "timer":
                now += value
                delivery.on_timer(now)
            case "receipt":
                number += 1
                progress = delivery.progress()[Lane.EVENTS]
                stop = min(value, progress.sent_to)
                delivery.on_receipt(receipt_of(stop, number=number), total, now)
                released = max(released, stop)
        progress = delivery.progress()[Lane.EVENTS]
        assert progress.released_to == released
        assert progress.under_way <= 4
        assert released <= _start(delivery) <= max(progress.sent_to, released)
    delivery.on_break()
    assert _start(delivery) == released
