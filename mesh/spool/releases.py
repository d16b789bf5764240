"""Releases: what holders have taken over, and the batches that nobody needs any more.

The cursor that says so is durable before anything is unlinked. It is the only thing here that
survives a crash; the unlinking is finished after the next opening.
"""

from collections.abc import Sequence
from dataclasses import replace

from mesh.ports import Disk
from mesh.spool import cursor as cursors
from mesh.spool import shelf
from mesh.spool.lives import Lives, Shelved, Worker, found_in, states
from mesh.spool.store import Survey
from schemas.limits import HOLDERS_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Releases", "clear"]


class Releases:
    """Owns the cursor.

    Args:
        disk: the spool's folder.
        lives: the state of each lane, shared with the spool on the loop.
        survey: what was found on opening.
        worker: runs what blocks.
    """

    def __init__(self, disk: Disk, lives: Lives, survey: Survey, worker: Worker) -> None:
        self._disk = disk
        self._lives = lives
        self._worker = worker
        self._cursor = survey.cursor
        # What was read may stand in the page cache only: it is written again before it is used.
        self._stale = survey.cursor.generation > 0
        self._unlink = found_in(survey, list(lives)[-1], lambda found: found.leaving)

    def holders(self, epoch: Epoch, lane: Lane) -> dict[str, int]:
        """Up to where each holder has released a lane."""
        prefix = f"{epoch}/{lane}/"
        return {
            key.removeprefix(prefix): number
            for key, number in self._cursor.holders.items()
            if key.startswith(prefix)
        }

    def durable(self, epoch: Epoch, lane: Lane) -> Ranges:
        """What of a lane is durably released."""
        return self._cursor.released.get(f"{epoch}/{lane}", Ranges())

    def note(self, gone: Sequence[Shelved]) -> None:
        """Nobody needs these batches any more."""
        self._unlink += gone

    def note_holder(self, epoch: Epoch, lane: Lane, holder: str) -> None:
        """A holder has said what it has of a lane. What says nothing new costs no writing.

        Of too many holders the one that was not heard of for longest is forgotten.
        """
        prefix, key = f"{epoch}/{lane}/", f"{epoch}/{lane}/{holder}"
        released = self._lives[epoch][lane].backlog.released
        known = self._cursor.holders.get(key) == released.watermark()
        if known and released == self.durable(epoch, lane):
            return
        holders = {name: number for name, number in self._cursor.holders.items() if name != key}
        others = [name for name in holders if name.startswith(prefix)]
        if len(others) >= HOLDERS_MAX:
            del holders[others[0]]
        holders[key] = released.watermark()
        self._cursor = replace(self._cursor, holders=holders)
        self._stale = True

    async def flush(self) -> None:
        """Makes what was released durable, then unlinks what nobody needs any more.

        Raises:
            DiskFailed: the cursor before still stands, or something is left to be unlinked.
        """
        if not (self._stale or self._unlink):
            return
        unlink = list(self._unlink)
        self._stale = False
        released = {
            f"{epoch}/{lane}": state.backlog.released
            for epoch, lane, state in states(self._lives)
            if state.backlog.released
        }
        lives = {str(epoch) for epoch in self._lives}
        holders = {
            key: number
            for key, number in self._cursor.holders.items()
            if key.partition("/")[0] in lives
        }
        # Only a success counts up: a second attempt goes to the same slot, never to the good one.
        cursor = replace(
            self._cursor,
            generation=self._cursor.generation + 1,
            released=released,
            holders=holders,
        )
        try:
            await self._worker(cursors.store, self._disk, cursor)
        except BaseException:
            self._stale = True
            raise
        self._cursor = replace(self._cursor, generation=cursor.generation, released=released)
        await clear(self._disk, self._worker, unlink, self._unlink)


async def clear(disk: Disk, worker: Worker, items: Sequence[Shelved], noted: list[Shelved]) -> None:
    """Unlinks batches, and strikes each off the list where it was noted.

    Raises:
        DiskFailed: the rest is still noted.
    """
    for item in items:
        await worker(shelf.clear, disk, item.lane, item.epoch, [item.batch])
        noted.remove(item)
