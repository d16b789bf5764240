"""Rows: the new records of a batch on their way into the archive, and the columns they make. Pure.

A batch that came as columns gives its numbers from its columns and its words from its templates,
once for each template. Of any other batch all records are read in one go. Only where something
about a record is odd is each read by itself, strictly: those that ``schemas.wire`` does not take,
or that are no record of the lane's kind, have a row with their bytes and no fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from mesh.spool.batch import Opened
from mesh.spool.columns.tables import Part, Table
from mesh.spool.columns.templates import Template
from nodes.headquarters.columns import Column, Flags, Lists, Numbers, Sizes, Words
from nodes.headquarters.fields import KINDS, Odd, no_fields, pick, read_plain
from schemas import wire
from schemas.errors import Refused
from schemas.layouts import LAYOUTS
from schemas.messages import Account, BatchHeader, MetricPoint, Reading
from schemas.ranges import Ranges

__all__ = ["Rows", "Shown", "accounts", "rows_of", "show"]

_UNKNOWN: Final = "unknown"
_CODES: Final = {layout.cls: layout.kind for layout in LAYOUTS}
_WIDE: Final = 8
_TIMES: Final = 2
_FLOAT: Final = 0xCB
_SIGNED: Final = 0xD3


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The new records of a batch.

    Args:
        header: the batch's header.
        seqs: their numbers.
        opened: their canonical bytes, in the order of their numbers.
        shown: what is said of them beside their bytes, where that was read before.
    """

    header: BatchHeader
    seqs: Ranges
    opened: Opened
    shown: "Shown | None" = None

    def __len__(self) -> int:
        return len(self.opened.bounds) - 1

    @property
    def records(self) -> list[bytes]:
        """The canonical bytes of each: an object for each, for those who want them."""
        return [self.opened.raw[a:b] for a, b in pairwise(self.opened.bounds.tolist())]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What is said of records beside their bytes.

    Args:
        kinds: the kind of each.
        known: which of them have fields; ``None`` for all.
        fields: columns over those that have.
    """

    kinds: Words
    known: Flags | None
    fields: Mapping[str, Column]


def rows_of(header: BatchHeader, new: Ranges, opened: Opened, shown: Shown | None = None) -> Rows:
    """The records of a batch whose numbers are new.

    Args:
        header: of the batch.
        new: which of its numbers.
        opened: all of its records, in the order of its numbers.
        shown: what is said of all of them beside their bytes, where that was read before.
    """
    if new == header.present:
        return Rows(header, new, opened, shown)
    numbers = _numbers(header.present)
    taken = np.zeros(len(numbers), np.bool_)
    for start, stop in new.spans:
        taken |= (numbers >= start) & (numbers < stop)
    return Rows(header, new, _slice(opened, taken))


def accounts(rows: Rows) -> list[Account]:
    """The accounts among some rows; one that is not as it should be is passed over."""
    found = []
    bounds = rows.opened.bounds
    heads = np.frombuffer(rows.opened.raw, np.uint8)
    # [kind, version, …]: a short array, and the kind as a small integer, if it is canonical.
    second = np.minimum(bounds[:-1] + 1, len(heads) - 1)
    for index in np.flatnonzero(heads[second] == _CODES[Account]).tolist():
        try:
            message = wire.decode(rows.opened.raw[bounds[index] : bounds[index + 1]])
        except Refused:
            continue
        if isinstance(message, Account):
            found.append(message)
    return found


def show(rows: Rows) -> Shown:
    """The fields of some rows, at least one."""
    if rows.shown is not None:
        return rows.shown
    cls = KINDS[rows.header.lane]
    count = len(rows)
    try:
        fields = _of_table(cls, rows.opened.table, count)
        if fields is None:
            fields = read_plain(cls, wire.unpack_many(rows.opened.raw))
    except (Odd, Refused):
        return _one_by_one(cls, rows)
    return Shown(Words((cls.__name__.lower(),), np.zeros(count, np.int64)), None, fields)


def _one_by_one(cls: type, rows: Rows) -> Shown:
    records = rows.records
    kinds: list[str] = []
    taken: list[bytes] = []
    known = np.zeros(len(records), np.bool_)
    for index, record in enumerate(records):
        try:
            message = wire.decode(record)
        except Refused:
            kinds.append(_UNKNOWN)
            continue
        kinds.append(type(message).__name__.lower())
        known[index] = isinstance(message, cls)
        if known[index]:
            taken.append(record)
    plain = wire.unpack_many(b"".join(taken))
    words = tuple(dict.fromkeys(kinds))
    codes = np.array([words.index(kind) for kind in kinds], np.int64)
    fields = read_plain(cls, plain) if plain else no_fields(cls)
    return Shown(Words(words, codes), known, fields)


def _slice(opened: Opened, taken: Flags) -> Opened:
    bounds = opened.bounds
    sizes = np.diff(bounds)
    index = pick(bounds[:-1], sizes, np.flatnonzero(taken))
    raw = np.frombuffer(opened.raw, np.uint8)[index].tobytes()
    ends = np.cumsum(sizes[taken])
    return Opened(raw, np.concatenate((np.zeros(1, np.int64), ends)), None)


def _numbers(numbers: Ranges) -> Sizes:
    return np.concatenate([np.arange(start, stop) for start, stop in numbers.spans])


# --- columns batches ------------------------------------------------------------------------------


def _of_table(cls: type, table: Table | None, count: int) -> dict[str, Column] | None:
    """Fields from numbers and templates; ``None`` where they do not stand so simply."""
    if table is None or cls not in {MetricPoint, Reading}:
        return None
    plains = []
    for template in table.templates:
        plain = _plain(cls, template)
        if plain is None:
            return None
        plains.append(plain)
    which = np.empty(count, np.int64)
    for number, members in enumerate(table.members):
        which[members] = number
    fields: dict[str, Column] = {
        "wall_at": Numbers(_times(table, 0), times=True),
        "mono_ns": Numbers(_times(table, 1)),
    }
    if cls is MetricPoint:
        value = table.column([Part(n, it.slots[2]) for n, it in enumerate(table.templates)])
        fields["name"] = Words(tuple(it[4] for it in plains), which)
        fields["value"] = Numbers(value.view(np.float64))
        fields["labels"] = _labels([it[6] for it in plains], which)
    else:
        fields["topic"] = Words(tuple(it[4] for it in plains), which)
        fields["values"] = _values(table, [it[5] for it in plains], which)
    return fields


def _plain(cls: type, template: Template) -> Sequence[Any] | None:
    """What a template says with its numbers zero, where it is one of two times, then floats."""
    slots = template.slots
    heads = [template.data[slot.offset - 1] for slot in slots]
    times = (
        all(slot.width == _WIDE and slot.series == n for n, slot in enumerate(slots[:_TIMES]))
        and _SIGNED not in heads[:_TIMES]
    )
    if len(slots) <= _TIMES or not times or {*heads[_TIMES:]} != {_FLOAT}:
        return None
    (plain,) = wire.unpack_many(template.data)
    # Reads it as it would be read in a row, and so finds out whether it is of that kind.
    read_plain(cls, [plain])
    floats = 1 if cls is MetricPoint else len(plain[5])  # type: ignore[index]
    return plain if len(slots) == _TIMES + floats else None  # type: ignore[return-value]


def _times(table: Table, place: int) -> Sizes:
    parts = [Part(number, it.slots[place]) for number, it in enumerate(table.templates)]
    values = table.column(parts).view(np.int64)
    if (values < 0).any():
        raise Odd
    return values


def _labels(pairs: Sequence[Sequence[tuple[str, str]]], which: Sizes) -> Lists:
    sizes = np.array([len(it) for it in pairs], np.int64)
    index = pick(np.cumsum(sizes) - sizes, sizes, which)
    names = tuple(name for it in pairs for name, _ in it)
    values = tuple(value for it in pairs for _, value in it)
    return Lists(sizes[which], Words(values, index), Words(names, index))


def _values(table: Table, pairs: Sequence[Sequence[tuple[str, float]]], which: Sizes) -> Lists:
    sizes = np.array([len(it) for it in pairs], np.int64)
    names = Words(
        tuple(name for it in pairs for name, _ in it),
        pick(np.cumsum(sizes) - sizes, sizes, which),
    )
    taken = sizes[which]
    starts = np.cumsum(taken) - taken
    found = np.empty(len(names), np.uint64)
    for number, (members, template) in enumerate(zip(table.members, table.templates, strict=True)):
        for place, slot in enumerate(template.slots[_TIMES:]):
            found[starts[members] + place] = table.column([Part(number, slot)])
    return Lists(taken, Numbers(found.view(np.float64)), names)
