"""The pace of a link: how fast it is, how large a part may be, how much may be under way. Pure.

The rate is what the far end accepted between the moment when a part was sent and the moment when it
was accepted, over the longer of two times: that between those acceptances, and that in which the
same bytes were sent. So acceptances that come in one burst show no rate that the link does not
have. (Internet-Draft draft-cheng-iccrg-delivery-rate-estimation.)
The highest sample of the last seconds counts. A sample from a time in which there was little to
send says nothing against a link: it counts only where it is above the rate.

A part takes at most a quarter of a second at that rate, and what is under way at most a second: so
something urgent never waits long behind history. That is more than most paths hold, so a rate that
has become too low shows itself, and grows. Where the path alone takes about a second or more, the
window is larger by as much, up to two seconds: what is on a long way delays nobody. Before anything
is measured one small part goes; after a break the measuring begins anew.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from schemas.limits import BATCH_BYTES_MAX, KIB

__all__ = ["PART_BYTES_MIN", "Pace"]

PART_BYTES_MIN: Final = 512
_START_BYTES: Final = 16 * KIB
_PART_SECONDS: Final = 0.25
_WINDOW_SECONDS: Final = 1.0
_WINDOW_SECONDS_MAX: Final = 2.0
_PATH_GAIN: Final = 1.25
_UNEXPLAINED: Final = 0.05
_MEMORY_SECONDS: Final = 3.0
_INTERVAL_SECONDS_MIN: Final = 1e-4
_UNDER_WAY_MAX: Final = 65_536


class _Sent(NamedTuple):
    size: int
    at: float
    first_at: float
    """When the first of the bytes was sent that a sample counts."""
    accepted: int
    """How many bytes had been accepted by then."""
    accepted_at: float


class _Highest:
    """The highest of the values of the last seconds; of the newest value at least."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float, now: float) -> None:
        """A value; lower ones before it do not matter any more."""
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((now, value))
        while self._values[0][0] < now - _MEMORY_SECONDS:
            self._values.popleft()

    def __iter__(self) -> Iterator[float]:
        return (value for _, value in self._values)

    def clear(self) -> None:
        """Forgets all."""
        self._values.clear()


class Pace:
    """Measures one link."""

    def __init__(self) -> None:
        self._rates = _Highest()
        self._paths = _Highest()
        self._start_bytes = _START_BYTES
        self._sent: deque[_Sent] = deque()
        self._under_way = 0
        self._first_at = 0.0
        self._accepted = 0
        self._accepted_at = 0.0
        self._full_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Pace {self.rate} bytes/s, {self._under_way} of {self.window_bytes} under way>"

    @property
    def rate(self) -> float | None:
        """Bytes a second; ``None`` before anything was measured."""
        return next(iter(self._rates), None)

    @property
    def part_bytes(self) -> int:
        """How large a part may be."""
        rate = self.rate
        wanted = self._start_bytes if rate is None else int(rate * _PART_SECONDS)
        return max(PART_BYTES_MIN, min(BATCH_BYTES_MAX, wanted))

    @property
    def window_bytes(self) -> int:
        """How many bytes may be under way."""
        rate = self.rate
        if rate is None:
            return self.part_bytes
        path = next(iter(self._paths), 0.0)
        seconds = min(_WINDOW_SECONDS_MAX, max(_WINDOW_SECONDS, _PATH_GAIN * path))
        return max(self.part_bytes, int(rate * seconds))

    @property
    def room_bytes(self) -> int:
        """How many more bytes may be under way; below 0 where a part has passed the window."""
        return self.window_bytes - self._under_way

    def on_sent(self, size: int, now: float) -> None:
        """A part is on its way.

        Args:
            size: in bytes.
            now: seconds on a monotonic clock.
        """
        if not self._sent:
            self._first_at = self._accepted_at = now
        self._sent.append(_Sent(size, now, self._first_at, self._accepted, self._accepted_at))
        self._under_way += size
        if len(self._sent) > _UNDER_WAY_MAX:
            self._under_way -= self._sent.popleft().size
        if self._under_way >= self.window_bytes:
            self._full_at = now

    def on_accepted(self, size: int, now: float) -> None:
        """The far end took a part; of several of the same size it is the oldest.

        Args:
            size: in bytes; one that is not under way changes nothing.
            now: seconds on a monotonic clock.
        """
        sent = self._take(size)
        if sent is None:
            return
        self._accepted += size
        self._accepted_at = now
        self._first_at = sent.at
        interval = max(now - sent.accepted_at, sent.at - sent.first_at, _INTERVAL_SECONDS_MIN)
        sample = (self._accepted - sent.accepted) / interval
        rate = self.rate
        if rate is None or sample >= rate or self._full_at >= sent.at:
            self._rates.add(sample, now)
            self._learn_path(sent, now)

    def on_lost(self, size: int) -> None:
        """A part was refused, or nobody knows what became of it: it says nothing of the rate."""
        self._take(size)

    def on_break(self, now: float) -> None:
        """The link broke: what comes back may be another path, as slow as this one or slower."""
        self._start_bytes = min(_START_BYTES, self.part_bytes)
        self._rates.clear()
        self._paths.clear()
        self._sent.clear()
        self._under_way = 0
        self._first_at = self._accepted_at = now
        self._full_at = float("-inf")

    def _learn_path(self, sent: _Sent, now: float) -> None:
        """The way's own length: what a part took, unless bytes before it explain that."""
        rate, took = self.rate, now - sent.at
        assert rate is not None, "a sample has been taken"
        explained = (self._accepted - sent.accepted) / rate
        self._paths.add(took if explained < (1 - _UNEXPLAINED) * took else 0.0, now)

    def _take(self, size: int) -> _Sent | None:
        for place, sent in enumerate(self._sent):
            if sent.size == size:
                del self._sent[place]
                self._under_way -= size
                return sent
        return None
