"""Variable-length integers, and a reader that never goes beyond its bytes. Pure.

A *varint* is an unsigned integer of at most 64 bits, seven bits a byte, the lowest first; all bytes
but the last have their highest bit set. A *signed* one is written as ``2n`` where it is not
negative and as ``-2n - 1`` where it is, so that small ones are short either way.
"""

from typing import Final

from schemas.errors import Refused, RefusedBecause

__all__ = ["Source", "signed", "unsigned"]

_MORE: Final = 0x80
_BITS: Final = 7
_UINT64_MAX: Final = 2**64 - 1


def unsigned(value: int) -> bytes:
    """An integer of 0 to 2⁶⁴ - 1 as a varint."""
    assert 0 <= value <= _UINT64_MAX, value
    out = bytearray()
    while value >= _MORE:
        out.append(value & (_MORE - 1) | _MORE)
        value >>= _BITS
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """An integer of -2⁶³ to 2⁶³ - 1 as a varint."""
    return unsigned(2 * value if value >= 0 else -2 * value - 1)


class Source:
    """Bytes that are read from front to end; reading more than there is, is refused.

    Args:
        data: all of them.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            Refused: ``malformed``: there are fewer.
        """
        end = self._at + size
        if end > len(self._data):
            raise Refused(
                RefusedBecause.MALFORMED,
                f"{size} bytes wanted at {self._at}, {self.left} are left",
            )
        found = self._data[self._at : end]
        self._at = end
        return found

    def byte(self) -> int:
        """The next byte.

        Raises:
            Refused: ``malformed``: there is none.
        """
        return self.take(1)[0]

    def unsigned(self, most: int = _UINT64_MAX) -> int:
        """The varint that comes next.

        Args:
            most: the largest that is allowed here.

        Raises:
            Refused: ``malformed``: it is cut short; ``too_large``.
        """
        value = shift = 0
        while (byte := self.byte()) & _MORE and shift < 9 * _BITS:
            value |= (byte & (_MORE - 1)) << shift
            shift += _BITS
        value |= byte << shift
        if value > most:
            raise Refused(RefusedBecause.TOO_LARGE, f"{value} where at most {most} belongs")
        return value

    def signed(self) -> int:
        """The signed varint that comes next.

        Raises:
            Refused: as ``unsigned``.
        """
        value = self.unsigned()
        return value >> 1 if value % 2 == 0 else -(value + 1 >> 1)

    def finish(self) -> None:
        """There must be nothing more.

        Raises:
            Refused: ``malformed``.
        """
        if self.left:
            raise Refused(RefusedBecause.MALFORMED, f"{self.left} bytes that nobody asked for")
