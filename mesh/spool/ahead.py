"""Reading ahead: the batches behind the one that was asked for are read while that one is sent.

What was read ahead is handed out only to who asks for that very piece, and who asks has looked at
that moment what comes next. So what a receipt released, what damage took, and what lies behind a
number that was reclaimed, is dropped without a word, and nothing here has to follow what happens.

Some batches are read in one job, since handing a job over takes about as long as reading a batch.
``READ_AHEAD_BATCHES_MAX`` are held of one lane, and ``READ_AHEAD_BYTES_MAX`` in all. Where that is
full nothing more is read ahead: of thousands of lanes that take turns each would have to make room
before its turn comes, and would be read twice. What nobody asked for in ten seconds makes room.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from mesh.spool.batch import Batch
from schemas.errors import MeshError
from schemas.limits import READ_AHEAD_BATCHES_MAX, READ_AHEAD_BYTES_MAX

__all__ = ["ReadAhead"]

_STALE_SECONDS: Final = 10.0
_JOB_BATCHES: Final = 4
_FEW: Final = READ_AHEAD_BATCHES_MAX - _JOB_BATCHES

_Lane = TypeVar("_Lane", bound=Hashable)
_Piece = TypeVar("_Piece", bound=Hashable)


class _Reading(NamedTuple):
    job: asyncio.Future[list[Batch | None]]
    place: int


@dataclass(slots=True)
class _Ahead(Generic[_Piece]):
    readings: dict[_Piece, _Reading]
    size: int
    """How many bytes it took to begin with."""
    missed: bool = False
    """Whether something else was asked for: it may have gone on from elsewhere."""
    since: float = 0.0


class ReadAhead(Generic[_Lane, _Piece]):
    """Reads pieces of lanes in a worker, some of them before they are asked for.

    Args:
        worker: reads one after another.
        read: reads a piece of a lane; blocks. A piece is never another one later.
        size_of: how many bytes a piece has.
    """

    def __init__(
        self,
        worker: Executor,
        read: Callable[[_Lane, _Piece], Batch],
        size_of: Callable[[_Piece], int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker = worker
        self._read = read
        self._size_of = size_of
        self._ahead: dict[_Lane, _Ahead[_Piece]] = {}

    def __repr__(self) -> str:
        return f"<ReadAhead {len(self)} batches, {self.size} bytes>"

    def __len__(self) -> int:
        """How many batches are held, or being read."""
        return sum(len(ahead.readings) for ahead in self._ahead.values())

    @property
    def size(self) -> int:
        """How many bytes these take at most."""
        return sum(ahead.size for ahead in self._ahead.values())

    async def take(self, lane: _Lane, piece: _Piece) -> Batch:
        """A piece. What could not be read ahead is read once more.

        Raises:
            Exception: whatever reading it raises now.
        """
        ahead = self._ahead.get(lane)
        if ahead is not None:
            reading = ahead.readings.pop(piece, None)
            ahead.missed = reading is None
            if reading is not None:
                # Shielded: the job reads for others too, who may come after one that gave up.
                found = (await asyncio.shield(reading.job))[reading.place]
                if found is not None:
                    return found
        return await self._loop.run_in_executor(self._worker, self._read_whole, lane, piece)

    def wants(self, lane: _Lane) -> bool:
        """Whether to look what comes next in a lane."""
        ahead = self._ahead.get(lane)
        return ahead is None or ahead.missed or len(ahead.readings) <= _FEW

    def prepare(self, lane: _Lane, pieces: Sequence[_Piece]) -> None:
        """These pieces will be asked for next; what else was read ahead of the lane is dropped.

        Args:
            lane: which lane.
            pieces: the next ``READ_AHEAD_BATCHES_MAX``, in their order. None say nothing: who asks
                for the newest may go on with what is older.
        """
        if not pieces:
            return
        before = self._ahead.pop(lane, None)
        known = before.readings if before is not None else {}
        readings = {piece: known[piece] for piece in pieces if piece in known}
        missing = [piece for piece in pieces if piece not in known][:_JOB_BATCHES]
        size = sum(map(self._size_of, readings))
        more = sum(map(self._size_of, missing))
        if missing and len(readings) <= _FEW and self._has_room(size + more):
            job = self._loop.run_in_executor(self._worker, self._read_all, lane, missing)
            job.add_done_callback(_heed)
            readings |= {piece: _Reading(job, place) for place, piece in enumerate(missing)}
            size += more
        if readings:
            self._ahead[lane] = _Ahead(readings, size, since=self._loop.time())

    def drop(self) -> None:
        """Nothing will be asked for now."""
        self._ahead.clear()

    def _has_room(self, size: int) -> bool:
        """Whether so much fits beside what the other lanes have."""
        while self.size + size > READ_AHEAD_BYTES_MAX:
            lane, oldest = next(iter(self._ahead.items()))
            if self._loop.time() - oldest.since < _STALE_SECONDS:
                return False
            del self._ahead[lane]
        return True

    def _read_all(self, lane: _Lane, pieces: Sequence[_Piece]) -> list[Batch | None]:
        found: list[Batch | None] = []
        for piece in pieces:
            found.append(None)
            with suppress(MeshError, FileNotFoundError):
                found[-1] = self._read_whole(lane, piece)
        return found

    def _read_whole(self, lane: _Lane, piece: _Piece) -> Batch:
        batch = self._read(lane, piece)
        # Worked out here, and not on the loop.
        _ = batch.digest
        return batch


def _heed(job: asyncio.Future[list[Batch | None]]) -> None:
    """A failure that nobody asks for is no news."""
    if not job.cancelled():
        job.exception()
