"""The bounded queue between a broker's connection and the one reader of ``groups()``.

Invariants: order is kept; what is inside never exceeds the bounds by more than one read from the
socket; only QoS 0 messages are ever dropped, the oldest first, and each is counted. When the bounds
are exceeded by QoS 1 messages alone the queue is ``full``: the connection must stop reading, and
the broker keeps what it has. ``on_room`` tells when to read on. The real broker and the simulated
one share this class, so they cannot differ in what they shed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Self

from mesh.ports import Delivery
from schemas.limits import BROKER_GROUP_MESSAGES_MAX

__all__ = ["InboundQueue"]

# Reading starts again when this share of the bounds is in use, not at the first free place: a
# connection that stops and starts for every message costs two system calls each time.
_RESUME_SHARE: Final = 0.5


class InboundQueue(AsyncIterator[Sequence[Delivery]]):
    """What has arrived and has not been read yet.

    Args:
        messages_max: how many messages.
        bytes_max: how many bytes of payload.
        on_room: called once after the queue was full and has room again.
    """

    def __init__(self, messages_max: int, bytes_max: int, on_room: Callable[[], None]) -> None:
        self.shed = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._on_room = on_room
        self._queue: deque[Delivery] = deque()
        self._bytes = 0
        self._full = False
        self._closed = False
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def __repr__(self) -> str:
        return (
            f"<InboundQueue {len(self._queue)} messages, {self._bytes} bytes, shed {self.shed}"
            f"{', full' if self._full else ''}>"
        )

    @property
    def full(self) -> bool:
        """Whether the connection must not read on."""
        return self._full

    @property
    def overflows(self) -> bool:
        """Whether twice the bytes are inside: no reason to read on is good enough."""
        return self._bytes > 2 * self._bytes_max

    def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Adds what arrived, sheds the oldest QoS 0 messages while the bounds are exceeded."""
        self._queue.extend(deliveries)
        self._bytes += sum([len(delivery.payload) for delivery in deliveries])
        if self._is_beyond(1):
            self._shed_oldest()
            self._full = self._is_beyond(1)
        if self._queue:
            self._filled.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        """Up to ``BROKER_GROUP_MESSAGES_MAX`` messages, the oldest first; waits for the first.

        A wait that is cancelled takes nothing, and the next call goes on: this is no generator.

        Raises:
            StopAsyncIteration: the queue is closed and empty.
        """
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        if len(self._queue) <= BROKER_GROUP_MESSAGES_MAX:
            group = list(self._queue)
            self._queue.clear()
            self._bytes = 0
        else:
            popleft = self._queue.popleft
            group = [popleft() for _ in range(BROKER_GROUP_MESSAGES_MAX)]
            self._bytes -= sum([len(delivery.payload) for delivery in group])
        if self._full and not self._is_beyond(_RESUME_SHARE):
            self._full = False
            self._on_room()
        return group

    def close(self) -> None:
        """Lets the reader have the rest, then ends it."""
        self._closed = True
        self._filled.set()

    def _is_beyond(self, share: float) -> bool:
        return (
            len(self._queue) > self._messages_max * share or self._bytes > self._bytes_max * share
        )

    def _shed_oldest(self) -> None:
        kept: list[Delivery] = []
        while self._queue and self._exceeds_with(kept):
            oldest = self._queue.popleft()
            if oldest.qos:
                kept.append(oldest)
            else:
                self._bytes -= len(oldest.payload)
                self.shed += 1
        self._queue.extendleft(reversed(kept))

    def _exceeds_with(self, kept: list[Delivery]) -> bool:
        return len(self._queue) + len(kept) > self._messages_max or self._bytes > self._bytes_max
