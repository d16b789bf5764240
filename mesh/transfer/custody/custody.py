"""Custody: the single owner of a store, what arrivals are given to and what a forwarder drains.

Rules:

- What is taken is durable before it is said to be: a batch, and with it the change of its lane's
  ledger, is one entry of a group that one sync makes durable. Receipts are made after it.
- A batch with any new number is kept whole and unopened. One without is kept no second time.
- Custody is refused rather than evicted.
- What damage takes, or an age that was asked for, or a next holder that lost what is no longer
  retained here, leaves ``held`` under a *new life* of the holder, durably, before any receipt of
  that life. The origin then offers again what it retains, and states the rest itself, under its own
  identity.
- A disk that fails twice makes the store *degraded*: it takes nothing, and goes on serving.

All calls but those marked ``async`` return at once. One task runs ``maintain``.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

from mesh.ports import Arrival, Disk
from mesh.spool.ahead import ReadAhead
from mesh.spool.batch import Batch
from mesh.transfer import ledger
from mesh.transfer.custody import quarantine
from mesh.transfer.custody.entry import ENTRY_HEAD_BYTES, Draft, Kind
from mesh.transfer.custody.events import BatchTurnedAway, LifeDisowned, OwnReceiptHeard
from mesh.transfer.custody.lane import Kept, LaneKey, key_of
from mesh.transfer.custody.offer import Offer, fetch, groups, keep_damaged, name_of, verify
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.custody.vault import Vault
from mesh.transfer.source import Life
from schemas.errors import DiskFailed, Refused, RefusedBecause
from schemas.limits import READ_AHEAD_BATCHES_MAX
from schemas.messages import BatchHeader, Epoch, Instant, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger

__all__ = ["Custody", "CustodyStatus", "Outcome"]

_NS: Final = 1_000_000_000
_READ_TRIES: Final = 3
_EXPIRY_SECONDS: Final = 60.0
_CREDIT_BYTES_MIN: Final = 64 * 1024
_NEARLY_FULL: Final = 1 / 16
_NOTHING: Final = Ranges()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arrival.

    Args:
        arrival: as it came.
        key: its lane; ``None`` where that is not known for sure.
        new: how many of its numbers were not held before.
        refused: why it was not taken; ``None`` where it is durable here.
        later: whether the same arrival may be taken later: there is no room now.
    """

    arrival: Arrival
    key: LaneKey | None
    new: int = 0
    refused: Refused | None = None
    later: bool = False


@dataclass(frozen=True, slots=True)
class CustodyStatus:
    """How a store stands.

    Args:
        holder: whose it is.
        life: the holder's life.
        used_bytes: what the journals occupy.
        room_bytes: how much more may be taken.
        batches: how many batches are pending.
        retained: how many more are kept though the next holder has them.
        lanes: how many lanes have a ledger.
        degraded: why nothing is taken; empty where it is.
    """

    holder: str
    life: Epoch
    used_bytes: int
    room_bytes: int
    batches: int
    retained: int
    lanes: int
    degraded: str


class Custody:
    """A store of custody: ``await Custody.open(...)``; implements ``Source``.

    Args:
        resources: what it needs of the world.
        settings: how much it may hold.
    """

    def __init__(self, resources: CustodyResources, settings: CustodySettings) -> None:
        self._resources = resources
        self._settings = settings
        self._lock = asyncio.Lock()
        self._grown = asyncio.Event()
        self._grown_lives: dict[Life, None] = {}
        self._chores = asyncio.Event()
        self._spoken = asyncio.Event()
        self._vault = Vault(resources, settings, self._spoken.set, self._chores.set)
        self._to_lose: list[tuple[LaneKey, Ranges, str]] = []
        self._relays: dict[LaneKey, Receipt] = {}
        read = partial(_fetch, resources.disk)
        self._ahead = ReadAhead(resources.worker, read, lambda kept: kept.place.size)

    @classmethod
    async def open(cls, resources: CustodyResources, settings: CustodySettings) -> Self:
        """Opens the store, whatever is left of it, and begins a journal.

        Raises:
            StoreInUse: another process has it.
            StoreUnusable: it is of another holder or format.
            DiskFailed: there is no writing here at all.
        """
        self = cls(resources, settings)
        await self._vault.open()
        self._grow(self._vault.lives())
        return self

    def __repr__(self) -> str:
        return f"<Custody of {self._settings.holder} {self._vault}>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def holder(self) -> str:
        """Whose custody it is."""
        return self._settings.holder

    @property
    def life(self) -> Epoch:
        """The holder's present life."""
        return self._vault.life

    @property
    def stated_life(self) -> Epoch | None:
        """The present life once it is durable, so that receipts can be given in it."""
        return self._vault.life if self._vault.is_life_durable else None

    def status(self) -> CustodyStatus:
        """How it stands now."""
        return CustodyStatus(
            self._settings.holder,
            self._vault.life,
            self._vault.files.used_bytes,
            max(0, self._vault.room()),
            self._vault.files.pending,
            self._vault.files.batches - self._vault.files.pending,
            len(self._vault.holdings),
            self._vault.degraded,
        )

    def keys(self) -> list[LaneKey]:
        """All lanes of which something is held, those that were heard of last behind the others."""
        heard = sorted(self._vault.holdings.items(), key=lambda item: item[1].ledger.seen_wall_ns)
        return [key for key, holding in heard if holding.ledger.held]

    def receipts(self, keys: Iterable[LaneKey]) -> list[Receipt]:
        """What this holder states of some lanes.

        Nothing while that is not durable: then it is stated later.
        """
        # What is lost and not yet taken out belongs to a life that is about to end.
        if self._to_lose or not self._vault.is_life_durable:
            return []
        partition = PartitionLedger(self._settings.holder, self._vault.life)
        room = max(0, self._vault.room())
        credit = max(1, min(room, max(_CREDIT_BYTES_MIN, room // (len(self._vault.lives()) + 1))))
        pause = self._settings.full_seconds * 1000
        is_near = room < self._settings.bytes_max * _NEARLY_FULL
        made = []
        for key in dict.fromkeys(keys):
            holding = self._vault.holdings.get(key)
            if holding is None or not holding.ledger.held:
                continue
            self._vault.receipts += 1
            receipt = ledger.receipt(partition, holding.ledger, self._vault.receipts, Stage.HELD)
            jitter = self._resources.rng.uniform(0.5, 1.0)
            not_before_ms = round(pause * jitter) if is_near else 0
            made.append(replace(receipt, credit_bytes=credit, not_before_ms=not_before_ms))
        return made

    # --- the source --------------------------------------------------------------------------

    def lives(self) -> Sequence[Life]:
        """The lives of which something is pending; of one node the oldest first."""
        return self._vault.lives()

    def stop_of(self, life: Life, lane: Lane) -> int:
        """All numbers of a lane that are, or ever were, durable here lie below this."""
        holding = self._vault.holdings.get(LaneKey(life, lane))
        return holding.ledger.next_seq if holding is not None else 0

    def released(self, life: Life, lane: Lane) -> Ranges:
        """What was released of a lane."""
        holding = self._vault.holdings.get(LaneKey(life, lane))
        return holding.released if holding is not None else _NOTHING

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """A holder has released the numbers below this, as far as is known; 0 for none."""
        holding = self._vault.holdings.get(LaneKey(life, lane))
        return holding.holders.get(holder, 0) if holding is not None else 0

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        holding = self._vault.holdings.get(LaneKey(life, lane))
        return holding is not None and holding.first_from(start) is not None

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """The first pending batch that holds a number at or above ``start``.

        One that is damaged is set aside, and the next one is taken.

        Raises:
            DiskFailed: it cannot be read now.
        """
        key = LaneKey(life, lane)
        while True:
            holding = self._vault.holdings.get(key)
            kept = holding.first_from(start) if holding is not None else None
            if holding is None or kept is None:
                return None
            place = kept.place
            try:
                batch = await self._ahead.take(key, kept)
            except (Refused, FileNotFoundError) as wrong:
                reason = str(wrong)
            except DiskFailed as failure:
                kept.failures += 1
                if kept.failures < _READ_TRIES:
                    raise
                reason = str(failure)
            else:
                if self._ahead.wants(key):
                    pieces = holding.pending_from(kept.last + 1, READ_AHEAD_BATCHES_MAX)
                    self._ahead.prepare(key, pieces)
                return batch
            if kept.place == place:
                await self._set_aside(key, kept, reason)

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Takes what a receipt said: the next holder has these numbers durably."""
        key = LaneKey(life, lane)
        self._vault.release(key, numbers, receipt.holder, receipt.watermark)
        if receipt.stage is Stage.ARCHIVED and key in self._vault.holdings:
            self._relays[key] = receipt
            self._spoken.set()

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """The next holder has lost these numbers: what is retained is pending again.

        What is not leaves ``held``, under a new life: its origin may retain it.
        """
        key = LaneKey(life, lane)
        back, gone = self._vault.reclaim(key, numbers, holder)
        if gone:
            self._to_lose.append((key, gone, f"{holder} lost them, and they are no longer here"))
        self._grow([life])
        return back

    async def disown(self, life: Life, reason: str) -> None:
        """The next holder knows other records under these numbers: somebody has to look."""
        self._observe(LifeDisowned(str(life), reason))

    def disbelieve(self, link: str) -> None:
        """A link brought this holder's own receipts: nobody else has what they state."""
        self._observe(OwnReceiptHeard(link, self.holder))

    def set_linked(self, *, up: bool) -> None:
        """Whether a link is up: what was read ahead is not kept until it is up again."""
        if not up:
            self._ahead.drop()

    async def wait_grown(self) -> Collection[Life]:
        """Returns once something has become pending since the last call: of which lives.

        One waiter.
        """
        await self._grown.wait()
        self._grown.clear()
        lives, self._grown_lives = self._grown_lives, {}
        return lives

    def _grow(self, lives: Iterable[Life]) -> None:
        self._grown_lives |= dict.fromkeys(lives)
        if self._grown_lives:
            self._grown.set()

    # --- what the next holder says, for the origin -------------------------------------------

    def take_relays(self) -> list[Receipt]:
        """What the archive has said since the last call, the newest of each lane."""
        relays, self._relays = list(self._relays.values()), {}
        return relays

    async def wait_spoken(self) -> None:
        """Returns once there is something to pass down, or a new life. One waiter."""
        await self._spoken.wait()
        self._spoken.clear()

    # --- taking ------------------------------------------------------------------------------

    async def take(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Takes what verifies; durable on return, group by group.

        Returns:
            What became of each, in the same order.
        """
        offers = await self._vault.in_worker(verify, arrivals)
        outcomes: list[Outcome] = []
        async with self._lock:
            for group in groups(offers):
                outcomes += await self._take_group(group)
        for outcome in outcomes:
            if outcome.refused is not None and not outcome.later:
                await self._turn_away(outcome.arrival, outcome.refused)
        self._grow(outcome.key.life for outcome in outcomes if outcome.new and outcome.key)
        return outcomes

    async def _take_group(self, group: Sequence[Offer]) -> list[Outcome]:
        room = await self._vault.make_room(sum(len(offer.arrival.payload) for offer in group))
        changed: dict[LaneKey, LaneLedger] = {}
        planned: list[BatchHeader] = []
        drafts: list[Draft] = []
        outcomes: list[Outcome] = []
        for offer in group:
            outcome = self._plan(offer, changed, room)
            outcomes.append(outcome)
            if outcome.new and offer.header is not None:
                planned.append(offer.header)
                drafts.append(Draft(Kind.BATCH, offer.arrival.payload))
                room -= len(offer.arrival.payload) + ENTRY_HEAD_BYTES
        try:
            entries = (await self._vault.commit(drafts)).entries if drafts else ()
            await self._vault.state_life()
        except DiskFailed as failure:
            return [_put_off(outcome, failure) for outcome in outcomes]
        self._vault.keep(planned, entries)
        for key, changed_ledger in changed.items():
            self._vault.put_ledger(key, changed_ledger)
        return outcomes

    def _plan(self, offer: Offer, changed: dict[LaneKey, LaneLedger], room: int) -> Outcome:
        """What one arrival changes; nothing is durable yet."""
        arrival, header = offer.arrival, offer.header
        if header is None:
            assert offer.refused is not None, "one of the two"
            return Outcome(arrival, None, refused=offer.refused)
        key = key_of(header)
        holding = self._vault.holdings.get(key)
        known = changed.get(key) or (holding.ledger if holding is not None else None)
        before = known or LaneLedger(*key.life, key.lane)
        try:
            taken = ledger.take(before, header, self._resources.clock.now().wall_ns)
        except Refused as refused:
            return Outcome(arrival, key, refused=refused)
        if not taken.new:
            changed[key] = taken.ledger
            return Outcome(arrival, key)
        new_lanes = len(changed.keys() - self._vault.holdings.keys()) + (known is None)
        if full := self._vault.why_full(len(arrival.payload), room, new_lanes):
            no_room = Refused(RefusedBecause.FULL, f"{header}: {full}")
            return Outcome(arrival, key, refused=no_room, later=True)
        changed[key] = taken.ledger
        return Outcome(arrival, key, len(taken.new))

    async def _turn_away(self, arrival: Arrival, refused: Refused) -> None:
        name = ""
        if refused.reason is not RefusedBecause.FULL:
            kept_as = f"{refused.reason}-{name_of(arrival.payload)}"
            name = await self._vault.in_worker(
                quarantine.keep, self._resources.disk, kept_as, arrival.payload
            )
        origin = f"{arrival.site}/{arrival.node}/{arrival.lane}"
        self._observe(BatchTurnedAway(origin, str(refused), name))

    # --- chores ------------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Makes releases durable, gives space back, lets batches expire; until cancelled."""
        loop = asyncio.get_running_loop()
        expire_at = loop.time() + _EXPIRY_SECONDS
        while True:
            deadline = expire_at if self._vault.may_expire else None
            if self._vault.degraded:
                deadline = loop.time() + self._settings.full_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._chores.wait()
                    # What is said meanwhile shares the commit.
                    await asyncio.sleep(self._settings.release_seconds)
            self._chores.clear()
            async with self._lock:
                await self._do_chores(expire=loop.time() >= expire_at)
            if loop.time() >= expire_at:
                expire_at = loop.time() + _EXPIRY_SECONDS

    async def settle(self) -> None:
        """Makes durable what was released until now.

        Raises:
            DiskFailed: not all of it is.
        """
        async with self._lock:
            await self._vault.settle()

    async def _do_chores(self, *, expire: bool) -> None:
        losses, self._to_lose = self._to_lose, []
        if expire:
            losses += self._expired()
        for key, numbers, why in losses:
            self._vault.lose(key, numbers, why)
        # What the disk does not take is told, and tried again.
        with suppress(DiskFailed):
            await self._vault.tend()

    def _expired(self) -> list[tuple[LaneKey, Ranges, str]]:
        """Takes out the batches whose time is over; returns the numbers that go with them."""
        now = self._resources.clock.now()
        age_ns = (self._settings.max_age_seconds or 0) * _NS
        lost = []
        for key, holding in self._vault.holdings.items():
            over = [kept for kept in holding.pending if _is_over(kept, now, age_ns)]
            if over:
                lost.append((key, self._vault.take_out(key, over), "its time is over"))
        return lost

    async def _set_aside(self, key: LaneKey, kept: Kept, reason: str) -> None:
        async with self._lock:
            holding = self._vault.holdings[key]
            if kept not in holding.pending:
                return
            numbers = self._vault.take_out(key, [kept])
            name = await self._vault.in_worker(keep_damaged, self._resources.disk, kept)
            self._vault.lose(key, numbers, reason, name)
            with suppress(DiskFailed):
                await self._vault.state_life()

    async def close(self) -> None:
        """Makes releases durable as far as that goes, and gives the store back."""
        with suppress(DiskFailed):
            await self.settle()
        await self._vault.close()

    def _observe(self, event: object) -> None:
        self._resources.observer.observe(event)


def _fetch(disk: Disk, _: LaneKey, kept: Kept) -> Batch:
    return fetch(disk, kept)


def _is_over(kept: Kept, now: Instant, age_ns: float) -> bool:
    """Whether a batch has lost its use; a clock that is not trusted says nothing about that."""
    useless = kept.expires_wall_ns is not None and kept.expires_wall_ns < now.wall_ns
    return (useless and now.trusted) or bool(age_ns and now.mono_ns - kept.taken_ns > age_ns)


def _put_off(outcome: Outcome, failure: DiskFailed) -> Outcome:
    if outcome.refused is not None:
        return outcome
    refused = Refused(RefusedBecause.FULL, str(failure))
    return Outcome(outcome.arrival, outcome.key, refused=refused, later=True)
