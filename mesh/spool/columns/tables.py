"""A table: records as numbers in templates, one grid of bytes for each template. Pure.

Records that have the same template (``mesh.spool.columns.templates``) are rows of one grid. A
*column* is the numbers of some slots in the order of their records, across grids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mesh.spool.columns.chunks import Words
from mesh.spool.columns.templates import SLOTS_MAX, Slot, Template, Unknown, template

__all__ = ["Part", "Table", "blank", "joined", "tabulate"]

_TEMPLATE_SHARE: Final = 2
"""Fewer records than this for each template are better kept as rows."""

_SHAPES_MAX: Final = 256
"""So many ways of where the numbers stand; with more, looking for what is alike takes too long."""

_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """The numbers of one slot: which template, which slot."""

    which: int
    slot: Slot


@dataclass(frozen=True, slots=True)
class Table:
    """Records as numbers in templates.

    Args:
        templates: in the order of their first record.
        members: for each template, which records have it, ascending.
        grids: for each template, the bytes of those records, one a row.
    """

    templates: Sequence[Template]
    members: Sequence[_Places]
    grids: Sequence[_Bytes]

    def column(self, parts: Sequence[Part]) -> Words:
        """The numbers of some slots in the order of their records."""
        values = np.concatenate([_look(self.grids[part.which], part.slot) for part in parts])
        return values[self._order(parts)] if len(parts) > 1 else values

    def fill(self, parts: Sequence[Part], values: Words) -> None:
        """Puts the numbers of a column where they belong."""
        if len(parts) > 1:
            ordered = np.empty_like(values)
            ordered[self._order(parts)] = values
            values = ordered
        start = 0
        for part in parts:
            grid = self.grids[part.which]
            _put(grid, part.slot, values[start : start + len(grid)])
            start += len(grid)

    def count(self, parts: Sequence[Part]) -> int:
        """How many numbers some slots have."""
        return sum(len(self.members[part.which]) for part in parts)

    def _order(self, parts: Sequence[Part]) -> _Places:
        return np.argsort(np.concatenate([self.members[part.which] for part in parts]))


def tabulate(records: Sequence[bytes]) -> Table | None:
    """Records sorted by their template; ``None`` where they have too little in common.

    Args:
        records: their bytes; at least one.
    """
    found: list[tuple[Template, _Places, _Bytes]] = []
    walked: dict[bytes, Template] = {}
    shapes = 0
    lengths = np.array([len(record) for record in records])
    for length in np.unique(lengths):
        left = np.flatnonzero(lengths == length)
        while len(left):
            try:
                taken, left = _take_alike(records, left, int(length), walked)
            except Unknown:
                return None
            found += taken
            shapes += 1
            many = len(found) * _TEMPLATE_SHARE > max(len(records), _TEMPLATE_SHARE)
            if many or shapes > _SHAPES_MAX:
                return None
    if not 0 < sum(len(known.slots) for known, _, _ in found) <= SLOTS_MAX:
        return None
    found.sort(key=lambda item: int(item[1][0]))
    return Table(
        [known for known, _, _ in found],
        [members for _, members, _ in found],
        [grid for _, _, grid in found],
    )


def _take_alike(
    records: Sequence[bytes], left: _Places, length: int, walked: dict[bytes, Template]
) -> tuple[list[tuple[Template, _Places, _Bytes]], _Places]:
    """Takes out the records whose numbers stand where those of the first of them stand.

    All of them are blanked there at once; those that are then the same bytes have one template,
    provided that it is one with its numbers at those places.
    """
    grid = np.frombuffer(b"".join([records[i] for i in left]), np.uint8).reshape(-1, length)
    first = _template(records[left[0]], walked)
    zeroed = grid.copy()
    for slot in first.slots:
        zeroed[:, slot.offset : slot.offset + slot.width] = 0
    rows = zeroed.tobytes()
    groups: dict[bytes, list[int]] = {}
    for row in range(len(left)):
        groups.setdefault(rows[row * length : (row + 1) * length], []).append(row)
    places = [(slot.offset, slot.width) for slot in first.slots]
    taken: list[tuple[Template, _Places, _Bytes]] = []
    rest: list[int] = []
    for members in groups.values():
        known = _template(records[left[members[0]]], walked)
        if [(it.offset, it.width) for it in known.slots] == places:
            taken.append((known, left[members], grid[members]))
        else:
            rest += members
    return taken, left[sorted(rest)]


def _template(record: bytes, walked: dict[bytes, Template]) -> Template:
    known = walked.get(record)
    if known is None:
        known = walked[record] = template(record)
    return known


def blank(templates: Sequence[Template], which: _Places) -> Table:
    """A table whose numbers are all zero.

    Args:
        templates: of all records.
        which: the number of the template of each record.
    """
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(templates) + 1))
    members = [order[bounds[n] : bounds[n + 1]] for n in range(len(templates))]
    grids = [
        np.tile(np.frombuffer(known.data, np.uint8), (len(rows), 1))
        for known, rows in zip(templates, members, strict=True)
    ]
    return Table(templates, members, grids)


def joined(table: Table, sizes: _Places) -> bytes:
    """The records one after another, in their order."""
    if len(table.grids) == 1:
        return table.grids[0].tobytes()
    body = np.empty(int(sizes.sum()), np.uint8)
    starts = np.cumsum(sizes) - sizes
    for members, grid in zip(table.members, table.grids, strict=True):
        body[starts[members][:, None] + np.arange(grid.shape[1])] = grid
    return body.tobytes()


def _look(grid: _Bytes, slot: Slot) -> Words:
    raw = np.ascontiguousarray(grid[:, slot.offset : slot.offset + slot.width])
    return raw.view(f">u{slot.width}").ravel().astype(np.uint64)


def _put(grid: _Bytes, slot: Slot, values: Words) -> None:
    wide = values.astype(f">u{slot.width}")
    grid[:, slot.offset : slot.offset + slot.width] = wide.view(np.uint8).reshape(-1, slot.width)
