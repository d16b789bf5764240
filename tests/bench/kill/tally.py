"""The tally of many kills: what was acknowledged, and what became of it."""

import json
from collections import Counter
from dataclasses import dataclass, field

from tests.spool.telling import Said

__all__ = ["Tally", "judge"]


@dataclass
class Tally:
    """What came of all rounds.

    Args:
        rounds: writers that were killed, or closed in order.
        stores: how many stores they shared.
        acknowledged: records that were said to be durable.
        lost: acknowledged records that are neither there, nor released, nor stated as evicted.
        reused: numbers that came to name two records.
        untrue: anything else that does not add up.
        during: how many writers died in each phase.
        means: how many died by marks, from outside, under strace; how many closed in order.
        audits: how often everything was compared.
        seconds: how long all took.
        examples: the first few of what is wrong.
    """

    rounds: int = 0
    stores: int = 0
    acknowledged: int = 0
    lost: int = 0
    reused: int = 0
    untrue: int = 0
    during: Counter[str] = field(default_factory=Counter)
    means: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Takes another store's."""
        for name in ("rounds", "stores", "acknowledged", "lost", "reused", "untrue", "audits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.during += other.during
        self.means += other.means
        self.examples = [*self.examples, *other.examples][:10]

    def document(self) -> dict[str, object]:
        """As JSON says it."""
        return {**vars(self), "during": dict(self.during), "means": dict(self.means)}


def judge(said: Said, tally: Tally) -> None:
    """Counts what the audits found: each loss once, however often it was seen."""
    lost: set[str] = set()
    reused: set[str] = set(said.reused)
    untrue: set[str] = set()
    for words in said.other:
        if words[0] == "audit":
            found = json.loads(" ".join(words[1:]))
            tally.audits += 1
            lost.update(found["lost"])
            reused.update(found["reused"])
            untrue.update(found["untrue"])
    tally.acknowledged += said.acknowledged
    tally.lost += len(lost)
    tally.reused += len(reused)
    tally.untrue += len(untrue)
    tally.examples += sorted(lost)[:3] + sorted(reused)[:3] + sorted(untrue)[:3]
