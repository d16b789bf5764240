"""Batch headers over a chain of numbered records, cut anywhere."""

from mesh.spool.frame import chain
from schemas.messages import BatchHeader, Codec, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges

__all__ = ["EPOCH", "LIFE", "chain_at", "header", "receipt_of"]

EPOCH = Epoch(1, 5)
LIFE = Epoch(1, 9)


def chain_at(number: int, salt: str = "") -> bytes:
    """The chain before a number; each record is a frame of its own."""
    link = bytes(16)
    for index in range(number):
        link = chain(link, f"{salt}{index}".encode())
    return link


def header(
    first: int, stop: int, lane: Lane = Lane.EVENTS, epoch: Epoch = EPOCH, salt: str = ""
) -> BatchHeader:
    """A header for the numbers ``first <= n < stop``."""
    count = stop - first
    return BatchHeader(
        store=bytes(16),
        site="hall",
        node="pump",
        epoch=epoch,
        lane=lane,
        first=first,
        last=stop - 1,
        count=count,
        present=Ranges(((first, stop),)),
        frames=(1,) * count,
        chain_before=chain_at(first, salt),
        chain_after=chain_at(stop, salt),
        first_wall_ns=0,
        last_wall_ns=0,
        clock_trusted=True,
        boot=bytes(16),
        running_ns=0,
        codec=Codec.ROWS_ZSTD,
        schema="records.v1",
        raw_bytes=100,
        body_bytes=100,
        body_digest=bytes(32),
        priority=lane.priority,
    )


def receipt_of(
    watermark: int,
    held: Ranges | None = None,
    *,
    number: int = 1,
    lane: Lane = Lane.EVENTS,
    chain: bytes | None = None,
    chain_at_number: int | None = None,
    epoch: Epoch = EPOCH,
    holder: str = "hq",
    life: Epoch = LIFE,
    not_before_ms: int = 0,
    node: str = "pump",
) -> Receipt:
    """A receipt of headquarters."""
    at = watermark if chain_at_number is None else chain_at_number
    return Receipt(
        holder,
        life,
        number,
        Stage.ARCHIVED,
        "hall",
        node,
        epoch,
        lane,
        watermark,
        chain_at(at) if chain is None else chain,
        at,
        held or Ranges(),
        not_before_ms=not_before_ms,
    )
