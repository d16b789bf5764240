"""How long arrivals gather before the next group of them is taken. Pure.

Each group makes a file for each lane, so a trickle would make many small ones. After a small group
the worker therefore waits: a sixteenth of the longest wait after the first, twice as long after
each further one. A large group means that there is more where it came from, and a pause that
nothing came: both begin anew. So a trickle soon has few files, and neither a backlog nor a single
arrival waits for long.
"""

from typing import Final

from schemas.limits import INGEST_RAW_BYTES_MAX, INTAKE_BATCHES_MAX

__all__ = ["Linger"]

_SMALL_BATCHES: Final = INTAKE_BATCHES_MAX // 4
_SMALL_BYTES: Final = INGEST_RAW_BYTES_MAX // 8
_STEPS: Final = 16


class Linger:
    """Says how long to wait after each group.

    Args:
        seconds: the longest wait; 0 for none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._wait = 0.0
        self._over_at = 0.0

    def after(self, count: int, size: int, came: float, now: float) -> float:
        """The seconds to wait, from now on.

        Args:
            count: how many arrivals the group had.
            size: how many bytes.
            came: when it came, seconds on a monotonic clock.
            now: the same, when it has been taken.
        """
        if came > self._over_at + self._seconds:
            self._wait = 0.0
        if count >= _SMALL_BATCHES or size >= _SMALL_BYTES:
            self._wait = 0.0
        else:
            self._wait = min(self._seconds, max(self._seconds / _STEPS, 2 * self._wait))
        self._over_at = now + self._wait
        return self._wait
