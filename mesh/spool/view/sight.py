"""What an onlooker sees of a spool: its identity, and what its files hold, at one moment.

The owner concludes from the same files what it goes on with (``mesh.spool.recovery``): there a hole
is ``damaged`` and a reservation that was not used is ``void``, for nobody else can be writing. An
onlooker keeps apart what is *stated* durably from what *would be* stated at the next opening: while
a node runs, a reservation is simply in use.

Where ``STORE`` rotted or is gone, the newest journal says whose the files are, as it will say to
the owner (``mesh.spool.epochs``). Batches of lives that nothing names any more are seen too.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mesh.ports import Disk
from mesh.spool import journal, shelf, store
from mesh.spool.batch import Batch, parse
from mesh.spool.epochs import NO_MACHINE
from mesh.spool.explained import all_of
from mesh.spool.frame import Whole
from mesh.spool.journal import JournalContent
from mesh.spool.recovery import LaneFound
from mesh.spool.shelf import Sealed
from mesh.spool.store import Survey
from mesh.spool.view.picture import Picture, take
from schemas.errors import Damaged, Overloaded, Refused, RefusedBecause, StoreUnusable
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import StoreIdentity

__all__ = ["Sight", "look"]

_ATTEMPTS_MAX: Final = 20
_NONE: Final = Ranges()


@dataclass(frozen=True, slots=True)
class Sight:
    """A spool as it was seen. A context manager: leaving gives the descriptors back.

    Where a method takes an epoch, the present one is meant if none is said.

    Args:
        picture: its files, held fast.
        identity: who it is; its site and node are empty where ``STORE`` does not tell.
        survey: what its files hold.
        lost: what is wrong with ``STORE``; empty when nothing is.
    """

    picture: Picture
    identity: StoreIdentity
    survey: Survey
    lost: str = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the descriptors back. May be called twice."""
        self.picture.close()

    @property
    def lives(self) -> Mapping[Epoch, Mapping[Lane, LaneFound]]:
        """Where each lane of each life stands, the oldest first, the present one last."""
        return {**self.survey.past, self.identity.epoch: self.survey.lanes}

    @property
    def unknown(self) -> list[Epoch]:
        """Lives that have batches on the shelf and that ``STORE`` does not name."""
        known = self.lives
        others = {epoch for _, epoch in self.shelves() if epoch not in known}
        return sorted(others, key=lambda epoch: (epoch.counter, epoch.random))

    def found(self, lane: Lane, epoch: Epoch | None = None) -> LaneFound | None:
        """Where a lane stands; ``None`` if it never had a number in that life."""
        return self.lives.get(epoch or self.identity.epoch, {}).get(lane)

    def stated(self, lane: Lane, epoch: Epoch | None = None) -> Mapping[str, Ranges]:
        """Numbers of which it is durably stated that they will never arrive, by reason."""
        found = self.found(lane, epoch)
        if found is None:
            return {}
        explained = found.explained.items()
        told = {why: numbers - found.newly.get(why, _NONE) for why, numbers in explained}
        return {why: numbers for why, numbers in told.items() if numbers}

    def explained(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """The numbers of all stated reasons."""
        return all_of(self.stated(lane, epoch))

    def released(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """What the cursor says of a lane, of a life that ``STORE`` does not name too."""
        return store.released_in(self.survey.cursor, epoch or self.identity.epoch, lane)

    def held(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """Numbers that stand in a batch or in a frame that verifies, and are not given up."""
        found = self.found(lane, epoch)
        if found is None:
            return _NONE
        batches = [(item.first, item.stop) for item in found.sealed]
        frames = [(item.frame.header.first, item.frame.header.stop) for item in found.fresh]
        return Ranges.of(batches + frames)

    def retained(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """Numbers that were released and still stand in a batch or in a frame that verifies."""
        found = self.found(lane, epoch)
        if found is None:
            return _NONE
        shelved = [(item.first, item.stop) for item in found.retained]
        kept = [span for numbers in found.kept.values() for span in numbers.spans]
        return Ranges.of(shelved + kept) | (self.held(lane, epoch) & found.released)

    def retained_journals(self) -> list[JournalContent]:
        """The journals that are not written any more, and of which all that they hold is released.

        The newest may still be written.
        """
        lanes = self.survey.lanes.values()
        pending = {item.journal for found in lanes for item in found.fresh}
        kept = {number for found in lanes for number in found.kept} - pending
        return [content for content in self.survey.journals[:-1] if content.number in kept]

    def end(self, lane: Lane) -> int:
        """One more than the highest number that was ever written, released or stated.

        Of the present life: of one that is over ``STORE`` says where it ended.
        """
        found = self.survey.lanes[lane]
        shelved = (*found.sealed, *found.leaving, *found.spoiled, *found.retained)
        shelf = [item.stop for item in shelved]
        frames = [frame.header.stop for frame in self.frames() if frame.header.lane is lane]
        return max(found.released.end, self.explained(lane).end, *shelf, *frames, 0)

    def broken_end(self, lane: Lane) -> int:
        """One more than the highest number that a broken frame with a whole header names."""
        stops = [
            item.header.stop
            for content in self.survey.journals
            for item in content.broken
            if item.header is not None and item.header.lane is lane
        ]
        return max(stops, default=0)

    def batch(self, lane: Lane, epoch: Epoch, item: Sealed) -> Batch:
        """A batch from the shelf, and the one that its place says.

        Raises:
            FileNotFoundError: it was released or given up in the meantime.
            DiskFailed: the medium does not give it back.
            Refused: it does not verify; ``foreign``: it is another one.
        """
        file = self.picture.open(shelf.batch_path(lane, epoch, item.first, item.stop), "read")
        try:
            batch = parse(file.read(0, BATCH_BYTES_MAX + 1))
        finally:
            file.close()
        header = batch.header
        if header.store != self.identity.store:
            raise Refused(RefusedBecause.FOREIGN, f"it is of store {header.store.hex()[:8]}")
        says = (header.lane, header.epoch, header.first, header.last + 1)
        if says != (lane, epoch, item.first, item.stop):
            raise Refused(RefusedBecause.FOREIGN, f"it says {header}: it was renamed or moved")
        return batch

    def shelves(self) -> list[tuple[Lane, Epoch]]:
        """The folders that hold batches, most urgent lane first, its oldest life first."""
        found = []
        for lane in Lane:
            for name in self.picture.list(f"{shelf.FOLDER}/{lane}"):
                with suppress(Refused):
                    found.append((lane, Epoch.parse(name)))
        return sorted(found, key=lambda folder: (folder[0].priority, folder[1].counter))

    def frames(self) -> list[Whole]:
        """All frames that stand in journals, in order; of two copies each one."""
        return [frame for content in self.survey.journals for frame in content.frames]


def look(disk: Disk, pause: Callable[[], object]) -> Sight:
    """Looks at a spool, whether or not a node writes to it.

    Args:
        disk: its folder.
        pause: waits a moment for the owner, before another attempt.

    Raises:
        StoreUnusable: there is none, or it is of a format that is not known here.
        Damaged: ``STORE`` rotted, and nothing else says whose the files are.
        Overloaded: the owner is too busy for it; later there may be a moment.
        DiskFailed: the medium does not give it back, or permission is missing.
    """
    for _ in range(_ATTEMPTS_MAX):
        picture = take(disk, pause)
        try:
            identity, lost = _identity(picture)
            return Sight(picture, identity, store.survey(picture, identity), lost)
        except FileNotFoundError:
            # One of very many journals, more than are held fast, was sealed meanwhile.
            picture.close()
            pause()
        except BaseException:
            picture.close()
            raise
    raise Overloaded(f"journals vanished while they were read, {_ATTEMPTS_MAX} times: try again")


def _identity(disk: Disk) -> tuple[StoreIdentity, str]:
    """Who a store is, and what is wrong with ``STORE``."""
    rotten: Damaged | None = None
    try:
        identity = store.identity(disk)
    except Damaged as damage:
        identity, rotten = None, damage
    if identity is not None:
        return identity, ""
    lost = "STORE is gone" if rotten is None else str(rotten)
    headers = (journal.read_header(disk, number) for number in reversed(journal.numbers(disk)))
    newest = next((header for header in headers if header is not None), None)
    if newest is not None:
        return StoreIdentity(newest.store, "", "", newest.epoch, None, NO_MACHINE), lost
    if rotten is not None:
        raise rotten
    raise StoreUnusable("there is no spool here: no file STORE")
