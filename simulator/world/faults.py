"""The faults of a world: their kinds, how often they strike, and a seeded schedule of them. Pure.

Rates are chosen for worlds of some hundred edge-days: there each kind strikes in a good part of all
seeds, and what is between two faults is long enough to recover in. One common cut, of all edges at
once, stands in each schedule: what follows it is a storm of reconnections.
"""

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["DAY", "Fault", "Shape", "Strike", "schedule"]

DAY: Final = 86_400.0
"""Seconds."""


class Fault(StrEnum):
    """What goes wrong. The order of declaration is the order in which a schedule draws."""

    CUT = "cut"
    """A node's link breaks, and both ends know."""
    FLAP = "flap"
    """A link comes and goes every few seconds."""
    UPLINK_CUT = "uplink-cut"
    """The link of a gateway to headquarters breaks."""
    COMMON_CUT = "common-cut"
    """All edges lose their links at once, and get them back at once."""
    HALF_OPEN = "half-open"
    """A link swallows everything, and nobody is told."""
    SLOW_LINK = "slow-link"
    """A few hundred bytes a second."""
    DUPLICATED = "duplicated-parts"
    """Parts arrive twice."""
    REORDERED = "reordered-parts"
    """Messages overtake each other by minutes."""
    LOST_MESSAGES = "lost-messages"
    """Parts, acknowledgements and receipts are lost on a link that stays up."""
    LOST_QUEUE = "lost-queue"
    """A broker forgets what it has accepted."""
    LEDGERS_AWAY = "ledgers-away"
    """The store of the ledgers answers badly, then not at all."""
    EDGE_CRASH = "edge-crash"
    """An edge loses its power in the middle of its writing."""
    GATEWAY_CRASH = "gateway-crash"
    """A gateway does."""
    WORKER_CRASH = "worker-crash"
    """An ingest worker is gone between two of its steps."""
    FULL_DISK = "full-disk"
    """The disk of an edge has no room left."""
    FAILING_DISK = "failing-disk"
    """Syncs and writes of an edge's disk fail."""
    CLOCK_JUMP = "clock-jump"
    """A wall clock jumps by ten years, forward or back."""
    CLOCK_1970 = "clock-1970"
    """An edge without a battery starts again, in 1970."""
    CLONE = "clone"
    """A store is copied to another machine, which runs under the same name."""
    EDGE_RESTORED = "edge-restored"
    """The store of an edge is replaced by an older copy of itself."""
    EDGE_REIMAGED = "edge-reimaged"
    """The store of an edge is gone, and it runs on under the same name."""
    HEADQUARTERS_RESTORED = "headquarters-restored"
    """The archive is replaced by an older copy of itself, and the ledgers are made anew from it."""


class _Rate(NamedTuple):
    """How often a fault strikes each of its targets, and for how long."""

    per_day: float
    seconds_min: float = 0.0
    seconds_max: float = 0.0


_HOUR: Final = 3600.0
_OF_EDGES: Final[Mapping[Fault, _Rate]] = {
    Fault.CUT: _Rate(0.1, 30, 2 * DAY),
    Fault.FLAP: _Rate(0.01, 30, 120),
    Fault.HALF_OPEN: _Rate(0.02, 60, 12 * _HOUR),
    Fault.SLOW_LINK: _Rate(0.01, _HOUR, DAY),
    Fault.DUPLICATED: _Rate(0.01, _HOUR, DAY),
    Fault.REORDERED: _Rate(0.01, _HOUR, DAY),
    Fault.LOST_MESSAGES: _Rate(0.01, _HOUR, DAY),
    Fault.EDGE_CRASH: _Rate(0.03, 1, 6 * _HOUR),
    Fault.FULL_DISK: _Rate(0.004, _HOUR, DAY),
    Fault.FAILING_DISK: _Rate(0.004, 60, _HOUR),
    Fault.CLOCK_JUMP: _Rate(0.006),
    Fault.CLOCK_1970: _Rate(0.004, 60, DAY),
    Fault.CLONE: _Rate(0.0007),
    Fault.EDGE_RESTORED: _Rate(0.0007, _HOUR, 4 * DAY),
    Fault.EDGE_REIMAGED: _Rate(0.0007, 60, DAY),
}
_OF_GATEWAYS: Final[Mapping[Fault, _Rate]] = {
    Fault.UPLINK_CUT: _Rate(0.07, 60, 2 * DAY),
    Fault.GATEWAY_CRASH: _Rate(0.07, 1, 6 * _HOUR),
}
_OF_THE_WORLD: Final[Mapping[Fault, _Rate]] = {
    Fault.LOST_QUEUE: _Rate(0.1),
    Fault.LEDGERS_AWAY: _Rate(0.1, 60, 6 * _HOUR),
    Fault.WORKER_CRASH: _Rate(0.3, 1, _HOUR),
    Fault.HEADQUARTERS_RESTORED: _Rate(0.02, _HOUR, 2 * DAY),
}
_COMMON_SECONDS: Final = (600.0, 12 * _HOUR)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a world is, and what may go wrong in it.

    Args:
        edges: how many.
        gateways: how many; with some, each takes a share of the edges, and a share is direct.
        days: how long it runs before all is mended.
        records_per_day: of each edge, about.
        faults: which kinds may strike.
    """

    edges: int = 20
    gateways: int = 3
    days: float = 30.0
    records_per_day: float = 10.0
    faults: Collection[Fault] = tuple(Fault)

    @property
    def seconds(self) -> float:
        """How long it runs."""
        return self.days * DAY


class Strike(NamedTuple):
    """One fault: when, of which kind, at which of its targets, and until it heals in seconds."""

    at: float
    fault: Fault
    target: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.fault} {self.target} for {self.seconds:.0f} s"


def schedule(shape: Shape, rng: random.Random) -> list[Strike]:
    """The faults of a world, in the order in which they strike; all heal before it ends."""
    strikes: list[Strike] = []
    for rates, targets in (
        (_OF_EDGES, shape.edges),
        (_OF_GATEWAYS, shape.gateways),
        (_OF_THE_WORLD, 1),
    ):
        for fault, rate in rates.items():
            if fault in shape.faults:
                for _ in range(_count(rate.per_day * shape.days * targets, rng)):
                    drawn = _long(rate.seconds_min, rate.seconds_max, rng)
                    strikes.append(_strike(shape, fault, rng.randrange(targets), drawn, rng))
    if Fault.COMMON_CUT in shape.faults:
        strikes.append(_strike(shape, Fault.COMMON_CUT, 0, _long(*_COMMON_SECONDS, rng), rng))
    return sorted(strikes)


def _strike(shape: Shape, fault: Fault, target: int, seconds: float, rng: random.Random) -> Strike:
    seconds = min(seconds, shape.seconds / 4)
    return Strike(rng.uniform(0, shape.seconds - seconds), fault, target, seconds)


def _count(mean: float, rng: random.Random) -> int:
    """A whole number with this mean: the whole part, and one more by chance; spread for few."""
    spread = mean * rng.uniform(0.5, 1.5)
    whole = math.floor(spread)
    return whole + (rng.random() < spread - whole)


def _long(least: float, most: float, rng: random.Random) -> float:
    """Durations are spread over their powers: many are short, some are very long."""
    return 0.0 if not most else least * (most / least) ** rng.random()
