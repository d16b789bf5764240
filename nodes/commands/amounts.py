"""Amounts: sizes, times and sets of numbers, as they are told. Pure."""

from typing import Final

from mesh.spool.view.rates import Moment
from nodes.commands.process import told
from schemas.ranges import Ranges

__all__ = ["lasting", "moment_document", "numbers_document", "size", "some", "when"]

_MS: Final = 1_000_000
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP: Final = 1024
_HOURS_IN_DAY: Final = 24
_DAYS_SHOWN_FROM_HOURS: Final = 72
_HOURS_SHOWN_MAX: Final = 24 * 365 * 10
_FEW: Final = 10


def when(moment: Moment | None) -> str:
    """A time; whether its clock was trusted, where it was not."""
    if moment is None:
        return "-"
    return told(moment.wall_ns) + ("" if moment.trusted else " (clock not trusted)")


def lasting(hours: float | None) -> str:
    """How long something lasts."""
    if hours is None:
        return "-"
    if hours > _HOURS_SHOWN_MAX:
        return "> 10 years"
    if hours > _DAYS_SHOWN_FROM_HOURS:
        return f"{hours:,.0f} ({hours / _HOURS_IN_DAY:,.0f} days)"
    return f"{hours:.1f}"


def size(count: float) -> str:
    """Bytes, in a unit that suits them."""
    for unit in _UNITS:
        if count < _STEP or unit == _UNITS[-1]:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= _STEP
    raise AssertionError("the last unit takes all")


def some(numbers: Ranges) -> str:
    """The numbers, of very many spans the first ones."""
    if len(numbers.spans) <= _FEW:
        return str(numbers)
    return f"{Ranges(numbers.spans[:_FEW])} and {len(numbers.spans) - _FEW} more ranges"


def numbers_document(numbers: Ranges) -> dict[str, object]:
    """A set of numbers, and how many they are."""
    return {"records": len(numbers), "numbers": str(numbers)}


def moment_document(moment: Moment | None) -> dict[str, object] | None:
    """A time in ms, and whether its clock was trusted."""
    if moment is None:
        return None
    return {"at": moment.wall_ns // _MS, "clock_trusted": moment.trusted}
