"""What is pending, what is given up, what is said of it: the pure parts of the spool."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.spool import explained
from mesh.spool.accounts import statements
from mesh.spool.backlog import Backlog, runs
from mesh.spool.commit import Located
from mesh.spool.frame import HEADER_BYTES, Whole
from mesh.spool.lane import LaneSettings, LaneState, WhenFull
from mesh.spool.retention import Eviction, Shelf, first_to_go, plan
from mesh.spool.settings import DEFAULT_LANES
from mesh.spool.shelf import Sealed
from schemas import limits, wire
from schemas.messages import Epoch, Explained, Instant, Lane
from schemas.ranges import Ranges
from tests.spool.frames import EPOCH, chained

UNRECORDED = Epoch(1, 99)


def located(counts: list[int], first: int = 0, journal: int = 1) -> list[Located]:
    """Frames that stand in a journal."""
    found, offset = [], 0
    for header in chained(counts, first=first)[1]:
        found.append(Located(journal, Whole(offset, header)))
        offset += HEADER_BYTES + header.body_bytes
    return found


def _firsts(piece: object) -> object:
    if isinstance(piece, tuple):
        return [item.frame.header.first for item in piece]
    return piece


# --- pieces ---------------------------------------------------------------------------------------


def test_pieces_come_in_the_order_of_their_numbers() -> None:
    """Shelf and journal, wherever each is."""
    old, new = Sealed(0, 5, 100), Sealed(20, 30, 100)
    backlog = Backlog(located([2, 3], first=10), [old, new])
    assert backlog.next_piece(0) == old
    assert _firsts(backlog.next_piece(5)) == [10, 12]
    assert backlog.next_piece(15) == new
    assert backlog.next_piece(30) is None


@pytest.mark.parametrize("start", range(5))
def test_a_start_within_a_batch_gives_that_batch(start: int) -> None:
    """Batches are not cut: the receiver takes each number once."""
    backlog = Backlog([], [Sealed(0, 5, 100)])
    assert backlog.next_piece(start) == Sealed(0, 5, 100)


def test_a_start_within_a_frame_gives_that_frame() -> None:
    """And those after it, but none before."""
    backlog = Backlog(located([2, 3, 4]))
    assert _firsts(backlog.next_piece(0)) == [0, 2, 5]
    assert _firsts(backlog.next_piece(3)) == [2, 5]
    assert _firsts(backlog.next_piece(5)) == [5]
    assert backlog.next_piece(9) is None


def test_what_was_released_does_not_come_again() -> None:
    """Whole frames and batches; a part keeps the whole."""
    backlog = Backlog(located([2, 3], first=10), [Sealed(0, 5, 100)])
    assert backlog.release(Ranges(((0, 3), (10, 12)))) == ()
    assert backlog.next_piece(0) == Sealed(0, 5, 100)
    assert _firsts(backlog.next_piece(5)) == [12]
    assert backlog.release(Ranges(((3, 5),))) == (Sealed(0, 5, 100),)
    assert backlog.records == 3
    assert backlog.next_piece(0) == backlog.next_piece(12)


def test_frames_that_become_batches_do_not_come_twice() -> None:
    """Nor those that were released while they were being sealed."""
    frames = located([2, 3])
    backlog = Backlog(frames)
    backlog.release(Ranges(((0, 2),)))
    gone = backlog.seal(1, [Sealed(0, 2, 50), Sealed(2, 5, 50)])
    assert gone == (Sealed(0, 2, 50),)
    assert backlog.on_shelf == [Sealed(2, 5, 50)]
    assert backlog.fresh_bytes == 0
    assert backlog.records == 3


def test_runs_keep_within_a_batch() -> None:
    """Of one journal, without gaps, of bounded size and number."""
    gapped = [*located([1, 1]), *located([1], first=5)]
    assert [_firsts(run) for run in runs(gapped)] == [[0, 1], [5]]
    split = [*located([1]), *located([1], first=1, journal=2)]
    assert [_firsts(run) for run in runs(split)] == [[0], [1]]
    many = located([1] * (limits.FRAMES_PER_BATCH_MAX + 3))
    assert [len(run) for run in runs(many)] == [limits.FRAMES_PER_BATCH_MAX, 3]
    assert list(runs([])) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=15), st.data())
def test_a_backlog_holds_what_was_added_less_what_was_released(
    releases: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Against a set, through sealing too; too many spans are released later, not lost."""
    frames = located([3] * 15)
    backlog = Backlog(frames)
    held, gone = set(range(45)), set()
    for start, length in releases:
        gone |= set(range(start, min(45, start + length)))
        backlog.release(Ranges(((start, min(45, start + length)),)))
        if data.draw(st.booleans()):
            made = runs(backlog.in_journal(1))
            heads = [(run[0].frame.header.first, run[-1].frame.header.stop) for run in made]
            backlog.seal(1, [Sealed(*span, 10) for span in heads])
        assert backlog.fresh_bytes == sum(
            HEADER_BYTES + item.frame.header.body_bytes for item in backlog.in_journal(1)
        )
        assert backlog.sealed_bytes == sum(item.allocated for item in backlog.on_shelf)
    assert backlog.records == len(
        {n for frame in range(15) for n in range(3 * frame, 3 * frame + 3)} & held - gone
    )
    start, seen = 0, set()
    while (piece := backlog.next_piece(start)) is not None:
        spans = (
            [(piece.first, piece.stop)]
            if isinstance(piece, Sealed)
            else [(item.frame.header.first, item.frame.header.stop) for item in piece]
        )
        seen |= {n for low, high in spans for n in range(low, high)}
        start = spans[-1][1]
    assert held - gone <= seen


# --- giving up ------------------------------------------------------------------------------------

BLOCK = 4096
"""What the smallest batch occupies."""
BATCHES = {Lane.ACCOUNT: 1, Lane.ALARMS: 1, Lane.EVENTS: 2, Lane.LOGS: 2}


def _shelf(lane: Lane, count: int, epoch: Epoch = EPOCH, journals: int = 0) -> Shelf:
    """Batches of one block each, and so many bytes in journals."""
    batches = [Sealed(number, number + 1, 100) for number in range(count)]
    return Shelf(epoch, lane, batches, count * BLOCK + journals)


SHELVES = [_shelf(lane, count) for lane, count in BATCHES.items()]


def _given_up(found: Iterable[Eviction]) -> list[tuple[Lane, int]]:
    return [(item.lane, item.batch.first) for item in found]


@pytest.mark.parametrize(
    ("used", "given_up"),
    [
        (32, []),
        (33, [(Lane.LOGS, 0), (Lane.LOGS, 1), (Lane.EVENTS, 0)]),
        (32.5, [(Lane.LOGS, 0), (Lane.LOGS, 1), (Lane.EVENTS, 0)]),
        (99, [(Lane.LOGS, 0), (Lane.LOGS, 1), (Lane.EVENTS, 0), (Lane.EVENTS, 1)]),
    ],
)
def test_the_least_urgent_and_oldest_goes_first(used: float, given_up: list[object]) -> None:
    """Row 16: nothing while it fits, never accounts nor alarms; a sixteenth is spared."""
    found = plan(SHELVES, DEFAULT_LANES, int(used * BLOCK), 32 * BLOCK)
    assert _given_up(found) == given_up


def test_a_lane_beyond_its_quota_gives_up_its_own_oldest() -> None:
    """What stands in journals counts, and cannot be given up yet; other lanes are left alone."""
    lanes = {**DEFAULT_LANES, Lane.EVENTS: LaneSettings(0.0, 64, 16 * BLOCK)}
    shelves = [_shelf(Lane.EVENTS, 16, journals=BLOCK), _shelf(Lane.LOGS, 3)]
    assert _given_up(plan(shelves, lanes, 19 * BLOCK, 99 * BLOCK)) == [
        (Lane.EVENTS, 0),
        (Lane.EVENTS, 1),
    ]
    assert plan(shelves[1:], lanes, 19 * BLOCK, 99 * BLOCK) == ()


def test_a_lane_that_refuses_is_never_given_up() -> None:
    """Neither beyond its own quota, nor for the store's."""
    lanes = {**DEFAULT_LANES, Lane.LOGS: LaneSettings(0.0, 64, 1, when_full=WhenFull.REFUSE)}
    assert plan([_shelf(Lane.LOGS, 9)], lanes, 9 * BLOCK, 1) == ()
    assert Lane.LOGS not in first_to_go(lanes)


def test_the_oldest_epoch_goes_first() -> None:
    """Of one lane; a more urgent lane's past waits for its turn."""
    past = Epoch(0, 1)
    shelves = [_shelf(Lane.LOGS, 1, past), _shelf(Lane.EVENTS, 1, past), _shelf(Lane.LOGS, 1)]
    found = plan(shelves, DEFAULT_LANES, 35 * BLOCK, 34 * BLOCK)
    assert [(item.epoch, item.lane) for item in found] == [
        (past, Lane.LOGS),
        (EPOCH, Lane.LOGS),
        (past, Lane.EVENTS),
    ]


# --- what is said ---------------------------------------------------------------------------------


def _state(next_seq: int, **explained_by: Ranges) -> LaneState:
    state = LaneState(LaneSettings(0.0, 64), Backlog(), next_seq, next_seq, {}, 0, bytes(16))
    for why, numbers in explained_by.items():
        state.explain(why, numbers)
    return state


def _lanes() -> dict[Lane, LaneState]:
    lanes = {lane: _state(0) for lane in Lane}
    lanes[Lane.LOGS] = _state(10, void=Ranges(((3, 5),)))
    return lanes


def test_a_statement_counts_itself() -> None:
    """The lane of accounts says as produced what these very statements will take."""
    lanes = _lanes()
    lanes[Lane.EVENTS].unrecorded = 4
    told = statements(Instant(1, 2), {EPOCH: lanes}, UNRECORDED, lambda *_: {"hq": 2})
    assert [(a.lane, a.epoch, a.next_seq) for a in told] == [
        (Lane.LOGS, EPOCH, 10),
        (Lane.ACCOUNT, EPOCH, 3),
        (Lane.EVENTS, UNRECORDED, 4),
    ]
    assert told[0].explained == {"void": Ranges(((3, 5),))}
    assert told[2].explained == {Explained.SHED: Ranges(((0, 4),))}


def test_statement_numbers_rise_with_the_lane_of_accounts() -> None:
    """What a crash forgets of the count, the lane's own numbers still know."""
    lanes = _lanes()
    numbers: list[int] = []
    for _ in range(3):
        told = statements(Instant(1, 2), {EPOCH: lanes}, UNRECORDED, lambda *_: {})
        assert [account.number for account in told] == [
            lanes[Lane.ACCOUNT].next_seq + index + 1 for index in range(len(told))
        ]
        numbers += [account.number for account in told]
        lanes[Lane.ACCOUNT].next_seq += len(told)
        lanes[Lane.LOGS].statement = 0
    assert numbers == sorted(set(numbers))


def test_few_spans_are_said_as_they_are() -> None:
    """The bound costs nothing below it."""
    stated = {"void": Ranges(((3, 5), (9, 10))), "evicted": Ranges(((6, 7),))}
    assert explained.bounded(stated, Ranges(((0, 100),))) == stated
    assert explained.all_of(stated) == Ranges(((3, 5), (6, 7), (9, 10)))


@given(
    reasons=st.integers(0, 3),
    online=st.booleans(),
    generator=st.randoms(use_true_random=False),
)
def test_many_spans_merge_and_none_is_forgotten(
    *,
    reasons: int,
    online: bool,
    generator: random.Random,
) -> None:
    """What was said stays said; what is added was released, or is said to be given up."""
    names = ["void", "damaged", "shed", "evicted"][: reasons + 1]
    stated: dict[str, Ranges] = {}
    for n in range(limits.EXPLAINED_SPANS_MAX + 200):
        why = generator.choice(names)
        stated[why] = stated.get(why, Ranges()) | Ranges(((10 * n + 5, 10 * n + 9),))
    released = Ranges(((0, 10 * 2000),)) if online else Ranges(((0, 30),))
    before = explained.all_of(stated)
    told = explained.bounded(stated, released - before)
    assert sum(len(numbers.spans) for numbers in told.values()) <= limits.EXPLAINED_SPANS_MAX
    assert before - explained.all_of(told) == Ranges()
    added = explained.all_of(told) - before
    if online and len(names) == 1:
        assert added - released == Ranges(), "nothing pending was given up"
        assert set(told) == set(stated)
    else:
        assert (added - released) - told.get(Explained.EVICTED, Ranges()) == Ranges()


def test_a_device_that_starts_for_ever_still_has_a_statement() -> None:
    """Each unclean start adds a span; the account and the journal's header stay writable."""
    state = _state(0)
    for n in range(5000):
        state.next_seq = 70 * n + 64
        state.explain(Explained.VOID, Ranges(((70 * n + 6, 70 * n + 64),)))
    assert sum(len(r.spans) for r in state.explained.values()) <= limits.EXPLAINED_SPANS_MAX
    lanes = {lane: _state(0) for lane in Lane} | {Lane.LOGS: state}
    told = statements(Instant(1, 2), {EPOCH: lanes}, UNRECORDED, lambda *_: {})
    assert all(len(wire.encode(account)) <= limits.RECORD_BYTES_MAX for account in told)


def test_settings_stay_within_what_recovery_skips() -> None:
    """A reservation may be lost; what is skipped for it is bounded, so it is too."""
    for reserved in (0, limits.NUMBERS_RESERVED + 1):
        with pytest.raises(ValueError, match="reserved"):
            LaneSettings(0.0, reserved)
    state = _state(0)
    state.short_of = limits.NUMBERS_RESERVED
    assert state.wanted_reservation() == limits.NUMBERS_RESERVED
    assert state.short_of == 0
