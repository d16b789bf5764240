"""The account: what became of every number that a node handed out, from ledgers alone. Pure.

For each node, epoch and lane::

    produced = delivered + explained + pending + unaccounted       as sets of numbers

What is neither delivered nor explained is *pending* with whoever must still have it: with a
custodian, where the origin says that this one had released it; else with the origin itself. What
the origin says that headquarters had released, and headquarters does not hold, nobody has:
*unaccounted*. All that is as of the origin's newest account, so it may be older than what arrived.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.transfer.ledger import Line, account_line
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger

__all__ = ["LaneAccount", "accounts_of", "document", "is_settled"]

_MS: Final = 1_000_000
_RANGES_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class LaneAccount:
    """The account of one lane of one life of a node.

    Args:
        ledger: what is known.
        line: its sets as counts.
        pending: the numbers that must still arrive, by who has them; the origin by its own name.
        unaccounted: the numbers that nobody has.
        present: whether it is the newest known life of the node.
    """

    ledger: LaneLedger
    line: Line
    pending: Mapping[str, Ranges]
    unaccounted: Ranges
    present: bool

    @property
    def oldest(self) -> int | None:
        """The first number that was not delivered, and may be yet; ``None`` where there is none."""
        starts = [numbers.spans[0][0] for numbers in self.pending.values() if numbers]
        return min(starts, default=None)

    @property
    def pending_records(self) -> int:
        """How many numbers must still arrive."""
        return sum(map(len, self.pending.values()))


def accounts_of(
    partitions: Iterable[PartitionLedger], site: str = "", node: str = ""
) -> list[LaneAccount]:
    """The account of each lane, sorted by site, node, life and lane.

    Args:
        partitions: all ledgers that may know of them.
        site: only of this site; empty for all.
        node: only of this node; empty for all.
    """
    known = [
        (partition.holder, ledger)
        for partition in partitions
        for ledger in partition.lanes
        if site in {"", ledger.site} and node in {"", ledger.node}
    ]
    newest: dict[tuple[str, str], Epoch] = {}
    for _, ledger in known:
        place = (ledger.site, ledger.node)
        newest[place] = max(newest.get(place, ledger.epoch), ledger.epoch, key=_age)
    found = [
        _account(holder, ledger, present=newest[ledger.site, ledger.node] == ledger.epoch)
        for holder, ledger in known
    ]
    return sorted(found, key=_place)


def _account(holder: str, ledger: LaneLedger, *, present: bool) -> LaneAccount:
    line = account_line(ledger)
    rest = line.missing
    mine = ledger.released.get(holder, 0)
    unaccounted = rest & Ranges.of([(0, mine)])
    rest -= unaccounted
    pending: dict[str, Ranges] = {}
    others = [(mark, name) for name, mark in ledger.released.items() if name != holder]
    # Of two custodians the one that went less far is the nearer to headquarters.
    for mark, name in sorted(others):
        numbers = rest & Ranges.of([(0, mark)])
        if numbers:
            pending[name] = numbers
            rest -= numbers
    if rest:
        pending[f"{ledger.site}/{ledger.node}"] = rest
    return LaneAccount(ledger, line, pending, unaccounted, present)


def is_settled(accounts: Iterable[LaneAccount]) -> bool:
    """Whether every number is accounted for, and names one record alone."""
    return not any(account.unaccounted or account.ledger.disputed for account in accounts)


def document(accounts: Sequence[LaneAccount]) -> dict[str, object]:
    """All accounts in what JSON can say. Times in ms, ranges as ``"3-7, 9"``."""
    nodes: dict[tuple[str, str], list[LaneAccount]] = {}
    for account in accounts:
        nodes.setdefault((account.ledger.site, account.ledger.node), []).append(account)
    return {
        "produced": sum(account.line.produced for account in accounts),
        "delivered": sum(account.line.delivered for account in accounts),
        "pending": sum(account.pending_records for account in accounts),
        "explained": sum(sum(account.line.explained.values()) for account in accounts),
        "unaccounted": sum(len(account.unaccounted) for account in accounts),
        "disputed": sum(len(account.ledger.disputed) for account in accounts),
        "nodes": [
            {
                "site": site,
                "node": node,
                "epochs": list(dict.fromkeys(str(account.ledger.epoch) for account in lanes)),
                "last_seen": _seen(lanes),
                "lanes": [_lane_document(account) for account in lanes],
            }
            for (site, node), lanes in nodes.items()
        ],
    }


def _lane_document(account: LaneAccount) -> dict[str, object]:
    ledger, line = account.ledger, account.line
    return {
        "epoch": str(ledger.epoch),
        "present": account.present,
        "lane": ledger.lane,
        "produced": line.produced,
        "delivered": line.delivered,
        "pending": {
            name: {
                **_numbers(numbers),
                "last_heard": _heard(ledger, name),
            }
            for name, numbers in account.pending.items()
        },
        "explained": dict(line.explained),
        "unaccounted": _numbers(account.unaccounted),
        "gaps": _numbers(line.missing),
        "oldest_undelivered": account.oldest,
        "duplicates": line.duplicates,
        "disputed": _numbers(ledger.disputed),
        "last_seen": _ms(ledger.seen_wall_ns),
        "stated": _ms(ledger.stated_wall_ns),
        "statement": ledger.statement,
    }


def _numbers(numbers: Ranges) -> dict[str, object]:
    """A set of numbers; of very many ranges the first ones, and how many more there are."""
    return {
        "records": len(numbers),
        "numbers": str(Ranges(numbers.spans[:_RANGES_SHOWN])),
        "more_ranges": max(0, len(numbers.spans) - _RANGES_SHOWN),
    }


def _heard(ledger: LaneLedger, name: str) -> int | None:
    """When the origin was last heard of; of a custodian, when the origin last spoke of it."""
    origin = name == f"{ledger.site}/{ledger.node}"
    return _ms(ledger.seen_wall_ns if origin else ledger.stated_wall_ns)


def _seen(accounts: Iterable[LaneAccount]) -> int | None:
    return _ms(max(account.ledger.seen_wall_ns for account in accounts))


def _ms(wall_ns: int) -> int | None:
    return wall_ns // _MS or None


def _age(epoch: Epoch) -> tuple[int, int]:
    return epoch.counter, epoch.random


def _place(account: LaneAccount) -> tuple[str, str, tuple[int, int], int]:
    ledger = account.ledger
    return ledger.site, ledger.node, _age(ledger.epoch), Lane(ledger.lane).priority
