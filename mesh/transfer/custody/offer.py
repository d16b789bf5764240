"""An offer: an arrival, judged without opening it; and a kept batch, read back. Runs in the worker.

The header is read, the body compared with its digest, and neither is changed. Who sends must be who
the header says: nobody speaks in another's name.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple

from mesh.ports import Arrival, Disk
from mesh.spool import batch as batches
from mesh.spool.batch import Batch
from mesh.transfer.custody import quarantine
from mesh.transfer.custody.journal import journal_path
from mesh.transfer.custody.lane import Kept
from schemas.errors import DiskFailed, Refused, RefusedBecause
from schemas.limits import CUSTODY_GROUP_BYTES_MAX
from schemas.messages import BatchHeader
from schemas.topics import check_identifier

__all__ = ["Offer", "fetch", "groups", "keep_damaged", "name_of", "verify"]


class Offer(NamedTuple):
    """An arrival, and its header or why it is refused."""

    arrival: Arrival
    header: BatchHeader | None
    refused: Refused | None = None


def verify(arrivals: Sequence[Arrival]) -> list[Offer]:
    """Judges arrivals, each by itself."""
    return [_verify(arrival) for arrival in arrivals]


def _verify(arrival: Arrival) -> Offer:
    try:
        header = batches.parse(arrival.payload).header
        for what, name in (("site", header.site), ("node", header.node)):
            check_identifier(what, name)
    except Refused as refused:
        return Offer(arrival, None, refused)
    if (header.site, header.node, header.lane) != (arrival.site, arrival.node, arrival.lane):
        came = f"{header} came as {arrival.site}/{arrival.node}/{arrival.lane}"
        return Offer(arrival, None, Refused(RefusedBecause.FOREIGN, came))
    return Offer(arrival, header)


def groups(offers: Sequence[Offer]) -> Iterator[list[Offer]]:
    """Offers in groups that one commit takes."""
    group: list[Offer] = []
    size = 0
    for offer in offers:
        if group and size + len(offer.arrival.payload) > CUSTODY_GROUP_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(offer)
        size += len(offer.arrival.payload)
    if group:
        yield group


def name_of(payload: bytes) -> str:
    """A name for bytes that are set aside: the same for the same bytes."""
    return sha256(payload).hexdigest()[:16]


def fetch(disk: Disk, kept: Kept) -> Batch:
    """Reads a batch back; its body is checked against its digest.

    Raises:
        Refused: what stands there is not that batch.
        FileNotFoundError: its journal is gone.
        DiskFailed: the medium does not give it back.
    """
    batch = batches.parse(_read(disk, kept))
    if (batch.header.first, batch.header.last) != (kept.first, kept.last):
        raise Refused(
            RefusedBecause.BAD_CHECKSUM,
            f"{batch.header} stands where {kept.first}-{kept.last} should",
        )
    return batch


def keep_damaged(disk: Disk, kept: Kept) -> str:
    """Sets the bytes of a batch that cannot be read back aside, as far as there are any."""
    with suppress(DiskFailed, FileNotFoundError):
        name = f"batch-{kept.place.journal:016d}-{kept.place.offset}"
        return quarantine.keep(disk, name, _read(disk, kept))
    return ""


def _read(disk: Disk, kept: Kept) -> bytes:
    file = disk.open(journal_path(kept.place.journal), "read")
    try:
        return file.read(kept.place.offset, kept.place.size)
    finally:
        file.close()
