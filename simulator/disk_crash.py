"""Every tree that a crash could leave: which subsets of the unsynced operations, in which order.

``simulator.disk_medium`` says which are possible. Here they are enumerated: all where they are few;
where they are many, first the ones that find most faults, then random ones.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Final

from simulator.disk_medium import Medium
from simulator.disk_tree import Grow, Operation, Tree, Write

__all__ = ["EXHAUSTIVE_OPERATIONS", "EXHAUSTIVE_UNITS", "TORN_UNITS_MAX", "crash_trees"]

EXHAUSTIVE_UNITS: Final = 12
"""Up to so many blocks, lengths and names, each subset is generated: four operations of 4 KiB."""

EXHAUSTIVE_OPERATIONS: Final = 4
"""Up to so many, each subset of whole operations is generated, and each one torn as the last."""

TORN_UNITS_MAX: Final = 64
"""At so many places a long operation is torn on purpose; the others are left to chance."""


def crash_trees(
    medium: Medium, generator: random.Random, block_bytes: int, samples_max: int
) -> Iterator[Tree]:
    """Trees that a crash could leave, each once.

    Up to ``EXHAUSTIVE_UNITS`` units (blocks, lengths, names) all of them. Beyond that, at most
    ``samples_max`` subsets: each prefix of the operations; up to ``EXHAUSTIVE_OPERATIONS``
    operations each subset of whole ones, and the prefixes with a block of the last operation
    missing, alone, and last; then random ones.

    Args:
        medium: what crashed; not changed.
        generator: draws the random subsets.
        block_bytes: what the device writes as a whole.
        samples_max: how many subsets to look at where there are too many; several may give the same
            tree.
    """
    units = _Units(medium.unsynced, block_bytes)
    known: set[tuple[object, ...]] = set()
    tried: set[int] = set()
    for mask in units.masks(generator, samples_max):
        chosen = units.closed(mask)
        if chosen in tried:
            continue
        tried.add(chosen)
        tree = medium.durable.copy()
        for operation in units.chosen(chosen):
            tree.apply(operation)
        key = tree.key()
        if key not in known:
            known.add(key)
            yield tree


class _Units:
    """Operations cut into what survives as a whole or not at all; sets of them are bit masks."""

    def __init__(self, operations: Sequence[Operation], block_bytes: int) -> None:
        groups = [_cut(operation, block_bytes) for operation in operations]
        self._units = [unit for group in groups for unit in group]
        self._ends = list(accumulate(map(len, groups), initial=0))
        self._needs = _same_block(self._units, block_bytes)
        self._needy = sum(1 << index for index, needs in enumerate(self._needs) if needs)

    def chosen(self, mask: int) -> Iterator[Operation]:
        return (unit for index, unit in enumerate(self._units) if mask >> index & 1)

    def closed(self, mask: int) -> int:
        """With what the pages of the chosen blocks had taken before."""
        closed, rest = mask, mask & self._needy
        while rest:
            lowest = rest & -rest
            closed |= self._needs[lowest.bit_length() - 1]
            rest ^= lowest
        return closed

    def masks(self, generator: random.Random, samples_max: int) -> Iterator[int]:
        if len(self._units) <= EXHAUSTIVE_UNITS:
            yield from range(1 << len(self._units))
        else:
            yield from islice(self._samples(generator), samples_max)

    def _samples(self, generator: random.Random) -> Iterator[int]:
        for end in self._ends:
            yield _ones(0, end)
        if len(self._ends) - 1 <= EXHAUSTIVE_OPERATIONS:
            yield from self._whole_subsets()
            yield from self._torn_last(generator)
        while True:
            yield self._random(generator)

    def _whole_subsets(self) -> Iterator[int]:
        spans = [_ones(start, end) for start, end in self._spans()]
        for mask in range(1 << len(spans)):
            yield sum(span for index, span in enumerate(spans) if mask >> index & 1)

    def _torn_last(self, generator: random.Random) -> Iterator[int]:
        for start, end in self._spans():
            before, span = _ones(0, start), _ones(start, end)
            places = min(TORN_UNITS_MAX, end - start)
            for unit in sorted(generator.sample(range(start, end), places)):
                yield before | (span ^ 1 << unit)
                yield before | 1 << unit
                yield before | _ones(start, unit)

    def _random(self, generator: random.Random) -> int:
        """Half of the time a prefix whose last operation is torn, else anything, thin or dense."""
        if generator.random() < 0.5:  # noqa: PLR2004  # named in the docstring
            start, end = generator.choice(self._spans())
            return _ones(0, start) | generator.getrandbits(end - start) << start
        share = generator.random()
        return sum(1 << index for index in range(len(self._units)) if generator.random() < share)

    def _spans(self) -> list[tuple[int, int]]:
        return list(pairwise(self._ends))


def _cut(operation: Operation, block_bytes: int) -> list[Operation]:
    if not isinstance(operation, Write):
        return [operation]
    node, offset, data, length = operation
    end = offset + len(data)
    bounds = [offset, *range((offset // block_bytes + 1) * block_bytes, end, block_bytes), end]
    cut: list[Operation] = [
        Write(node, start, data[start - offset : stop - offset], length)
        for start, stop in pairwise(bounds)
        if start < stop
    ]
    return [*cut, Grow(node, end)] if end > length else cut


def _same_block(units: Sequence[Operation], block_bytes: int) -> list[int]:
    """For each unit those before it that went to the same block, as a mask."""
    earlier: dict[tuple[int, int], int] = {}
    needs = []
    for index, unit in enumerate(units):
        if not isinstance(unit, Write):
            needs.append(0)
            continue
        block = (unit.node, unit.offset // block_bytes)
        needs.append(earlier.get(block, 0))
        earlier[block] = earlier.get(block, 0) | 1 << index
    return needs


def _ones(start: int, end: int) -> int:
    return (1 << end) - (1 << start)
