"""The index of an archive's file: the identities that it holds, and chains between them. Pure.

It stands in the file's key-value metadata under ``holdfast``, as JSON::

    [{"node": "pump", "epoch": "1-…", "numbers": [0, 4000], "chains": {"0": "<hex>", "4000": …}}, …]

Site and lane are those of the file's folder. ``numbers`` are starts and stops. A chain is the
origin's (``mesh.spool.frame``), before the number under which it stands; those of all batches that
the file took records from are there, since any of them may be where a watermark comes to lie.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.transfer import ledger
from nodes.headquarters.rows import Rows
from schemas.errors import Refused, RefusedBecause
from schemas.messages import Account, Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneLedger

__all__ = ["FileIndex", "LaneKey", "index_of", "ledgers", "read_index", "write_index"]

LaneKey = tuple[str, str, Epoch, Lane]
"""Site, node, epoch and lane."""


@dataclass(frozen=True, slots=True)
class FileIndex:
    """What files hold of one lane.

    Args:
        numbers: which have a row.
        chains: the chain before a number, where a batch begins or ends.
    """

    numbers: Ranges = field(default_factory=Ranges)
    chains: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def union(cls, parts: Iterable["FileIndex"]) -> "FileIndex":
        """All together."""
        known = list(parts)
        spans = [span for it in known for span in it.numbers.spans]
        return cls(Ranges.of(spans), {at: it.chains[at] for it in known for at in it.chains})


def index_of(group: Iterable[Rows]) -> dict[LaneKey, FileIndex]:
    """The index of some rows."""
    found: dict[LaneKey, list[FileIndex]] = {}
    for rows in group:
        header = rows.header
        key = (header.site, header.node, header.epoch, header.lane)
        chains = {header.first: header.chain_before, header.last + 1: header.chain_after}
        found.setdefault(key, []).append(FileIndex(rows.seqs, chains))
    return {key: FileIndex.union(parts) for key, parts in found.items()}


def write_index(index: Mapping[LaneKey, FileIndex]) -> str:
    """The index of one file, as it stands in its metadata."""
    return json.dumps(
        [
            {
                "node": node,
                "epoch": str(epoch),
                "numbers": [bound for span in held.numbers.spans for bound in span],
                "chains": {str(at): chain.hex() for at, chain in sorted(held.chains.items())},
            }
            for (_, node, epoch, _), held in index.items()
        ],
        separators=(",", ":"),
    )


def read_index(text: str, site: str, lane: str) -> dict[LaneKey, FileIndex]:
    """The index that ``write_index`` wrote.

    Args:
        text: as it stands in the metadata.
        site: of the file's folder.
        lane: of the file's folder.

    Raises:
        Refused: ``malformed``: it is not what ``write_index`` writes.
    """
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        return {
            (site, str(entry["node"]), Epoch.parse(entry["epoch"]), Lane(lane)): FileIndex(
                Ranges.of(_pairs(entry["numbers"])),
                {int(at): bytes.fromhex(chain) for at, chain in entry["chains"].items()},
            )
            for entry in entries
        }
    except (ValueError, TypeError, KeyError, AttributeError) as wrong:
        raise Refused(RefusedBecause.MALFORMED, f"the index of a file: {wrong!r}") from wrong


def ledgers(
    index: Mapping[LaneKey, FileIndex],
    accounts: Iterable[tuple[str, str, Epoch, Account]],
    known: Sequence[LaneLedger] = (),
) -> list[LaneLedger]:
    """The ledgers that an archive's files tell of.

    Args:
        index: of all files.
        accounts: site, node, the life that states it, and account: its newest of each lane.
        known: what was known of these lanes before: what origins stated stays, and what they hold
            is what the files say.
    """
    made = {
        key: replace(_empty(*key), held=held.numbers, next_seq=held.numbers.end)
        for key, held in index.items()
        if held.numbers
    }
    for was in known:
        key = (was.site, was.node, was.epoch, was.lane)
        held = made.get(key, _empty(*key)).held
        made[key] = replace(was, held=held, next_seq=max(was.next_seq, held.end))
    for site, node, epoch, account in accounts:
        about = (site, node, account.epoch, account.lane)
        made[about] = ledger.explain(
            made.get(about, _empty(*about)), account, own=account.epoch.counter == epoch.counter
        )
    return [_chained(lane, index.get(key, FileIndex()).chains) for key, lane in made.items()]


def _chained(lane: LaneLedger, chains: Mapping[int, bytes]) -> LaneLedger:
    """A ledger with the chain at, or next below, its watermark."""
    reached = lane.held
    for numbers in lane.explained.values():
        reached |= numbers
    watermark = reached.watermark()
    at = max((at for at in chains if 0 < at <= watermark), default=0)
    return replace(lane, chain=chains[at] if at else bytes(16), chain_at=at)


def _empty(site: str, node: str, epoch: Epoch, lane: Lane) -> LaneLedger:
    return LaneLedger(site, node, epoch, lane)


def _pairs(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(bounds[::2], bounds[1::2], strict=True))
