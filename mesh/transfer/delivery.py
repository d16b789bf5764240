"""Delivery: what a sender does next over one link. Pure.

``now`` comes in, what to send and when to look again goes out.

For each lane a sender knows three places: up to where a receipt has *released*, up to where it has
*sent*, and which batches are *under way*. The rules:

- Only a receipt releases. That the transport accepted a batch makes room in the window, and that is
  all.
- After a break, and when an accepted batch has had no receipt for ``receipt_seconds``, sending goes
  back to the first number that is not released: a transport may lose what it accepted, and the
  receiver takes each number once.
- The most urgent lane goes first. A lane that has nothing more to send after a small batch lingers,
  so that a trickle of records becomes few batches; a lane that has a backlog does not.
- Each sending has a ticket. What is said of a sending from before a break changes nothing: its
  numbers were sent again already.
- A refusal pauses its lane until it may be tried again; the other lanes go on. A batch that is
  refused ``tries_max`` times for what it is, not for want of room, is *parked*: its lane moves on,
  it stays pending, and is tried again when the link comes up anew.
- A receipt is refused, and the data kept, when it is for another node or epoch, speaks of numbers
  that were never written, or names a chain that is not the one that was sent. An older receipt than
  the last of the same holder's life changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Refusal
from schemas.errors import Refused, RefusedBecause
from schemas.limits import HOLDERS_MAX, SEND_WINDOW_BATCHES
from schemas.messages import BatchHeader, Epoch, Lane, Receipt
from schemas.ranges import Ranges

__all__ = ["Delivery", "DeliverySettings", "LaneProgress", "Released"]

_CHAINS_KEPT: Final = 1024
_PARKED_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """How one link is used.

    Args:
        window_batches: how many batches may be under way.
        receipt_seconds: how long an accepted batch may be without a receipt before it is sent
            again.
        linger_seconds: how long a lane waits after a small batch that was its last; missing lanes
            do not wait.
        full_bytes: a batch whose body opens to at least this is not small.
        tries_max: how often a batch may be refused for what it is before it is parked.
        refused_seconds: the least pause after a refusal.
    """

    window_batches: int = SEND_WINDOW_BATCHES
    receipt_seconds: float = 30.0
    linger_seconds: Mapping[Lane, float] = field(
        default_factory=lambda: {
            Lane.DECISIONS: 0.2,
            Lane.EVENTS: 0.2,
            Lane.METRICS: 1.0,
            Lane.READINGS: 1.0,
            Lane.LOGS: 1.0,
        }
    )
    full_bytes: int = 64 * 1024
    tries_max: int = 5
    refused_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Released:
    """What a receipt releases: all that it states, and nothing when it brings nothing new."""

    lane: Lane
    numbers: Ranges
    holder: str


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """Where a lane stands on this link.

    Numbers below ``sent_to`` were sent, those below ``released_to`` released.
    """

    sent_to: int
    released_to: int
    under_way: int
    resends: int


@dataclass(slots=True)
class _Lane:
    released: Ranges = field(default_factory=Ranges)
    sent_to: int = 0
    under_way: dict[int, tuple[int, int]] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    parked: Ranges = field(default_factory=Ranges)
    accepted_at: float | None = None
    next_at: float = 0.0
    resends: int = 0
    chains: dict[int, bytes] = field(default_factory=dict)
    receipts: dict[str, tuple[Epoch, int]] = field(default_factory=dict)

    def go_back(self) -> None:
        start = self.released.watermark()
        if self.sent_to > start:
            self.sent_to = start
            self.resends += 1
        self.accepted_at = None


class Delivery:
    """The sending side of one link.

    Args:
        site: of this node.
        node: this node.
        epoch: the present life of its spool.
        released: what each lane's cursor says.
        settings: how the link is used.
    """

    def __init__(
        self,
        site: str,
        node: str,
        epoch: Epoch,
        released: Mapping[Lane, Ranges],
        settings: DeliverySettings,
    ) -> None:
        self._site = site
        self._node = node
        self._epoch = epoch
        self._settings = settings
        self._tickets = 0
        self._lanes = {lane: _Lane(released=released.get(lane, Ranges())) for lane in Lane}
        for state in self._lanes.values():
            state.sent_to = state.released.watermark()

    def __repr__(self) -> str:
        lanes = {str(lane): state.sent_to for lane, state in self._lanes.items() if state.sent_to}
        return f"<Delivery {self._site}/{self._node} sent to {lanes}>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent now."""
        under_way = sum(len(state.under_way) for state in self._lanes.values())
        return under_way < self._settings.window_batches

    def start(self, lane: Lane) -> int:
        """The first number of a lane to send next."""
        state = self._lanes[lane]
        return (state.released | state.parked).watermark(state.sent_to)

    def parked(self, lane: Lane) -> Ranges:
        """The numbers of batches that were refused too often."""
        return self._lanes[lane].parked

    def lanes_due(self, now: float) -> list[Lane]:
        """The lanes that may send now, most urgent first."""
        return [lane for lane, state in self._lanes.items() if state.next_at <= now]

    def get_timer(self, now: float) -> float | None:
        """When to look again though nothing else happens.

        A linger, a pause or a missing receipt ends; ``None`` for never.
        """
        times = [state.next_at for state in self._lanes.values() if state.next_at > now]
        times += [
            state.accepted_at + self._settings.receipt_seconds
            for state in self._lanes.values()
            if state.accepted_at is not None
        ]
        return min(times, default=None)

    def progress(self) -> dict[Lane, LaneProgress]:
        """Where each lane stands."""
        return {
            lane: LaneProgress(
                state.sent_to, state.released.watermark(), len(state.under_way), state.resends
            )
            for lane, state in self._lanes.items()
        }

    # --- what happens --------------------------------------------------------------------------

    def on_sent(self, header: BatchHeader, now: float, *, more: bool) -> int:
        """A batch is on its way.

        Args:
            header: of the batch.
            now: seconds on the loop's clock.
            more: whether its lane has more to send.

        Returns:
            A ticket, with which to say what became of it.
        """
        state = self._lanes[header.lane]
        state.sent_to = max(state.sent_to, header.last + 1)
        self._tickets += 1
        state.under_way[self._tickets] = (header.first, header.last + 1)
        if not more and header.raw_bytes < self._settings.full_bytes:
            state.next_at = now + self._settings.linger_seconds.get(header.lane, 0.0)
        self._remember(state, header.first, header.chain_before)
        self._remember(state, header.last + 1, header.chain_after)
        return self._tickets

    @staticmethod
    def _remember(state: _Lane, number: int, chain: bytes) -> None:
        # What was sent again is new again: the oldest is what goes.
        state.chains.pop(number, None)
        state.chains[number] = chain
        while len(state.chains) > _CHAINS_KEPT:
            state.chains.pop(next(iter(state.chains)))

    def on_accepted(self, lane: Lane, ticket: int, now: float) -> None:
        """The transport took a batch.

        There is room for another, and from now on a receipt is due.
        """
        state = self._lanes[lane]
        if state.under_way.pop(ticket, None) is None:
            return
        if state.accepted_at is None:
            state.accepted_at = now

    def on_refused(self, lane: Lane, ticket: int, refusal: Refusal, now: float) -> bool:
        """A batch was refused: its lane pauses and goes back, or moves on without it.

        Returns:
            Whether it is parked now.
        """
        state = self._lanes[lane]
        numbers = state.under_way.pop(ticket, None)
        if numbers is None:
            return False
        pause = max(refusal.retry_after_seconds, self._settings.refused_seconds)
        state.next_at = max(state.next_at, now + pause)
        state.go_back()
        if refusal.reason is RefusedBecause.FULL:
            return False
        first, stop = numbers
        tries = state.tries.pop(first, 0) + 1
        if tries < self._settings.tries_max:
            state.tries[first] = tries
            while len(state.tries) > _CHAINS_KEPT:
                state.tries.pop(next(iter(state.tries)))
            return False
        if len(state.parked.spans) >= _PARKED_MAX:
            return False
        state.parked = state.parked.add(first, stop)
        state.next_at = now
        return True

    def on_failed(self, lane: Lane, ticket: int) -> None:
        """Nobody knows whether a batch arrived: it will be sent again."""
        state = self._lanes[lane]
        if state.under_way.pop(ticket, None) is not None:
            state.go_back()

    def on_break(self) -> None:
        """The link broke, or came up anew: all that is not released is sent again."""
        for state in self._lanes.values():
            state.under_way.clear()
            state.tries.clear()
            state.parked = Ranges()
            state.next_at = 0.0
            state.go_back()

    def on_timer(self, now: float) -> None:
        """Time has passed: lanes whose receipt is overdue go back."""
        for state in self._lanes.values():
            overdue = state.accepted_at is not None and (
                now >= state.accepted_at + self._settings.receipt_seconds
            )
            if overdue:
                state.go_back()

    def on_receipt(self, receipt: Receipt, durable: int, now: float) -> Released:
        """Takes a receipt.

        Args:
            receipt: as it came.
            durable: the lane's numbers below this are, or were, durable here.
            now: seconds on the loop's clock.

        Returns:
            What to release; perhaps nothing.

        Raises:
            Refused: ``foreign``, ``beyond_sent`` or ``bad_chain``. Nothing has changed.
        """
        self._check(receipt, durable)
        state = self._lanes[receipt.lane]
        known = state.receipts.get(receipt.holder)
        newest = known is None or known[0] != receipt.life or receipt.number >= known[1]
        if newest:
            state.receipts.pop(receipt.holder, None)
            state.receipts[receipt.holder] = (receipt.life, receipt.number)
        if len(state.receipts) > HOLDERS_MAX:
            state.receipts.pop(next(iter(state.receipts)))
        stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
        numbers = stated - state.released
        state.released |= stated
        if receipt.not_before_ms and newest:
            state.next_at = max(state.next_at, now + receipt.not_before_ms / 1000)
        if numbers:
            waiting = state.released.watermark() < state.sent_to
            state.accepted_at = now if waiting else None
        return Released(receipt.lane, stated if numbers else numbers, receipt.holder)

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
