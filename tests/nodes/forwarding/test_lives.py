"""The lives in a source: thousands of them cost nothing while nothing happens to them."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Sequence

from mesh.ports import Refusal
from mesh.spool.batch import Batch
from mesh.transfer.delivery import DEFAULT_LANE_RULES, DeliverySettings
from mesh.transfer.source import Life
from mesh.transfer.turns import LaneRule
from nodes.forwarding.lives import Lives
from nodes.forwarding.transfer import Place
from schemas.errors import RefusedBecause
from schemas.messages import Epoch, Lane, Receipt
from schemas.ranges import Ranges
from tests.spool.world import play
from tests.transfer.headers import header

PLACE = Place(Lane.EVENTS, live=False)
RULES = {**dict.fromkeys(Lane, LaneRule()), **DEFAULT_LANE_RULES}


class Books:
    """Port ``Source``: how many numbers of ``events`` each life has, and who was asked about."""

    def __init__(self, count: int) -> None:
        self.stops = {_life(number): 1 for number in range(count)}
        self.asked: Counter[Life] = Counter()

    def lives(self) -> Sequence[Life]:
        """Those that have something."""
        return [life for life, stop in self.stops.items() if stop]

    def stop_of(self, life: Life, lane: Lane) -> int:
        """As written."""
        self.asked[life] += 1
        return self.stops.get(life, 0) if lane is Lane.EVENTS else 0

    def released(self, life: Life, lane: Lane) -> Ranges:
        """Nothing."""
        del life, lane
        return Ranges()

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """Nothing."""
        del life, lane, holder
        return 0

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether it goes so far."""
        self.asked[life] += 1
        return lane is Lane.EVENTS and self.stops.get(life, 0) > start

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """Nobody asks."""
        raise NotImplementedError

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Nobody asks."""
        raise NotImplementedError

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """Nobody asks."""
        raise NotImplementedError

    async def disown(self, life: Life, reason: str) -> None:
        """Nobody asks."""
        raise NotImplementedError

    def set_linked(self, *, up: bool) -> None:
        """Changes nothing."""

    async def wait_grown(self) -> Collection[Life]:
        """Nobody asks."""
        raise NotImplementedError


def _life(number: int) -> Life:
    return Life("hall", f"pump-{number}", Epoch(1, number))


def _lives(books: Books) -> Lives:
    return Lives(books, DeliverySettings(), RULES, relays=True)


def _send_all(lives: Lives, now: float) -> int:
    """All that is fresh goes; returns how many batches that were."""
    sent = 0
    for flow in lives.awake:
        for fresh in lives.fresh(flow, now):
            assert fresh.place == PLACE
            begun = header(fresh.start, fresh.start + 1)
            ticket = flow.delivery.on_sent(begun, now, more=True)
            flow.delivery.on_accepted(Lane.EVENTS, ticket, now)
            lives.touch(flow)
            sent += 1
    for flow in lives.awake:
        assert not lives.fresh(flow, now)
    return sent


def test_of_many_lives_only_the_one_that_grew_is_looked_at() -> None:
    """The others sleep: no question about them, none of them awake."""

    async def main(_: random.Random) -> None:
        books = Books(1000)
        lives = _lives(books)
        assert _send_all(lives, 0.0) == 1000
        assert not lives.awake
        books.asked.clear()
        for turn in range(2, 5):
            books.stops[_life(7)] = turn
            lives.on_grown([_life(7)])
            assert _send_all(lives, 0.0) == 1
        assert set(books.asked) == {_life(7)}

    play(main)


def test_a_life_that_was_never_heard_of_takes_part_once_it_grows() -> None:
    """And is found for its receipts."""

    async def main(_: random.Random) -> None:
        books = Books(1)
        lives = _lives(books)
        _send_all(lives, 0.0)
        assert lives.find(_life(5)) is None
        books.stops[_life(5)] = 1
        lives.on_grown([_life(5)])
        assert _send_all(lives, 0.0) == 1
        found = lives.find(_life(5))
        assert found is not None
        assert found.life == _life(5)

    play(main)


def test_a_life_wakes_when_its_time_comes() -> None:
    """Its receipt is overdue: what it sent is sent again, with no other life awake for it."""

    async def main(_: random.Random) -> None:
        books = Books(10)
        lives = _lives(books)
        _send_all(lives, 0.0)
        flow = lives.find(_life(3))
        assert flow is not None
        due = lives.get_timer(0.0)
        assert due == DeliverySettings().receipt_seconds
        lives.begin_turn(due - 0.1)
        assert not lives.awake
        lives.begin_turn(due)
        assert len(lives.awake) == 10
        assert flow.returns == 1
        assert _send_all(lives, due) == 10

    play(main)


def test_a_pause_ends_by_itself() -> None:
    """Row 46: after a refusal a lane waits for its time, whatever else is asked meanwhile."""

    async def main(_: random.Random) -> None:
        lives = _lives(Books(1))
        flow = lives.awake[0]
        ticket = flow.delivery.on_sent(header(0, 1), 0.0, more=True)
        full = Refusal(RefusedBecause.FULL, "", 20.0)
        flow.delivery.on_refused(Lane.EVENTS, ticket, full, 0.0)
        lives.stir(flow)
        assert not lives.fresh(flow, 0.0)
        assert lives.get_timer(0.0) == 20.0
        for _turn in range(1000):
            lives.stir(flow)
            assert not lives.fresh(flow, 0.0)
            assert lives.get_timer(0.0) == 20.0
        assert len(lives._timers) < 100, "what is out of date is not kept"
        lives.begin_turn(20.0)
        assert [fresh.place for fresh in lives.fresh(flow, 20.0)] == [PLACE]

    play(main)


def test_lives_that_are_done_with_are_forgotten() -> None:
    """However many come and go; never one that has something pending."""

    async def main(_: random.Random) -> None:
        books = Books(10)
        lives = _lives(books)
        for number in range(10, 20_000, 100):
            come = [_life(number + n) for n in range(100)]
            books.stops |= dict.fromkeys(come, 1)
            lives.on_grown(come)
            for life in come:
                del books.stops[life]
        lives.look()
        assert len(list(lives.flows())) <= 4096
        assert all(lives.get(_life(number)) is not None for number in range(10))

    play(main)


def test_who_waits_is_woken_by_what_happens() -> None:
    """Or by the time; and not at all where it has happened already."""

    async def main(_: random.Random) -> None:
        loop = asyncio.get_running_loop()
        lives = _lives(Books(1))
        await lives.wait_turn(loop.time() + 60)
        assert loop.time() == 0.0
        lives.begin_turn(0.0)
        await lives.wait_turn(loop.time() + 60)
        assert loop.time() == 60.0
        loop.call_later(5, lives.rouse)
        await lives.wait_turn(loop.time() + 60)
        assert loop.time() == 65.0

    play(main)
