"""What is held of a lane, against plain sets."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.transfer import ledger
from mesh.transfer.custody.lane import Holding, Kept, Place
from schemas.messages import Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import CustodyLane, LaneLedger
from tests.transfer.headers import EPOCH, header

_AT = Instant(1_000, 0)

_spans = st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda it: (it[0], it[0] + it[1]))
_steps = st.lists(
    st.tuples(st.sampled_from(["take", "release", "reclaim", "mark"]), _spans), max_size=30
)


def _set(numbers: Ranges) -> set[int]:
    return set(numbers)


@given(_steps)
def test_what_is_pending_is_what_was_taken_and_not_released(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    """Whatever comes in whatever order, overlapping, beyond, again."""
    holding = Holding(CustodyLane(LaneLedger("hall", "pump", EPOCH, Lane.EVENTS)))
    held, released = set[int](), set[int]()
    for index, (step, (start, stop)) in enumerate(steps):
        numbers = Ranges(((start, stop),))
        match step:
            case "take":
                taken = ledger.take(holding.ledger, header(start, stop), 0)
                if taken.new:
                    holding.ledger = taken.ledger
                    holding.add(Kept.of(header(start, stop), Place(1, index, 100), 0, _AT))
                    held |= _set(numbers)
            case "release" | "mark":
                before = Ranges(((0, stop),)) if step == "mark" else numbers
                holding.release(before, "hq", before.watermark())
                released |= _set(before)
            case _:
                holding.reclaim(numbers, "hq")
                released -= _set(numbers)
        pending = {n for kept in holding.pending for n in holding.rest(kept)}
        assert pending == held - released
        assert all(holding.rest(kept) for kept in holding.pending)
        assert not any(holding.rest(kept) for kept in holding.retained)
        assert [kept.last for kept in holding.pending] == sorted(
            kept.last for kept in holding.pending
        )


@given(st.lists(_spans, max_size=12), st.integers(0, 50))
def test_going_on_behind_the_last_number_passes_over_none(
    spans: list[tuple[int, int]], mark: int
) -> None:
    """Overlapping batches in any order: whoever reads on meets every number that is pending."""
    holding = Holding(CustodyLane(LaneLedger("hall", "pump", EPOCH, Lane.EVENTS)))
    for index, (start, stop) in enumerate(spans):
        holding.ledger = ledger.take(holding.ledger, header(start, stop), 0).ledger
        holding.add(Kept.of(header(start, stop), Place(1, index, 100), 0, _AT))
    holding.release(Ranges.of([(0, mark)]), "hq", mark)
    seen, start = set[int](), 0
    while (kept := holding.first_from(start)) is not None:
        assert kept.last >= start
        seen |= _set(holding.rest(kept))
        start = kept.last + 1
    assert seen >= {n for span in spans for n in range(*span) if n >= mark}


def test_a_sparse_batch_is_released_number_by_number() -> None:
    """A batch with holes is done when its own numbers are, wherever its last one lies."""
    holding = Holding(CustodyLane(LaneLedger("hall", "pump", EPOCH, Lane.EVENTS)))
    sparse = replace(header(0, 10), present=Ranges(((0, 2), (8, 10))), count=4, frames=(1,) * 4)
    holding.ledger = ledger.take(holding.ledger, sparse, 0).ledger
    holding.add(Kept.of(sparse, Place(1, 0, 100), 0, _AT))
    assert holding.release(Ranges(((8, 10),)), "hq", 0) == []
    assert len(holding.release(Ranges(((0, 2),)), "hq", 2)) == 1
    assert holding.pending == []


def test_a_holder_that_lost_something_goes_back() -> None:
    """How far each holder has released is bounded in number, and goes back with a loss."""
    holding = Holding(CustodyLane(LaneLedger("hall", "pump", EPOCH, Lane.EVENTS)))
    for index in range(40):
        holding.release(Ranges(((0, 5),)), f"hq-{index}", 5)
    assert len(holding.holders) == 16
    holding.release(Ranges(((0, 9),)), "hq", 9)
    holding.reclaim(Ranges(((3, 9),)), "hq")
    assert holding.holders["hq"] == 3


def test_what_had_lost_its_use_before_it_came_is_kept_as_any_other() -> None:
    """Its origin sent it all the same; a clock that is not trusted judges nothing."""

    def expires(wall_ns: int, at: Instant) -> int | None:
        useful = replace(header(0, 3), expires_wall_ns=wall_ns)
        return Kept.of(useful, Place(1, 0, 100), 0, at).expires_wall_ns

    assert expires(999, _AT) is None
    assert expires(1_001, _AT) == 1_001
    assert expires(999, replace(_AT, trusted=False)) == 999
