"""What a run of the site's demonstration showed, and whether it is as it must be."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from schemas.messages import Lane
from simulator.demo.audit import LaneAccount, total
from simulator.demo.log import Seen
from simulator.demo.outcome import drain_seconds
from simulator.demo.site.configurations import EDGES, edge_of
from simulator.demo.site.script import CommitStep, SiteAct

__all__ = ["EdgeOutcome", "Happened", "SiteOutcome", "judge_site"]

_NS: Final = 1_000_000_000
_MS: Final = 1_000_000
_ANSWER_NS: Final = _NS
_RATE_MIN: Final = 0.95


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that was done to the site, seconds after the plant began."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class EdgeOutcome:
    """How one edge decided.

    Args:
        readings: what its pumps said.
        decided: of these, how many were decided on.
        decided_during_outage: of these, while the network was cut.
        outage_rate_min: of the good readings of the worst second of the outage, the share whose
            decision came within a second.
        decision_ms_p50: from publishing a reading to hearing its decision, median.
        decision_ms_p99: the same, 99th percentile.
    """

    readings: int
    decided: int
    decided_during_outage: int
    outage_rate_min: float
    decision_ms_p50: float
    decision_ms_p99: float


@dataclass(frozen=True, slots=True)
class SiteOutcome:
    """The end of a run, as ``--json`` prints it.

    Args:
        readings: what the plant published.
        decided: decisions heard on the local broker.
        decided_during_outage: of these, while the network was cut.
        produced: identities of all lanes; the next four add up to it.
        delivered: of these, rows in the archive.
        pending: of these, still in a spool or in the gateway's custody.
        explained: of these, stated as lost.
        explained_by_reason: the same by reason.
        unaccounted: of these, none of that.
        duplicates: identities that crossed into headquarters again and were taken once.
        archived_twice: rows beyond the first of an identity.
        drain_seconds: from the network's return until all that was decided before had a receipt of
            headquarters; -1 for never.
        died_after: the steps of a commit after which worker 1 was killed.
        happened: what was done, and when.
        edges: how each edge decided.
        lanes: the account by lane.
        failures: what is not as it must be; empty when all is well.
    """

    readings: int
    decided: int
    decided_during_outage: int
    produced: int
    delivered: int
    pending: int
    explained: int
    explained_by_reason: Mapping[str, int]
    unaccounted: int
    duplicates: int
    archived_twice: int
    drain_seconds: float
    died_after: Sequence[str]
    happened: Sequence[Happened]
    edges: Mapping[str, EdgeOutcome]
    lanes: Mapping[str, Mapping[str, object]]
    failures: tuple[str, ...]


def judge_site(
    seen: Seen,
    lanes: Mapping[Lane, LaneAccount],
    happened: Sequence[Happened],
    died_after: Sequence[CommitStep],
) -> SiteOutcome:
    """Sums up a run, and says what is not as it must be.

    Args:
        seen: the witness's testimony.
        lanes: the account by lane.
        happened: what was done.
        died_after: the steps after which worker 1 was killed.
    """
    sums = total(list(lanes.values()))
    cut, restore = seen.marks[SiteAct.CUT], seen.marks[SiteAct.RESTORE]
    edges = {name: _edge(seen, name, cut, restore) for name in EDGES}
    drained = drain_seconds(seen, restore)
    flawed = sum(bool(seen.readings[number][1]) for number in seen.decided)
    failures = [
        f"{count} {what}"
        for what, count in (
            ("unaccounted", sums.unaccounted),
            ("pending", sums.pending),
            ("archived twice", sums.archived_twice),
            ("flawed readings decided on", flawed),
        )
        if count
    ]
    failures += [
        f"{name} decided on {edge.outage_rate_min:.1%} of a second's readings during the outage"
        for name, edge in edges.items()
        if edge.outage_rate_min < _RATE_MIN
    ]
    failures += [
        f"worker-1 was not killed after {step}" for step in CommitStep if step not in died_after
    ]
    if drained is None:
        failures.append("the backlog did not drain")
    return SiteOutcome(
        readings=len(seen.readings),
        decided=len(seen.decisions),
        decided_during_outage=sum(cut <= at < restore for at, _, _ in seen.decisions),
        produced=sums.produced,
        delivered=sums.delivered,
        pending=sums.pending,
        explained=sum(sums.explained.values()),
        explained_by_reason=dict(sums.explained),
        unaccounted=sums.unaccounted,
        duplicates=sums.duplicates,
        archived_twice=sums.archived_twice,
        drain_seconds=-1.0 if drained is None else round(drained, 2),
        died_after=[str(step) for step in died_after],
        happened=happened,
        edges=edges,
        lanes={str(lane): asdict(line) for lane, line in lanes.items()},
        failures=tuple(failures),
    )


def _edge(seen: Seen, name: str, cut: int, restore: int) -> EdgeOutcome:
    numbers = [number for number, topic in seen.topics.items() if edge_of(topic) == name]
    answers = [
        (seen.readings[number][0], seen.answered[number])
        for number in numbers
        if number in seen.answered
    ]
    latencies = sorted((heard - said) / _MS for said, heard in answers)
    return EdgeOutcome(
        len(numbers),
        len(answers),
        sum(cut <= heard < restore for _, heard in answers),
        round(min(_rates(seen, numbers, cut, restore), default=0.0), 4),
        _share(latencies, 50),
        _share(latencies, 99),
    )


def _rates(seen: Seen, numbers: Iterable[int], cut: int, restore: int) -> list[float]:
    """Of the good readings of each second of the outage, the share that was answered in time."""
    seconds = int((restore - cut) // _NS)
    good, answered = [0] * seconds, [0] * seconds
    for number in numbers:
        at, flaw = seen.readings[number]
        second = (at - cut) // _NS
        if flaw or not 0 <= second < seconds:
            continue
        good[second] += 1
        answered[second] += seen.answered.get(number, at + _ANSWER_NS + 1) - at <= _ANSWER_NS
    return [part / whole if whole else 0.0 for part, whole in zip(answered, good, strict=True)]


def _share(ordered: Sequence[float], percent: int) -> float:
    return round(ordered[len(ordered) * percent // 100], 3) if ordered else 0.0
