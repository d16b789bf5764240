"""What happens in the demonstration, and when.

A plan as values; ``simulator.demo.run`` carries it out.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Act", "Kill", "Plan", "Step", "plan"]


class Kill(StrEnum):
    """Which party is killed."""

    NONE = "none"
    EDGE = "edge"
    HEADQUARTERS = "headquarters"


class Act(StrEnum):
    """What is done; also the mark in the witness's log."""

    CUT = "cut"
    KILL_EDGE = "kill edge"
    RESTART_EDGE = "restart edge"
    RESTORE = "restore"
    KILL_HEADQUARTERS = "kill headquarters"
    RESTART_HEADQUARTERS = "restart headquarters"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Step:
    """An act, seconds after the plant began."""

    at: float
    act: Act


Plan = tuple[Step, ...]


def plan(seconds: float, outage: float, kill: Kill) -> Plan:
    """The steps of a run.

    The network is cut after two fifths of the time that it is up. An edge is killed in the middle
    of the outage and started again a second later; headquarters is killed as soon as the drain has
    begun.

    Args:
        seconds: how long the plant runs.
        outage: how long the network is cut.
        kill: which party is killed.

    Raises:
        ValueError: the outage does not fit.
    """
    if not 1 <= outage <= seconds - 4:
        raise ValueError(f"an outage of {outage} s needs a run of at least {outage + 4} s")
    cut = (seconds - outage) * 2 / 5
    restore = cut + outage
    steps = [Step(cut, Act.CUT), Step(restore, Act.RESTORE), Step(seconds, Act.STOP)]
    if kill is Kill.EDGE:
        middle = cut + outage / 2
        steps += [Step(middle, Act.KILL_EDGE), Step(middle + 1.0, Act.RESTART_EDGE)]
    if kill is Kill.HEADQUARTERS:
        steps += [
            Step(restore + 0.6, Act.KILL_HEADQUARTERS),
            Step(restore + 1.6, Act.RESTART_HEADQUARTERS),
        ]
    return tuple(sorted(steps, key=lambda step: step.at))
