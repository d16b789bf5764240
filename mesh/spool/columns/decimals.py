"""Decimals: floats that sensors print with few digits, as the integers behind them. Pure.

A float64 *is* a decimal here when dividing (or multiplying) an integer below 2⁵³ by a power of ten
up to 10²² gives back all of its bits: both are exact in binary, and IEEE 754 rounds their quotient
correctly, on every machine to the same float. There are two ways to see a column so:

*fixed*
    ``integer / 10**places``, with the same number of places for all: a sensor that prints
    ``26.8508``.
*ranks*
    the place of a number among all decimals of so many significant digits. Six digits have
    900,000 numbers in each decade: 0.999999 has the rank next to 1.00000. That suits a sensor
    whose values cross a power of ten, since they then change their number of places.

What is no decimal of that kind (NaN, infinities, minus zero, one value with more digits) is named
by ``fits`` and is for the caller to keep.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mesh.spool.columns.chunks import Floats, Words
from schemas.errors import Refused, RefusedBecause

__all__ = [
    "DIGITS_MAX",
    "PLACES_MAX",
    "Decimals",
    "Fixed",
    "Ranks",
    "fixed",
    "floats",
    "ranks",
    "within_decade",
]

Flags: TypeAlias = npt.NDArray[np.bool_]
_Whole: TypeAlias = npt.NDArray[np.int64]

PLACES_MAX: Final = 22
DIGITS_MAX: Final = 15
"""More significant digits may need more than 2⁵³."""
EXPONENT_MAX: Final = 400
_PLACES_TRIED: Final = 17
_INTEGER_MAX: Final = 2.0**53
_POWERS: Final = 10.0 ** np.arange(PLACES_MAX + 1)
_TINIEST: Final = np.finfo(np.float64).tiny
_FEW: Final = 48
_SHARE_MIN: Final = 0.8
"""Where fewer values than this fit, the exceptions cost more than the rule saves."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Integers over one power of ten."""

    places: int


@dataclass(frozen=True, slots=True)
class Ranks:
    """Places among the decimals of ``digits`` digits; rank 1 is ``10**exponent``."""

    digits: int
    exponent: int


@dataclass(frozen=True, slots=True)
class Decimals:
    """A column seen as decimals.

    Args:
        way: how.
        integers: one for each value, of no meaning where ``fits`` is false.
        fits: which values they give back, bit for bit.
    """

    way: Fixed | Ranks
    integers: Words
    fits: Flags


def fixed(values: Floats) -> Decimals | None:
    """The fewest places that most of some values have; ``None`` where too few have so few."""
    return _fewest(values, _with_places, range(_PLACES_TRIED + 1))


def ranks(values: Floats) -> Decimals | None:
    """The fewest digits that most of some values have; ``None`` where too few have so few."""
    return _fewest(values, _with_digits, range(1, DIGITS_MAX + 1))


def within_decade(values: Floats) -> bool:
    """Whether finite values of one sign lie between two neighbouring powers of ten."""
    low, high = float(values.min()), float(values.max())
    if low <= 0 <= high:
        return False
    return math.floor(math.log10(abs(low))) == math.floor(math.log10(abs(high)))


def floats(way: Fixed | Ranks, integers: Words) -> Floats:
    """The values behind integers; what has no value is refused.

    Raises:
        Refused: ``out_of_range``.
    """
    whole = integers.view(np.int64)
    if isinstance(way, Fixed):
        return np.asarray(whole / _POWERS[way.places])
    width = 9 * 10 ** (way.digits - 1)
    size = np.abs(whole)
    decade, rest = np.divmod(np.maximum(size, 1) - 1, width)
    places = way.digits - 1 - way.exponent - decade
    if (size < 0).any() or (np.abs(np.where(size > 0, places, 0)) > PLACES_MAX).any():
        raise Refused(RefusedBecause.OUT_OF_RANGE, f"ranks of {way.digits} digits out of bounds")
    found = _scaled(rest + 10 ** (way.digits - 1), np.where(size > 0, places, 0))
    return np.where(size > 0, np.copysign(found, whole), 0.0)


def _fewest(
    values: Floats, look: Callable[[Floats, int], Decimals], numbers: Sequence[int]
) -> Decimals | None:
    """Looks at values with more and more places or digits until all fit."""
    # A few of them tell where to begin, or that this sensor prints otherwise.
    few = values[:: len(values) // _FEW + 1]
    begin = next((n for n in numbers if 2 * look(few, n).fits.sum() > len(few)), None)
    if begin is None:
        return None
    best: Decimals | None = None
    fitting = int(_SHARE_MIN * len(values))
    for number in range(begin, numbers[-1] + 1):
        found = look(values, number)
        count = int(np.count_nonzero(found.fits))
        if count > fitting:
            best, fitting = found, count
        if count == len(values):
            break
    return best


def _with_places(values: Floats, places: int) -> Decimals:
    with np.errstate(over="ignore"):  # what goes over does not fit
        # Adding zero takes the sign off minus zero, which no integer has.
        near = np.rint(np.where(np.isfinite(values), values, 0.0) * _POWERS[places]) + 0.0
    small = np.abs(near) < _INTEGER_MAX
    fits = small & _same(near / _POWERS[places], values)
    integers = np.where(small, near, 0.0).astype(np.int64)
    return Decimals(Fixed(places), integers.view(np.uint64), fits)


def _with_digits(values: Floats, digits: int) -> Decimals:
    finite = np.abs(np.where(np.isfinite(values), values, 0.0))
    decade = np.floor(np.log10(np.maximum(finite, _TINIEST))).astype(np.int64)
    near, where = _digits(finite, decade, digits)
    fits = _same(np.copysign(_scaled(near, digits - 1 - where), values), values)
    fits &= near >= 10 ** (digits - 1)
    exponent = int(where[fits].min()) if fits.any() else 0
    width = 9 * 10 ** (digits - 1)
    place = np.where(fits, (where - exponent) * width + near - 10 ** (digits - 1) + 1, 0)
    place = np.where(values < 0, -place, place)
    fits |= values.view(np.uint64) == 0
    return Decimals(Ranks(digits, exponent), place.view(np.uint64), fits)


def _digits(finite: Floats, decade: _Whole, digits: int) -> tuple[_Whole, _Whole]:
    """Integers of so many digits, and the power of ten of the first of them."""
    where = decade
    near = np.zeros(len(finite), np.int64)
    # The logarithm may be one off, and rounding may carry into the next decade.
    for _ in range(2):
        near = np.rint(_shifted(finite, digits - 1 - where)).astype(np.int64)
        step = (near >= 10**digits).astype(np.int64) - (near < 10 ** (digits - 1))
        if not step.any():
            break
        where = where + np.where(finite > 0, step, 0)
    return near, where


def _shifted(values: Floats, places: _Whole) -> Floats:
    """``values * 10**places``, nearly; 0 where that is beyond what is used."""
    within = np.abs(places) <= PLACES_MAX
    power = _POWERS[np.where(within, np.abs(places), 0)]
    return np.where(within, np.where(places >= 0, values * power, values / power), 0.0)


def _scaled(near: _Whole, places: _Whole) -> Floats:
    """``near / 10**places``, rounded correctly where ``near`` is below 2⁵³."""
    power = _POWERS[np.minimum(np.abs(places), PLACES_MAX)]
    return np.where(places >= 0, near / power, near * power)


def _same(found: Floats, values: Floats) -> Flags:
    return np.asarray(found.view(np.uint64) == values.view(np.uint64))
