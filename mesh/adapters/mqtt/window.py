"""The window of QoS 1 publications that a broker has not acknowledged.

Most outlive the connection on which they were sent, and are sent again on the next. One whose
answer is *expected* does not: its sender learns that nobody knows what became of it, and sends it
again, or something newer in its place. Until the broker answers or the connection ends it takes its
place in the window, also when nobody waits any more: the broker counts it.
"""

import asyncio
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
        expected: who waits for which answer, by packet id: the broker's reason code, or ``None``
            when the connection ended before it.
    """

    limit: int = PUBLISH_WINDOW_MAX
    awaited: int = 0
    unacknowledged: dict[int, Publication] = field(default_factory=dict)
    expected: dict[int, asyncio.Future[int | None]] = field(default_factory=dict)
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

    def expect(self) -> "asyncio.Future[int | None]":
        """The broker's answer to the publication that was handed over last."""
        packet_id = next(reversed(self.unacknowledged))
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.expected[packet_id] = answer
        return answer

    def settle(self, packet_id: int, code: int) -> bool:
        """Takes the broker's answer; whether it was to one of these publications."""
        answer = self.expected.pop(packet_id, None)
        if answer is not None and not answer.done():
            answer.set_result(code)
        return self.unacknowledged.pop(packet_id, None) is not None

    def abandon(self) -> None:
        """The connection has ended: whoever expects an answer gets none."""
        for packet_id, answer in self.expected.items():
            del self.unacknowledged[packet_id]
            if not answer.done():
                answer.set_result(None)
        self.expected.clear()
