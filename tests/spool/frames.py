"""Frames for tests of formats: one lane after another, chained."""

from mesh.spool.frame import CHAIN_START, FrameHeader, Owner, pack
from schemas.messages import Epoch, Instant, Lane
from tests.spool.world import record

__all__ = ["AT", "EPOCH", "OWNER", "bodies", "chained"]

EPOCH = Epoch(1, 77)
OWNER = Owner(b"S" * 16, EPOCH, b"B" * 16)
AT = Instant(1_767_225_600_000_000_000, 5)


def chained(
    counts: list[int],
    lane: Lane = Lane.EVENTS,
    first: int = 0,
    owner: Owner = OWNER,
    journal: int = 1,
) -> tuple[bytes, list[FrameHeader], list[bytes]]:
    """Consecutive frames as bytes, their headers, their bodies."""
    data, headers, made, before = b"", [], [], CHAIN_START
    for count in counts:
        body = b"".join(record(f"{lane} {first + index}") for index in range(count))
        head, header = pack(owner, journal, lane, first, count, body, before, AT)
        data += head + body
        headers.append(header)
        made.append(body)
        first, before = header.stop, header.chain_after
    return data, headers, made


def bodies(counts: list[int]) -> list[bytes]:
    """The bodies alone."""
    return chained(counts)[2]
