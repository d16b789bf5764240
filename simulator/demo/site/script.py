"""What happens in the demonstration of a site, and when.

A plan as values; ``simulator.demo.site.run`` carries it out.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CommitStep", "SiteAct", "SitePlan", "SiteStep", "site_plan"]


class CommitStep(StrEnum):
    """The steps of a commit at headquarters, in order; ``nodes.headquarters.ingest`` has them."""

    VERIFY = "verify"
    SUBTRACT = "subtract"
    STAGE = "stage"
    COMMIT = "commit"
    PUBLISH = "publish"
    RECEIPT = "receipt"
    ACCEPT = "accept"


class SiteAct(StrEnum):
    """What is done; also the mark in the witness's log."""

    CUT = "cut"
    RESTORE = "restore"
    KILL_WORKER = "kill worker-1 after each step of its commit"
    KILL_SERVER = "kill the leader of the cluster's stream"
    KILL_GATEWAY = "kill the gateway in a handover"
    RESTART_GATEWAY = "restart the gateway"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class SiteStep:
    """An act, seconds after the plant began."""

    at: float
    act: SiteAct


SitePlan = tuple[SiteStep, ...]


def site_plan(seconds: float, outage: float) -> SitePlan:
    """The steps of a run.

    The network is cut after two fifths of the time that it is up. Everything else is killed while
    the backlog drains, which begins with the network's return. The plant runs on until worker 1 has
    died after each step, if that takes longer.

    Args:
        seconds: how long the plant runs.
        outage: how long the network is cut.

    Raises:
        ValueError: the outage does not fit.
    """
    if not 1 <= outage <= seconds - 8:
        raise ValueError(f"an outage of {outage:g} s needs a run of at least {outage + 8:g} s")
    cut = (seconds - outage) * 2 / 5
    restore = cut + outage
    return (
        SiteStep(cut, SiteAct.CUT),
        SiteStep(restore, SiteAct.RESTORE),
        SiteStep(restore, SiteAct.KILL_WORKER),
        SiteStep(restore + 1.0, SiteAct.KILL_SERVER),
        SiteStep(restore + 2.0, SiteAct.KILL_GATEWAY),
        SiteStep(restore + 3.0, SiteAct.RESTART_GATEWAY),
        SiteStep(seconds, SiteAct.STOP),
    )
