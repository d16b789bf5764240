"""The survey: many seeds explored, on several processes, and what they came to.

The outcome depends on the seeds alone: they are told in their order, whoever explored them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from simulator.crash.explore import Found, Outcome, explore
from simulator.crash.operations import Operation

__all__ = ["Survey", "survey"]

_SEEDS_AT_ONCE: Final = 8


@dataclass(slots=True)
class Survey:
    """The sum of many seeds: each disk counts once, under the operation of the first seed with it.

    Args:
        seeds: how many were explored.
        by_operation: how many disks were opened, by the operation that was cut.
        found: violations.
    """

    seeds: int = 0
    by_operation: dict[Operation, int] = field(default_factory=lambda: dict.fromkeys(Operation, 0))
    found: list[Found] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    @property
    def states(self) -> int:
        """How many disks were opened, no two of them the same."""
        return len(self._known)

    def add(self, outcome: Outcome) -> None:
        """Takes what one seed came to."""
        self.seeds += 1
        self.found += outcome.found
        for state in outcome.states:
            if state.digest not in self._known:
                self._known.add(state.digest)
                self.by_operation[state.operation] += 1


def survey(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Explores seeds on so many processes; tells what each came to, in their order."""
    if jobs == 1:
        yield from map(_explore, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_explore, seeds, chunksize=_SEEDS_AT_ONCE)


def _explore(seed: int) -> Outcome:
    return explore(seed).outcome
