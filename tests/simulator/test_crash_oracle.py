"""The oracle: each way in which a spool can lie is told from the truth."""

import random

import pytest

from mesh.spool.spool import Spool
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.crash.annals import Annals, Said, Violation, ranges
from simulator.crash.oracle import View, audit, judge, judge_records
from simulator.disk import SimDisk
from tests.spool.world import CALM, opened, resources

LANE = Lane.EVENTS
PRODUCED = {number: bytes([number]) for number in range(6)}
SAID = Said({LANE: PRODUCED}, {LANE: {0, 1, 2, 3}}, {LANE: {0}}, {LANE: 6})
"""Six records: four acknowledged, of which one was released, and two on their way."""
TRUTH = View(
    held={1: PRODUCED[1], 3: PRODUCED[3], 4: PRODUCED[4]},
    explained={Explained.EVICTED: ranges([2]), Explained.VOID: Ranges(((5, 20),))},
    released=ranges([0]),
    next_seq=20,
    durable=20,
)


def test_the_truth_is_no_violation() -> None:
    """Released, evicted and stated, pending, void: each number is accounted for."""
    judge(LANE, TRUTH, SAID)
    waiting = TRUTH._replace(explained={Explained.EVICTED: ranges([2])}, durable=5)
    judge(LANE, waiting, SAID)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (
            TRUTH._replace(
                held={3: PRODUCED[3], 4: PRODUCED[4]},
                explained={
                    Explained.EVICTED: ranges([2]),
                    Explained.VOID: Ranges(((1, 2), (5, 20))),
                },
            ),
            "acknowledged and lost: events 1",
        ),
        (TRUTH._replace(held={**TRUTH.held, 3: b"other"}), "events/3 was never appended"),
        (TRUTH._replace(held={**TRUTH.held, 7: b"new"}), "events/7 was never appended"),
        (
            TRUTH._replace(explained={**TRUTH.explained, Explained.DAMAGED: ranges([0])}),
            "nothing was damaged, and 0 is called so",
        ),
        (TRUTH._replace(released=ranges([0, 1])), "released without a receipt 1"),
        (
            TRUTH._replace(explained={Explained.EVICTED: ranges([2])}),
            "unaccounted 5-19",
        ),
        (TRUTH._replace(next_seq=19, durable=19), "beyond the next number 19"),
        (
            TRUTH._replace(explained={**TRUTH.explained, Explained.SHED: ranges([4])}),
            "pending and explained 4",
        ),
        (
            TRUTH._replace(
                held={1: PRODUCED[1], 3: PRODUCED[3]},
                explained={Explained.EVICTED: ranges([2])},
                next_seq=4,
                durable=4,
            ),
            "5 was handed out already, and 4 is next",
        ),
    ],
)
def test_a_lie_is_a_violation(lie: View, why: str) -> None:
    """Invariants I1, I2 and I5 of the list of faults, receipts, and numbers used twice."""
    with pytest.raises(Violation, match=why):
        judge(LANE, lie, SAID)


def test_what_was_damaged_on_purpose_may_be_lost_if_it_is_stated() -> None:
    """Row 8: the exact range is stated; what is lost beyond it is a violation."""
    damaged = {Explained.DAMAGED: ranges([2, 3])}
    judge_records(LANE, {1: PRODUCED[1]}, damaged, SAID, damaged=True)
    with pytest.raises(Violation, match="lost and unexplained: events 1"):
        judge_records(LANE, {}, damaged, SAID, damaged=True)


def test_a_number_that_comes_twice_is_noticed_at_once() -> None:
    """Two appends of one life with the same number: whatever the disk holds."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk(), CALM) as spool:
            said = Said()
            assert await said.append(spool, LANE, ["a"])
            said.produced[LANE][spool.next_seq(LANE)] = b""
            with pytest.raises(Violation, match="events/1 was handed out twice"):
                await said.append(spool, LANE, ["b"])

    run(main)


def test_an_epoch_that_is_gone_must_have_been_released() -> None:
    """What was acknowledged in a past epoch is lost with it, unless a receipt took it."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        async with opened(SimDisk(), CALM) as spool:
            assert await annals.present(spool).append(spool, LANE, ["a"])
            await spool.state_accounts()
            await audit(spool, annals)
            past = annals.copy().epochs.pop(spool.epoch)
            annals.epochs[Epoch(0, 1)] = past
            with pytest.raises(Violation, match="acknowledged and lost: events 0"):
                await audit(spool, annals)
            past.released[LANE] = {0}
            await audit(spool, annals)

    run(main)


def test_the_account_must_say_what_the_spool_says() -> None:
    """The oracle believes accounts only, so one that lags behind is a violation."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        spool = await Spool.open(resources(SimDisk()), CALM)
        await audit(spool, annals)
        assert await annals.present(spool).append(spool, LANE, ["a"])
        with pytest.raises(Violation, match="events: the account says that 0 is next, it is 1"):
            await audit(spool, annals)

    run(main)


def test_a_copy_goes_on_apart() -> None:
    """What is said after a power cut is not part of what had been said at the cut."""
    annals = Annals()
    said = annals.epochs[Epoch(1, 1)]
    said.produced[LANE] = {0: b"a"}
    twin = annals.copy()
    said.produced[LANE][1] = b"b"
    said.acknowledged[LANE] = {0}
    assert twin.epochs[Epoch(1, 1)] == Said({LANE: {0: b"a"}})
