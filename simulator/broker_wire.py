"""What crosses a simulated connection to a broker, and how: two pipes.

Each direction is a ``Pipe``: packets arrive in the order in which they were sent, each after its
own delay but never before the one ahead of it. What is inside when the connection breaks is gone. A
pipe is not bounded itself: each end looks at ``len()`` or ``size`` before it sends.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from mesh.ports import Publication

__all__ = ["AnyPacket", "Greeting", "Packet", "Pipe", "Wire"]


class Packet(NamedTuple):
    """What crosses a pipe: a message where there is a publication, an acknowledgement where not."""

    packet_id: int
    publication: Publication | None = None
    duplicate: bool = False


class Greeting(NamedTuple):
    """CONNECT and SUBSCRIBE on the way up, their answers on the way down."""

    filters: Mapping[str, int]


AnyPacket = Packet | Greeting


class Wire:
    """One connection: a pipe each way."""

    def __init__(
        self,
        delay_seconds: Callable[[], tuple[float, float]],
        rng: Random,
        to_broker: Callable[[Sequence[AnyPacket]], None],
        to_client: Callable[[Sequence[AnyPacket]], None],
        on_room: Callable[[], None],
    ) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def drained(packets: Sequence[AnyPacket]) -> None:
            to_broker(packets)
            on_room()

        self.up = Pipe(delay_seconds, rng, drained)
        self.down = Pipe(delay_seconds, rng, to_client)

    def break_off(self, reason: str) -> None:
        """Ends both directions."""
        self.up.close()
        self.down.close()
        if not self.lost.done():
            self.lost.set_result(reason)


class Pipe:
    """One direction of a connection: in order, each packet late by its own delay."""

    def __init__(
        self,
        delay_seconds: Callable[[], tuple[float, float]],
        rng: Random,
        deliver: Callable[[Sequence[AnyPacket]], None],
    ) -> None:
        self.size = 0
        """Bytes of payload inside."""
        self._delay_seconds = delay_seconds
        self._rng = rng
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._inside: deque[tuple[float, AnyPacket]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last_due = 0.0
        self._paused = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._inside)

    def send(self, packet: AnyPacket) -> None:
        """Takes a packet in; one that is closed swallows it."""
        if self._closed:
            return
        due = self._loop.time() + self._rng.uniform(*self._delay_seconds())
        self._last_due = due = max(due, self._last_due)
        self._inside.append((due, packet))
        self.size += _size(packet)
        self._arm()

    def pause(self, *, paused: bool) -> None:
        """Stops or starts to hand packets out; the time of their way goes on."""
        self._paused = paused
        self._arm()

    def flush(self) -> None:
        """Hands out everything now: a goodbye comes after what was said before it."""
        self._hand_out(self._last_due)

    def close(self) -> None:
        """Drops what is inside."""
        self._closed = True
        self._inside.clear()
        self.size = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None and self._inside and not self._paused and not self._closed:
            due = self._inside[0][0]
            self._timer = self._loop.call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        self._timer = None
        if not self._paused:
            # The loop rings up to its clock's resolution early.
            self._hand_out(max(due, self._loop.time()))
        self._arm()

    def _hand_out(self, until: float) -> None:
        packets = []
        while self._inside and self._inside[0][0] <= until:
            packets.append(self._inside.popleft()[1])
            self.size -= _size(packets[-1])
        if packets:
            self._deliver(packets)


def _size(packet: AnyPacket) -> int:
    if isinstance(packet, Greeting) or packet.publication is None:
        return 0
    return len(packet.publication.payload)
