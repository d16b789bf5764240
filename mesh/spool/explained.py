"""What a spool says of numbers that will never arrive, kept small. Pure.

Each unclean start may add a span of ``void`` numbers to each lane, and a device may start for
ever, so the spans are bounded. Beyond the bound the oldest merge:

- first across numbers that were released. The receiver holds those, and *delivered beats
  explained*, so its counts stay exact;
- where what lies between is still pending, it is given up: the oldest half becomes one ``evicted``
  span, over the pending numbers too. That is a stated loss, never a silent one, and the last
  resort: it takes a thousand starts without a single receipt.
"""

from collections.abc import Mapping

from schemas.limits import EXPLAINED_SPANS_MAX
from schemas.messages import Explained
from schemas.ranges import Ranges

__all__ = ["all_of", "bounded"]


def all_of(explained: Mapping[str, Ranges]) -> Ranges:
    """The numbers of all reasons."""
    return Ranges.of([span for numbers in explained.values() for span in numbers.spans])


def bounded(explained: Mapping[str, Ranges], released: Ranges) -> dict[str, Ranges]:
    """The same statement, or a coarser one, in at most ``EXPLAINED_SPANS_MAX`` spans.

    Args:
        explained: numbers by reason.
        released: numbers that the next holder has.

    Returns:
        At least the same numbers, each under its reason, or under ``evicted`` in the last resort.
    """
    if _spans(explained) <= EXPLAINED_SPANS_MAX:
        return dict(explained)
    bridges = released - all_of(explained)
    merged = {why: _bridged(numbers, bridges) for why, numbers in explained.items()}
    if _spans(merged) <= EXPLAINED_SPANS_MAX:
        return merged
    spans = sorted(span for numbers in merged.values() for span in numbers.spans)
    oldest = spans[: len(spans) - EXPLAINED_SPANS_MAX // 2]
    hull = Ranges(((oldest[0][0], max(stop for _, stop in oldest)),))
    rest = {why: numbers - hull for why, numbers in merged.items()}
    rest[Explained.EVICTED] = rest.get(Explained.EVICTED, Ranges()) | hull
    return {why: numbers for why, numbers in rest.items() if numbers}


def _spans(explained: Mapping[str, Ranges]) -> int:
    return sum(len(numbers.spans) for numbers in explained.values())


def _bridged(numbers: Ranges, bridges: Ranges) -> Ranges:
    """The set with each gap that the bridges cover as a whole."""
    if not numbers:
        return numbers
    gaps = numbers.gaps(numbers.spans[0][0], numbers.end)
    return Ranges.of([*numbers.spans, *(gap for gap in gaps.spans if bridges.covers(*gap))])
