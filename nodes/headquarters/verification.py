"""Verification: the first step of the ingest, for many arrivals in one go. Pure.

In two halves, since what opens to how much is known only from the headers: ``parse_all`` reads all
but the bodies, ``portions`` says which of them are opened together, ``open_all`` opens them, and
reads what their records say as well, so that nothing is left for the archive but to write.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from mesh.ports import Arrival
from mesh.spool import batch as batches
from mesh.spool.batch import Batch, Opened
from nodes.headquarters.rows import Rows, Shown, show
from schemas.errors import Refused, RefusedBecause
from schemas.limits import INGEST_RAW_BYTES_MAX
from schemas.messages import BatchHeader
from schemas.topics import check_identifier

__all__ = ["Parsed", "Verified", "open_all", "parse_all", "portions"]

Parsed: TypeAlias = tuple[Arrival, Batch]
"""An arrival whose header verifies, and the batch that it is."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """An arrival that verifies, and what its records say, unless it has probably come before."""

    arrival: Arrival
    header: BatchHeader
    records: Opened
    shown: Shown | None

    def chain_inside(self, number: int) -> bytes | None:
        """The chain before a number inside the batch; ``None`` where no frame begins with it."""
        return batches.chain_inside(self.header, self.records, number)


def parse_all(arrivals: Sequence[Arrival]) -> list[tuple[Arrival, Batch | Refused]]:
    """The first half: all but the bodies."""
    return [(arrival, _tried(_parse, arrival)) for arrival in arrivals]


def open_all(portion: Sequence[Parsed]) -> list[tuple[Arrival, Verified | Refused]]:
    """The second half: the bodies, and what they say."""
    return [(arrival, _tried(_open, arrival, batch)) for arrival, batch in portion]


def portions(good: Sequence[Parsed]) -> list[list[Parsed]]:
    """Cuts what came together into portions that open to ``INGEST_RAW_BYTES_MAX`` at most.

    They are of about one size: a small one at the end would make small files.
    """
    total = sum(batch.header.raw_bytes for _, batch in good)
    share = total / max(1, -(-total // INGEST_RAW_BYTES_MAX))
    found: list[list[Parsed]] = []
    raw_bytes = 0
    for arrival, batch in good:
        size = batch.header.raw_bytes
        if not found or raw_bytes >= share or raw_bytes + size > INGEST_RAW_BYTES_MAX:
            found.append([])
            raw_bytes = 0
        found[-1].append((arrival, batch))
        raw_bytes += size
    return found


def _tried(look: Callable[..., _T], *arguments: object) -> "_T | Refused":
    try:
        return look(*arguments)
    except Refused as refused:
        return refused


def _parse(arrival: Arrival) -> Batch:
    """The subject must be the header's: nobody speaks in another's name."""
    batch = batches.parse(arrival.payload)
    header = batch.header
    for what, name in (("site", header.site), ("node", header.node)):
        check_identifier(what, name)
    if (header.site, header.node, header.lane) != (arrival.site, arrival.node, arrival.lane):
        raise Refused(
            RefusedBecause.FOREIGN,
            f"{header} came as {arrival.site}/{arrival.node}/{arrival.lane}",
        )
    return batch


def _open(arrival: Arrival, batch: Batch) -> Verified:
    header = batch.header
    records = batches.open_batch(batch)
    shown = None if arrival.redelivered else show(Rows(header, header.present, records))
    return Verified(arrival, header, records, shown)
