"""Releases: what holders have taken over, what they have lost again, and what is to be unlinked.

The cursor that says so is durable before anything is unlinked. It is the only thing here that
survives a crash; the unlinking is finished after the next opening.

What a holder has lost leaves the cursor in two ways. What is pending again leaves it with the next
writing: a crash before that finds it released, and still there, and the holder says again that it
lost it. What is there no more is *withheld*: the cursor goes on saying that it is released, which
once was true, until a durable statement says ``forgotten``; so no crash finds it nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mesh.ports import Disk, Observer
from mesh.spool import cursor as cursors
from mesh.spool import events, shelf
from mesh.spool.lives import Lives, Shelved, Worker, found_in, states
from mesh.spool.store import Survey
from schemas.errors import DiskFailed
from schemas.limits import HOLDERS_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Releases", "clear"]


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a holder has lost of a lane, until that is durable."""

    holder: str
    back: Ranges
    gone: Ranges


class Releases:
    """Owns the cursor.

    Args:
        disk: the spool's folder.
        lives: the state of each lane, shared with the spool on the loop.
        survey: what was found on opening.
        worker: runs what blocks.
        observer: is told.
    """

    def __init__(
        self, disk: Disk, lives: Lives, survey: Survey, worker: Worker, observer: Observer
    ) -> None:
        self._disk = disk
        self._lives = lives
        self._worker = worker
        self._observer = observer
        self._cursor = survey.cursor
        # What was read may stand in the page cache only: it is written again before it is used.
        self._stale = survey.cursor.generation > 0
        self._unlink = found_in(survey, list(lives)[-1], lambda found: found.leaving)
        self._lost: dict[tuple[Epoch, Lane], _Loss] = {}
        self._withheld: dict[tuple[Epoch, Lane], Ranges] = {}

    def holders(self, epoch: Epoch, lane: Lane) -> dict[str, int]:
        """Up to where each holder has released a lane."""
        prefix = f"{epoch}/{lane}/"
        return {
            key.removeprefix(prefix): number
            for key, number in self._cursor.holders.items()
            if key.startswith(prefix)
        }

    def durable(self, epoch: Epoch, lane: Lane) -> Ranges:
        """What of a lane is durably released, and was not lost since."""
        return self._said(epoch, lane) & self._lives[epoch][lane].backlog.released

    def _said(self, epoch: Epoch, lane: Lane) -> Ranges:
        """What the cursor says of a lane."""
        return self._cursor.released.get(f"{epoch}/{lane}", Ranges())

    @property
    def withheld(self) -> dict[tuple[Epoch, Lane], Ranges]:
        """What was lost and is there no more, while that is not durably stated."""
        return dict(self._withheld)

    def note(self, gone: Sequence[Shelved]) -> None:
        """These batches are to be unlinked: they were released, and their space is needed."""
        self._unlink += gone

    def note_holder(self, epoch: Epoch, lane: Lane, holder: str) -> None:
        """A holder has said what it has of a lane. What says nothing new costs no writing.

        Of too many holders the one that was not heard of for longest is forgotten.
        """
        prefix, key = f"{epoch}/{lane}/", f"{epoch}/{lane}/{holder}"
        released = self._lives[epoch][lane].backlog.released
        known = self._cursor.holders.get(key) == released.watermark()
        if known and released == self._said(epoch, lane):
            return
        holders = {name: number for name, number in self._cursor.holders.items() if name != key}
        others = [name for name in holders if name.startswith(prefix)]
        if len(others) >= HOLDERS_MAX:
            del holders[others[0]]
        holders[key] = released.watermark()
        self._cursor = replace(self._cursor, holders=holders)
        self._stale = True

    def note_loss(self, epoch: Epoch, lane: Lane, holder: str, back: Ranges, gone: Ranges) -> None:
        """A holder has lost numbers: some are pending ``back`` here, others are ``gone``."""
        if back or gone:
            before = self._lost.get((epoch, lane), _Loss(holder, Ranges(), Ranges()))
            self._lost[epoch, lane] = _Loss(holder, before.back | back, before.gone | gone)
        if gone:
            self._withheld[epoch, lane] = self._withheld.get((epoch, lane), Ranges()) | gone
        self.note_holder(epoch, lane, holder)
        self._stale = True

    def let_go(self, stated: dict[tuple[Epoch, Lane], Ranges]) -> None:
        """These losses are durably stated: the cursor need not say any more that they are here."""
        for place, numbers in stated.items():
            rest = self._withheld.pop(place, Ranges()) - numbers
            if rest:
                self._withheld[place] = rest
        self._stale = True

    async def flush(self) -> None:
        """Makes durable what was released and lost, then unlinks what is to be unlinked.

        Raises:
            DiskFailed: the cursor before still stands, or something is left to be unlinked.
        """
        if not (self._stale or self._unlink):
            return
        unlink = list(self._unlink)
        released = self._to_say()
        told = {place: loss for place, loss in self._lost.items() if place not in self._withheld}
        self._stale = False
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
        for place, loss in told.items():
            self._tell(place, loss)
        await clear(self._disk, self._worker, unlink, self._unlink)

    def _to_say(self) -> dict[str, Ranges]:
        """What the cursor has to say.

        Raises:
            DiskFailed: it cannot say so much, until what is withheld was stated.
        """
        said: dict[str, Ranges] = {}
        for epoch, lane, state in states(self._lives):
            withheld = self._withheld.get((epoch, lane))
            numbers = state.backlog.released
            if withheld is not None:
                numbers |= withheld
                if not cursors.fits(numbers):
                    raise DiskFailed(f"lane {lane}: the cursor waits until a loss is stated")
            if numbers:
                said[f"{epoch}/{lane}"] = numbers
        return said

    def _tell(self, place: tuple[Epoch, Lane], loss: _Loss) -> None:
        """Tells of a loss that has just become durable; of what came since, later."""
        now = self._lost.pop(place)
        rest = _Loss(now.holder, now.back - loss.back, now.gone - loss.gone)
        if rest.back or rest.gone:
            self._lost[place] = rest
        epoch, lane = place
        back, gone = str(loss.back), str(loss.gone)
        self._observer.observe(events.Reclaimed(str(epoch), lane, loss.holder, back, gone))


async def clear(disk: Disk, worker: Worker, items: Sequence[Shelved], noted: list[Shelved]) -> None:
    """Unlinks batches, and strikes each off the list where it was noted.

    Raises:
        DiskFailed: the rest is still noted.
    """
    for item in items:
        await worker(shelf.clear, disk, item.lane, item.epoch, [item.batch])
        noted.remove(item)
