"""The account, computed from outside.

What the witness saw, against the rows of the archive, the files of the spools, and the files of a
gateway's custody where there is one.

For each lane of each epoch, with all sets made of identities and no party's counters asked::

    known       = heard on the broker + rows in the archive + records still held
    top         = one more than the highest number known
    delivered   = rows in the archive
    pending     = held by a spool or a gateway, not in the archive
    explained   = below top, stated as lost in an archived account or in a spool,
                  neither delivered nor pending
    unaccounted = below top, and none of these
    produced    = delivered + pending + explained + unaccounted

Of the explained numbers, *unseen* are those that nobody ever heard: a crash voids what it had
reserved, most of which never named anything. They are shown beside the account and are not counted
as produced.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from mesh.adapters.system import SystemClock
from mesh.ports import Disk
from mesh.spool import store
from mesh.transfer.custody.opening import LOCK, open_store
from schemas import wire
from schemas.messages import Account, Lane
from schemas.ranges import Ranges
from simulator.demo.log import Seen

__all__ = ["LaneAccount", "audit", "total"]

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LaneAccount:
    """One line of the account; counts of identities.

    Args:
        produced: what was produced.
        delivered: of that, in the archive.
        pending: still in a spool, or in a gateway's custody.
        explained: stated as lost, by reason.
        duplicates: crossed into headquarters again, and were taken once.
        archived_twice: rows beyond the first of an identity; must be 0.
        unaccounted: none of these; must be 0.
        unseen: numbers that were reserved, voided and never heard of.
    """

    produced: int = 0
    delivered: int = 0
    pending: int = 0
    explained: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    archived_twice: int = 0
    unaccounted: int = 0
    unseen: int = 0


@dataclass(slots=True)
class _Evidence:
    archived: Ranges = field(default_factory=Ranges)
    archived_twice: int = 0
    held: Ranges = field(default_factory=Ranges)
    stated: dict[str, Ranges] = field(default_factory=dict)


def audit(
    seen: Seen,
    archive: Path,
    spools: Sequence[Disk] = (),
    custodies: Mapping[str, Disk] | None = None,
) -> dict[Lane, LaneAccount]:
    """The account of each lane, all epochs together.

    Args:
        seen: the witness's testimony.
        archive: headquarters' archive folder.
        spools: those of the edges, whose owners have ended.
        custodies: those of gateways, by their names; their owners have ended.
    """
    evidence: dict[_Key, _Evidence] = {}
    for key, numbers, twice in _archived(archive):
        found = evidence.setdefault(key, _Evidence())
        found.archived, found.archived_twice = numbers, twice
    for account in _accounts(archive):
        found = evidence.setdefault((str(account.epoch), account.lane), _Evidence())
        _state(found, account.explained)
    for spool in spools:
        _look_into(spool, evidence)
    for holder, custody in (custodies or {}).items():
        _look_into_custody(custody, holder, evidence)
    for key in seen.lanes:
        evidence.setdefault(key, _Evidence())
    lines: dict[Lane, LaneAccount] = {}
    for (epoch, lane), found in sorted(evidence.items()):
        line = _line(found, seen, (epoch, lane))
        known = lines.get(Lane(lane))
        lines[Lane(lane)] = total([known, line]) if known else line
    return lines


def _line(found: _Evidence, seen: Seen, key: _Key) -> LaneAccount:
    heard = seen.lanes[key].heard if key in seen.lanes else Ranges()
    known = heard | found.archived | found.held
    everything = Ranges.of([(0, known.end)])
    pending = found.held - found.archived
    missing = everything - found.archived - pending
    explained: dict[str, int] = {}
    unseen = 0
    for reason, numbers in sorted(found.stated.items()):
        lost = missing & numbers
        missing -= lost
        named = len(lost & heard) if reason == "void" else len(lost)
        unseen += len(lost) - named
        if named:
            explained[reason] = named
    return LaneAccount(
        produced=known.end - unseen,
        delivered=len(found.archived),
        pending=len(pending),
        explained=explained,
        duplicates=seen.lanes[key].crossed_again if key in seen.lanes else 0,
        archived_twice=found.archived_twice,
        unaccounted=len(missing),
        unseen=unseen,
    )


def total(lines: list[LaneAccount]) -> LaneAccount:
    """The sum of some lines."""
    explained: Counter[str] = Counter()
    for line in lines:
        explained.update(line.explained)
    return LaneAccount(
        produced=sum(line.produced for line in lines),
        delivered=sum(line.delivered for line in lines),
        pending=sum(line.pending for line in lines),
        explained=dict(explained),
        duplicates=sum(line.duplicates for line in lines),
        archived_twice=sum(line.archived_twice for line in lines),
        unaccounted=sum(line.unaccounted for line in lines),
        unseen=sum(line.unseen for line in lines),
    )


def _archived(archive: Path) -> Iterator[tuple[_Key, Ranges, int]]:
    """By epoch and lane: the numbers that have rows, and how many rows are too many."""
    query = """
        SELECT epoch, lane, min(seq), max(seq) + 1, sum(rows - 1)
        FROM (
            SELECT epoch, lane, seq, rows,
                   seq - row_number() OVER (PARTITION BY epoch, lane ORDER BY seq) AS run
            FROM (SELECT epoch, lane, seq, count(*) AS rows FROM archived GROUP BY ALL)
        )
        GROUP BY epoch, lane, run
    """
    spans: dict[_Key, list[tuple[int, int]]] = {}
    twice: Counter[_Key] = Counter()
    for epoch, lane, first, stop, extra in _ask(archive, query):
        spans.setdefault((epoch, lane), []).append((int(first), int(stop)))
        twice[epoch, lane] += int(extra)
    for key, runs in spans.items():
        yield key, Ranges.of(runs), twice[key]


def _accounts(archive: Path) -> Iterator[Account]:
    for (record,) in _ask(archive, "SELECT record FROM archived WHERE kind = 'account'"):
        account = wire.decode(record)
        if isinstance(account, Account):
            yield account


def _ask(archive: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of a query over ``archived``, all files of the archive; none when there are no files."""
    files = [str(path) for path in sorted((archive / "archive").rglob("*.parquet"))]
    if not files:
        return []
    with duckdb.connect(":memory:") as database:
        database.execute("SET threads = 2")
        archived = database.read_parquet(  # noqa: F841 - the query names it
            files, hive_partitioning=False, union_by_name=True
        )
        rows: list[tuple[Any, ...]] = database.execute(query).fetchall()
        return rows


def _state(found: _Evidence, explained: Mapping[str, Ranges]) -> None:
    for reason, numbers in explained.items():
        found.stated[reason] = found.stated.get(reason, Ranges()) | numbers


def _look_into(disk: Disk, evidence: dict[_Key, _Evidence]) -> None:
    identity = store.identity(disk)
    if identity is None:
        return
    for lane, state in store.survey(disk, identity).lanes.items():
        found = evidence.setdefault((str(identity.epoch), lane), _Evidence())
        held = [(item.first, item.stop) for item in state.sealed]
        held += [(item.frame.header.first, item.frame.header.stop) for item in state.fresh]
        found.held = Ranges.of(held) - state.released
        _state(found, state.explained)


def _look_into_custody(disk: Disk, holder: str, evidence: dict[_Key, _Evidence]) -> None:
    opened = open_store(disk, holder, bytes(16), bytes, SystemClock().now())
    disk.unlock(LOCK)
    for key, holding in opened.found.holdings.items():
        found = evidence.setdefault((str(key.life.epoch), key.lane), _Evidence())
        found.held |= holding.ledger.held - holding.released
