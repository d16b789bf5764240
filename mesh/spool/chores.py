"""What is done beside appending: sealing journals, writing the cursor, unlinking, giving up.

All that blocks runs in the worker, one job after another. The orders that matter:

- a journal is unlinked once its pending frames are durable on the shelf, the losses among them are
  stated, the cursor covers what was released of it, and a newer journal is durable;
- a batch that was released is unlinked once the cursor that says so is durable;
- a batch that is given up is unlinked once a journal's header that says so is durable;
- a batch that is damaged is taken off the shelf once the same is true of it.

What fails is tried again a few seconds later. What a crash leaves undone is done after the next
opening, since the files tell of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from mesh.spool import cursor as cursors
from mesh.spool import events, journal, sealing, shelf, store
from mesh.spool.commit import Located
from mesh.spool.lane import LaneState
from mesh.spool.pump import Pump
from mesh.spool.retention import plan
from mesh.spool.settings import Resources, SpoolSettings
from mesh.spool.shelf import Sealed
from schemas.errors import DiskFailed
from schemas.limits import HOLDERS_MAX
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges

__all__ = ["Chores"]

_T = TypeVar("_T")
_RETRY_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.2


class Chores:
    """Owns the cursor, and what is to be unlinked.

    Args:
        resources: the spool's.
        settings: the spool's.
        epoch: the present life.
        lanes: the state of each lane, shared with the spool on the loop.
        pump: makes losses durable.
        survey: what was found on opening.
        state_accounts: states what was given up.
    """

    def __init__(
        self,
        resources: Resources,
        settings: SpoolSettings,
        epoch: Epoch,
        lanes: Mapping[Lane, LaneState],
        pump: Pump,
        survey: store.Survey,
        state_accounts: Callable[[], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._epoch = epoch
        self._lanes = lanes
        self._pump = pump
        self._state_accounts = state_accounts
        self._loop = asyncio.get_running_loop()
        self._cursor = survey.cursor
        # What was read may stand in the page cache only: it is written again before it is used.
        self._cursor_stale = survey.cursor.generation > 0
        found = survey.lanes.items()
        self._unlink = [(lane, item) for lane, state in found for item in state.leaving]
        self._spoiled = [(lane, item) for lane, state in found for item in state.spoiled]
        self._given_up: list[tuple[Lane, Sealed]] = []
        self._due = asyncio.Event()
        self._due.set()

    # --- queries -----------------------------------------------------------------------------

    def holders(self, lane: Lane) -> dict[str, int]:
        """Up to where each holder has released a lane."""
        prefix = f"{self._epoch}/{lane}/"
        return {
            key.removeprefix(prefix): number
            for key, number in self._cursor.holders.items()
            if key.startswith(prefix)
        }

    def used_bytes(self) -> int:
        """What the spool takes on disk."""
        backlogs = [state.backlog for state in self._lanes.values()]
        shelved = sum(backlog.sealed_bytes for backlog in backlogs)
        closed = sum(backlog.bytes_outside(self._pump.journal) for backlog in backlogs)
        return shelved + self._pump.journal_bytes + closed

    # --- what happens ------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to do."""
        self._due.set()

    def note_release(self, lane: Lane, gone: Sequence[Sealed], holder: str) -> None:
        """A holder has released; nobody needs these batches any more.

        Of too many holders the one that was not heard of for longest is forgotten.
        """
        self._unlink += [(lane, item) for item in gone]
        prefix, key = f"{self._epoch}/{lane}/", f"{self._epoch}/{lane}/{holder}"
        holders = {name: number for name, number in self._cursor.holders.items() if name != key}
        others = [name for name in holders if name.startswith(prefix)]
        if len(others) >= HOLDERS_MAX:
            del holders[others[0]]
        holders[key] = self._lanes[lane].backlog.released.watermark()
        self._cursor = replace(self._cursor, holders=holders)
        self._cursor_stale = True
        self.wake()

    def note_damaged_batch(self, lane: Lane, item: Sealed, detail: str) -> None:
        """A batch on the shelf does not verify: states the loss, and later sets the file aside."""
        self._lanes[lane].backlog.drop([item])
        self._state_damage(lane, [(item.first, item.stop)], detail)
        self._spoiled.append((lane, item))
        self.wake()

    def note_damaged_frames(self, lane: Lane, damaged: Sequence[Located]) -> None:
        """Frames in a journal do not verify: states the loss."""
        if damaged:
            self._lanes[lane].backlog.seal(damaged, ())
            spans = [(item.frame.header.first, item.frame.header.stop) for item in damaged]
            self._state_damage(lane, spans, "a frame no longer matches its checksum")

    def _state_damage(self, lane: Lane, spans: Sequence[tuple[int, int]], detail: str) -> None:
        numbers = Ranges.of(spans) - self._lanes[lane].backlog.released
        if not numbers:
            return
        self._lanes[lane].explain(Explained.DAMAGED, numbers)
        self._pump.rotate()
        self._observe(events.DamageFound(lane, str(numbers), detail))

    # --- what is done ------------------------------------------------------------------------

    async def run(self) -> None:
        """Does what is due, when it is. Runs until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.do()
            except DiskFailed as failure:
                self._observe(events.ChoreFailed(str(failure)))
                self._loop.call_later(_RETRY_SECONDS, self._due.set)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def do(self) -> None:
        """Does all that is due now.

        Raises:
            DiskFailed: something is left to be done.
        """
        await self.flush()
        unsealed = None
        try:
            # Until the first journal of this life is durable, the old ones alone tell the numbers.
            while self._pump.journal and self._pump.closed_journals:
                await self._seal(self._pump.closed_journals[0])
                self._pump.closed_journals.pop(0)
        except DiskFailed as failure:
            # A full disk fails the sealing, and is what evicting helps against.
            unsealed = failure
        await self._evict()
        await self._set_aside_spoiled()
        if unsealed is not None:
            raise unsealed

    async def flush(self) -> None:
        """Makes what was released durable, then unlinks what nobody needs any more.

        Raises:
            DiskFailed: the cursor before still stands, or something is left to be unlinked.
        """
        if not self._pump.journal or not (self._cursor_stale or self._unlink):
            return
        unlink = list(self._unlink)
        self._cursor_stale = False
        released = dict(self._cursor.released)
        for lane, state in self._lanes.items():
            if state.backlog.released:
                released[f"{self._epoch}/{lane}"] = state.backlog.released
        # Only a success counts up: a second attempt goes to the same slot, never to the good one.
        cursor = replace(self._cursor, generation=self._cursor.generation + 1, released=released)
        try:
            await self._in_worker(cursors.store, self._resources.disk, cursor)
        except BaseException:
            self._cursor_stale = True
            raise
        self._cursor = replace(self._cursor, generation=cursor.generation, released=released)
        await self._clear(unlink, self._unlink)

    async def _clear(
        self, items: Sequence[tuple[Lane, Sealed]], noted: list[tuple[Lane, Sealed]]
    ) -> None:
        """Unlinks batches, and strikes each off the list where it was noted."""
        for lane, item in items:
            await self._in_worker(shelf.clear, self._resources.disk, lane, self._epoch, [item])
            noted.remove((lane, item))

    async def _seal(self, number: int) -> None:
        """Shelves what is pending of a closed journal, then unlinks the journal."""
        frames = {
            lane: pending
            for lane, state in self._lanes.items()
            if (pending := state.backlog.in_journal(number))
        }
        if frames:
            done = await self._in_worker(
                sealing.seal, self._resources.disk, self._settings.labels, frames
            )
            for lane, pending in frames.items():
                gone = self._lanes[lane].backlog.seal(pending, done.batches[lane])
                self._unlink += [(lane, item) for item in gone]
                self.note_damaged_frames(lane, done.damaged[lane])
            if any(done.damaged.values()) and not await self._pump.commit():
                raise DiskFailed(f"journal {number} stays: a loss could not be stated")
        await self.flush()
        await self._in_worker(self._resources.disk.unlink, journal.journal_path(number))

    async def _evict(self) -> None:
        """Gives up what does not fit: states the loss, makes that durable, then unlinks.

        What was given up and could not be stated is stated and unlinked the next time.
        """
        shelves = {lane: state.backlog.on_shelf for lane, state in self._lanes.items()}
        evictions = plan(shelves, self.used_bytes(), self._settings.bytes_max)
        if not evictions and not self._given_up:
            return
        by_lane: dict[Lane, list[Sealed]] = {}
        for eviction in evictions:
            by_lane.setdefault(eviction.lane, []).append(eviction.batch)
        for lane, items in by_lane.items():
            state = self._lanes[lane]
            state.backlog.drop(items)
            numbers = Ranges.of([(item.first, item.stop) for item in items])
            state.explain(Explained.EVICTED, numbers - state.backlog.released)
            self._given_up += [(lane, item) for item in items]
            self._observe(events.Evicted(lane, str(numbers)))
        self._pump.rotate()
        if not await self._pump.commit():
            raise DiskFailed("an eviction could not be stated yet; nothing was unlinked")
        await self._clear(list(self._given_up), self._given_up)
        await self._state_accounts()

    async def _set_aside_spoiled(self) -> None:
        """Takes damaged batches off the shelf, once their loss is durably stated."""
        if not self._spoiled:
            return
        if not await self._pump.commit():
            raise DiskFailed("a damaged batch stays: its loss could not be stated yet")
        for lane, item in list(self._spoiled):
            disk = self._resources.disk
            name = await self._in_worker(store.set_aside, disk, lane, self._epoch, item)
            self._spoiled.remove((lane, item))
            if name:
                self._observe(events.Quarantined(name))

    async def _in_worker(self, job: Callable[..., _T], *arguments: object) -> _T:
        return await self._loop.run_in_executor(self._resources.worker, job, *arguments)

    def _observe(self, event: object) -> None:
        self._resources.observer.observe(event)
