"""The pace of a link: how fast it is, how large a part may be, how much may be under way. Pure.

The rate is what the far end accepted between the moment when a part was sent and the moment when it
was accepted, over the longer of two times: that between those acceptances, and that in which the
same bytes were sent. So acceptances that come in one burst show no rate that the link does not
have. (Internet-Draft draft-cheng-iccrg-delivery-rate-estimation.)
The highest sample of the last seconds counts. A sample from a time in which there was little to
send says nothing against a link: it counts only where it is above the rate.

A part takes at most a quarter of a second at that rate, and what is under way at most half a second
on a short path: so something urgent never waits long behind history. That is more than such a path
holds, so a rate that has become too low shows itself, and grows. On a longer path the window is
larger by what the path itself takes: what travels delays nobody. While the rate still grows from
round trip to round trip it is three of the shortest round trips where those are longer, two seconds
at most, so that each shows a rate up to three times as high, and a fast link is found soon. Before
anything is measured one small part goes; after a break the measuring begins anew.
"""

from collections import deque
from typing import Final, NamedTuple

from schemas.limits import BATCH_BYTES_MAX, KIB, PART_BYTES_MIN

__all__ = ["Pace"]

_START_BYTES: Final = 4 * KIB
_PART_SECONDS: Final = 0.25
_WINDOW_SECONDS: Final = 0.5
_EXTRA_SECONDS_MAX: Final = 1.5
_UNEXPLAINED: Final = 0.1
_DECAY: Final = 0.1
_GROWTH: Final = 1.1
_FLAT_ROUNDS: Final = 3
_GROWING_ROUND_TRIPS: Final = 3
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

    @property
    def value(self) -> float | None:
        """The highest; ``None`` before the first."""
        return self._values[0][1] if self._values else None


class _Reach:
    """How many seconds of its rate a link may hold: half of one, and what the path adds."""

    def __init__(self) -> None:
        self._path = 0.0
        self._shortest = _EXTRA_SECONDS_MAX
        self._flat_rounds = 0
        self._round_accepted = 0
        self._round_rate = 0.0

    @property
    def seconds(self) -> float:
        """Between half of one and two."""
        if self._flat_rounds >= _FLAT_ROUNDS:
            return _WINDOW_SECONDS + self._path
        growing = _GROWING_ROUND_TRIPS * self._shortest
        return max(_WINDOW_SECONDS, min(growing, _WINDOW_SECONDS + _EXTRA_SECONDS_MAX))

    def on_accepted(self, sent: _Sent, took: float, accepted: int, rate: float) -> None:
        """A round trip is over when a part was accepted that was sent after the last one was."""
        self._shortest = min(self._shortest, took)
        if sent.accepted < self._round_accepted:
            return
        self._round_accepted = accepted
        if rate < _GROWTH * self._round_rate:
            self._flat_rounds += 1
        self._round_rate = rate

    def on_full(self, took: float, explained: float, weight: float) -> None:
        """A part from a time in which the window was full was accepted.

        Args:
            took: how long that took, in seconds.
            explained: for how much of it its own bytes, and those before it, kept the link busy.
            weight: its share of the window.
        """
        if took - explained > _UNEXPLAINED * took:
            grown = self._path + 2 * (took - explained) * weight
            self._path = min(_EXTRA_SECONDS_MAX, grown)
        else:
            self._path *= max(0.0, 1 - _DECAY * weight)


class Pace:
    """Measures one link."""

    def __init__(self) -> None:
        self._rates = _Highest()
        self._reach = _Reach()
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
        return self._rates.value

    @property
    def part_bytes(self) -> int:
        """How large a part may be."""
        rate = self.rate
        wanted = self._start_bytes if rate is None else int(rate * _PART_SECONDS)
        return max(PART_BYTES_MIN, min(BATCH_BYTES_MAX, wanted))

    @property
    def window_bytes(self) -> int:
        """How many bytes may be under way."""
        return max(self.part_bytes, int((self.rate or 0.0) * self._reach.seconds))

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
        full = self._full_at >= sent.at
        if full or sample >= (self.rate or 0.0):
            self._rates.add(sample, now)
        rate = self.rate or sample
        if full:
            explained = (self._accepted - sent.accepted) / rate
            self._reach.on_full(now - sent.at, explained, size / self.window_bytes)
        self._reach.on_accepted(sent, now - sent.at, self._accepted, rate)

    def on_lost(self, size: int) -> None:
        """A part was refused, or nobody knows what became of it: it says nothing of the rate."""
        self._take(size)

    def on_break(self, now: float) -> None:
        """The link broke: what comes back may be another path, as slow as this one or slower."""
        self._start_bytes = min(_START_BYTES, self.part_bytes)
        self._rates = _Highest()
        self._reach = _Reach()
        self._sent.clear()
        self._under_way = 0
        self._first_at = self._accepted_at = now
        self._full_at = float("-inf")

    def _take(self, size: int) -> _Sent | None:
        for place, sent in enumerate(self._sent):
            if sent.size == size:
                del self._sent[place]
                self._under_way -= size
                return sent
        return None
