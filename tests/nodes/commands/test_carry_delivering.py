"""Delivering what was carried: all of it, answered by later receipts only, never for ever."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.loading import Loading
from mesh.adapters.carrier.unloading import Load, look
from mesh.ports import Accepted, LinkState, Part, Refusal
from mesh.spool import batch
from mesh.transfer.carried import FOLDER
from nodes.commands.carry_delivering import Delivered, Delivering
from schemas.errors import LinkDown, RefusedBecause
from schemas.messages import Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from simulator.clock import run
from simulator.disk import SimDisk
from tests.adapters.carrier_world import Plain
from tests.nodes.headquarters.world import EPOCH, Sender

PATIENCE = 60.0
Answer = Callable[[Part, int], Accepted | Refusal | LinkDown]
_UP = LinkState("carry", up=True, reason="", since_mono_ns=0, connections=1)


def accept(_part: Part, _number: int) -> Accepted:
    """Takes everything."""
    return Accepted()


@dataclass
class Holder:
    """Port ``Link`` with a holder at its end: keeps what comes, and states it a second later.

    Args:
        answer: what the transport says to a part, and to which one.
        life: of the holder.
        number: of its newest receipt.
        keeps: whether it takes what the transport took.
        left: receipts that lie there from earlier, and come first.
    """

    answer: Answer = accept
    life: Epoch = field(default_factory=lambda: Epoch(9, 9))
    number: int = 0
    keeps: Callable[[Part], bool] = lambda _: True
    left: list[Receipt] = field(default_factory=list)
    state: LinkState = _UP
    sent: list[Part] = field(default_factory=list)
    held: dict[Lane, Ranges] = field(default_factory=dict)
    news: "asyncio.Queue[Receipt]" = field(default_factory=asyncio.Queue)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Once it differs."""
        while self.state == seen:
            self.changed.clear()
            await self.changed.wait()
        return self.state

    def turn(self, *, up: bool) -> None:
        """Up or down."""
        reason = "" if up else "nobody listens"
        connections = self.state.connections + up
        self.state = replace(self.state, up=up, reason=reason, connections=connections)
        self.changed.set()

    def reset(self, reason: str) -> None:
        """Nothing to tear down."""

    async def send(self, part: Part) -> Accepted | Refusal:
        """As told."""
        self.sent.append(part)
        await asyncio.sleep(0.01)
        answer = self.answer(part, len(self.sent))
        if isinstance(answer, LinkDown):
            raise answer
        if isinstance(answer, Accepted) and self.keeps(part):
            asyncio.get_running_loop().call_later(1.0, self._take, part)
        return answer

    def _take(self, part: Part) -> None:
        header = batch.parse(part.payload).header
        self.held[part.lane] = self.held.get(part.lane, Ranges()) | header.present
        self.news.put_nowait(self.receipt(part.lane))

    def receipt(self, lane: Lane) -> Receipt:
        """The holder's next statement on a lane."""
        self.number += 1
        held = self.held.get(lane, Ranges())
        made = ("hq", self.life, self.number, Stage.ARCHIVED, "hall", "pump", EPOCH, lane)
        return Receipt(*made, held.watermark(), b"", 0, held)

    async def receipts(self) -> AsyncIterator[Receipt]:
        """As they come; those that were there first."""
        for receipt in self.left:
            yield receipt
        while True:
            yield await self.news.get()


def load(count: int = 3) -> Load:
    """So many batches of events and one of logs, on a stick."""
    stick = SimDisk()
    folder = CarriedFolder(stick, Plain(stick), f"{FOLDER}/hall.pump")
    loading = Loading(folder, "hall", "pump")
    loading.open()
    events, logs = Sender(), Sender(lane=Lane.LOGS)
    for one in [*(events.batch(4) for _ in range(count)), logs.batch(2)]:
        loading.put(one)
    loading.finish("53" * 16, 0, lambda _: False)
    return look(stick, Plain(stick), "hall", "pump")


def deliver(
    holder: Callable[[], Holder],
    meanwhile: Callable[[Holder], Coroutine[Any, Any, None]] | None = None,
    brought: Load | None = None,
) -> tuple[Holder, Delivered, float]:
    """Delivers on virtual time; also tells how long it took."""

    async def main(_: random.Random) -> tuple[Holder, Delivered, float]:
        link = holder()
        delivering = Delivering(link, brought or load(), PATIENCE, lambda *_: None)
        async with asyncio.TaskGroup() as tasks:
            other = tasks.create_task(meanwhile(link)) if meanwhile else None
            done = await delivering.run()
            if other is not None:
                other.cancel()
        return link, done, asyncio.get_running_loop().time()

    return run(main, 0, seconds_max=100_000)


def test_all_is_sent_and_receipted() -> None:
    """Each batch whole, under its origin; it ends with the receipt that covers the last of them."""
    link, done, seconds = deliver(Holder)
    assert [part.lane for part in link.sent] == [Lane.EVENTS] * 3 + [Lane.LOGS]
    assert {(part.site, part.node, part.offset) for part in link.sent} == {("hall", "pump", 0)}
    assert all(part.total == len(part.payload) for part in link.sent)
    assert (done.waiting(), done.flaws, done.gave_up) == ([], [], "")
    assert {lane: one.watermark for (_, _, lane), one in done.receipts.items()} == {
        Lane.EVENTS: 12,
        Lane.LOGS: 2,
    }
    assert seconds < 5


def test_a_receipt_from_before_is_no_answer() -> None:
    """Row 35: a holder that lost its store had stated all of it; only what it says now counts."""

    def forgetful() -> Holder:
        link = Holder(keeps=lambda part: part.lane is Lane.LOGS, number=5)
        for lane, stop in ((Lane.EVENTS, 12), (Lane.LOGS, 2)):
            link.held[lane] = Ranges(((0, stop),))
            link.left.append(link.receipt(lane))
        link.held.clear()
        return link

    _, done, seconds = deliver(forgetful)
    assert {file.lane for file in done.waiting()} == {Lane.EVENTS}
    assert [lane for _, _, lane in done.receipts] == [Lane.LOGS]
    assert "no receipt came, for 60 s" in done.gave_up
    assert PATIENCE < seconds < 2 * PATIENCE


def test_a_holder_of_another_life_is_believed() -> None:
    """Its numbers begin anew; they are no older statements."""

    def reborn() -> Holder:
        link = Holder()
        link.left.append(replace(link.receipt(Lane.EVENTS), number=1000, life=Epoch(1, 1)))
        link.number = 0
        return link

    _, done, _ = deliver(reborn)
    assert done.waiting() == []
    assert all(receipt.life == Epoch(9, 9) for receipt in done.receipts.values())


def test_a_link_that_breaks_in_between() -> None:
    """Rows 32 and 36: what may not have arrived is sent again; the ledger takes it once."""

    def answer(_: Part, number: int) -> Accepted | LinkDown:
        return LinkDown("gone") if number < 12 else Accepted()

    async def flap(link: Holder) -> None:
        while True:
            await asyncio.sleep(0.05)
            link.turn(up=False)
            await asyncio.sleep(2)
            link.turn(up=True)

    link, done, _ = deliver(lambda: Holder(answer=answer), flap)
    assert done.waiting() == []
    assert done.gave_up == ""
    assert len(link.sent) >= 12


def test_a_full_holder_is_waited_for() -> None:
    """Row 16: refused for want of room is offered again after the pause that was asked for."""

    def answer(_: Part, number: int) -> Accepted | Refusal:
        return Accepted() if number > 20 else Refusal(RefusedBecause.FULL, "no room", 5.0)

    link, done, seconds = deliver(lambda: Holder(answer=answer))
    assert done.waiting() == []
    assert len(link.sent) == 24
    assert seconds > 20


def test_what_the_transport_never_takes_is_named() -> None:
    """Row 46: one batch is refused for what it is; the others arrive."""
    brought = load()

    def answer(part: Part, _: int) -> Accepted | Refusal:
        small = part.lane is Lane.LOGS
        return Refusal(RefusedBecause.TOO_LARGE, "no", 0.0) if small else Accepted()

    _, done, _ = deliver(lambda: Holder(answer=answer), brought=brought)
    assert [flaw.path.rpartition("/")[2] for flaw in done.flaws] == [brought.files[-1].name]
    assert len(done.sent) == 3
    assert done.waiting() == []


def test_a_holder_that_refuses_in_silence_is_not_waited_for_for_ever() -> None:
    """Rows 34 and 46: what has no receipt is named; patience begins anew with each receipt."""
    brought = load()
    poison = bytes.fromhex(brought.files[0].sha256)
    _, done, seconds = deliver(
        lambda: Holder(keeps=lambda part: part.digest != poison), brought=brought
    )
    assert done.waiting() == [brought.files[0]]
    assert done.gave_up
    assert seconds < 2 * PATIENCE


def test_a_link_that_never_comes_up() -> None:
    """Row 33: it says why, and nothing was sent."""
    down = replace(_UP, up=False, reason="nobody listens")
    link, done, seconds = deliver(lambda: Holder(state=down))
    assert (link.sent, done.sent, done.receipts) == ([], [], {})
    assert done.gave_up == "the link is down: nobody listens, for 60 s"
    assert seconds == PATIENCE


def test_nothing_to_deliver_asks_nobody() -> None:
    """An empty load is done at once, with what is wrong with it."""
    empty = replace(load(), files=())
    down = replace(_UP, up=False, reason="nobody listens")
    _, done, seconds = deliver(lambda: Holder(state=down), brought=empty)
    assert (done.gave_up, seconds) == ("", 0)
