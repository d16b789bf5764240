"""What a run of the demonstration showed.

Figures from the witness's log and the audit, and whether they are as they must be.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from schemas.messages import Lane
from simulator.demo.audit import LaneAccount, total
from simulator.demo.log import Seen
from simulator.demo.script import Act, Kill

__all__ = ["Outcome", "drain_seconds", "judge"]

_SECOND = 1_000_000_000
_RATE_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run, as ``--json`` prints it.

    Args:
        readings: what the plant published.
        decided: decisions heard on the local broker.
        decided_during_outage: of these, while the network was cut.
        refused: flawed readings, for which no decision came.
        waiting: good readings for which no decision came, for a window was filling.
        not_received: readings published while no edge was there to receive them.
        produced: identities of all lanes; the next four add up to it.
        delivered: of these, rows in the archive.
        pending: of these, still in the spool.
        explained: of these, stated as lost, by reason.
        unaccounted: of these, none of that.
        duplicates: identities that crossed again and were taken once.
        archived_twice: rows beyond the first of an identity.
        decision_ms_p50: from publishing a reading to hearing its decision, median.
        decision_ms_p99: the same, 99th percentile.
        outage_rate_min: decisions over good readings in the worst second of the outage.
        outage_rate_max: the same in the best.
        drain_seconds: from the network's return until all that was decided before had a receipt.
        edge_rss_mb: the most memory that the edge ever held.
        lanes: the account by lane.
        failures: what is not as it must be; empty when all is well.
    """

    readings: int
    decided: int
    decided_during_outage: int
    refused: int
    waiting: int
    not_received: int
    produced: int
    delivered: int
    pending: int
    explained: int
    explained_by_reason: Mapping[str, int]
    unaccounted: int
    duplicates: int
    archived_twice: int
    decision_ms_p50: float
    decision_ms_p99: float
    outage_rate_min: float
    outage_rate_max: float
    drain_seconds: float
    edge_rss_mb: float
    lanes: Mapping[str, Mapping[str, object]]
    failures: tuple[str, ...]


def judge(seen: Seen, lanes: Mapping[Lane, LaneAccount], edge_rss_mb: float, kill: Kill) -> Outcome:
    """Sums up a run, and says what is not as it must be."""
    sums = total(list(lanes.values()))
    cut, restore = seen.marks[Act.CUT], seen.marks[Act.RESTORE]
    away = _away(seen)
    good = {n for n, (_, flaw) in seen.readings.items() if not flaw}
    undecided = good - seen.decided
    unheard = {n for n, (at, _) in seen.readings.items() if away[0] <= at < away[1]} - seen.decided
    latencies = sorted(seen.latencies_ms)
    low, high = _rates(seen, cut, restore)
    failures = [
        f"{count} {what}"
        for what, count in (
            ("unaccounted", sums.unaccounted),
            ("pending", sums.pending),
            ("archived twice", sums.archived_twice),
            ("flawed readings decided on", len(seen.decided - good)),
        )
        if count
    ]
    if not latencies:
        failures.append("no decision was heard")
    if kill is Kill.NONE and not (low >= 1 - _RATE_TOLERANCE and high <= 1 + _RATE_TOLERANCE):
        failures.append(f"decisions in a second of the outage: {low:.3f} to {high:.3f} of readings")
    drain = drain_seconds(seen, restore)
    if drain is None:
        failures.append("the backlog did not drain")
    return Outcome(
        readings=len(seen.readings),
        decided=len(seen.decisions),
        decided_during_outage=sum(cut <= at < restore for at, _, _ in seen.decisions),
        refused=len(seen.readings) - len(good) - len(unheard - good),
        waiting=len(undecided - unheard),
        not_received=len(unheard),
        produced=sums.produced,
        delivered=sums.delivered,
        pending=sums.pending,
        explained=sum(sums.explained.values()),
        explained_by_reason=dict(sums.explained),
        unaccounted=sums.unaccounted,
        duplicates=sums.duplicates,
        archived_twice=sums.archived_twice,
        decision_ms_p50=round(latencies[len(latencies) // 2], 3) if latencies else 0.0,
        decision_ms_p99=round(latencies[len(latencies) * 99 // 100], 3) if latencies else 0.0,
        outage_rate_min=round(low, 4),
        outage_rate_max=round(high, 4),
        drain_seconds=round(drain, 2) if drain is not None else -1.0,
        edge_rss_mb=round(edge_rss_mb, 1),
        lanes={str(lane): asdict(line) for lane, line in lanes.items()},
        failures=tuple(failures),
    )


def _away(seen: Seen) -> tuple[int, int]:
    """From when to when no edge was there: killed, until it spoke again."""
    killed = seen.marks.get(Act.KILL_EDGE)
    if killed is None:
        return (0, 0)
    restarted = seen.marks[Act.RESTART_EDGE]
    back = seen.marks.get("edge online", restarted)
    return (killed, max(back, restarted))


def _rates(seen: Seen, cut: int, restore: int) -> tuple[float, float]:
    """Decisions over good readings, in the worst and the best whole second of the outage."""
    published = Counter(
        (at - cut) // _SECOND
        for at, flaw in seen.readings.values()
        if not flaw and cut <= at < restore
    )
    decided = Counter((at - cut) // _SECOND for at, _, _ in seen.decisions if cut <= at < restore)
    seconds = range(int((restore - cut) // _SECOND))
    rates = [decided[second] / published[second] for second in seconds if published[second]]
    return min(rates, default=0.0), max(rates, default=0.0)


def drain_seconds(seen: Seen, restore: int) -> float | None:
    """Until receipts covered every decision that was heard before the network came back."""
    goals: dict[tuple[str, str], int] = {}
    for at, key, number in seen.decisions:
        if at < restore:
            goals[key] = max(goals.get(key, 0), number + 1)
    times = [0.0]
    for key, goal in goals.items():
        covered = [at for at, watermark in seen.receipts.get(key, ()) if watermark >= goal]
        if not covered:
            return None
        times.append((min(covered) - restore) / _SECOND)
    return max(times)
