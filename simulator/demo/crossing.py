"""What crosses into one server, and what its holder says back: told from the wire alone.

Batches come whole or in parts; a batch has crossed once all of its bytes were heard. What was not
heard, since the tap was away for a moment, is not counted, so figures of what crossed again are
the least that they can be.
"""

from typing import Final

from mesh.adapters.jetstream.link import DIGEST_HEADER, OFFSET_HEADER, TOTAL_HEADER
from mesh.adapters.jetstream.tap import Tapped
from mesh.ports import Part
from mesh.spool import batch as batches
from mesh.transfer.parts import Assembly
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.messages import BatchHeader, Lane, Receipt, Stage
from schemas.ranges import Ranges

__all__ = ["Crossing"]

_TOKENS_MIN: Final = 6
_SITE: Final = 2
_NODE: Final = 3
_WAY: Final = 4
# The subject of a part does not say its lane; a digest says which batch it is of.
_ANY_LANE: Final = Lane.LOGS


class Crossing:
    """What crossed at one place.

    Args:
        stage: which receipts are those of this place's holder; others were passed on.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._assembly = Assembly()
        self._crossed: dict[str, Ranges] = {}
        self.batches = 0
        """How many batches crossed."""
        self.again: dict[str, int] = {}
        """How many numbers crossed that had crossed before, by ``epoch/lane``."""
        self.stated: dict[str, Ranges] = {}
        """What receipts have stated, by ``epoch/lane``."""
        self.watermarks: dict[str, int] = {}
        """The highest watermarks of receipts, by ``epoch/lane``."""

    @property
    def count(self) -> int:
        """How many numbers receipts have stated."""
        return sum(map(len, self.stated.values()))

    def ahead_of(self, other: "Crossing") -> int:
        """How many numbers were stated here and not at another place."""
        return sum(
            len(numbers - other.stated.get(key, Ranges())) for key, numbers in self.stated.items()
        )

    def take(self, message: Tapped, now: float) -> BatchHeader | Receipt | None:
        """Takes a message; returns what it tells, where it is the end of a batch or a receipt.

        Args:
            message: as it was heard.
            now: seconds on a monotonic clock.

        Raises:
            Refused: it makes no sense.
        """
        tokens = message.subject.split(".")
        if len(tokens) < _TOKENS_MIN:
            raise Refused(RefusedBecause.BAD_NAME, f"subject {message.subject[:200]!r}")
        if tokens[_WAY] == "down":
            return self._hear(wire.decode_as(Receipt, message.payload))
        whole = self._assembly.take(_part(message, tokens), now)
        return None if whole is None else self._cross(batches.parse(whole).header)

    def _cross(self, header: BatchHeader) -> BatchHeader:
        key = f"{header.epoch}/{header.lane}"
        before = self._crossed.get(key, Ranges())
        self.batches += 1
        self.again[key] = self.again.get(key, 0) + len(header.present & before)
        self._crossed[key] = before | header.present
        return header

    def _hear(self, receipt: Receipt) -> Receipt | None:
        if receipt.stage is not self._stage:
            return None
        key = f"{receipt.epoch}/{receipt.lane}"
        stated = receipt.held | Ranges.of([(0, receipt.watermark)])
        self.stated[key] = self.stated.get(key, Ranges()) | stated
        self.watermarks[key] = max(self.watermarks.get(key, 0), receipt.watermark)
        return receipt


def _part(message: Tapped, tokens: list[str]) -> Part:
    """The part that a message is.

    Raises:
        Refused: its headers do not say so.
    """
    headers = message.headers
    try:
        return Part(
            tokens[_SITE],
            tokens[_NODE],
            _ANY_LANE,
            bytes.fromhex(headers[DIGEST_HEADER]),
            int(headers[OFFSET_HEADER]),
            int(headers[TOTAL_HEADER]),
            message.payload,
        )
    except (KeyError, ValueError) as wrong:
        raise Refused(RefusedBecause.MALFORMED, f"{message.subject}: {wrong}") from wrong
