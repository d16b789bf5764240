"""The window of QoS 1 publications that a broker has not acknowledged."""

from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Publication
from schemas.limits import PUBLISH_WINDOW_MAX

__all__ = ["Window"]

# paho counts the ids of its SUBSCRIBEs up from 1; publications take the upper half.
_FIRST_ID: Final = 0x8000
_IDS: Final = 0x8000


@dataclass(slots=True)
class Window:
    """QoS 1 publications that the broker has not acknowledged; outlives connections.

    Args:
        limit: how many; the broker may allow fewer than ``PUBLISH_WINDOW_MAX``.
        awaited: how many publishers wait for room.
        unacknowledged: by packet id, in the order in which they were handed over.
    """

    limit: int = PUBLISH_WINDOW_MAX
    awaited: int = 0
    unacknowledged: dict[int, Publication] = field(default_factory=dict)
    _last: int = _IDS - 1

    @property
    def has_room(self) -> bool:
        """Whether one more may be handed over."""
        return len(self.unacknowledged) < self.limit

    @property
    def is_worth_waking(self) -> bool:
        """Whether half of it is free: to wake a publisher costs more than to send a message."""
        return 2 * len(self.unacknowledged) <= self.limit

    def add(self, publication: Publication) -> int:
        """Takes a publication in; returns its packet id."""
        while True:
            self._last = (self._last + 1) % _IDS
            packet_id = _FIRST_ID + self._last
            if packet_id not in self.unacknowledged:
                self.unacknowledged[packet_id] = publication
                return packet_id
