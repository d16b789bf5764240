"""Columns: records whose numbers stand apart from their words, number by number. Pure.

The body of a batch of metrics or readings. A record is a template and numbers
(``mesh.spool.columns.templates``); templates are kept once, numbers as columns::

    u8       version, 1
    u8       length of what pcodec wants to be told first, and that
    unsigned bytes of the templates, unsigned bytes of them deflated, deflated (RFC 1951):
             unsigned length and bytes of each
    chunk    which template each record has; not there when there is one
    columns  of integers, by their order within the record: u8 1 where they are written as their
             difference to the first of the same record, else 0; a chunk
    columns  of floats, a series each, in the order in which they turn up in the templates
    column   the short series one after another, where there are some

Invariants. Which columns there are and how long each is follows from the templates and from which
record has which; nothing else says a length, so nothing is allocated on the word of a stranger. The
opened body has exactly as many bytes as the header of the batch says. ``decode(encode(records))``
is the same bytes, and the writer tries it before it believes it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mesh.spool.columns import chunks, series
from mesh.spool.columns.chunks import HEAD, Reader, Words
from mesh.spool.columns.tables import Part, Table, blank, joined, tabulate
from mesh.spool.columns.templates import SLOTS_MAX, Template, Unknown, template
from mesh.spool.columns.varints import Source, unsigned
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_RAW_BYTES_MAX

__all__ = ["decode", "encode", "read"]

_VERSION: Final = 1
_HEAD_BYTES_MAX: Final = 16
_SHORT: Final = 32
"""A series of fewer values shares its column with the other short ones."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which columns there are, and in which order: known to both sides from the templates."""

    integers: Sequence[Sequence[Part]]
    long: Sequence[Sequence[Part]]
    short: Sequence[Sequence[Part]]

    @classmethod
    def of(cls, table: Table) -> "_Plan":
        found: dict[object, list[Part]] = {}
        for which, known in enumerate(table.templates):
            for slot in known.slots:
                found.setdefault(slot.series, []).append(Part(which, slot))
        integers = {key: parts for key, parts in found.items() if isinstance(key, int)}
        floats = [parts for key, parts in found.items() if not isinstance(key, int)]
        return cls(
            [integers[key] for key in sorted(integers)],
            [parts for parts in floats if table.count(parts) >= _SHORT],
            [parts for parts in floats if 0 < table.count(parts) < _SHORT],
        )

    def differs(self, index: int) -> bool:
        """Whether a column of integers has a number for each of the first column's."""
        return [part.which for part in self.integers[index]] == [
            part.which for part in self.integers[0]
        ]


def encode(records: Sequence[bytes]) -> bytes | None:
    """Records as columns; ``None`` where they have too little in common, or no numbers.

    Args:
        records: the canonical bytes of each; at least one.
    """
    table = tabulate(records)
    if table is None:
        return None
    words = b"".join(unsigned(len(known.data)) + known.data for known in table.templates)
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = squeezer.compress(words) + squeezer.flush()
    parts = [bytes((_VERSION, len(HEAD))), HEAD]
    parts += [unsigned(len(words)), unsigned(len(deflated)), deflated]
    if len(table.templates) > 1:
        which = np.empty(len(records), np.uint64)
        for index, members in enumerate(table.members):
            which[members] = index
        parts.append(chunks.write(which))
    plan = _Plan.of(table)
    columns = [table.column(column) for column in plan.integers]
    for index, values in enumerate(columns):
        own = b"\0" + chunks.write(values)
        if index and plan.differs(index):
            own = min(own, b"\1" + chunks.write(values - columns[0]), key=len)
        parts.append(own)
    parts += [series.write(table.column(column)) for column in plan.long]
    if plan.short:
        parts.append(series.write(np.concatenate([table.column(it) for it in plan.short])))
    return b"".join(parts)


def decode(data: bytes, count: int, raw_bytes: int) -> bytes:
    """The canonical bytes of records, one after another.

    Arguments and errors as of ``read``.
    """
    return joined(*read(data, count, raw_bytes))


def read(data: bytes, count: int, raw_bytes: int) -> tuple[Table, npt.NDArray[np.int64]]:
    """Records as a table, and how many bytes each has.

    Args:
        data: what ``encode`` gave, or anything else.
        count: how many records there must be.
        raw_bytes: how many bytes they must have.

    Raises:
        Refused: ``bad_version``, ``malformed``, ``too_large`` or ``out_of_range``.
    """
    # A record has a byte at least: so neither can ask for much.
    if not 0 < count <= raw_bytes <= BATCH_RAW_BYTES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{count} records in {raw_bytes} bytes")
    source = Source(data)
    if (version := source.byte()) != _VERSION:
        raise Refused(RefusedBecause.BAD_VERSION, f"columns version {version}, known is {_VERSION}")
    size = source.byte()
    if size > _HEAD_BYTES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"a pcodec head of {size} bytes")
    reader = Reader(source, source.take(size))
    templates = _read_templates(source, count, raw_bytes)
    which = np.zeros(count, np.int64)
    if len(templates) > 1:
        read = reader.integers(count)
        if (read >= len(templates)).any():
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"beyond {len(templates)} templates")
        which = read.astype(np.int64)
    sizes = np.array([len(known.data) for known in templates], np.int64)[which]
    if int(sizes.sum()) != raw_bytes:
        raise Refused(RefusedBecause.MALFORMED, f"{sizes.sum()} bytes instead of {raw_bytes}")
    table = blank(templates, which)
    _read_columns(source, reader, table)
    source.finish()
    return table, sizes


def _read_templates(source: Source, count: int, raw_bytes: int) -> list[Template]:
    # A template is no longer than a record that has it, and has a length beside it.
    size, deflated_bytes = source.unsigned(2 * raw_bytes), source.unsigned()
    opener = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        words = opener.decompress(source.take(deflated_bytes), size + 1)
    except zlib.error as wrong:
        raise Refused(RefusedBecause.MALFORMED, f"templates: {wrong}") from wrong
    if len(words) != size or not opener.eof or opener.unused_data:
        raise Refused(RefusedBecause.MALFORMED, f"templates of other than {size} bytes")
    inner = Source(words)
    found: list[Template] = []
    slots = 0
    while inner.left:
        words = inner.take(inner.unsigned(raw_bytes))
        try:
            found.append(template(words))
        except Unknown as wrong:
            raise Refused(RefusedBecause.MALFORMED, f"a template: {wrong}") from wrong
        slots += len(found[-1].slots)
        if slots > SLOTS_MAX:
            raise Refused(RefusedBecause.TOO_LARGE, f"more than {SLOTS_MAX} slots")
    if not 0 < len(found) <= count:
        raise Refused(RefusedBecause.MALFORMED, f"{len(found)} templates, {count} records")
    return found


def _read_columns(source: Source, reader: Reader, table: Table) -> None:
    plan = _Plan.of(table)
    first: Words | None = None
    for index, parts in enumerate(plan.integers):
        differs = source.byte()
        if differs > 1 or (differs and (first is None or not plan.differs(index))):
            raise Refused(RefusedBecause.MALFORMED, f"column {index} differs from none")
        values = reader.integers(table.count(parts))
        if differs and first is not None:
            values = values + first
        first = values if first is None else first
        table.fill(parts, values)
    for parts in plan.long:
        table.fill(parts, series.read(source, reader, table.count(parts)))
    if not plan.short:
        return
    values = series.read(source, reader, sum(table.count(parts) for parts in plan.short))
    for parts in plan.short:
        size = table.count(parts)
        table.fill(parts, values[:size])
        values = values[size:]
