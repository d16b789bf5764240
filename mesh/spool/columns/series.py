"""A series: the floats of one column as bytes, in the shortest of the ways that fit. Pure.

It begins with a byte, the way in its low half; 16 is added where exceptions follow it::

    0 floats    a chunk of floats: what prints with all its digits
    1 fixed     u8 places, a chunk of integers               (``mesh.spool.columns.decimals``)
    2 ranks     u8 digits, signed exponent, a chunk of integers
    3 choice    unsigned count, a series of the distinct values from the smallest, a chunk of which
                it is: a valve that stands in one of six places

    exceptions  unsigned count, a chunk of where, a chunk of their bits: among decimals, what is
                none: NaN, an infinity, minus zero

All ways are exact to the bit. The first always fits, so no series is longer than what pcodec alone
makes of its floats, by more than that byte and two lengths.
"""

from typing import Final

import numpy as np

from mesh.spool.columns import chunks, decimals
from mesh.spool.columns.chunks import Reader, Words
from mesh.spool.columns.decimals import (
    DIGITS_MAX,
    EXPONENT_MAX,
    PLACES_MAX,
    Decimals,
    Fixed,
    Ranks,
)
from mesh.spool.columns.varints import Source, signed, unsigned
from schemas.errors import Refused, RefusedBecause

__all__ = ["read", "write"]

_FLOATS: Final = 0
_FIXED: Final = 1
_RANKS: Final = 2
_CHOICE: Final = 3
_EXCEPTIONS: Final = 16
_CHOICE_SHARE: Final = 4
"""At most one value in so many is distinct where a choice is tried."""
_SIGN: Final = np.uint64(1 << 63)


def write(values: Words) -> bytes:
    """The shortest series of some floats, at least one.

    Args:
        values: their bits.
    """
    found = _as_numbers(values)
    if len(values) >= _CHOICE_SHARE:
        distinct, places = np.unique(_sortable(values), return_inverse=True)
        if len(distinct) * _CHOICE_SHARE <= len(values):
            inner = _as_numbers(_unsortable(distinct))
            which = chunks.write(places.astype(np.uint64))
            choice = bytes((_CHOICE,)) + unsigned(len(distinct)) + inner + which
            found = min(found, choice, key=len)
    return found


def read(source: Source, reader: Reader, count: int) -> Words:
    """The bits of the floats of the series that comes next.

    Args:
        source: where it comes from.
        reader: reads chunks from the same source.
        count: how many it must hold; bounded by the caller.

    Raises:
        Refused: ``malformed``, ``too_large``, ``out_of_range``.
    """
    way = source.byte()
    if way != _CHOICE:
        return _read_numbers(source, reader, count, way)
    size = source.unsigned(count)
    distinct = _read_numbers(source, reader, size, source.byte())
    which = reader.integers(count)
    if (which >= size).any():
        raise Refused(RefusedBecause.OUT_OF_RANGE, f"a choice beyond {size} values")
    return distinct[which.astype(np.int64)]


def _as_numbers(values: Words) -> bytes:
    numbers = values.view(np.float64)
    ways = [bytes((_FLOATS,)) + chunks.write_floats(numbers)]
    fixed = decimals.fixed(numbers)
    if fixed is not None:
        ways.append(_as_decimals(values, fixed))
    # Within one decade, ranks are the fixed decimals by another name.
    if fixed is None or not fixed.fits.all() or not decimals.within_decade(numbers):
        ranks = decimals.ranks(numbers)
        if ranks is not None:
            ways.append(_as_decimals(values, ranks))
    return min(ways, key=len)


def _as_decimals(values: Words, found: Decimals) -> bytes:
    if isinstance(found.way, Fixed):
        way, head = _FIXED, bytes((found.way.places,))
    else:
        way, head = _RANKS, bytes((found.way.digits,)) + signed(found.way.exponent)
    if found.fits.all():
        return bytes((way,)) + head + chunks.write(found.integers)
    where = np.flatnonzero(~found.fits)
    # An exception stands where its neighbour's number costs least: that of the value before.
    last = np.maximum.accumulate(np.where(found.fits, np.arange(len(values)), 0))
    last = np.where(found.fits[last], last, int(np.argmax(found.fits)))
    return b"".join(
        (
            bytes((way | _EXCEPTIONS,)),
            unsigned(len(where)),
            chunks.write(where.astype(np.uint64)),
            chunks.write(values[where]),
            head,
            chunks.write(found.integers[last]),
        )
    )


def _read_numbers(source: Source, reader: Reader, count: int, way: int) -> Words:
    if way == _FLOATS:
        return reader.floats(count).view(np.uint64)
    where = bits = np.zeros(0, np.uint64)
    if way & _EXCEPTIONS:
        size = source.unsigned(count)
        where, bits = reader.integers(size), reader.integers(size)
        if (where >= count).any():
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"an exception beyond {count} values")
    found = _read_way(source, way & ~_EXCEPTIONS)
    values = decimals.floats(found, reader.integers(count)).view(np.uint64)
    values[where.astype(np.int64)] = bits
    return values


def _read_way(source: Source, way: int) -> Fixed | Ranks:
    if way == _FIXED:
        return Fixed(source.unsigned(PLACES_MAX))
    if way == _RANKS:
        digits, exponent = source.unsigned(DIGITS_MAX), source.signed()
        if digits and abs(exponent) <= EXPONENT_MAX:
            return Ranks(digits, exponent)
    raise Refused(RefusedBecause.MALFORMED, f"a series of way {way}, or its parameters")


def _sortable(values: Words) -> Words:
    """Bits in the order of the numbers that they are."""
    return np.where(values & _SIGN, ~values, values | _SIGN)


def _unsortable(values: Words) -> Words:
    return np.where(values & _SIGN, values & ~_SIGN, ~values)
