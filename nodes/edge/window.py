"""Sliding windows over the readings of many sources, a group at a time. Pure.

A *source* is one topic. Each has a ring of ``readings + 63`` rows; a group goes in by pieces of at
most 64 readings, so no piece overwrites a row that one of its own windows needs, whichever sources
it comes from, and all of a piece is written and gathered by numpy at once.

The first decision of a source is due when its window is full, the next ones every ``hop`` readings.
So every reading is at each moment one of

- *waiting*: taken since the last decision, or since the beginning while the window fills;
- *used*: it was new in the window of a decision;
- *skipped*: with a hop larger than the window, it fell between two windows.

Memory is bounded: at most ``SOURCES_MAX`` sources, and fewer where their rings would take more than
256 MiB together.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import Refused, RefusedBecause
from schemas.limits import MIB, MODEL_FIELDS_MAX, SOURCES_MAX, WINDOW_READINGS_MAX

__all__ = ["Due", "Windows"]

_PIECE: Final = 64
_RING_BYTES_MAX: Final = 256 * MIB
_FLOAT32_BYTES: Final = 4
_SOURCES_FIRST: Final = 8


class Due(NamedTuple):
    """The decisions that a group of readings made due; m of them, in the order of the readings."""

    places: Sequence[int]
    """[m], the newest reading of each, as its place within the group."""
    batch: NDArray[np.float32]
    """[m, W, F], oldest reading first, contiguous."""
    inputs: Sequence[int]
    """[m], how many readings of each window no earlier decision had used."""


class Windows:
    """The windows of one rule.

    Args:
        readings: W, the length of a window.
        fields: F.
        hop: a decision every so many readings.
        sources_max: how many sources there may be.
    """

    def __init__(
        self, readings: int, fields: int, *, hop: int = 1, sources_max: int = SOURCES_MAX
    ) -> None:
        assert 1 <= readings <= WINDOW_READINGS_MAX, "a window is bounded"
        assert 1 <= fields <= MODEL_FIELDS_MAX, "a reading is bounded"
        assert hop >= 1, "each decision needs a new reading"
        self._readings = readings
        self._fields = fields
        self._hop = hop
        self._capacity = readings + _PIECE - 1
        ring_bytes = self._capacity * fields * _FLOAT32_BYTES
        self.sources_max = max(1, min(sources_max, SOURCES_MAX, _RING_BYTES_MAX // ring_bytes))
        self.waiting = 0
        """Readings that wait for a decision, over all sources."""
        self.skipped = 0
        """Readings that fell between two windows, since the beginning."""
        self._taken: list[int] = []
        self._span = np.arange(1 - readings, 1)
        # Windows of one reading need no memory of earlier ones.
        first = 0 if readings == 1 else _SOURCES_FIRST
        self._rings = np.zeros((first, self._capacity, fields), np.float32)

    def __len__(self) -> int:
        return len(self._taken)

    def add_source(self) -> int:
        """A new source; returns its number, counting from 0.

        Raises:
            Refused: ``full``.
        """
        if len(self._taken) >= self.sources_max:
            raise Refused(
                RefusedBecause.FULL,
                f"already {self.sources_max} sources, the most that this rule takes",
            )
        self._taken.append(0)
        if self._readings > 1 and len(self._taken) > len(self._rings):
            self._rings = np.concatenate((self._rings, np.zeros_like(self._rings)))
        return len(self._taken) - 1

    def waiting_of(self, source: int) -> int:
        """How many readings of a source wait for a decision."""
        beyond = self._taken[source] - self._readings
        return self._taken[source] if beyond < 0 else beyond % self._hop

    def restart(self, source: int) -> int:
        """Forgets a source's readings, so that none is ever in a window with much later ones.

        Returns:
            How many of them waited for a decision, and now never see one.
        """
        waited = self.waiting_of(source)
        self._taken[source] = 0
        self.waiting -= waited
        return waited

    def push(self, sources: Sequence[int], rows: NDArray[np.float32]) -> Due:
        """Takes readings in order.

        Args:
            sources: [n], the source of each.
            rows: [n, F].

        Returns:
            The decisions that are now due.
        """
        if len(sources) <= _PIECE:
            return self._push_piece(sources, rows)
        pieces = []
        for start in range(0, len(sources), _PIECE):
            stop = start + _PIECE
            piece = self._push_piece(sources[start:stop], rows[start:stop])
            pieces.append(piece._replace(places=[start + place for place in piece.places]))
        return Due(
            [place for piece in pieces for place in piece.places],
            np.concatenate([piece.batch for piece in pieces]),
            [count for piece in pieces for count in piece.inputs],
        )

    def _push_piece(self, sources: Sequence[int], rows: NDArray[np.float32]) -> Due:
        taken, readings, hop = self._taken, self._readings, self._hop
        self.waiting += len(sources)
        newest, places, inputs = [], [], []
        for place, source in enumerate(sources):
            count = taken[source]
            newest.append(count)
            taken[source] = count = count + 1
            beyond = count - readings
            if beyond >= 0 and (hop == 1 or beyond % hop == 0):
                since = hop if beyond else readings
                new = min(since, readings)
                places.append(place)
                inputs.append(new)
                self.waiting -= since
                self.skipped += since - new
        return Due(places, self._gather(sources, newest, places, rows), inputs)

    def _gather(
        self,
        sources: Sequence[int],
        newest: Sequence[int],
        places: Sequence[int],
        rows: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Writes a piece into the rings, and takes the windows that end at some of its readings."""
        if self._readings == 1:
            chosen = rows if len(places) == len(rows) else rows[list(places)]
            return np.ascontiguousarray(chosen[:, None, :])
        if len(sources) == 1:
            return self._gather_one(sources[0], newest[0], rows[0], due=bool(places))
        ring_of, slot_of = np.array(sources), np.array(newest)
        self._rings[ring_of, slot_of % self._capacity] = rows
        if not places:
            return np.empty((0, self._readings, self._fields), np.float32)
        if len(places) < len(sources):
            due = list(places)
            ring_of, slot_of = ring_of[due], slot_of[due]
        slots = (slot_of[:, None] + self._span) % self._capacity
        batch: NDArray[np.float32] = self._rings[ring_of[:, None], slots]
        return batch

    def _gather_one(
        self, source: int, newest: int, row: NDArray[np.float32], *, due: bool
    ) -> NDArray[np.float32]:
        """As above for a piece of one, without the cost of indexing by arrays."""
        ring: NDArray[np.float32] = self._rings[source]
        stop = newest % self._capacity + 1
        ring[stop - 1] = row
        if not due:
            return np.empty((0, self._readings, self._fields), np.float32)
        start = stop - self._readings
        if start >= 0:
            return ring[None, start:stop].copy()
        return np.concatenate((ring[start:], ring[:stop]))[None]
