"""A template: the bytes of a record without its numbers, and where the numbers go. Pure.

Two records have the same template when their canonical bytes differ in nothing but the numbers:
same kind, same topic or name, same labels, same fields, each number written as wide. So a record is
its template and some numbers, to the byte, whatever the bytes of those numbers are; nobody needs to
know what kinds of records there are.

A *slot* is a place for one number. Integers are known by their order within the record: the first
is the wall clock's time, the second the monotonic clock's. Floats are known by their *series*: the
texts of the record (topic; name and labels) and the key under which the number stands. A series so
goes on across records of which some lack a field.

What is walked is msgpack (github.com/msgpack/msgpack/blob/master/spec.md) as ``schemas.wire``
writes it; anything else has no template.
"""

from dataclasses import dataclass
from typing import Final

from schemas.limits import NESTING_DEPTH_MAX

__all__ = ["SLOTS_MAX", "Slot", "Template", "Unknown", "template"]

SLOTS_MAX: Final = 8192
"""A record with more numbers has no template, and so many templates' numbers no columns."""
_FLOAT64: Final = 0xCB
_FLOAT_BYTES: Final = 8
_INTEGER_BYTES: Final = {
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_TEXT_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xD9: 1, 0xDA: 2}
"""Bytes and text: head, and how many bytes their length takes."""
_BARE: Final = frozenset((0xC0, 0xC2, 0xC3))
"""Nothing, no, yes."""
_ARRAY16: Final = 0xDC
_MAP16: Final = 0xDE


class Unknown(Exception):
    """These bytes have no template."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a number.

    Args:
        offset: of its first byte, behind the byte that says what it is.
        width: its length in bytes.
        series: of a float: texts of the record, key, how often that key stood there before; of an
            integer: how many integers stood before it.
    """

    offset: int
    width: int
    series: int | tuple[bytes, bytes, int]


@dataclass(frozen=True, slots=True)
class Template:
    """A record whose numbers are zero, and its slots in their order."""

    data: bytes
    slots: tuple[Slot, ...]


def template(record: bytes) -> Template:
    """The template of a record.

    Raises:
        Unknown: it has none.
    """
    walk = _Walk(record)
    try:
        end = walk.value(0, b"", NESTING_DEPTH_MAX)
    except IndexError as short:
        raise Unknown("it is cut short") from short
    if end != len(record):
        raise Unknown(f"{len(record) - end} bytes follow")
    if len(walk.integers) + len(walk.floats) > SLOTS_MAX:
        raise Unknown(f"{len(walk.integers) + len(walk.floats)} numbers, at most {SLOTS_MAX}")
    blank = bytearray(record)
    for offset, width in walk.integers:
        blank[offset : offset + width] = bytes(width)
    seen: dict[bytes, int] = {}
    texts = b"\0".join(walk.texts)
    slots = [Slot(offset, width, n) for n, (offset, width) in enumerate(walk.integers)]
    for offset, key in walk.floats:
        blank[offset : offset + _FLOAT_BYTES] = bytes(_FLOAT_BYTES)
        slots.append(Slot(offset, _FLOAT_BYTES, (texts, key, seen.get(key, 0))))
        seen[key] = seen.get(key, 0) + 1
    return Template(bytes(blank), tuple(slots))


class _Walk:
    """One way through a record: what it finds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.integers: list[tuple[int, int]] = []
        self.floats: list[tuple[int, bytes]] = []
        self.texts: list[bytes] = []

    def value(self, at: int, key: bytes, depth: int) -> int:
        """Walks the value at an offset, which stands under a key; returns where it ends."""
        head = self._data[at]
        if head == _FLOAT64:
            self.floats.append((at + 1, key))
            return self._within(at + 1 + _FLOAT_BYTES)
        if head in _INTEGER_BYTES:
            width = _INTEGER_BYTES[head]
            self.integers.append((at + 1, width))
            return self._within(at + 1 + width)
        if head <= 0x7F or head >= 0xE0 or head in _BARE:  # noqa: PLR2004 - small integers
            return at + 1
        if 0xA0 <= head <= 0xBF or head in _TEXT_BYTES:  # noqa: PLR2004 - short text
            text, end = self._text(at)
            if key:
                self.texts.append(key)
            self.texts.append(text)
            return end
        if not depth:
            raise Unknown("it is nested too deep")
        return self._many(at, head, key, depth)

    def _many(self, at: int, head: int, key: bytes, depth: int) -> int:
        if 0x90 <= head <= 0x9F:  # noqa: PLR2004 - short array
            count, keyed, at = head & 15, False, at + 1
        elif 0x80 <= head <= 0x8F:  # noqa: PLR2004 - short map
            count, keyed, at = head & 15, True, at + 1
        elif head in {_ARRAY16, _MAP16}:
            count = self._data[at + 1] << 8 | self._data[at + 2]
            keyed, at = head == _MAP16, at + 3
        else:
            raise Unknown(f"byte {head:#x}")
        for _ in range(count):
            if keyed:
                key, at = self._text(at)
            at = self.value(at, key, depth - 1)
        return at

    def _text(self, at: int) -> tuple[bytes, int]:
        head = self._data[at]
        if 0xA0 <= head <= 0xBF:  # noqa: PLR2004 - short text
            size, at = head & 31, at + 1
        elif head in _TEXT_BYTES:
            wide = _TEXT_BYTES[head]
            size = int.from_bytes(self._data[at + 1 : at + 1 + wide], "big")
            at += 1 + wide
        else:
            raise Unknown(f"byte {head:#x} where a key belongs")
        end = self._within(at + size)
        return self._data[at:end], end

    def _within(self, end: int) -> int:
        if end > len(self._data):
            raise Unknown("it is cut short")
        return end
