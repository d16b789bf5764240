"""What a receiver knows: exact, whatever the order, however often, whatever is lost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.transfer import ledger
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import LEDGER_LANES_MAX, LEDGER_SPANS_MAX
from schemas.messages import Account, Epoch, Lane, Stage
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger
from tests.transfer.headers import EPOCH, LIFE, chain_at, header

EMPTY = LaneLedger("hall", "pump", EPOCH, Lane.EVENTS)
PARTITION = PartitionLedger("hq", LIFE)


def _account(number: int, next_seq: int, **explained: Ranges) -> Account:
    return Account(0, 0, Lane.EVENTS, EPOCH, number, next_seq, explained)


_batches = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda it: (it[0], it[0] + it[1])),
    max_size=25,
)


@given(_batches)
def test_what_is_held_is_what_came(spans: list[tuple[int, int]]) -> None:
    """Any order, repetition, loss, and any cutting of the same records: the set is exact."""
    known, held, came = EMPTY, set[int](), 0
    watermark = 0
    for start, stop in spans:
        taken = ledger.take(known, header(start, stop), 7)
        fresh = set(range(start, stop)) - held
        held |= fresh
        came += stop - start
        assert set(taken.new) == fresh
        assert taken.duplicates == stop - start - len(fresh)
        known = taken.ledger
        assert set(known.held) == held
        assert known.duplicates == came - len(held)
        told = ledger.receipt(PARTITION, known, 1, Stage.HELD)
        assert told.watermark >= watermark, "receipts never take anything back"
        watermark = told.watermark
        assert set(range(told.watermark)) | set(told.held) == held
        assert told.watermark not in held
        assert told.chain_at <= told.watermark
        assert told.chain == (chain_at(told.chain_at) if told.chain_at else b"")
        assert known.seen_wall_ns == 7
    assert ledger.account_line(known).missing == known.held.gaps(0, known.held.end)


@given(_batches, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_delivered_beats_explained(
    spans: list[tuple[int, int]], explained: list[tuple[int, int]]
) -> None:
    """What arrives late in an explained range is taken, and counts as delivered alone."""
    gone = Ranges.of(explained)
    known = ledger.explain(EMPTY, _account(1, 45, void=gone))
    for start, stop in spans:
        known = ledger.take(known, header(start, stop), 0).ledger
    line = ledger.account_line(known)
    held = {n for start, stop in spans for n in range(start, stop)}
    assert line.produced == 45
    assert line.delivered == len(held)
    assert sum(line.explained.values()) == len(set(gone) - held)
    assert set(line.missing) == set(range(45)) - held - set(gone)
    assert line.produced == line.delivered + sum(line.explained.values()) + len(line.missing)
    told = ledger.receipt(PARTITION, known, 1, Stage.ARCHIVED)
    assert set(range(told.watermark)) <= held | set(gone)


@given(st.permutations(list(range(1, 6))))
def test_the_newest_account_holds(order: list[int]) -> None:
    """Whatever the order in which statements arrive; an old one changes nothing."""
    known = EMPTY
    for number in order:
        known = ledger.explain(known, _account(number, 10 * number, void=Ranges(((0, number),))))
    assert known.statement == 5
    assert known.next_seq == 50
    assert known.explained == {"void": Ranges(((0, 5),))}
    assert ledger.explain(known, _account(5, 1)) == known


def test_an_account_says_who_has_released_how_far() -> None:
    """The newest one, with its time; an older one changes neither."""
    first = replace(_account(1, 10), released={"gate": 4}, wall_ns=5)
    known = ledger.explain(EMPTY, replace(_account(2, 10), released={"hq": 9}, wall_ns=8))
    assert (known.released, known.stated_wall_ns) == ({"hq": 9}, 8)
    assert ledger.explain(known, first) == known


def test_a_dispute_is_noted_once() -> None:
    """However often the same other records are offered; what is held stays as it was."""
    known = ledger.take(EMPTY, header(0, 5), 0).ledger
    noted = ledger.dispute(known, header(3, 7, salt="forged"))
    assert noted.disputed == Ranges(((3, 5),))
    assert replace(noted, disputed=Ranges()) == known
    assert ledger.dispute(noted, header(3, 7, salt="forged")) == noted
    assert ledger.dispute(known, header(5, 7, salt="forged")).disputed == Ranges(((5, 7),))


def test_disputes_are_bounded() -> None:
    """They are an alarm: a ledger does not grow with every one of them."""
    known = EMPTY
    for first in range(0, 1000, 2):
        known = ledger.dispute(known, header(first, first + 1, salt="x"))
    assert len(known.disputed.spans) <= 64


def test_an_account_never_says_less_than_what_came() -> None:
    """A statement that was overtaken by records does not shrink what was produced."""
    known = ledger.take(EMPTY, header(0, 10), 0).ledger
    assert ledger.explain(known, _account(1, 4)).next_seq == 10


@pytest.mark.parametrize("span", [(5, 8), (0, 5), (3, 5)])
def test_other_records_under_known_numbers_are_refused(span: tuple[int, int]) -> None:
    """Refusal 12: behind what is held, or the same again, with another chain. Nothing changes."""
    known = ledger.take(EMPTY, header(0, 5), 0).ledger
    before = replace(known)
    with pytest.raises(Refused) as refused:
        ledger.take(known, header(*span, salt="forged"), 0)
    assert refused.value.reason is RefusedBecause.BAD_CHAIN
    assert known == before
    assert ledger.take(known, header(*span), 0).ledger.held.end == max(5, span[1])


def test_other_records_are_seen_where_a_batch_passes_over_what_is_known() -> None:
    """A clone cuts its batches elsewhere. Who cannot open a batch sees its ends alone."""
    known = ledger.take(EMPTY, header(0, 5), 0).ledger
    forged = header(3, 9, salt="forged")
    with pytest.raises(Refused, match="at 5 is") as refused:
        ledger.take(known, forged, 0, lambda number: chain_at(number, "forged"))
    assert refused.value.reason is RefusedBecause.BAD_CHAIN
    with pytest.raises(Refused, match="no frame begins there"):
        ledger.take(known, forged, 0, lambda _: None)
    assert ledger.take(known, header(3, 9), 0, chain_at).ledger.chain_at == 9
    assert ledger.take(known, forged, 0).ledger.held.end == 9


def test_the_chain_follows_over_what_is_explained() -> None:
    """Void numbers have no records; the chain behind them is known once it is reached."""
    known = ledger.take(EMPTY, header(0, 3), 0).ledger
    assert (known.chain_at, known.chain) == (3, chain_at(3))
    beyond = replace(header(10, 12), chain_before=chain_at(3))
    apart = ledger.take(known, beyond, 0).ledger
    assert (apart.chain_at, apart.held) == (3, Ranges(((0, 3), (10, 12))))
    stated = ledger.explain(apart, _account(1, 12, void=Ranges(((3, 10),))))
    assert ledger.receipt(PARTITION, stated, 1, Stage.HELD).watermark == 12
    again = ledger.take(stated, beyond, 0).ledger
    assert (again.chain_at, again.chain) == (12, beyond.chain_after)


def test_holes_are_bounded() -> None:
    """Refusal 13: a sender of every other number is refused, and may offer again; no other is."""
    torn = Ranges(tuple((2 * n, 2 * n + 1) for n in range(LEDGER_SPANS_MAX)))
    known = replace(EMPTY, held=torn, next_seq=torn.end)
    with pytest.raises(Refused) as refused:
        ledger.take(
            known, replace(header(0, 1), present=Ranges(((torn.end + 1, torn.end + 2),))), 0
        )
    assert refused.value.reason is RefusedBecause.FULL
    filled = ledger.take(known, replace(header(0, 1), present=Ranges(((1, 2),))), 0).ledger
    assert len(filled.held.spans) == LEDGER_SPANS_MAX - 1
    assert wire.decode(wire.encode(replace(PARTITION, lanes=(known,)))) == replace(
        PARTITION, lanes=(known,)
    )


def test_a_leap_of_numbers_is_refused() -> None:
    """Refusal 13: forward by 2**60; nothing has changed. One that can be costs one span more."""
    known = ledger.take(EMPTY, header(0, 3), 0).ledger
    far = replace(header(0, 1), first=2**60, last=2**60, present=Ranges(((2**60, 2**60 + 1),)))
    with pytest.raises(Refused) as refused:
        ledger.take(known, far, 0)
    assert refused.value.reason is RefusedBecause.OUT_OF_RANGE
    near = replace(far, first=2**40, last=2**40, present=Ranges(((2**40, 2**40 + 1),)))
    known = ledger.take(known, near, 0).ledger
    assert ledger.receipt(PARTITION, known, 1, Stage.HELD).watermark == 3
    assert len(ledger.account_line(known).missing) == 2**40 - 3


def test_receipts_are_bounded() -> None:
    """However torn a ledger is; the lowest ranges are told first."""
    torn = Ranges(tuple((2 * n + 1, 2 * n + 2) for n in range(2000)))
    told = ledger.receipt(PARTITION, replace(EMPTY, held=torn), 4, Stage.HELD)
    assert told.watermark == 0
    assert told.held.spans == torn.spans[: len(told.held.spans)]
    assert 0 < len(told.held.spans) <= 512
    assert (told.holder, told.life, told.number) == ("hq", LIFE, 4)


def test_ledgers_are_kept_apart_and_in_order() -> None:
    """By site, node, epoch and lane; replaced, never doubled; sorted, so equal sets are equal."""
    keys = [
        ("hall", "pump", EPOCH, Lane.EVENTS),
        ("hall", "pump", EPOCH, Lane.LOGS),
        ("hall", "pump", Epoch(1, 6), Lane.EVENTS),
        ("hall", "valve", EPOCH, Lane.EVENTS),
        ("yard", "pump", EPOCH, Lane.EVENTS),
    ]
    made = [LaneLedger(*key, next_seq=index) for index, key in enumerate(keys)]
    forward = ledger.store(PARTITION, made)
    backward = ledger.store(PARTITION, reversed(made))
    assert forward == backward
    assert [ledger.find(forward, *key).next_seq for key in keys] == [0, 1, 2, 3, 4]
    assert ledger.find(PARTITION, *keys[0]) == LaneLedger(*keys[0])
    changed = ledger.store(forward, [replace(made[0], next_seq=9)])
    assert len(changed.lanes) == 5
    assert ledger.find(changed, *keys[0]).next_seq == 9


def test_lanes_of_a_partition_are_bounded() -> None:
    """A state that could not be read again would stop all of its nodes."""
    ledger.check_room(LEDGER_LANES_MAX)
    with pytest.raises(Refused) as refused:
        ledger.check_room(LEDGER_LANES_MAX + 1)
    assert refused.value.reason is RefusedBecause.FULL
    many = [LaneLedger("s", f"n{n}", EPOCH, Lane.LOGS) for n in range(LEDGER_LANES_MAX + 1)]
    with pytest.raises(Refused):
        ledger.store(PARTITION, many)


@pytest.mark.parametrize(
    ("site", "node", "partition"),
    [("hall", "pump", 231), ("hall", "valve", 193), ("yard", "pump", 153), ("a", "b", 192)],
)
def test_a_node_stays_in_its_partition_for_ever(site: str, node: str, partition: int) -> None:
    """Golden: another answer would look for its ledger elsewhere, and take all of it again."""
    assert ledger.partition_of(site, node) == partition


def test_partitions_share_the_nodes() -> None:
    """Evenly enough."""
    counts = [0] * 256
    for n in range(25_600):
        counts[ledger.partition_of("hall", f"node-{n}")] += 1
    assert min(counts) > 50
    assert max(counts) < 160


def test_what_a_later_life_states_explains_and_releases_nothing() -> None:
    """Row 25: a copy knows nothing of what the store that it was copied from went on to use."""
    known = ledger.take(EMPTY, header(0, 5), 1).ledger
    known = ledger.explain(known, _account(7, 20, void=Ranges(((5, 20),))), own=False)
    line = ledger.account_line(known)
    assert not line.missing
    assert sum(line.explained.values()) == 15
    partition = PartitionLedger("hq", Epoch(1, 1))
    assert ledger.receipt(partition, known, 1, Stage.ARCHIVED).watermark == 5
    # The life itself goes on, and is heard, though its statements have lower numbers.
    known = ledger.explain(known, _account(2, 9, void=Ranges(((5, 6),))))
    assert ledger.receipt(partition, known, 2, Stage.ARCHIVED).watermark == 6
    assert ledger.take(known, header(6, 9), 1).new == Ranges(((6, 9),))
