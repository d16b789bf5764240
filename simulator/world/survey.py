"""The survey: many worlds played, on several processes, and what they came to.

The outcome depends on the seeds alone: they are told in their order, whoever played them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from multiprocessing import get_context

from simulator.world.faults import Fault, Shape
from simulator.world.run import play
from simulator.world.world import Outcome

__all__ = ["Played", "Total", "survey"]


@dataclass(frozen=True, slots=True)
class Played:
    """One seed and what it came to."""

    seed: int
    outcome: Outcome


@dataclass(slots=True)
class Total:
    """The sum of many seeds.

    Args:
        seeds: how many were played.
        records: how many were appended.
        rows: how many are in the archives, accounts included.
        crashes: of edges, gateways and workers.
        cuts: of links.
        by_fault: in how many seeds each kind struck.
        forks_dropped: records under a number with two that are nowhere to be seen, with an alarm.
        found: violations, each with its seed.
    """

    seeds: int = 0
    records: int = 0
    rows: int = 0
    crashes: int = 0
    cuts: int = 0
    by_fault: Counter[Fault] = field(default_factory=Counter)
    forks_dropped: int = 0
    found: list[tuple[int, str]] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    @property
    def trace(self) -> str:
        """The trace of the one seed; of several, the hash of all theirs."""
        if len(self.traces) == 1:
            return self.traces[0]
        return sha256("".join(self.traces).encode()).hexdigest()

    def add(self, played: Played) -> None:
        """Takes what one seed came to."""
        outcome = played.outcome
        self.seeds += 1
        self.records += outcome.records
        self.rows += outcome.rows
        self.crashes += outcome.crashes
        self.cuts += outcome.cuts
        self.by_fault.update(outcome.faults.keys())
        self.forks_dropped += outcome.forks_dropped
        self.found += [(played.seed, wrong) for wrong in outcome.violations]
        self.traces.append(outcome.trace)


def survey(seeds: Sequence[int], shape: Shape, jobs: int) -> Iterator[Played]:
    """Plays seeds on so many processes; tells what each came to, in their order."""
    one = partial(_play, shape)
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, seeds)


def _play(shape: Shape, seed: int) -> Played:
    return Played(seed, play(seed, shape))
