"""Delivery: what a sender does next with one life of a spool. Pure.

``now`` comes in, what to send and when to look again goes out.

For each lane a sender knows two sets of numbers: those that a receipt has *released*, and those
that were *sent* and wait for one. The rules:

- Only a receipt releases. That the transport accepted a batch makes room in the window, and that is
  all.
- After a break, and when an accepted batch has had no receipt for long, what has no receipt is sent
  again: a transport may lose what it accepted, and the receiver takes each number once.
- A batch that has no receipt when one came for what was accepted much later is sent again by
  itself: the transport lost it, or nobody wants it.
- While no receipts come a lane sends one batch at a time, at growing intervals, and each time the
  next one: neither a receiver that is away nor a batch that it never answers draws the whole
  backlog again and again. The first receipt ends that.
- A lane that asks for it goes *live first*: when it has fallen behind it goes on with its newest
  numbers, and sends its history behind them. Each such place in a lane is a *front*.
- A lane that has nothing more to send after a small batch lingers, so that a trickle of records
  becomes few batches; a lane that has a backlog does not.
- Each sending has a ticket. What is said of a sending from before a break changes nothing: its
  numbers were sent again already.
- A refusal pauses its lane until it may be tried again; the other lanes go on. A batch that is
  refused ``tries_max`` times for what it is, not for want of room, is *parked*: its lane moves on,
  it stays pending, and is tried again when the link comes up anew, or after an hour.
- A receipt is refused, and the data kept, when it is for another node or epoch, speaks of numbers
  that were never written, or names a chain that is not the one that was sent. An older receipt than
  the last of the same holder's life changes nothing.
- A receipt of a life of its holder that is over changes nothing (``mesh.transfer.holders``).
- A holder that begins a new life may have lost what it held. What its newest receipt no longer
  states, and no other holder does, is *lost*: no longer released, and to be offered again.
- A receipt may give *credit*: how many bytes more the holder takes until its next one. Without
  credit only the most urgent lanes go on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from mesh.ports import Refusal
from mesh.transfer.outgoing import Outgoing, Sending
from mesh.transfer.turns import LaneRule
from schemas.errors import Refused, RefusedBecause
from schemas.limits import SEND_WINDOW_BATCHES
from schemas.messages import BatchHeader, Epoch, Lane, Receipt
from schemas.ranges import Ranges

__all__ = [
    "DEFAULT_LANE_RULES",
    "Delivery",
    "DeliverySettings",
    "Front",
    "LaneProgress",
    "Released",
]

_NOT_BEFORE_SECONDS_MAX: Final = 600.0
_PATIENCE_DOUBLINGS_MAX: Final = 3
_LIVE_LAG: Final = 256
_LIVE_NEWEST: Final = 64
_ALWAYS_DUE: Final = Lane.ALARMS
_NONE: Final = Ranges()
_PLAIN: Final = LaneRule()

DEFAULT_LANE_RULES: Final[Mapping[Lane, LaneRule]] = {
    Lane.DECISIONS: LaneRule(linger_seconds=0.2),
    Lane.EVENTS: LaneRule(linger_seconds=0.2),
    Lane.METRICS: LaneRule(share=0.1, live=True, linger_seconds=5.0),
    Lane.READINGS: LaneRule(linger_seconds=1.0),
    Lane.LOGS: LaneRule(share=0.05, linger_seconds=1.0),
}
"""What lanes ask for where nothing is configured; those that are missing, nothing."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """How batches are delivered.

    Args:
        window_batches: how many batches may be under way.
        receipt_seconds: how long an accepted batch may be without a receipt before it is sent
            again, the first time.
        full_bytes: a batch whose body opens to at least this is not small.
        tries_max: how often a batch may be refused for what it is before it is parked.
        refused_seconds: the least pause after a refusal.
    """

    window_batches: int = SEND_WINDOW_BATCHES
    receipt_seconds: float = 30.0
    full_bytes: int = 64 * 1024
    tries_max: int = 5
    refused_seconds: float = 1.0


class Front(NamedTuple):
    """A place from which a lane sends: the least number that was not sent yet, there."""

    start: int
    live: bool


@dataclass(frozen=True, slots=True)
class Released:
    """What a receipt changes.

    Args:
        lane: which lane.
        numbers: all that it states; none when that brings nothing new.
        holder: who states it.
        lost: what the holder had stated in an earlier life, and nobody states now.
    """

    lane: Lane
    numbers: Ranges
    holder: str
    lost: Ranges = _NONE


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """Where a lane stands.

    Numbers below ``sent_to`` were sent, those below ``released_to`` released.
    """

    sent_to: int
    released_to: int
    under_way: int
    resends: int


class Delivery:
    """The sending side for one life of a spool.

    Args:
        site: of the node.
        node: whose spool it is.
        epoch: which life.
        released: what each lane's cursor says.
        settings: how batches are delivered.
        rules: what each lane asks for.
    """

    def __init__(
        self,
        site: str,
        node: str,
        epoch: Epoch,
        released: Mapping[Lane, Ranges],
        settings: DeliverySettings,
        rules: Mapping[Lane, LaneRule] = DEFAULT_LANE_RULES,
    ) -> None:
        self._site = site
        self._node = node
        self._epoch = epoch
        self._settings = settings
        self._tickets = 0
        self._credit: int | None = None
        self._lanes = {
            lane: Outgoing(rules.get(lane, _PLAIN), released.get(lane, _NONE)) for lane in Lane
        }

    def __repr__(self) -> str:
        lanes = {str(lane): p.sent_to for lane, p in self.progress().items() if p.sent_to}
        return f"<Delivery {self._site}/{self._node} sent to {lanes}>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent now."""
        return self.under_way < self._settings.window_batches

    @property
    def under_way(self) -> int:
        """How many batches are."""
        return sum(len(state.under_way) for state in self._lanes.values())

    def start(self, lane: Lane) -> int:
        """The first number of a lane that is to be sent."""
        return self._lanes[lane].taken.watermark()

    def fronts(self, lane: Lane, now: float) -> tuple[Front, ...]:
        """Where a lane may send from now, what is live before what is history."""
        state = self._lanes[lane]
        taken = state.taken
        history = taken.watermark()
        if not state.rule.live:
            return (Front(history, live=False),)
        live = taken.watermark(max(history, state.live_from))
        behind = () if live == history else (Front(history, live=False),)
        if state.live_at > now:
            return behind
        return (Front(live, live=True), *behind)

    def is_taken(self, lane: Lane, first: int, stop: int) -> bool:
        """Whether all these numbers were sent or released already."""
        return self._lanes[lane].taken.covers(first, stop)

    def parked(self, lane: Lane) -> Ranges:
        """The numbers of batches that were refused too often."""
        return self._lanes[lane].parked

    def lanes_due(self, now: float) -> list[Lane]:
        """The lanes that may send now, most urgent first."""
        spent = self._credit is not None and self._credit <= 0
        return [
            lane
            for lane, state in self._lanes.items()
            if state.next_at <= now
            and not state.is_probing
            and (not spent or lane.priority <= _ALWAYS_DUE.priority)
        ]

    def get_timer(self, now: float) -> float | None:
        """When to look again though nothing else happens.

        A linger, a pause or a missing receipt ends; ``None`` for never.
        """
        times = [
            at
            for state in self._lanes.values()
            for at in (state.next_at, state.live_at)
            if at > now
        ]
        times += [state.unpark_at for state in self._lanes.values() if state.unpark_at is not None]
        times += [
            state.accepted_at + self._patience(state)
            for state in self._lanes.values()
            if state.accepted_at is not None
        ]
        return min(times, default=None)

    def progress(self) -> dict[Lane, LaneProgress]:
        """Where each lane stands."""
        return {
            lane: LaneProgress(
                (state.released | state.sent).watermark(),
                state.released.watermark(),
                len(state.under_way),
                state.resends,
            )
            for lane, state in self._lanes.items()
        }

    def _is_waiting(self) -> bool:
        """Whether something that was sent has no receipt."""
        return any(state.under_way or state.unanswered for state in self._lanes.values())

    def _patience(self, state: Outgoing) -> float:
        doubled: int = 2 ** min(state.in_vain, _PATIENCE_DOUBLINGS_MAX)
        return self._settings.receipt_seconds * doubled

    # --- what happens --------------------------------------------------------------------------

    def on_grown(self, lane: Lane, stop: int, released: Ranges | None = None) -> None:
        """A lane has grown: one that goes live first may jump ahead.

        Args:
            lane: which lane.
            stop: its numbers below this are durable.
            released: what its source holds for released: what came late in a range that a receipt
                covered already is not among it.
        """
        state = self._lanes[lane]
        if released is not None:
            state.released = released
        if not state.rule.live:
            return
        taken = state.taken
        if stop - taken.watermark(max(taken.watermark(), state.live_from)) > _LIVE_LAG:
            state.live_from = stop - _LIVE_NEWEST

    def on_dry(self, lane: Lane) -> bool:
        """A lane has nothing else to send. Returns whether it has now: what it had passed over."""
        state = self._lanes[lane]
        has = bool(state.passed)
        state.passed = _NONE
        return has

    def on_skipped(self, lane: Lane, start: int, stop: int) -> None:
        """Of these numbers there is nothing to send: they were sent, or never will be."""
        self._lanes[lane].mark_sent(start, stop)

    def on_sent(
        self, header: BatchHeader, now: float, *, more: bool, start: int | None = None
    ) -> int:
        """A batch is on its way.

        Args:
            header: of the batch.
            now: seconds on the loop's clock.
            more: whether its lane has more to send behind it.
            start: from which number on it was the first that is pending; its own where none is
                said.

        Returns:
            A ticket, with which to say what became of it.
        """
        state = self._lanes[header.lane]
        begin = header.first if start is None else min(start, header.first)
        state.mark_sent(begin, header.last + 1)
        self._tickets += 1
        state.under_way[self._tickets] = Sending(begin, header.last + 1, header.body_bytes)
        if not more and header.raw_bytes < self._settings.full_bytes:
            until = now + state.rule.linger_seconds
            if state.rule.live:
                state.live_at = max(state.live_at, until)
            else:
                state.next_at = max(state.next_at, until)
        state.remember(header.first, header.chain_before)
        state.remember(header.last + 1, header.chain_after)
        return self._tickets

    def on_accepted(self, lane: Lane, ticket: int, now: float) -> None:
        """The transport took a batch.

        There is room for another, and from now on a receipt is due.
        """
        state = self._lanes[lane]
        sending = state.under_way.pop(ticket, None)
        if sending is None:
            return
        if self._credit is not None:
            self._credit -= sending.size
        state.await_receipt(sending, now)

    def on_refused(self, lane: Lane, ticket: int, refusal: Refusal, now: float) -> bool:
        """A batch was refused: its lane pauses and goes back, or moves on without it.

        Returns:
            Whether it is parked now.
        """
        state = self._lanes[lane]
        sending = state.under_way.pop(ticket, None)
        if sending is None:
            return False
        pause = max(refusal.retry_after_seconds, self._settings.refused_seconds)
        state.next_at = max(state.next_at, now + pause)
        state.lose(sending)
        if refusal.reason is RefusedBecause.FULL:
            return False
        if not state.count_try(sending.start, self._settings.tries_max):
            return False
        state.park(sending.start, sending.stop, now)
        state.next_at = now
        return True

    def on_failed(self, lane: Lane, ticket: int) -> None:
        """Nobody knows whether a batch arrived: it will be sent again."""
        state = self._lanes[lane]
        sending = state.under_way.pop(ticket, None)
        if sending is not None:
            state.lose(sending)

    def on_break(self) -> None:
        """The link broke, or came up anew: all that is not released is sent again."""
        self._credit = None
        for state in self._lanes.values():
            state.on_break()

    def on_timer(self, now: float) -> bool:
        """Time has passed: lanes whose receipt is overdue go back.

        Returns:
            Whether one was.
        """
        for state in self._lanes.values():
            state.unpark(now)
        overdue = [
            state
            for state in self._lanes.values()
            if state.accepted_at is not None and now >= state.accepted_at + self._patience(state)
        ]
        for state in overdue:
            if state.in_vain:
                state.pass_over()
            state.in_vain += 1
            state.go_back()
        if overdue:
            # Whoever gave the credit says nothing any more.
            self._credit = None
        return bool(overdue)

    def on_receipt(
        self, receipt: Receipt, durable: int, now: float, held_before: int = 0
    ) -> Released:
        """Takes a receipt.

        Args:
            receipt: as it came.
            durable: the lane's numbers below this are, or were, durable here.
            now: seconds on the loop's clock.
            held_before: this holder had released the numbers below this before this program
                began; used where it says something for the first time since.

        Returns:
            What to release, perhaps nothing; and what the holder has lost.

        Raises:
            Refused: ``foreign``, ``beyond_sent`` or ``bad_chain``. Nothing has changed.
        """
        self._check(receipt, durable)
        state = self._lanes[receipt.lane]
        if state.holders.is_late(receipt, now):
            return Released(receipt.lane, _NONE, receipt.holder)
        stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
        lost = _NONE
        if state.holders.is_newest(receipt):
            lost = state.holders.lost(receipt, stated, held_before) & state.released
            state.holders.hear(receipt, stated, now)
            if receipt.credit_bytes:
                self._credit = receipt.credit_bytes
            if receipt.not_before_ms:
                pause = min(receipt.not_before_ms / 1000, _NOT_BEFORE_SECONDS_MAX)
                state.next_at = max(state.next_at, now + pause)
        numbers = stated - state.released
        state.released = (state.released | stated) - lost
        state.sent -= stated
        state.sent -= lost
        settings = self._settings
        state.answer(stated, settings.receipt_seconds, settings.tries_max, now)
        if self._credit is not None and self._credit <= 0 and not self._is_waiting():
            # Nothing is left for which a receipt, and with it new credit, could come.
            self._credit = None
        if numbers:
            state.in_vain = 0
            state.passed = _NONE
            state.accepted_at = now if state.accepted else None
        return Released(receipt.lane, stated if numbers else numbers, receipt.holder, lost)

    def _check(self, receipt: Receipt, durable: int) -> None:
        if (receipt.site, receipt.node, receipt.epoch) != (self._site, self._node, self._epoch):
            raise Refused(
                RefusedBecause.FOREIGN,
                f"{receipt}: this is {self._site}/{self._node} in epoch {self._epoch}",
            )
        stated = max(receipt.watermark, receipt.held.end, receipt.chain_at)
        if stated > durable:
            raise Refused(
                RefusedBecause.BEYOND_SENT,
                f"{receipt}: it speaks of numbers below {stated}, but only those below {durable} "
                "were ever written here",
            )
        ours = self._lanes[receipt.lane].chains.get(receipt.chain_at)
        if receipt.chain and ours is not None and ours != receipt.chain:
            raise Refused(
                RefusedBecause.BAD_CHAIN,
                f"{receipt}: its chain at {receipt.chain_at} is {receipt.chain.hex()}, ours is "
                f"{ours.hex()}: it holds other records under these numbers",
            )
