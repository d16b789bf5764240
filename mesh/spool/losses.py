"""Losses: what is damaged or given up, stated durably before anything goes.

The statement stands in the header of a new journal, or in ``STORE`` for a past epoch. What was
explained and could not be stated yet is stated the next time; until then the files stay.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from mesh.ports import Disk, Observer
from mesh.spool import events, store
from mesh.spool.commit import Located
from mesh.spool.lives import Lives, Shelved, Worker, found_in
from mesh.spool.pump import Pump
from mesh.spool.releases import Releases, clear
from mesh.spool.shelf import Sealed
from schemas.errors import DiskFailed
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import PastEpoch, StoreIdentity

__all__ = ["Losses"]


class Losses:
    """Owns what is given up and what is spoiled, until it has left the shelf.

    Args:
        disk: the spool's folder.
        identity: the spool's.
        lives: the state of each lane, shared with the spool on the loop.
        pump: begins the journal whose header states them.
        releases: what need not be stated.
        survey: what was found on opening.
        worker: runs what blocks.
        observer: is told.
        state_accounts: states what was given up.
    """

    def __init__(
        self,
        disk: Disk,
        identity: StoreIdentity,
        lives: Lives,
        pump: Pump,
        releases: Releases,
        survey: store.Survey,
        worker: Worker,
        observer: Observer,
        state_accounts: Callable[[], Awaitable[None]],
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._lives = lives
        self._pump = pump
        self._releases = releases
        self._worker = worker
        self._observer = observer
        self._state_accounts = state_accounts
        self._spoiled = found_in(survey, identity.epoch, lambda found: found.spoiled)
        self._given_up: list[Shelved] = []
        self._past_stale: set[Epoch] = set()
        self._past_changed: set[Epoch] = set()

    # --- what happens ------------------------------------------------------------------------

    def note_damaged_batch(self, epoch: Epoch, lane: Lane, item: Sealed, detail: str) -> None:
        """A batch on the shelf does not verify: states the loss, and later sets the file aside."""
        if not self._lives[epoch][lane].backlog.drop([item]):
            return
        self._damage(epoch, lane, [(item.first, item.stop)], detail)
        self._spoiled.append(Shelved(epoch, lane, item))

    def note_damaged_frames(self, lane: Lane, damaged: Sequence[Located]) -> None:
        """Frames in a journal do not verify: states the loss."""
        if damaged:
            epoch = self._identity.epoch
            gone = self._lives[epoch][lane].backlog.drop_frames(damaged)
            spans = [(item.frame.header.first, item.frame.header.stop) for item in gone]
            self._damage(epoch, lane, spans, "a frame no longer matches its checksum")

    def note_missing(self, lane: Lane, missing: Ranges) -> None:
        """What a holder has lost is not in its journal either: states the loss."""
        detail = "a journal no longer holds what was released"
        self._damage(self._identity.epoch, lane, missing.spans, detail)

    def note_forgotten(self, epoch: Epoch, lane: Lane, gone: Ranges) -> None:
        """What a holder has lost is here no more: states the loss."""
        if gone:
            self._explain(epoch, lane, Explained.FORGOTTEN, gone)

    def _damage(
        self, epoch: Epoch, lane: Lane, spans: Sequence[tuple[int, int]], detail: str
    ) -> None:
        numbers = Ranges.of(spans) - self._lives[epoch][lane].backlog.released
        if numbers:
            self._explain(epoch, lane, Explained.DAMAGED, numbers)
            self._observer.observe(events.DamageFound(lane, str(numbers), detail))

    def _explain(self, epoch: Epoch, lane: Lane, why: str, numbers: Ranges) -> None:
        """States a loss; ``make_durable`` makes the statement so."""
        # A release may not be durable yet, and a crash would then find these numbers nowhere.
        self._lives[epoch][lane].explain(why, numbers - self._releases.durable(epoch, lane))
        if epoch == self._identity.epoch:
            self._pump.rotate()
        else:
            self._past_stale.add(epoch)
            self._past_changed.add(epoch)

    # --- what is done ------------------------------------------------------------------------

    async def give_up(self, items: Sequence[Shelved], why: Explained) -> None:
        """States a loss, makes that durable, then unlinks.

        Raises:
            DiskFailed: it could not be stated yet, or something is left to be unlinked.
        """
        if not items and not self._given_up:
            return
        by_lane: dict[tuple[Epoch, Lane], list[Sealed]] = {}
        for item in items:
            by_lane.setdefault((item.epoch, item.lane), []).append(item.batch)
        for (epoch, lane), chosen in by_lane.items():
            # What was released or found damaged since it was chosen is no loss of this kind.
            batches = self._lives[epoch][lane].backlog.drop(chosen)
            numbers = Ranges.of([(item.first, item.stop) for item in batches])
            self._explain(epoch, lane, why, numbers)
            self._given_up += [Shelved(epoch, lane, item) for item in batches]
            self._observer.observe(events.Evicted(lane, str(numbers), why))
        await self._make_durable("an eviction could not be stated yet; nothing was unlinked")
        await clear(self._disk, self._worker, list(self._given_up), self._given_up)
        await self._state_accounts()

    async def state_forgotten(self) -> None:
        """Makes durable what was forgotten, so that the cursor need not cover it any more.

        Raises:
            DiskFailed: it could not be stated yet.
        """
        stated = self._releases.withheld
        if stated:
            await self._make_durable("what a holder has lost could not be stated yet")
            self._releases.let_go(stated)
            await self._state_accounts()

    async def set_aside(self) -> None:
        """Takes damaged batches off the shelf, once their loss is durably stated.

        Raises:
            DiskFailed: they stay for now.
        """
        if not self._spoiled:
            return
        await self._make_durable("a damaged batch stays: its loss could not be stated yet")
        for item in list(self._spoiled):
            name = await self._worker(
                store.set_aside, self._disk, item.lane, item.epoch, item.batch
            )
            self._spoiled.remove(item)
            if name:
                self._observer.observe(events.Quarantined(name))

    async def _make_durable(self, otherwise: str) -> None:
        """Makes durable what was explained.

        Raises:
            DiskFailed: it is not.
        """
        if self._past_stale:
            stale, self._past_stale = self._past_stale, set()
            past = tuple(map(self._ended, self._identity.past))
            try:
                await self._worker(store.write, self._disk, replace(self._identity, past=past))
            except BaseException:
                self._past_stale |= stale
                raise
            self._identity = replace(self._identity, past=past)
        self._pump.rotate()
        if not await self._pump.commit():
            raise DiskFailed(otherwise)

    def _ended(self, life: PastEpoch) -> PastEpoch:
        """A past life as it stands now."""
        if life.epoch not in self._past_changed:
            return life
        lanes = {lane: state.ended() for lane, state in self._lives[life.epoch].items()}
        return PastEpoch(life.epoch, lanes, self._identity.epoch.counter)

    async def mark(self, machine: bytes) -> None:
        """Writes into ``STORE`` on which machine it is to be believed.

        Raises:
            DiskFailed: it is not written.
        """
        self._identity = replace(self._identity, machine=machine)
        await self._worker(store.write, self._disk, self._identity)
