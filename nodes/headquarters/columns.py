"""Columns of values between records and the archive: in numpy, without an object for each value.

Four kinds: numbers; texts, each with its own bytes; words, where few distinct ones stand many
times; lists, of names with their values too. Each can be joined to others of its kind, spread over
rows of which some have no value, and shown to DuckDB as an Arrow field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nodes.headquarters.arrow import Buffer, Field

__all__ = [
    "Column",
    "Flags",
    "Lists",
    "Numbers",
    "Sizes",
    "Texts",
    "Words",
    "join",
    "spread",
    "validity",
]

Flags: TypeAlias = npt.NDArray[np.bool_]
Sizes: TypeAlias = npt.NDArray[np.int64]

_FORMATS: Final = {"f8": "g", "i4": "i", "i8": "l", "u8": "L"}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Integers, floats, truths, or times in ns since 1970.

    Args:
        values: of dtype int64, uint64, float64 or bool.
        times: whether integers are times.
    """

    values: npt.NDArray[Any]
    times: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def joined(self, others: Sequence["Numbers"]) -> "Numbers":
        """This and others behind it."""
        return Numbers(np.concatenate([it.values for it in (self, *others)]), self.times)

    def spread(self, mask: Flags) -> "Numbers":
        """These values where the mask is set, some value elsewhere."""
        values = np.zeros(len(mask), self.values.dtype)
        values[mask] = self.values
        return Numbers(values, self.times)

    def field(self, name: str, validity: Buffer = None) -> Field:
        """As an Arrow field."""
        if self.values.dtype == np.bool_:
            return Field(name, "b", len(self), (validity, _bits(self.values)))
        kind = "tsn:" if self.times else _FORMATS[self.values.dtype.str[1:]]
        return Field(name, kind, len(self), (validity, np.ascontiguousarray(self.values)))


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts or bytes, one after another.

    Args:
        data: all of them; UTF-8 where they are texts.
        sizes: the length of each in bytes.
        binary: whether they are bytes.
    """

    data: bytes
    sizes: Sizes
    binary: bool = False

    def __len__(self) -> int:
        return len(self.sizes)

    def joined(self, others: Sequence["Texts"]) -> "Texts":
        """This and others behind it."""
        parts = (self, *others)
        sizes = np.concatenate([it.sizes for it in parts])
        return Texts(b"".join([it.data for it in parts]), sizes, self.binary)

    def spread(self, mask: Flags) -> "Texts":
        """These values where the mask is set, an empty one elsewhere."""
        sizes = np.zeros(len(mask), np.int64)
        sizes[mask] = self.sizes
        return Texts(self.data, sizes, self.binary)

    def field(self, name: str, validity: Buffer = None) -> Field:
        """As an Arrow field, with offsets of 64 bits."""
        kind = "Z" if self.binary else "U"
        return Field(name, kind, len(self), (validity, _offsets(self.sizes), self.data))


@dataclass(frozen=True, slots=True)
class Words:
    """Texts of which few are distinct.

    Args:
        words: those that occur; one may stand twice.
        codes: for each value which word it is.
    """

    words: tuple[str, ...]
    codes: Sizes

    def __len__(self) -> int:
        return len(self.codes)

    def joined(self, others: Sequence["Words"]) -> "Words":
        """This and others behind it."""
        parts = (self, *others)
        bases = [0, *accumulate(len(it.words) for it in parts)]
        codes = [it.codes + base for it, base in zip(parts, bases, strict=False)]
        words = tuple(word for it in parts for word in it.words)
        return Words(words, np.concatenate(codes))

    def spread(self, mask: Flags) -> "Words":
        """These values where the mask is set, some word elsewhere."""
        codes = np.zeros(len(mask), np.int64)
        codes[mask] = self.codes
        return Words(self.words, codes)

    def field(self, name: str, validity: Buffer = None) -> Field:
        """As an Arrow field with a dictionary; without one where there is no value at all.

        DuckDB 2.0 refuses lists that are all empty when their items have a dictionary.
        """
        if not len(self):
            return Texts(b"", np.zeros(0, np.int64)).field(name, validity)
        encoded = [word.encode() for word in self.words or ("",)]
        sizes = np.array([len(word) for word in encoded], np.int64)
        words = Field("", "U", len(encoded), (None, _offsets(sizes), b"".join(encoded)))
        codes = self.codes.astype(np.int32)
        return Field(name, "i", len(self), (validity, codes), dictionary=words)


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of values, or of names with a value each.

    Args:
        sizes: how many each has.
        items: all values, one after another.
        names: the name of each of them; ``None`` for a list without.
    """

    sizes: Sizes
    items: "Column"
    names: Words | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def joined(self, others: Sequence["Lists"]) -> "Lists":
        """This and others behind it."""
        sizes = np.concatenate([self.sizes, *(it.sizes for it in others)])
        items = join([self.items, *(it.items for it in others)])
        if self.names is None:
            return Lists(sizes, items)
        return Lists(
            sizes, items, self.names.joined([it.names for it in others if it.names is not None])
        )

    def spread(self, mask: Flags) -> "Lists":
        """These values where the mask is set, an empty one elsewhere."""
        sizes = np.zeros(len(mask), np.int64)
        sizes[mask] = self.sizes
        return Lists(sizes, self.items, self.names)

    def field(self, name: str, validity: Buffer = None) -> Field:
        """As an Arrow list: of values, or of structs ``key, value``.

        Not as a map: that each key stands once costs DuckDB a microsecond a row to find out.
        """
        buffers = (validity, _offsets(self.sizes).astype(np.int32))
        if self.names is None:
            return Field(name, "+l", len(self), buffers, (self.items.field("item"),))
        pairs = (self.names.field("key"), self.items.field("value"))
        entries = Field("item", "+s", len(self.items), (None,), pairs)
        return Field(name, "+l", len(self), buffers, (entries,))


Column: TypeAlias = Numbers | Texts | Words | Lists


def join(columns: Sequence[Any]) -> Any:  # noqa: ANN401 - a column of whichever kind they all are
    """Columns of one kind, one behind another; at least one."""
    return columns[0].joined(columns[1:]) if len(columns) > 1 else columns[0]


def spread(column: Column, known: Flags | None) -> Column:
    """A column over rows of which only some have a value; ``None`` where all have one."""
    return column if known is None else column.spread(known)


def validity(known: Flags) -> Buffer:
    """Which rows have a value, a bit for each; ``None`` where all have one."""
    return None if known.all() else _bits(known)


def _bits(flags: Flags) -> npt.NDArray[np.uint8]:
    return np.packbits(flags, bitorder="little")


def _offsets(sizes: Sizes) -> Sizes:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets
