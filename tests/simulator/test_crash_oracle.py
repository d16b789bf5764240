"""The oracle: each way in which a spool can lie is told from the truth."""

import asyncio
import random
from dataclasses import replace

import pytest

from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.spool import Spool
from schemas.messages import Account, Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.crash.annals import Annals, Said, Violation, ranges
from simulator.crash.oracle import Terms, View, audit, judge, judge_given_up, judge_records
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


GONE = Epoch(0, 1)
"""An epoch of which the spool knows nothing any more."""


def _account(number: int, next_seq: int, explained: dict[str, Ranges] | None = None) -> Account:
    return Account(0, 0, LANE, GONE, number, next_seq, explained or {}, {})


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


def test_what_a_holder_has_lost_is_somewhere() -> None:
    """Released as if nothing had happened, pending, or explained; once it is durable, no longer so.

    Row 35.
    """
    said = Said(SAID.produced, SAID.acknowledged, {LANE: {0}}, {LANE: 6}, lost={LANE: {0}})
    judge(LANE, TRUTH, said)
    back = TRUTH._replace(held={0: PRODUCED[0], **TRUTH.held}, released=Ranges())
    judge(LANE, back, said)
    forgotten = {**TRUTH.explained, Explained.FORGOTTEN: ranges([0])}
    judge(LANE, TRUTH._replace(explained=forgotten, released=Ranges()), said)
    nowhere = TRUTH._replace(released=Ranges())
    with pytest.raises(Violation, match="lost by the next holder, and nowhere: 0"):
        judge(LANE, nowhere, said)
    said.settle(LANE, ranges([0, 1]))
    assert (said.lost, said.released) == ({LANE: set()}, {LANE: set()})
    judge(LANE, back, said)
    with pytest.raises(Violation, match="released without a receipt 0"):
        judge(LANE, TRUTH._replace(held=back.held), said)


def test_what_nobody_has_lost_is_not_forgotten() -> None:
    """Of a present life; a spool that reclaims what was not lost says what is not so."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        settings = replace(CALM, retained_bytes_max=0, journals_retained_max=0)
        async with opened(SimDisk(), settings) as spool:
            said = annals.present(spool)
            assert await said.append(spool, LANE, ["a", "b"])
            spool._pump.rotate()
            await asyncio.sleep(1)
            said.release(spool, LANE, Ranges(((0, 2),)))
            await asyncio.sleep(1)
            said.reclaim(spool, LANE, ranges([1]), spool.epoch)
            await asyncio.sleep(1)
            await spool.state_accounts()
            await audit(spool, annals)
            spool.reclaim(LANE, ranges([0]), "hq")
            await spool.state_accounts()
            with pytest.raises(Violation, match="forgotten, and nobody had lost it: 0"):
                await audit(spool, annals)

    run(main)


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
            annals.epochs[GONE] = past
            past.handed_out = {LANE: 1}
            with pytest.raises(Violation, match="acknowledged and lost: events 0"):
                await audit(spool, annals)
            past.released[LANE] = {0}
            with pytest.raises(Violation, match="handed out already"):
                await audit(spool, annals)
            annals.hear([_account(number=9, next_seq=1)])
            await audit(spool, annals)

    run(main)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({Explained.EVICTED: ranges([1])}, "unaccounted 2"),
        ({Explained.EVICTED: ranges([2])}, "acknowledged and lost: events 1"),
        ({Explained.VOID: ranges([0, 2]), Explained.EVICTED: ranges([1])}, ""),
    ],
)
def test_a_past_epoch_is_accounted_for_by_its_newest_statement(
    lie: dict[str, Ranges], why: str
) -> None:
    """``produced = released + pending + explained`` of an epoch that was handed on as a whole."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        said = annals.epochs[GONE]
        said.acknowledged[LANE], said.released[LANE] = {0, 1}, {0}
        truth = {Explained.EVICTED: ranges([1, 2])}
        annals.hear([_account(4, 3, lie), _account(3, 3, truth)])
        async with opened(SimDisk(), CALM) as spool:
            if why:
                with pytest.raises(Violation, match=why):
                    await audit(spool, annals)
            annals.hear([_account(5, 3, truth)])
            await audit(spool, annals)

    run(main)


def test_of_an_epoch_that_lost_its_store_some_statement_must_explain_what_is_lost() -> None:
    """Its end, its numbers and the order of its statements are not known any more."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        said = annals.epochs[GONE]
        said.acknowledged[LANE], said.handed_out[LANE] = {0, 1}, 64
        annals.lose_store()
        annals.hear([_account(4, 3, {Explained.DAMAGED: ranges([0])}), _account(9, 1)])
        async with opened(SimDisk(), CALM) as spool:
            with pytest.raises(Violation, match="lost and unexplained: events 1"):
                await audit(spool, annals)
            annals.hear([_account(5, 3, {Explained.EVICTED: ranges([1])})])
            await audit(spool, annals)

    run(main)


def test_two_statements_with_one_number_are_a_violation() -> None:
    """A receiver keeps the statement with the highest number: there must be one."""

    async def main(_: random.Random) -> None:
        annals = Annals()
        async with opened(SimDisk(), CALM) as spool:
            annals.hear([_account(4, 3), _account(4, 3), _account(5, 3)])
            await audit(spool, annals)
            annals.hear([_account(4, 2)])
            with pytest.raises(Violation, match="two statements are 4"):
                await audit(spool, annals)

    run(main)


@pytest.mark.parametrize(
    ("settings", "why", "lies"),
    [
        (LaneSettings(0.0, 64), Explained.EVICTED, ""),
        (LaneSettings(0.0, 64, when_full=WhenFull.REFUSE), Explained.EVICTED, "gave up 1-2"),
        (LaneSettings(0.0, 64, age_seconds_max=5.0), Explained.EXPIRED, ""),
        (LaneSettings(0.0, 64, age_seconds_max=6.0), Explained.EXPIRED, "too young .* 2"),
        (LaneSettings(0.0, 64, age_seconds_max=9.0), Explained.EXPIRED, "too young .* 1-2"),
        (LaneSettings(0.0, 64), Explained.EXPIRED, "too young .* 1-2"),
    ],
)
def test_what_is_given_up_too_soon_is_a_violation(
    settings: LaneSettings, why: Explained, lies: str
) -> None:
    """Row 30: whatever clocks say, true time decides; a lane that refuses gives up nothing."""
    said = Said(acknowledged={LANE: {0, 1, 2}}, born_ns={LANE: {0: 0, 1: 10**9, 2: 4 * 10**9}})
    terms = Terms({LANE: settings}, 9 * 10**9 + 1)
    if lies:
        with pytest.raises(Violation, match=lies):
            judge_given_up(LANE, {why: ranges([1, 2, 3])}, said, terms)
    else:
        judge_given_up(LANE, {why: ranges([1, 2, 3])}, said, terms)


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
    annals.hear([_account(1, 1)])
    annals.lose_store()
    assert twin.epochs[Epoch(1, 1)] == Said({LANE: {0: b"a"}})
    assert (twin.heard, twin.unsure) == ({}, set())
