"""Custody: the single owner of a store, what arrivals are given to and what a forwarder drains.

Rules:

- What is taken is durable before it is said to be: a batch, and with it the change of its lane's
  ledger, is one entry of a group that one sync makes durable. Receipts are made after it.
- A batch with any new number is kept whole and unopened. One without is kept no second time.
- Custody is refused rather than evicted. Room is made only of what the next holder has: journals
  in which nothing is pending go, the oldest first, once its release is durable; a journal of which
  less than half is pending is copied into the newest.
- What damage takes, or an age that was asked for, or a next holder that lost what is no longer
  retained here, leaves ``held`` under a *new life* of the holder, durably, before any receipt of
  that life. The origin then offers again what it retains, and states the rest itself, under its own
  identity.
- A disk that fails twice makes the store *degraded*: it takes nothing, and goes on serving.

All calls but those marked ``async`` return at once. One task runs ``maintain``.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar, TypeVarTuple

from mesh.ports import Arrival
from mesh.spool.batch import Batch
from mesh.transfer import ledger
from mesh.transfer.custody import quarantine
from mesh.transfer.custody.entry import ENTRY_HEAD_BYTES, Draft, Entry, Kind
from mesh.transfer.custody.events import (
    BatchesLost,
    BatchTurnedAway,
    CustodyDegraded,
    CustodyOpened,
    CustodyRecovered,
    LifeBegun,
    LifeDisowned,
)
from mesh.transfer.custody.files import Files
from mesh.transfer.custody.lane import Holding, Kept, LaneKey, Place, key_of
from mesh.transfer.custody.offer import Offer, fetch, groups, keep_damaged, name_of, verify
from mesh.transfer.custody.opening import LOCK, Opened, open_store
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.custody.writer import RESERVE_BYTES, Writer, Written
from mesh.transfer.source import Life
from schemas import wire
from schemas.errors import DiskFailed, DiskFull, Refused, RefusedBecause
from schemas.limits import (
    BLOCK_BYTES,
    CUSTODY_JOURNALS_MAX,
    CUSTODY_LANES_MAX,
    CUSTODY_SPANS_MAX,
    SEQ_JUMP_MAX,
)
from schemas.messages import BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.stored import (
    CustodyHead,
    CustodyLane,
    CustodyRelease,
    LaneLedger,
    PartitionLedger,
)

__all__ = ["Custody", "CustodyStatus", "Outcome"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_NS: Final = 1_000_000_000
_LIFE_BYTES: Final = 8
_READ_TRIES: Final = 3
_RELEASES_MAX: Final = 4096
_EXPIRY_SECONDS: Final = 60.0
_CREDIT_BYTES_MIN: Final = 64 * 1024
_NEARLY_FULL: Final = 1 / 16
_OPENING_SHIFT: Final = 32
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
    """A store of custody: ``await Custody.open(...)``; implements ``Source``."""

    def __init__(self, resources: CustodyResources, settings: CustodySettings) -> None:
        self._resources = resources
        self._settings = settings
        self._writer = Writer(resources.disk)
        self._lock = asyncio.Lock()
        self._grown = asyncio.Event()
        self._chores = asyncio.Event()
        self._spoken = asyncio.Event()
        self._store = b""
        self._life = Epoch(0, 0)
        self._is_life_durable = False
        self._number = 0
        self._receipts = 0
        self._snapshot_bytes = 0
        self._files = Files({})
        self._holdings: dict[LaneKey, Holding] = {}
        self._spans = 0
        self._pending: dict[Life, int] = {}
        self._lives: list[Life] | None = None
        self._unsaved: dict[tuple[LaneKey, str], Ranges] = {}
        self._removable: set[int] = set()
        self._to_lose: list[tuple[LaneKey, Ranges, str]] = []
        self._relays: dict[LaneKey, Receipt] = {}
        self._rotate = False
        self._may_expire = settings.max_age_seconds is not None
        self._degraded = ""

    @classmethod
    async def open(cls, resources: CustodyResources, settings: CustodySettings) -> "Custody":
        """Opens the store, whatever is left of it, and begins a journal.

        Raises:
            StoreInUse: another process has it.
            StoreUnusable: it is of another holder or format.
            DiskFailed: there is no writing here at all.
        """
        self = cls(resources, settings)
        opened = await self._in_writer(
            open_store,
            resources.disk,
            settings.holder,
            resources.machine,
            resources.entropy,
            resources.clock.now(),
        )
        await self._adopt(opened)
        return self

    def __repr__(self) -> str:
        return f"<Custody of {self._settings.holder} {self._files} {self._degraded}>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def life(self) -> Epoch:
        """The holder's present life."""
        return self._life

    @property
    def stated_life(self) -> Epoch | None:
        """The present life once it is durable, so that receipts can be given in it."""
        return self._life if self._is_life_durable else None

    def status(self) -> CustodyStatus:
        """How it stands now."""
        return CustodyStatus(
            self._settings.holder,
            self._life,
            self._files.used_bytes,
            max(0, self._room()),
            self._files.pending,
            self._files.batches - self._files.pending,
            len(self._holdings),
            self._degraded,
        )

    def keys(self) -> list[LaneKey]:
        """All lanes of which something is held, those that were heard of last behind the others."""
        heard = sorted(self._holdings.items(), key=lambda item: item[1].ledger.seen_wall_ns)
        return [key for key, holding in heard if holding.ledger.held]

    def receipts(self, keys: Iterable[LaneKey]) -> list[Receipt]:
        """What this holder states of some lanes.

        Nothing while that is not durable: then it is stated later.
        """
        if not self._is_life_durable:
            return []
        partition = PartitionLedger(self._settings.holder, self._life)
        room = max(0, self._room())
        credit = max(1, min(room, max(_CREDIT_BYTES_MIN, room // (len(self._pending) + 1))))
        pause = self._settings.full_seconds * 1000
        is_near = room < self._settings.bytes_max * _NEARLY_FULL
        made = []
        for key in dict.fromkeys(keys):
            holding = self._holdings.get(key)
            if holding is None or not holding.ledger.held:
                continue
            self._receipts += 1
            receipt = ledger.receipt(partition, holding.ledger, self._receipts, Stage.HELD)
            jitter = self._resources.rng.uniform(0.5, 1.0)
            not_before_ms = round(pause * jitter) if is_near else 0
            made.append(replace(receipt, credit_bytes=credit, not_before_ms=not_before_ms))
        return made

    # --- the source --------------------------------------------------------------------------

    def lives(self) -> Sequence[Life]:
        """The lives of which something is pending; of one node the oldest first."""
        if self._lives is None:
            self._lives = sorted(self._pending, key=_by_age)
        return self._lives

    def stop_of(self, life: Life, lane: Lane) -> int:
        """All numbers of a lane that are, or ever were, durable here lie below this."""
        holding = self._holdings.get(LaneKey(life, lane))
        return holding.ledger.next_seq if holding is not None else 0

    def released(self, life: Life, lane: Lane) -> Ranges:
        """What was released of a lane."""
        holding = self._holdings.get(LaneKey(life, lane))
        return holding.released if holding is not None else _NOTHING

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """A holder has released the numbers below this, as far as is known; 0 for none."""
        holding = self._holdings.get(LaneKey(life, lane))
        return holding.holders.get(holder, 0) if holding is not None else 0

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        holding = self._holdings.get(LaneKey(life, lane))
        return holding is not None and holding.first_from(start) is not None

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """The first pending batch that holds a number at or above ``start``.

        One that is damaged is set aside, and the next one is taken.

        Raises:
            DiskFailed: it cannot be read now.
        """
        key = LaneKey(life, lane)
        while True:
            holding = self._holdings.get(key)
            kept = holding.first_from(start) if holding is not None else None
            if kept is None:
                return None
            place = kept.place
            try:
                return await self._in_worker(fetch, self._resources.disk, kept)
            except (Refused, FileNotFoundError) as wrong:
                reason = str(wrong)
            except DiskFailed as failure:
                kept.failures += 1
                if kept.failures < _READ_TRIES:
                    raise
                reason = str(failure)
            if kept.place == place:
                await self._set_aside(key, kept, reason)

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Takes what a receipt said: the next holder has these numbers durably."""
        key = LaneKey(life, lane)
        holding = self._holdings.get(key)
        if holding is None:
            return
        new = (numbers & holding.ledger.held) - holding.released
        spans = holding.spans
        done = holding.release(numbers, receipt.holder, receipt.watermark)
        self._spans += holding.spans - spans
        self._settle(life, done)
        if new:
            known = self._unsaved.get((key, receipt.holder), _NOTHING)
            self._unsaved[key, receipt.holder] = known | new
        if receipt.stage is Stage.ARCHIVED:
            self._relays[key] = receipt
            self._spoken.set()
        self._chores.set()

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """The next holder has lost these numbers: what is retained is pending again.

        What is not leaves ``held``, under a new life: its origin may retain it.
        """
        key = LaneKey(life, lane)
        holding = self._holdings.get(key)
        if holding is None:
            return _NOTHING
        lost = numbers & holding.released
        back, gone = holding.reclaim(lost, holder)
        self._files.revive(back)
        if back:
            self._count_pending(life, len(back))
        self._removable -= {kept.place.journal for kept in back}
        for saved in [name for name in self._unsaved if name[0] == key]:
            del self._unsaved[saved]
        self._rotate = True
        if gone:
            self._to_lose.append((key, gone, f"{holder} lost them, and they are no longer here"))
        self._chores.set()
        self._grown.set()
        return lost - gone

    async def disown(self, life: Life, reason: str) -> None:
        """The next holder knows other records under these numbers: somebody has to look."""
        self._observe(LifeDisowned(str(life), reason))

    def set_linked(self, *, up: bool) -> None:
        """Whether a link is up changes nothing here."""

    async def wait_grown(self) -> None:
        """Returns once something has become pending since the last call. One waiter."""
        await self._grown.wait()
        self._grown.clear()

    # --- what the next holder says, for the origin --------------------------------------------

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
        offers = await self._in_worker(verify, arrivals)
        outcomes: list[Outcome] = []
        async with self._lock:
            for group in groups(offers):
                outcomes += await self._take_group(group)
        for outcome in outcomes:
            if outcome.refused is not None and not outcome.later:
                await self._turn_away(outcome.arrival, outcome.refused)
        if any(outcome.new for outcome in outcomes):
            self._grown.set()
        return outcomes

    async def _take_group(self, group: Sequence[Offer]) -> list[Outcome]:
        room = await self._make_room(sum(len(offer.arrival.payload) for offer in group))
        changed: dict[LaneKey, LaneLedger] = {}
        planned: list[tuple[Offer, BatchHeader]] = []
        outcomes: list[Outcome] = []
        for offer in group:
            outcome = self._plan(offer, changed, room)
            outcomes.append(outcome)
            if outcome.new and offer.header is not None:
                planned.append((offer, offer.header))
                room -= len(offer.arrival.payload) + ENTRY_HEAD_BYTES
        drafts = [Draft(Kind.BATCH, offer.arrival.payload) for offer, _ in planned]
        try:
            entries = (await self._commit(drafts)).entries if drafts else ()
            if not self._is_life_durable:
                await self._begin([])
        except DiskFailed as failure:
            return [_put_off(outcome, failure) for outcome in outcomes]
        self._keep(planned, entries)
        for key, changed_ledger in changed.items():
            self._put_ledger(key, changed_ledger)
        return outcomes

    def _plan(self, offer: Offer, changed: dict[LaneKey, LaneLedger], room: int) -> Outcome:
        """What one arrival changes; nothing is durable yet."""
        arrival, header = offer.arrival, offer.header
        if header is None:
            assert offer.refused is not None, "one of the two"
            return Outcome(arrival, None, refused=offer.refused)
        key = key_of(header)
        holding = self._holdings.get(key)
        known = changed.get(key) or (holding.ledger if holding is not None else None)
        before = known or LaneLedger(*key.life, key.lane)
        try:
            _check_jump(before, header)
            taken = ledger.take(before, header, self._resources.clock.now().wall_ns)
        except Refused as refused:
            return Outcome(arrival, key, refused=refused)
        if not taken.new:
            changed[key] = taken.ledger
            return Outcome(arrival, key)
        if full := self._why_full(offer, room, new_lanes=len(changed), is_new=known is None):
            no_room = Refused(RefusedBecause.FULL, f"{header}: {full}")
            return Outcome(arrival, key, refused=no_room, later=True)
        changed[key] = taken.ledger
        return Outcome(arrival, key, len(taken.new))

    def _why_full(self, offer: Offer, room: int, *, new_lanes: int, is_new: bool) -> str:
        """Why an arrival finds no room; empty where it does."""
        if self._degraded:
            return f"the store is degraded: {self._degraded}"
        if len(offer.arrival.payload) + ENTRY_HEAD_BYTES > room:
            return f"{self._files.used_bytes} of {self._settings.bytes_max} bytes are taken"
        if self._files.batches >= self._settings.batches_max:
            return f"{self._files.batches} batches are here, as many as may be"
        if is_new and len(self._holdings) + new_lanes >= CUSTODY_LANES_MAX:
            return f"{len(self._holdings)} lanes are known, as many as may be"
        if self._spans >= CUSTODY_SPANS_MAX:
            return f"what is held has {self._spans} spans, as many as may be"
        return ""

    def _keep(self, planned: Sequence[tuple[Offer, BatchHeader]], entries: Sequence[Entry]) -> None:
        now = self._resources.clock.now()
        for (_, header), entry in zip(planned, entries, strict=True):
            key = key_of(header)
            kept = Kept.of(header, _place(entry), now.mono_ns)
            self._may_expire |= kept.expires_wall_ns is not None
            pending = self._holding(key).add(kept)
            self._files.put(key, kept, pending=pending)
            if pending:
                self._count_pending(key.life, 1)

    async def _turn_away(self, arrival: Arrival, refused: Refused) -> None:
        name = ""
        if refused.reason is not RefusedBecause.FULL:
            kept_as = f"{refused.reason}-{name_of(arrival.payload)}"
            name = await self._in_worker(
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
            deadline = expire_at if self._may_expire else None
            if self._degraded:
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
            if self._unsaved or self._rotate:
                await self._save()

    async def _do_chores(self, *, expire: bool) -> None:
        losses, self._to_lose = self._to_lose, []
        if expire:
            losses += self._expired()
        for key, numbers, why in losses:
            self._lose(key, numbers, why)
        try:
            if self._rotate or not self._is_life_durable or self._degraded:
                await self._begin([])
            elif self._unsaved:
                await self._save()
        except DiskFailed:
            return
        await self._collect(0)
        await self._in_writer(self._writer.reserve)

    async def _save(self) -> None:
        """Makes releases durable; where the disk is full, with what was kept for that."""
        try:
            await self._commit([])
        except DiskFull:
            await self._in_writer(self._writer.spend_reserve)
            await self._commit([])

    def _expired(self) -> list[tuple[LaneKey, Ranges, str]]:
        """Takes out the batches whose time is over; returns the numbers that go with them."""
        now = self._resources.clock.now()
        age_ns = (self._settings.max_age_seconds or 0) * _NS
        lost = []
        for key, holding in self._holdings.items():
            for kept in list(holding.pending):
                over = now.trusted and (kept.expires_wall_ns or now.wall_ns) < now.wall_ns
                if over or (age_ns and now.mono_ns - kept.taken_ns > age_ns):
                    lost.append((key, self._take_out(key, holding, kept), "its time is over"))
        return lost

    def _take_out(self, key: LaneKey, holding: Holding, kept: Kept) -> Ranges:
        """A pending batch is here no more; returns the numbers that go with it."""
        numbers = holding.alone(kept)
        holding.remove([kept])
        self._files.take_out(kept, pending=True)
        self._count_pending(key.life, -1)
        return numbers

    async def _set_aside(self, key: LaneKey, kept: Kept, reason: str) -> None:
        async with self._lock:
            holding = self._holdings[key]
            if kept not in holding.pending:
                return
            numbers = self._take_out(key, holding, kept)
            name = await self._in_worker(keep_damaged, self._resources.disk, kept)
            self._lose(key, numbers, reason, name)
            with suppress(DiskFailed):
                if not self._is_life_durable:
                    await self._begin([])

    def _lose(self, key: LaneKey, numbers: Ranges, reason: str, name: str = "") -> None:
        """Numbers leave ``held``, under a new life, which ends all appending to the old journal."""
        self._observe(BatchesLost(str(key), str(numbers), reason, name))
        if not numbers:
            return
        holding = self._holdings[key]
        spans = holding.spans
        holding.lose(numbers)
        self._spans += holding.spans - spans
        if self._is_life_durable:
            random = int.from_bytes(self._resources.entropy(_LIFE_BYTES), "little")
            self._life = Epoch(self._life.counter + 1, random)
            self._is_life_durable = False
            self._observe(LifeBegun(str(self._life), f"{key} {numbers}: {reason}"))

    # --- room --------------------------------------------------------------------------------

    def _room(self) -> int:
        return self._settings.bytes_max - RESERVE_BYTES - self._files.used_bytes

    async def _make_room(self, size: int) -> int:
        """Makes room out of what the next holder has; returns how much there is."""
        # A new journal may have to be begun for it.
        apart = self._snapshot_bytes + 2 * BLOCK_BYTES
        wanted = size + apart
        if self._room() < wanted:
            await self._collect(wanted)
        while self._room() < wanted and (number := self._files.sparsest()) is not None:
            try:
                await self._compact(number)
            except DiskFailed:
                break
            await self._collect(wanted)
        return self._room() - apart

    async def _collect(self, wanted: int) -> None:
        """Removes journals in which nothing is pending, as far as their space is needed."""
        retained_max = self._settings.bytes_max * self._settings.retained_share
        idle = [number for number in self._files.idle() if number in self._removable]
        going: list[int] = []
        room, retained, files = self._room(), self._files.idle_bytes(), len(self._files)
        batches_left = self._settings.batches_max - self._files.batches
        for number in idle:
            enough = room >= wanted and retained <= retained_max
            if enough and files < CUSTODY_JOURNALS_MAX // 2 and batches_left > len(going):
                break
            freed = self._files.occupied(number)
            room, retained, files = room + freed, retained - freed, files - 1
            batches_left += self._files.count(number)
            going.append(number)
        if not going:
            return
        for number in await self._in_writer(self._writer.remove, going):
            self._removable.discard(number)
            self._forget(self._files.remove(number))

    def _forget(self, gone: Sequence[tuple[LaneKey, Kept]]) -> None:
        by_key: dict[LaneKey, list[Kept]] = {}
        for key, kept in gone:
            by_key.setdefault(key, []).append(kept)
        for key, several in by_key.items():
            self._holdings[key].remove(several)

    async def _compact(self, number: int) -> None:
        """Copies what is pending in a journal into the newest one.

        Raises:
            DiskFailed: it could not be written; nothing is lost.
        """
        for key, kept in list(self._files.batches_in(number)):
            holding = self._holdings[key]
            if not holding.rest(kept):
                continue
            try:
                batch = await self._in_worker(fetch, self._resources.disk, kept)
            except (Refused, FileNotFoundError) as wrong:
                self._lose(key, self._take_out(key, holding, kept), str(wrong))
                continue
            (entry,) = (await self._commit([Draft(Kind.BATCH, batch.data)])).entries
            pending = bool(holding.rest(kept))
            self._files.take_out(kept, pending=pending)
            kept.place = _place(entry)
            self._files.put(key, kept, pending=pending)
        await self._commit([])

    # --- writing -----------------------------------------------------------------------------

    async def _commit(self, drafts: Sequence[Draft]) -> Written:
        """Makes a group durable, with the releases that wait.

        Raises:
            DiskFull: there is no room for it.
            DiskFailed: the disk does not take it, in a new journal either.
        """
        released = dict(islice(self._unsaved.items(), _RELEASES_MAX))
        are_all = len(released) == len(self._unsaved)
        newest = self._files.newest()
        due = not newest or self._due(newest[-1])
        if self._writer.is_open and self._is_life_durable and not self._rotate and not due:
            idle = set(self._files.idle()) if are_all else set()
            group = [*drafts, *(self._release(name, it) for name, it in released.items())]
            try:
                written = await self._in_writer(
                    self._writer.append, group, self._resources.clock.now()
                )
            except DiskFailed:
                if self._writer.is_open:
                    raise
            else:
                self._files.grow(written.journal, written.size)
                self._saved(released, idle)
                self._recovered()
                return written._replace(entries=written.entries[: len(drafts)])
        return await self._begin(drafts)

    async def _begin(self, drafts: Sequence[Draft]) -> Written:
        """Begins a journal: a snapshot, and a group behind it.

        Raises:
            DiskFailed: the disk does not take it.
        """
        self._number += 1
        lanes = [holding.state for holding in self._holdings.values()]
        released, idle, life = dict(self._unsaved), set(self._files.idle()), self._life
        now = self._resources.clock.now()
        head = CustodyHead(
            self._store,
            self._settings.holder,
            life,
            self._resources.machine,
            self._number,
            now.wall_ns,
            len(lanes),
            self._files.ends(),
        )
        rotate, self._rotate = self._rotate, False
        try:
            written = await self._in_writer(self._writer.begin, head, lanes, drafts, now)
        except DiskFailed as failure:
            self._rotate |= rotate
            if not self._degraded:
                self._degraded = str(failure)
                self._observe(CustodyDegraded(self._degraded))
            self._chores.set()
            raise
        self._files.grow(self._number, written.size)
        self._snapshot_bytes = written.size - sum(
            len(draft.body) + ENTRY_HEAD_BYTES for draft in drafts
        )
        self._saved(released, idle)
        self._recovered()
        if not self._is_life_durable and life == self._life:
            self._is_life_durable = True
            self._spoken.set()
            # Later than all of an earlier opening in the same life.
            self._receipts = max(self._receipts, self._number << _OPENING_SHIFT)
        return written

    def _due(self, newest: int) -> bool:
        """Whether the open journal is large enough; a snapshot is never most of what is written."""
        size = self._files.end(newest) - self._snapshot_bytes
        return size >= max(self._settings.journal_bytes_max, self._snapshot_bytes)

    def _release(self, name: tuple[LaneKey, str], numbers: Ranges) -> Draft:
        key, holder = name
        mark = self._holdings[key].holders.get(holder, 0)
        said = CustodyRelease(*key.life, key.lane, numbers, holder, mark)
        return Draft(Kind.RELEASE, wire.encode(said))

    def _saved(self, released: dict[tuple[LaneKey, str], Ranges], idle: set[int]) -> None:
        """These releases are durable, so what was idle with them may go."""
        for name, numbers in released.items():
            rest = self._unsaved.get(name, _NOTHING) - numbers
            if rest:
                self._unsaved[name] = rest
            else:
                self._unsaved.pop(name, None)
        self._removable |= idle & set(self._files.idle())

    def _recovered(self) -> None:
        if self._degraded:
            self._degraded = ""
            self._observe(CustodyRecovered())

    # --- the index ---------------------------------------------------------------------------

    def _holding(self, key: LaneKey) -> Holding:
        holding = self._holdings.get(key)
        if holding is None:
            holding = Holding(CustodyLane(LaneLedger(*key.life, key.lane)))
            self._holdings[key] = holding
        return holding

    def _put_ledger(self, key: LaneKey, changed: LaneLedger) -> None:
        holding = self._holding(key)
        spans = holding.spans
        holding.ledger = changed
        self._spans += holding.spans - spans

    def _settle(self, life: Life, done: Sequence[Kept]) -> None:
        if done:
            self._files.settle(done)
            self._count_pending(life, -len(done))

    def _count_pending(self, life: Life, more: int) -> None:
        count = self._pending.get(life, 0) + more
        if (life in self._pending) != bool(count):
            self._lives = None
        if count:
            self._pending[life] = count
        else:
            self._pending.pop(life, None)

    async def _adopt(self, opened: Opened) -> None:
        """Makes of what opening found what is held, and begins a journal."""
        self._store, self._life = opened.store, opened.life
        self._number = opened.number - 1
        self._files = Files(opened.ends)
        self._holdings = dict(opened.found.holdings)
        for key, holding in self._holdings.items():
            self._spans += holding.spans
            for kept in holding.kept():
                pending = bool(holding.rest(kept))
                self._files.put(key, kept, pending=pending)
                self._may_expire |= kept.expires_wall_ns is not None
                if pending:
                    self._count_pending(key.life, 1)
        lost = sum(len(numbers) for numbers in opened.found.lost.values())
        if opened.reason:
            self._observe(LifeBegun(str(self._life), opened.reason))
        records = sum(
            len(holding.ledger.held - holding.released) for holding in self._holdings.values()
        )
        self._observe(CustodyOpened(str(self._life), self._files.pending, records, lost))
        with suppress(DiskFailed):
            await self._begin([])
            await self._in_writer(self._writer.remove, opened.useless)
            await self._in_writer(self._writer.reserve)
        self._chores.set()
        if self._pending:
            self._grown.set()

    async def close(self) -> None:
        """Makes releases durable as far as that goes, and gives the store back."""
        with suppress(DiskFailed):
            await self.settle()
        await self._in_writer(self._writer.close)
        self._resources.disk.unlock(LOCK)

    async def _in_writer(self, job: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resources.writer, job, *arguments)

    async def _in_worker(self, job: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resources.worker, job, *arguments)

    def _observe(self, event: object) -> None:
        self._resources.observer.observe(event)


def _place(entry: Entry) -> Place:
    return Place(entry.journal, entry.body_offset, entry.body_bytes)


def _by_age(life: Life) -> tuple[str, str, int]:
    return (life.site, life.node, life.epoch.counter)


def _check_jump(known: LaneLedger, header: BatchHeader) -> None:
    if header.last - known.next_seq > SEQ_JUMP_MAX:
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"{header}: the lane stood at {known.next_seq}; no lane jumps so far",
        )


def _put_off(outcome: Outcome, failure: DiskFailed) -> Outcome:
    if outcome.refused is not None:
        return outcome
    refused = Refused(RefusedBecause.FULL, str(failure))
    return Outcome(outcome.arrival, outcome.key, refused=refused, later=True)
