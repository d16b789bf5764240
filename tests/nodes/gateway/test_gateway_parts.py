"""Reception, voice and hearing, each against a store on a simulated disk."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from mesh.ports import Accepted, Arrival, LinkState, Part, Refusal
from mesh.transfer.custody.custody import Custody
from mesh.transfer.custody.events import OwnReceiptHeard
from nodes.gateway.entrance import Entrance
from nodes.gateway.events import ArrivalsPutOff, EntranceChanged, ReceiptsDelayed, Received
from nodes.gateway.hearing import Hearing
from nodes.gateway.reception import Reception
from nodes.gateway.voice import Voice
from schemas.errors import LinkDown, RefusedBecause
from schemas.messages import Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import Watcher
from tests.transfer.custody.world import (
    KEY,
    LIFE,
    SMALL,
    arrival_of,
    batch_of,
    opened,
    play,
    receipt_for,
)


@dataclass
class _Intake:
    """Remembers what was said, in order."""

    said: list[tuple[str, object]] = field(default_factory=list)
    down: int = 0

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Nothing comes."""
        await asyncio.Event().wait()
        yield []

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Takes receipts, unless it is down."""
        if self.down:
            self.down -= 1
            raise LinkDown("away")
        self.said += [("receipt", receipt) for receipt in receipts]

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Lets arrivals go."""
        self.said += [("accept", arrival.token) for arrival in arrivals]

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Takes an arrival out."""
        assert arrival.payload, "it is known which"
        self.said.append(("refuse", refusal.reason))

    def words(self) -> list[str]:
        """What was done."""
        return [word for word, _ in self.said]

    def receipts(self) -> list[Receipt]:
        """The receipts."""
        return [what for _, what in self.said if isinstance(what, Receipt)]


def _reception(intake: _Intake, custody: Custody, watcher: Watcher) -> Reception:
    """A reception whose voice says nothing by itself."""
    return Reception(intake, custody, Voice(intake, custody, watcher), watcher)


def test_the_receipt_comes_before_the_transport_may_forget() -> None:
    """Row 39: taken, receipted, accepted, in this order; what comes again is receipted again."""

    async def main(_: random.Random) -> None:
        intake, watcher = _Intake(), Watcher()
        async with opened(SimDisk()) as custody:
            reception = _reception(intake, custody, watcher)
            for _ in range(2):
                assert await reception.receive([arrival_of(batch_of(0, 4), "token")])
            assert intake.words() == ["receipt", "accept", "receipt", "accept"]
            first, again = intake.receipts()
            assert (first.watermark, again.watermark) == (4, 4)
            assert first.number < again.number
            assert first.credit_bytes > 0
            assert [it.records for it in watcher.of(Received)] == [4, 0]  # type: ignore[attr-defined]

    play(main)


def test_what_was_not_receipted_is_not_accepted() -> None:
    """The arrivals come again, and then they are."""

    async def main(_: random.Random) -> None:
        intake, watcher = _Intake(down=1), Watcher()
        async with opened(SimDisk()) as custody:
            reception = _reception(intake, custody, watcher)
            await reception.receive([arrival_of(batch_of(0, 4))])
            assert intake.words() == []
            assert watcher.of(ReceiptsDelayed)
            await reception.receive([arrival_of(batch_of(0, 4))])
            assert intake.words() == ["receipt", "accept"]

    play(main)


def test_a_receipt_that_was_not_taken_is_said_again_by_itself() -> None:
    """The origin waits for it, and the batch may come again only a minute later."""

    async def main(_: random.Random) -> None:
        intake, watcher = _Intake(down=3), Watcher()
        async with opened(SimDisk()) as custody, asyncio.TaskGroup() as tasks:
            voice = Voice(intake, custody, watcher)
            running = tasks.create_task(voice.run())
            reception = Reception(intake, custody, voice, watcher)
            await reception.receive([arrival_of(batch_of(0, 4))])
            await asyncio.sleep(5)
            assert intake.words() == ["receipt"]
            assert intake.receipts()[0].watermark == 4
            running.cancel()

    play(main)


def test_what_does_not_verify_is_refused_and_the_rest_is_taken() -> None:
    """Bad input is normal: one bad batch stops none of those that came with it."""

    async def main(_: random.Random) -> None:
        intake = _Intake()
        async with opened(SimDisk()) as custody:
            bad = arrival_of(batch_of(4, 6))._replace(payload=b"no batch")
            group = [arrival_of(batch_of(0, 4)), bad, arrival_of(batch_of(4, 6))]
            assert await _reception(intake, custody, Watcher()).receive(group)
            assert intake.words() == ["receipt", "accept", "accept", "refuse"]
            assert intake.said[-1][1] is RefusedBecause.MALFORMED
            assert intake.receipts()[0].watermark == 6

    play(main)


def test_what_finds_no_room_waits_in_the_transport() -> None:
    """Neither accepted nor refused; nothing is taken for a while."""

    async def main(_: random.Random) -> None:
        intake, watcher = _Intake(), Watcher()
        settings = replace(SMALL, bytes_max=(2 << 20) + (1 << 14), batches_max=1)
        async with opened(SimDisk(), settings) as custody:
            reception = _reception(intake, custody, watcher)
            assert await reception.receive([arrival_of(batch_of(0, 4))])
            assert not await reception.receive([arrival_of(batch_of(4, 8))])
            assert intake.words() == ["receipt", "accept"]
            assert watcher.of(ArrivalsPutOff)

    play(main)


def test_a_gateway_states_what_it_holds_without_being_asked() -> None:
    """First on connect: every lane, tried again while the transport is away."""

    async def main(_: random.Random) -> None:
        intake = _Intake(down=2)
        async with opened(SimDisk()) as custody, asyncio.TaskGroup() as tasks:
            given = [batch_of(0, 4), batch_of(0, 2, lane=Lane.LOGS), batch_of(0, 3, node="fan")]
            await custody.take([arrival_of(batch) for batch in given])
            voice = Voice(intake, custody, Watcher())
            running = tasks.create_task(voice.run())
            voice.announce()
            await asyncio.sleep(10)
            told = {(it.node, it.lane): it.watermark for it in intake.receipts()}
            assert told == {
                ("pump", Lane.EVENTS): 4,
                ("pump", Lane.LOGS): 2,
                ("fan", Lane.EVENTS): 3,
            }
            running.cancel()

    play(main)


def test_what_the_archive_says_comes_down_and_our_own_receipt_last() -> None:
    """The holder's name, life and stage stay; credit and pauses do not."""

    async def main(_: random.Random) -> None:
        intake = _Intake()
        async with opened(SimDisk()) as custody, asyncio.TaskGroup() as tasks:
            await custody.take([arrival_of(batch_of(0, 9))])
            said = replace(receipt_for(KEY, 5), credit_bytes=7, not_before_ms=9)
            custody.release(LIFE, Lane.EVENTS, Ranges(((0, 5),)), said)
            voice = Voice(intake, custody, Watcher())
            running = tasks.create_task(voice.run())
            voice.pass_down(custody.take_relays())
            await asyncio.sleep(1)
            relayed, own = intake.receipts()
            assert relayed == replace(said, credit_bytes=0, not_before_ms=0)
            assert (own.holder, own.stage, own.watermark) == ("gateway", Stage.HELD, 9)
            running.cancel()

    play(main)


class _Link:
    """A link that brings some receipts."""

    state = LinkState("up", up=True, reason="", since_mono_ns=0)

    def __init__(self, *receipts: Receipt) -> None:
        self._receipts = receipts

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Nothing changes."""
        await asyncio.Event().wait()
        return seen

    def reset(self, reason: str) -> None:
        """Nothing to tear down."""

    async def send(self, part: Part) -> Accepted | Refusal:
        """Takes everything."""
        assert part.payload, "a part has a byte"
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """The receipts."""
        for receipt in self._receipts:
            yield receipt


def test_a_receipt_is_cut_to_what_was_ever_held_here() -> None:
    """The archive has what came another way, and counts what was given up; that is no fault."""

    async def main(_: random.Random) -> None:
        beyond = replace(receipt_for(KEY, 20), chain=b"c" * 16, chain_at=20)
        apart = receipt_for(KEY, 2, Ranges(((3, 5), (7, 30))))
        within = replace(receipt_for(KEY, 4), chain=b"c" * 16, chain_at=4)
        foreign = replace(within, epoch=Epoch(9, 9))
        async with opened(SimDisk()) as custody:
            await custody.take([arrival_of(batch_of(0, 9))])
            heard = [
                receipt
                async for receipt in Hearing(
                    _Link(beyond, apart, within, foreign), custody
                ).receipts()
            ]
            assert [it.watermark for it in heard] == [9, 2, 4]
            assert heard[0].chain == b""
            assert heard[1].held == Ranges(((3, 5), (7, 9)))
            assert heard[2] == within

    play(main)


def test_what_a_gateway_says_itself_releases_nothing() -> None:
    """An uplink that leads back here, or two holders of one name: passed over, and told once."""

    async def main(_: random.Random) -> None:
        watcher = Watcher()
        async with opened(SimDisk(), watcher=watcher) as custody:
            await custody.take([arrival_of(batch_of(0, 9))])
            echo = custody.receipts([KEY])[0]
            link = _Link(echo, receipt_for(KEY, 4), replace(echo, number=echo.number + 1))
            heard = [receipt async for receipt in Hearing(link, custody).receipts()]
            assert heard == [receipt_for(KEY, 4)]
            assert watcher.of(OwnReceiptHeard) == [OwnReceiptHeard("up", "gateway")]

    play(main)


class _Opened:
    """An intake that comes up and goes down when it is told to."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.state = LinkState("way", up=False, reason="not connected yet", since_mono_ns=0)

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """As of the port ``Link``."""
        while (self.state.up, self.state.connections) == (seen.up, seen.connections):
            self._changed.clear()
            await self._changed.wait()
        return self.state

    def become(self, reason: str, *, up: bool = False) -> None:
        """It is open, or shut for a reason."""
        self.state = replace(self.state, up=up, reason=reason)
        self._changed.set()


def test_an_entrance_tells_when_it_is_shut_and_why() -> None:
    """Once for each change and each other reason; nothing of what passes in a moment."""

    async def main(_: random.Random) -> None:
        intake, watcher = _Opened(), Watcher()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(Entrance("mqtt://broker", intake, watcher).run())
            await asyncio.sleep(1)
            intake.become("connection refused")
            await asyncio.sleep(60)
            intake.become("", up=True)
            await asyncio.sleep(60)
            for reason in ("connection closed", "not authorised", "not authorised"):
                intake.become(reason)
                await asyncio.sleep(20)
            running.cancel()
        told = [(it.up, it.reason) for it in watcher.of(EntranceChanged)]  # type: ignore[attr-defined]
        assert told == [
            (False, "connection refused"),
            (True, ""),
            (False, "connection closed"),
            (False, "not authorised"),
        ]

    play(main)


def test_what_came_another_way_is_not_sent_again() -> None:
    """A late batch of which the next holder has all is kept for its receipt alone."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            await custody.take([arrival_of(batch_of(6, 9))])
            custody.release(LIFE, Lane.EVENTS, Ranges(((0, 9),)), receipt_for(KEY, 9))
            (outcome,) = await custody.take([arrival_of(batch_of(0, 6))])
            assert outcome.new == 6
            assert list(custody.lives()) == []

    play(main)
