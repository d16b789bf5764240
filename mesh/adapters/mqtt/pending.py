"""Arrivals that were neither accepted nor refused: each falls due again until it is. Pure.

A batch is known by its site, node, lane and digest, so what comes a second time while the first is
still here is the same entry. An entry is *due* once when it comes, and again whenever
``ack_seconds`` have passed since it was handed out. Since all wait equally long, those handed out
are in the order in which they fall due, and nothing is searched.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from mesh.ports import Arrival, Delivery
from schemas.limits import INTAKE_BATCHES_MAX

__all__ = ["BatchKey", "Pending", "PendingBatch"]

_ENTRIES_MAX: Final = 4 * INTAKE_BATCHES_MAX


class BatchKey(NamedTuple):
    """What a batch is known by."""

    site: str
    node: str
    lane: str
    digest: bytes


@dataclass(slots=True)
class PendingBatch:
    """One arrival.

    Args:
        payload: the whole batch.
        redelivered: whether it came, or was handed out, before.
        withheld: the message that brought it, not acknowledged yet and without its payload;
            ``None`` where nothing waits for an acknowledgement.
        due_at: when it is handed out again.
    """

    payload: bytes
    redelivered: bool
    withheld: Delivery | None
    due_at: float = 0.0


class Pending:
    """What waits for ``accept`` or ``refuse``.

    Args:
        ack_seconds: after how long an entry falls due again.
        bytes_max: at how many bytes it is full.
    """

    def __init__(self, ack_seconds: float, bytes_max: int) -> None:
        self._ack_seconds = ack_seconds
        self._bytes_max = bytes_max
        self._fresh: dict[BatchKey, PendingBatch] = {}
        self._out: dict[BatchKey, PendingBatch] = {}
        self.held_bytes = 0
        """What waits here."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._out)

    def __repr__(self) -> str:
        return f"<Pending {len(self)} batches, {self.held_bytes} bytes>"

    @property
    def full(self) -> bool:
        """Whether nothing more should be taken in; what is added all the same is kept."""
        return self.held_bytes >= self._bytes_max or len(self) >= _ENTRIES_MAX

    def find(self, key: BatchKey) -> PendingBatch | None:
        """The entry of a batch."""
        return self._fresh.get(key) or self._out.get(key)

    def next_at(self) -> float | None:
        """When the next entry falls due; ``None`` for never, 0 for now."""
        if self._fresh:
            return 0.0
        return next((entry.due_at for entry in self._out.values()), None)

    def add(self, key: BatchKey, entry: PendingBatch) -> None:
        """Takes a batch in that is not here yet."""
        assert self.find(key) is None, "a batch is pending once"
        self._fresh[key] = entry
        self.held_bytes += len(entry.payload)

    def hand_out(self, now: float) -> list[Arrival]:
        """What is due, at most ``INTAKE_BATCHES_MAX``: first what has waited longest."""
        due: list[BatchKey] = []
        for key, entry in self._out.items():
            if entry.due_at > now or len(due) == INTAKE_BATCHES_MAX:
                break
            due.append(key)
        due += list(self._fresh)[: INTAKE_BATCHES_MAX - len(due)]
        return [self._hand_out(key, now) for key in due]

    def settle(self, key: BatchKey) -> PendingBatch | None:
        """Takes a batch out; ``None`` when it is not here."""
        entry = self._fresh.pop(key, None) or self._out.pop(key, None)
        if entry is not None:
            self.held_bytes -= len(entry.payload)
        return entry

    def _hand_out(self, key: BatchKey, now: float) -> Arrival:
        entry = self._fresh.pop(key, None) or self._out.pop(key)
        self._out[key] = entry
        entry.due_at = now + self._ack_seconds
        arrival = Arrival(key.site, key.node, key.lane, entry.payload, entry.redelivered, key)
        entry.redelivered = True
        return arrival
