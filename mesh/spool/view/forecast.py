"""A forecast: when a lane will have to give up or refuse records, at the present rates. Pure.

A lane that has reached its quota grows no more: what it gives up or refuses then makes room. So
with each lane ``l`` at ``b`` bytes, growing by ``r`` up to a quota ``q``, room lasts until the sum
of ``min(q, b + r t)`` over the lanes that stand has taken it. Those that stand are all but the ones
that give up records before the lane in question does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.retention import first_to_go
from schemas.messages import Lane

__all__ = ["Growth", "hours_left", "hours_until_full", "refusal"]

_HOUR_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Growth:
    """How much a lane takes.

    Args:
        bytes: what it takes now.
        bytes_per_second: what it grows by.
        bytes_max: its quota; ``None`` for all that the spool may take.
    """

    bytes: int
    bytes_per_second: float
    bytes_max: int | None

    @property
    def seconds_left(self) -> float:
        """Until it has reached its quota."""
        if self.bytes_max is None or self.bytes_per_second <= 0:
            return inf
        return max(0, self.bytes_max - self.bytes) / self.bytes_per_second


def hours_left(
    lane: Lane,
    growths: Mapping[Lane, Growth],
    settings: Mapping[Lane, LaneSettings],
    room_bytes: int | None,
) -> float | None:
    """Until a lane has to give up or refuse records, when all less urgent ones did so before.

    Args:
        lane: which lane.
        growths: how each lane grows.
        settings: how each lane is kept.
        room_bytes: what all lanes together may take; ``None`` where nobody says.

    Returns:
        ``None`` where it never comes to that, or nobody can tell.
    """
    order = first_to_go(settings)
    before = order[: order.index(lane)] if lane in order else order
    standing = [growth for other, growth in growths.items() if other not in before]
    seconds = min(growths[lane].seconds_left, _seconds_until(room_bytes, standing))
    return None if seconds == inf else seconds / _HOUR_SECONDS


def hours_until_full(growths: Mapping[Lane, Growth], room_bytes: int | None) -> float | None:
    """Until all lanes together have taken the room; ``None`` where they never do."""
    seconds = _seconds_until(room_bytes, growths.values())
    return None if seconds == inf else seconds / _HOUR_SECONDS


def _seconds_until(room_bytes: int | None, growths: Collection[Growth]) -> float:
    """Until these lanes have taken the room; ``inf`` where they never do."""
    if room_bytes is None:
        return inf
    left = float(room_bytes) - sum(growth.bytes for growth in growths)
    growing = sorted(
        (growth for growth in growths if growth.bytes_per_second > 0),
        key=lambda growth: growth.seconds_left,
    )
    now = 0.0
    for index, growth in enumerate(growing):
        rate = sum(other.bytes_per_second for other in growing[index:])
        span = growth.seconds_left - now
        if left <= rate * span:
            return now + max(0, left) / rate
        left -= rate * span
        now += span
    return inf


def refusal(
    lane: Lane, settings: LaneSettings, held_bytes: int, used_bytes: int, bytes_max: int | None
) -> str:
    """Why a lane takes nothing now, by how much there is; empty when it does.

    Args:
        lane: which lane.
        settings: how it is kept.
        held_bytes: what it takes.
        used_bytes: what the spool takes.
        bytes_max: what the spool may take; ``None`` where nobody says.
    """
    if not settings.enabled:
        return "switched off in the configuration"
    if settings.when_full is not WhenFull.REFUSE or lane is Lane.ACCOUNT:
        return ""
    if settings.bytes_max is not None and held_bytes >= settings.bytes_max:
        return f"full, {held_bytes} bytes of {settings.bytes_max}"
    if bytes_max is not None and used_bytes > bytes_max:
        return f"the spool is full, {used_bytes} bytes of {bytes_max}"
    return ""
