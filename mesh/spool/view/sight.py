"""What an onlooker sees of a spool: its identity, and what its files hold, at one moment.

The owner concludes from the same files what it goes on with (``mesh.spool.recovery``): there a hole
is ``damaged`` and a reservation that was not used is ``void``, for nobody else can be writing. An
onlooker keeps apart what is *stated* durably from what *would be* stated at the next opening: while
a node runs, a reservation is simply in use.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mesh.ports import Disk
from mesh.spool import shelf, store
from mesh.spool.batch import Batch, parse
from mesh.spool.frame import Whole
from mesh.spool.shelf import Sealed
from mesh.spool.store import Survey
from mesh.spool.view.picture import Picture, take
from schemas.errors import Overloaded, Refused, RefusedBecause, StoreUnusable
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

    Args:
        picture: its files, held fast.
        identity: who it is.
        survey: what its files hold.
    """

    picture: Picture
    identity: StoreIdentity
    survey: Survey

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

    def stated(self, lane: Lane) -> Mapping[str, Ranges]:
        """Numbers of which it is durably stated that they will never arrive, by reason."""
        found = self.survey.lanes[lane]
        explained = found.explained.items()
        told = {why: numbers - found.newly.get(why, _NONE) for why, numbers in explained}
        return {why: numbers for why, numbers in told.items() if numbers}

    def explained(self, lane: Lane) -> Ranges:
        """The numbers of all stated reasons."""
        return Ranges.of([s for numbers in self.stated(lane).values() for s in numbers.spans])

    def held(self, lane: Lane) -> Ranges:
        """Numbers that stand in a batch or in a frame that verifies, and are not given up."""
        found = self.survey.lanes[lane]
        batches = [(item.first, item.stop) for item in found.sealed]
        frames = [(item.frame.header.first, item.frame.header.stop) for item in found.fresh]
        return Ranges.of(batches + frames)

    def end(self, lane: Lane) -> int:
        """One more than the highest number that was ever written, released or stated."""
        found = self.survey.lanes[lane]
        shelf = [item.stop for item in (*found.sealed, *found.leaving, *found.spoiled)]
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
        StoreUnusable: there is none, or ``STORE`` cannot be understood.
        Overloaded: the owner is too busy for it; later there may be a moment.
        DiskFailed: the medium does not give it back, or permission is missing.
    """
    for _ in range(_ATTEMPTS_MAX):
        picture = take(disk, pause)
        try:
            identity = _identity(picture)
            return Sight(picture, identity, store.survey(picture, identity))
        except FileNotFoundError:
            # One of very many journals, more than are held fast, was sealed meanwhile.
            picture.close()
            pause()
        except BaseException:
            picture.close()
            raise
    raise Overloaded(f"journals vanished while they were read, {_ATTEMPTS_MAX} times: try again")


def _identity(disk: Disk) -> StoreIdentity:
    identity = store.identity(disk)
    if identity is None:
        raise StoreUnusable("there is no spool here: no file STORE")
    return identity
