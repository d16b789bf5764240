"""The journals of a store: how large they are, and which batches stand in each. Pure.

A journal is *idle* when none of its batches is pending. It is kept for what it retains, and may go
once what was released of it is durable elsewhere.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mesh.transfer.custody.lane import Kept, LaneKey
from schemas.limits import BLOCK_BYTES

__all__ = ["Files"]


@dataclass(slots=True)
class _File:
    end: int
    pending: int = 0
    pending_bytes: int = 0
    batches: dict[int, tuple[LaneKey, Kept]] = field(default_factory=dict)
    """By their places in it."""

    @property
    def occupied(self) -> int:
        return -(-self.end // BLOCK_BYTES) * BLOCK_BYTES


class Files:
    """All journals but those that nobody needs.

    Args:
        ends: up to where each counts, by number.
    """

    def __init__(self, ends: Mapping[int, int]) -> None:
        self._files = {number: _File(ends[number]) for number in sorted(ends)}
        self.used_bytes = sum(file.occupied for file in self._files.values())
        self.batches = 0
        self.pending = 0

    def __repr__(self) -> str:
        return f"<Files {len(self._files)} journals, {self.batches} batches>"

    def __len__(self) -> int:
        return len(self._files)

    # --- queries -----------------------------------------------------------------------------

    def ends(self) -> dict[str, int]:
        """Up to where each counts, for a snapshot."""
        return {str(number): file.end for number, file in self._files.items()}

    def end(self, number: int) -> int:
        """Up to where a journal counts."""
        return self._files[number].end

    def occupied(self, number: int) -> int:
        """What a journal takes on disk."""
        return self._files[number].occupied

    def count(self, number: int) -> int:
        """How many batches stand in a journal."""
        return len(self._files[number].batches)

    def newest(self) -> tuple[int, ...]:
        """The two newest: the one that is written to, and the one whose snapshot stands in for it.

        Fewer where there are fewer.
        """
        return tuple(self._files)[-2:]

    def idle(self) -> list[int]:
        """Those in which nothing is pending, oldest first; never one of the newest."""
        newest = self.newest()
        return [n for n, file in self._files.items() if not file.pending and n not in newest]

    def idle_bytes(self) -> int:
        """What the idle ones occupy."""
        return sum(self._files[number].occupied for number in self.idle())

    def sparsest(self) -> int | None:
        """The journal whose pending batches are the least part of it: less than half."""
        newest = self.newest()
        found = [
            (file.pending_bytes / file.end, number)
            for number, file in self._files.items()
            if file.pending and 2 * file.pending_bytes < file.end and number not in newest
        ]
        return min(found)[1] if found else None

    def batches_in(self, number: int) -> Iterator[tuple[LaneKey, Kept]]:
        """The batches of a journal, in order."""
        batches = self._files[number].batches
        yield from [batches[offset] for offset in sorted(batches)]

    # --- what happens ------------------------------------------------------------------------

    def grow(self, number: int, end: int) -> None:
        """A journal was begun, or appended to."""
        file = self._files.setdefault(number, _File(0))
        before = file.occupied
        file.end = end
        self.used_bytes += file.occupied - before

    def put(self, key: LaneKey, kept: Kept, *, pending: bool) -> None:
        """A batch stands in a journal."""
        file = self._files[kept.place.journal]
        file.batches[kept.place.offset] = (key, kept)
        self.batches += 1
        if pending:
            self.revive([kept])

    def take_out(self, kept: Kept, *, pending: bool) -> None:
        """A batch stands in its journal no more, as far as anybody cares."""
        if pending:
            self.settle([kept])
        del self._files[kept.place.journal].batches[kept.place.offset]
        self.batches -= 1

    def settle(self, done: Iterable[Kept]) -> None:
        """These are no longer pending."""
        for kept in done:
            self._count(kept, -1)

    def revive(self, back: Iterable[Kept]) -> None:
        """These are pending, perhaps again."""
        for kept in back:
            self._count(kept, 1)

    def remove(self, number: int) -> list[tuple[LaneKey, Kept]]:
        """A journal is gone; returns the batches that were retained in it."""
        file = self._files.pop(number)
        assert not file.pending, "what is pending stays"
        self.used_bytes -= file.occupied
        self.batches -= len(file.batches)
        return list(file.batches.values())

    def _count(self, kept: Kept, one: int) -> None:
        file = self._files[kept.place.journal]
        file.pending += one
        file.pending_bytes += one * kept.place.size
        self.pending += one
