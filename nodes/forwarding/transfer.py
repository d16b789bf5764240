"""A batch that is being sent: which of its parts went, which were accepted. Pure."""

from typing import NamedTuple

from mesh.ports import Part
from mesh.spool.batch import Batch
from mesh.transfer.parts import part_of
from mesh.transfer.source import Life
from schemas.messages import Lane

__all__ = ["Place", "Transfer"]


class Place(NamedTuple):
    """The place that a batch has in its life: at most one is being cut into parts for each."""

    lane: Lane
    live: bool


class Transfer:
    """One batch on its way over one link at a time.

    Args:
        life: of which life.
        place: which place it has there.
        batch: what is sent.
        ticket: of its delivery.
    """

    def __init__(self, life: Life, place: Place, batch: Batch, ticket: int) -> None:
        self.life = life
        self.place = place
        self.batch = batch
        self.ticket = ticket
        self.link = ""
        """Over which link its parts go; empty before the first."""
        self.attempt = 0
        """Counts how often it was begun: answers to parts of an earlier attempt mean nothing."""
        self._offset = 0
        self._open = 0

    def __repr__(self) -> str:
        size = len(self.batch.data)
        return f"<Transfer {self.batch.header} {self._offset}/{size} over {self.link or 'none'}>"

    @property
    def is_cut(self) -> bool:
        """Whether all of its parts were handed over."""
        return self._offset == len(self.batch.data)

    @property
    def is_accepted(self) -> bool:
        """Whether all of its parts were accepted."""
        return self.is_cut and not self._open

    def next_size(self, part_bytes: int) -> int:
        """How many bytes its next part has; 0 while the last one waits for the others.

        Args:
            part_bytes: the most that a part may have.
        """
        left = len(self.batch.data) - self._offset
        if left <= part_bytes and self._open:
            return 0
        return min(left, part_bytes)

    def begin(self, link: str) -> None:
        """All its parts go over this link, from the first."""
        self.link = link
        self.attempt += 1
        self._offset = self._open = 0

    def cut(self, size: int) -> Part:
        """The next part, of so many bytes."""
        part = part_of(self.batch.header, self.batch.data, self.batch.digest, self._offset, size)
        self._offset += len(part.payload)
        self._open += 1
        return part

    def on_accepted(self) -> None:
        """A part of this attempt was accepted."""
        self._open -= 1
