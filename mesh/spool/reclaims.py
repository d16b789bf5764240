"""Reclaims: what a holder has lost, taken out of what is retained here, or stated as forgotten.

In the turn of the loop in which a holder says so, each number that it lost is pending again or
forgotten, and released no more; so the equation of the spool holds at every instant. What stands in
a journal is known by its numbers only: the journal is read once somebody asks for them, or before
it is sealed, and what it no longer gives back is stated as damaged then.

Crash safety: see ``mesh.spool.releases``. What is retained is taken out of the list of what may be
unlinked before anything else happens, and what is being unlinked is no longer in that list; so what
is said to be pending is there.
"""

from contextlib import suppress

from mesh.ports import Disk
from mesh.spool import journal
from mesh.spool.commit import Located
from mesh.spool.cursor import narrowed
from mesh.spool.explained import all_of
from mesh.spool.lives import Lives, Worker
from mesh.spool.losses import Losses
from mesh.spool.pump import Pump
from mesh.spool.releases import Releases
from mesh.spool.retained import ClosedJournal, Retained
from schemas.errors import DiskFailed
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import StoreIdentity

__all__ = ["Reclaims"]


class Reclaims:
    """Brings back what was released.

    Args:
        disk: the spool's folder.
        identity: the spool's.
        lives: the state of each lane, shared with the spool on the loop.
        pump: knows the journals that wait to be sealed.
        retained: what is there.
        releases: makes it durable that it was lost.
        losses: states what is there no more.
        worker: runs what blocks.
    """

    def __init__(
        self,
        disk: Disk,
        identity: StoreIdentity,
        lives: Lives,
        pump: Pump,
        retained: Retained,
        releases: Releases,
        losses: Losses,
        worker: Worker,
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._lives = lives
        self._pump = pump
        self._retained = retained
        self._releases = releases
        self._losses = losses
        self._worker = worker

    def reclaim(self, epoch: Epoch, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """A holder has lost what was released; returns what is pending again."""
        self._drop_forgotten(epoch, lane, numbers, holder)
        state = self._lives[epoch][lane]
        backlog = state.backlog
        # What was given up before it was taken over stays so: nobody offers it.
        lost = (numbers & backlog.released) - all_of(state.explained)
        lost = backlog.released - narrowed(backlog.released, lost)
        if not lost:
            return lost
        back = backlog.reclaim(lost, self._retained.take_batches(epoch, lane, lost))
        for number in backlog.kept.wanted_from(0):
            closed = self._retained.take_journal(number)
            if closed is not None:
                self.put_back(closed)
        gone = lost - back
        self._releases.note_loss(epoch, lane, holder, back, gone)
        self._losses.note_forgotten(epoch, lane, gone)
        return back

    def _drop_forgotten(self, epoch: Epoch, lane: Lane, numbers: Ranges, holder: str) -> None:
        """What a crash left both released and forgotten, between the two writings, is forgotten."""
        state = self._lives[epoch][lane]
        forgotten = numbers & state.explained.get(Explained.FORGOTTEN, Ranges())
        released = narrowed(state.backlog.released, forgotten & state.backlog.released)
        if released != state.backlog.released:
            state.backlog.released = released
            self._releases.note_loss(epoch, lane, holder, Ranges(), Ranges())

    def put_back(self, closed: ClosedJournal) -> None:
        """A journal is one of those again that wait to be sealed, or to go."""
        self._pump.closed_journals[closed.number] = closed.size
        if closed.reusable:
            self._pump.reusable.add(closed.number)

    def forget(self, number: int) -> None:
        """From now on nobody gets back what was released and stands in a journal."""
        for state in self._lives[self._identity.epoch].values():
            state.backlog.kept.forget(number)

    def is_kept(self, number: int) -> bool:
        """Whether a journal holds something that was released, or is wanted."""
        lanes = self._lives[self._identity.epoch].values()
        return any(state.backlog.kept.is_in(number) for state in lanes)

    def is_wanted(self, number: int) -> bool:
        """Whether a journal is still to be read for what a holder has lost."""
        lanes = self._lives[self._identity.epoch].values()
        return any(state.backlog.kept.wanted_in(number) for state in lanes)

    async def read_back(self, number: int) -> None:
        """Reads a journal for what a holder has lost; states what is not there.

        Raises:
            DiskFailed: it cannot be opened now, or a loss could not be stated yet.
        """
        identity = self._identity
        lanes = self._lives[identity.epoch]
        asked = {lane: state.backlog.kept.wanted_in(number) for lane, state in lanes.items()}
        frames: dict[Lane, list[Located]] = {}
        with suppress(FileNotFoundError):
            content = await self._worker(
                journal.read, self._disk, number, identity.store, identity.epoch, keep_data=False
            )
            if content.unreadable:
                raise DiskFailed(f"journal {number} cannot be read for what a holder has lost")
            for frame in content.frames:
                if frame.header.lane is not None:
                    frames.setdefault(frame.header.lane, []).append(Located(number, frame))
        damaged = False
        for lane, numbers in asked.items():
            if numbers:
                missing = lanes[lane].backlog.restore(number, frames.get(lane, ()), numbers)
                self._losses.note_missing(lane, missing)
                damaged |= bool(missing)
        if damaged and not await self._pump.commit():
            raise DiskFailed(f"journal {number} stays: a loss could not be stated")
