"""Parts: a batch on its way over a link, cut where the link's speed asks for it. Pure.

A batch crosses whole where the link is fast, and in parts where it is slow, so that something
urgent need not wait until all of it has gone. A sender hands over the *last* part of a batch only
once the transport has accepted all the others. A receiver may then take the arrival of the last one
for the sign that the batch is complete, wherever the others wait.

``Assembly`` puts batches together again where parts come in one after another, in any order and any
number of times. It is bounded in bytes: the batch that has waited longest for its parts is
forgotten first. Nothing is lost by that, since no receipt was given and the sender sends it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from mesh.ports import Part
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, MIB
from schemas.messages import BatchHeader

__all__ = ["Assembly", "check_part", "cut", "part_of"]

_DIGEST_BYTES: Final = 32
_PIECES_MAX: Final = 4096
_BATCHES_MAX: Final = 4096


def part_of(header: BatchHeader, data: bytes, digest: bytes, offset: int, size: int) -> Part:
    """One part of a batch: at most ``size`` bytes from ``offset``."""
    payload = data if offset == 0 and size >= len(data) else data[offset : offset + size]
    return Part(header.site, header.node, header.lane, digest, offset, len(data), payload)


def cut(part: Part, size: int) -> Iterator[Part]:
    """A whole batch as parts of at most ``size`` bytes, in order."""
    for offset in range(0, part.total, size):
        yield part._replace(offset=offset, payload=part.payload[offset : offset + size])


def check_part(part: Part) -> None:
    """Whether a part can be what it says.

    Raises:
        Refused: ``too_large`` or ``out_of_range``.
    """
    size = len(part.payload)
    if part.total > BATCH_BYTES_MAX:
        raise Refused(
            RefusedBecause.TOO_LARGE, f"a batch of {part.total} bytes; it has {BATCH_BYTES_MAX}"
        )
    if (
        len(part.digest) != _DIGEST_BYTES
        or part.offset < 0
        or not (0 < size <= part.total - part.offset)
    ):
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"a part of {size} bytes at {part.offset} of {part.total}, with a digest of"
            f" {len(part.digest)} bytes",
        )


@dataclass(slots=True)
class _Waiting:
    total: int
    since: float
    pieces: dict[int, bytes] = field(default_factory=dict)
    held: int = 0


class Assembly:
    """Puts batches together from their parts.

    Args:
        bytes_max: how much may wait for the rest of its batch.
        seconds_max: how long a batch may wait for its next part.
    """

    def __init__(self, bytes_max: int = 16 * MIB, seconds_max: float = 600.0) -> None:
        assert bytes_max >= BATCH_BYTES_MAX, "the largest batch can be put together"
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._waiting: dict[tuple[str, str, str, bytes], _Waiting] = {}
        self.held_bytes = 0
        """What waits for the rest of its batch."""
        self.forgotten = 0
        """How many batches were forgotten before they were complete."""

    def __repr__(self) -> str:
        return f"<Assembly {len(self._waiting)} batches, {self.held_bytes} bytes>"

    def take(self, part: Part, now: float) -> bytes | None:
        """Takes one part; returns the batch once it is complete.

        Args:
            part: as it came.
            now: seconds on a monotonic clock.

        Raises:
            Refused: ``too_large``, ``out_of_range``, or ``bad_checksum`` when the whole does not
                have the digest that its parts state.
        """
        check_part(part)
        if len(part.payload) == part.total:
            return _verified(part.payload, part.digest)
        key = (part.site, part.node, str(part.lane), part.digest)
        waiting = self._waiting.pop(key, None)
        if waiting is None or waiting.total != part.total:
            self._drop(waiting)
            waiting = _Waiting(part.total, now)
        self._waiting[key] = waiting
        waiting.since = now
        self._add(waiting, part)
        if waiting.held >= part.total and (whole := _joined(waiting)) is not None:
            del self._waiting[key]
            self.held_bytes -= waiting.held
            return _verified(whole, part.digest)
        self._forget(now)
        return None

    def _add(self, waiting: _Waiting, part: Part) -> None:
        known = waiting.pieces.get(part.offset)
        if known is not None and len(known) >= len(part.payload):
            return
        if known is None and len(waiting.pieces) >= _PIECES_MAX:
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"more than {_PIECES_MAX} parts of a batch")
        waiting.pieces[part.offset] = part.payload
        grown = len(part.payload) - len(known or b"")
        waiting.held += grown
        self.held_bytes += grown

    def _forget(self, now: float) -> None:
        """Forgets what has waited too long, then what has waited longest, until the rest fits."""
        for key, waiting in list(self._waiting.items()):
            old = waiting.since + self._seconds_max < now
            fits = self.held_bytes <= self._bytes_max and len(self._waiting) <= _BATCHES_MAX
            if fits and not old:
                return
            del self._waiting[key]
            self._drop(waiting)

    def _drop(self, waiting: _Waiting | None) -> None:
        if waiting is not None:
            self.held_bytes -= waiting.held
            self.forgotten += 1


def _joined(waiting: _Waiting) -> bytes | None:
    """The whole, where the pieces leave no hole; pieces of several cuttings may overlap."""
    whole = bytearray()
    for offset in sorted(waiting.pieces):
        piece = waiting.pieces[offset]
        if offset > len(whole):
            return None
        whole += piece[len(whole) - offset :]
    return bytes(whole) if len(whole) == waiting.total else None


def _verified(data: bytes, digest: bytes) -> bytes:
    if sha256(data).digest() != digest:
        raise Refused(
            RefusedBecause.BAD_CHECKSUM, f"{len(data)} bytes do not have the digest they state"
        )
    return data
