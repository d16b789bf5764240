"""Carrying out: what waits in a spool goes onto a medium, the most urgent first. Releases nothing.

The spool is looked at beside its node. What is sealed, released or given up between the look and
the reading is looked for again; since what is on the medium counts by its numbers, nothing is taken
twice. The first failure of the medium ends the taking, and what is there by then gets its manifest:
the space for that is kept back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from mesh.adapters.carrier import pending
from mesh.adapters.carrier.loading import Loading
from mesh.adapters.carrier.pending import Piece
from mesh.ports import Disk
from mesh.spool.batch import Labels
from mesh.spool.view.sight import Sight
from mesh.transfer.carried import CarriedFile, Flaw, Manifest
from mesh.transfer.room import Room, Staying, plan, staying
from schemas.errors import DiskFailed
from schemas.limits import CARRIED_FILES_MAX, MANIFEST_BYTES_MAX
from schemas.messages import Epoch

__all__ = ["RESERVE_BYTES", "CarriedOut", "Origin", "Outward"]

RESERVE_BYTES: Final = 2 * MANIFEST_BYTES_MAX
"""What stays free on the medium at least: for a manifest beside the one that it replaces."""
_LOOKS_MAX: Final = 5


@dataclass(slots=True)
class CarriedOut:
    """What was taken, and what stays.

    Args:
        there: how many batches were on the medium already.
        taken: the batches that were written now.
        stay: what stays where it is, by lane and reason.
        flaws: what was found wrong, on the medium and in the spool.
        manifest: names all that is there now.
    """

    there: int = 0
    taken: list[CarriedFile] = field(default_factory=list)
    stay: list[Staying] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    manifest: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A spool that is carried from.

    Args:
        disk: its folder.
        look: looks at it.
        labels: what stands on batches that are packed now.
    """

    disk: Disk
    look: Callable[[], AbstractContextManager[Sight]]
    labels: Labels


class Outward:
    """One carrying out. Synchronous; called once.

    Args:
        spool: where it comes from.
        loading: where it goes.
        free_bytes: tells what the medium has free.
        cluster_bytes: what the medium rounds the length of a file up to.
        tell: is told of each batch that is there.
    """

    def __init__(
        self,
        spool: Origin,
        loading: Loading,
        free_bytes: Callable[[], int],
        cluster_bytes: int,
        tell: Callable[[CarriedFile], object] = lambda _: None,
    ) -> None:
        self._spool = spool
        self._loading = loading
        self._free_bytes = free_bytes
        self._cluster_bytes = cluster_bytes
        self._tell = tell
        self._done = CarriedOut()
        self._damaged: set[tuple[str, str]] = set()

    def run(self, created_ms: int, limit_bytes: int | None, reserve_bytes: int) -> CarriedOut:
        """Takes what fits.

        Args:
            created_ms: now, UTC.
            limit_bytes: how much to take; ``None`` for all.
            reserve_bytes: what must stay free on the medium, ``RESERVE_BYTES`` at least.

        Raises:
            DiskFailed: there is no manifest of what was taken; ``DiskReadOnly`` where the medium
                cannot be written, ``DiskFull`` where not even a manifest fits.
            Refused: ``bad_name``: a link stands where the folder should.
            StoreUnusable, Damaged, Overloaded: there is no spool, or it cannot be read now.
        """
        self._loading.open()
        self._done.there = len(self._loading.files)
        self._done.flaws += self._loading.flaws
        for _ in range(_LOOKS_MAX):
            with self._spool.look() as sight:
                again = self._take(sight, limit_bytes, max(reserve_bytes, RESERVE_BYTES))
                if again:
                    continue
                self._done.flaws += map(_unadopted, sight.unknown)
                self._done.manifest = self._loading.finish(
                    sight.identity.store.hex(), created_ms, lambda file: _is_released(sight, file)
                )
                return self._done
        return self._finish_unread(created_ms)

    def _finish_unread(self, created_ms: int) -> CarriedOut:
        """Ends with a manifest of what there is, beside a node that was too busy for the rest."""
        with self._spool.look() as sight:
            waiting = self._pieces(sight)
            self._done.stay = [*staying(waiting, "the node was sealing it: try again")]
            self._done.manifest = self._loading.finish(
                sight.identity.store.hex(), created_ms, lambda file: _is_released(sight, file)
            )
        return self._done

    def _pieces(self, sight: Sight) -> list[Piece]:
        found = pending.pieces(sight, self._loading.carried())
        return [piece for piece in found if _key(piece) not in self._damaged]

    def _take(self, sight: Sight, limit_bytes: int | None, reserve_bytes: int) -> bool:
        """Takes what fits of what is seen; whether some of it has to be looked for again."""
        unsettled = pending.settle(self._spool.disk, sight)
        waiting = self._pieces(sight)
        held = [piece for piece in waiting if piece.journal in unsettled]
        taken = sum(file.size_bytes for file in self._done.taken)
        room = Room(
            None if limit_bytes is None else limit_bytes - taken,
            self._free_bytes() - reserve_bytes,
            CARRIED_FILES_MAX - len(self._loading.files),
            self._cluster_bytes,
        )
        planned = plan([piece for piece in waiting if piece.journal not in unsettled], room)
        self._done.stay = [*staying(held, "the spool's disk does not make it durable")]
        again = False
        for place, piece in enumerate(planned.take):
            try:
                again |= self._put(sight, piece)
            except DiskFailed as failure:
                rest = [*planned.take[place:]]
                self._done.stay += [*staying(rest, str(failure)), *planned.stay]
                return False
        self._done.stay += planned.stay
        return again

    def _put(self, sight: Sight, piece: Piece) -> bool:
        """Puts a piece onto the medium; whether it has to be looked for again.

        Raises:
            DiskFailed: the medium does not take it.
        """
        try:
            batches, flaws = pending.read(sight, self._spool.labels, piece)
        except FileNotFoundError:
            return True
        if flaws:
            self._damaged.add(_key(piece))
            self._done.flaws += flaws
        for one in batches:
            file = self._loading.put(one)
            self._done.taken.append(file)
            self._tell(file)
        return False


def _key(piece: Piece) -> tuple[str, str]:
    return piece.place, str(piece.span)


def _unadopted(epoch: Epoch) -> Flaw:
    what = "a life that STORE does not name: the node adopts it at its next opening"
    return Flaw(str(epoch), what)


def _is_released(sight: Sight, file: CarriedFile) -> bool:
    released = sight.released(file.lane, Epoch.parse(file.epoch))
    return released.covers(file.first, file.last + 1)
