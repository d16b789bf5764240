"""Sets of sequence numbers as sorted, disjoint, half-open spans.

The spool's cursor, a receiver's ledger and an account of losses all say "these numbers", and mean
long runs with few holes. ``Ranges`` is that set, immutable. Invariants: each span ``(start, stop)``
has ``0 <= start < stop``; spans are sorted; no two touch. So equal sets have equal spans. (The idea
of keeping what was seen as ranges is that of selective acknowledgement, RFC 2018 and RFC 9000
section 19.3.)
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Ranges", "Span"]

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ranges:
    """An immutable set of non-negative integers.

    Args:
        spans: sorted, disjoint, non-touching half-open spans ``(start, stop)``.

    Raises:
        ValueError: the spans break an invariant. Use ``Ranges.of`` for spans in any order.
    """

    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        end = -1
        for start, stop in self.spans:
            if not end < start < stop:
                raise ValueError(f"spans not sorted, disjoint and non-empty at ({start}, {stop})")
            end = stop

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Ranges":
        """The set of all numbers in any of the spans, which may overlap and come in any order.

        Empty ones are left out.
        """
        merged: list[Span] = []
        for start, stop in sorted(span for span in spans if span[0] < span[1]):
            if merged and start <= merged[-1][1]:
                if stop > merged[-1][1]:
                    merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        index = bisect_right(self.spans, number, key=_start_of) - 1
        return index >= 0 and number < self.spans[index][1]

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.spans:
            yield from range(start, stop)

    def __str__(self) -> str:
        return ", ".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in self.spans) or "none"

    @property
    def end(self) -> int:
        """One more than the greatest number, 0 for the empty set."""
        return self.spans[-1][1] if self.spans else 0

    def watermark(self, start: int = 0) -> int:
        """The least number, not below ``start``, that is missing.

        All from ``start`` up to it are in the set.
        """
        index = bisect_right(self.spans, start, key=_start_of) - 1
        if index >= 0 and start < self.spans[index][1]:
            return self.spans[index][1]
        return start

    def covers(self, start: int, stop: int) -> bool:
        """Whether each number of ``start <= n < stop`` is in the set."""
        return self.watermark(start) >= stop

    def add(self, start: int, stop: int) -> "Ranges":
        """The set with ``start <= n < stop`` as well. Costs a copy of the spans, no sort."""
        if start >= stop:
            return self
        low = bisect_left(self.spans, start, key=_stop_of)
        high = bisect_right(self.spans, stop, key=_start_of)
        if low < high:
            start = min(start, self.spans[low][0])
            stop = max(stop, self.spans[high - 1][1])
        return Ranges((*self.spans[:low], (start, stop), *self.spans[high:]))

    def __or__(self, other: "Ranges") -> "Ranges":
        if not other.spans:
            return self
        if len(other.spans) == 1:
            return self.add(*other.spans[0])
        return Ranges.of((*self.spans, *other.spans))

    def __sub__(self, other: "Ranges") -> "Ranges":
        kept: list[Span] = []
        holes = other.spans
        for start, stop in self.spans:
            low = start
            index = bisect_right(holes, start, key=_stop_of)
            while index < len(holes) and holes[index][0] < stop:
                if low < holes[index][0]:
                    kept.append((low, holes[index][0]))
                low = holes[index][1]
                index += 1
            if low < stop:
                kept.append((low, stop))
        return Ranges(tuple(kept))

    def __and__(self, other: "Ranges") -> "Ranges":
        return self - (self - other)

    def gaps(self, start: int, stop: int) -> "Ranges":
        """The numbers of ``start <= n < stop`` that are not in the set."""
        return Ranges.of([(start, stop)]) - self


def _start_of(span: Span) -> int:
    return span[0]


def _stop_of(span: Span) -> int:
    return span[1]
