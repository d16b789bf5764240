"""A chunk: the numbers of one column as bytes. Pure; the only importer of pcodec.

A chunk does not say how many numbers it holds: its reader knows, and nothing is allocated on the
word of the bytes. It begins with a byte, the form in its low half and the type of number in its
high half::

    0 line     signed first, signed step: the numbers are first, first + step, …
    1 plain    the numbers as they are, little-endian
    2 packed   for integers: signed base, unsigned scale; for all: unsigned length of the meta,
               unsigned length of the page, meta and page of a pcodec chunk (wrapped format)

Integers are 64 bits wide and wrap round. In the last two forms they are written as ``(n - base) /
scale``, with the smallest as the base and the greatest common divisor as the scale, in the
narrowest type: time in whole seconds costs the bits of seconds. Floats are packed by their bits:
NaN with its payload and minus zero come back as they were.
"""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pcodec import (  # type: ignore[import-untyped]  # it publishes no types; hidden from here on
    ChunkConfig,
    DeltaSpec,
    ModeSpec,
    PagingSpec,
    wrapped,
)

from mesh.spool.columns.varints import Source, signed, unsigned
from schemas.errors import Refused, RefusedBecause

__all__ = ["HEAD", "Floats", "Reader", "Words", "write", "write_floats"]

Words: TypeAlias = npt.NDArray[np.uint64]
"""Integers of 64 bits; the signed ones as their two's complement."""
Floats: TypeAlias = npt.NDArray[np.float64]

HEAD: Final[bytes] = wrapped.FileCompressor().write_header()
"""What pcodec wants to be told before its first chunk: the version of its format."""

_LINE: Final = 0
_PLAIN: Final = 1
_PACKED: Final = 2
_UNSIGNED: Final[tuple[np.dtype[Any], ...]] = (
    np.dtype("<u1"),
    np.dtype("<u2"),
    np.dtype("<u4"),
    np.dtype("<u8"),
)
_FLOAT: Final = len(_UNSIGNED)
_PCODEC_NAMES: Final = ("", "u16", "u32", "u64", "f64")
_PART_BYTES_MAX: Final = 1 << 20
# What pcodec finds by itself; the difference to the value before; a line through the last two,
# which it knows for numbers of at most 32 bits.
_ITSELF: Final = (ModeSpec.auto(), DeltaSpec.auto())
_DELTA: Final = (ModeSpec.classic(), DeltaSpec.try_consecutive(1))
_SLOPE: Final = (ModeSpec.classic(), DeltaSpec.try_conv1(2))
_TRIALS: Final = (
    (),
    (_ITSELF, _DELTA, _SLOPE),
    (_ITSELF, _DELTA, _SLOPE),
    (_ITSELF, _DELTA),
    (_ITSELF,),
)
_TRIALS_MIN: Final = 64
"""Fewer numbers are not worth a second trial."""


def write(values: Words) -> bytes:
    """The shortest chunk of some integers, at least one."""
    whole = values.view(np.int64)
    first = int(whole[0])
    if len(whole) == 1:
        return bytes((_LINE,)) + signed(first) + signed(0)
    steps = values[1:] - values[:-1]
    if (steps == steps[0]).all():
        return bytes((_LINE,)) + signed(first) + signed(int(steps.view(np.int64)[0]))
    base = int(whole.min())
    above = values - np.uint64(base % 2**64)
    scale = int(np.gcd.reduce(above))
    above //= np.uint64(scale)
    most = int(above.max())
    code = next(i for i, kind in enumerate(_UNSIGNED) if most < 1 << 8 * kind.itemsize)
    head = signed(base) + unsigned(scale)
    plain = bytes((_PLAIN | code << 4,)) + head + above.astype(_UNSIGNED[code]).tobytes()
    code = max(code, 1)
    narrow = above.astype(_UNSIGNED[code])
    trials = _TRIALS[code] if len(values) >= _TRIALS_MIN else _TRIALS[_FLOAT]
    return min(plain, bytes((_PACKED | code << 4,)) + head + _packed(narrow, trials), key=len)


def write_floats(values: Floats) -> bytes:
    """The shortest chunk of some floats, at least one."""
    plain = bytes((_PLAIN | _FLOAT << 4,)) + values.astype("<f8").tobytes()
    packed = bytes((_PACKED | _FLOAT << 4,)) + _packed(values, _TRIALS[_FLOAT])
    return min(plain, packed, key=len)


class Reader:
    """Reads chunks.

    Args:
        source: where they come from.
        head: ``HEAD`` as their writer knew it.

    Raises:
        Refused: ``bad_version``: a format of pcodec that is not known here.
    """

    def __init__(self, source: Source, head: bytes) -> None:
        try:
            self._files, used = wrapped.FileDecompressor.new(head)
        except (RuntimeError, TypeError) as wrong:
            raise Refused(RefusedBecause.BAD_VERSION, f"pcodec: {str(wrong)[:120]}") from wrong
        if used != len(head):
            raise Refused(RefusedBecause.BAD_VERSION, f"pcodec: a head of {len(head)} bytes")
        self._source = source

    def integers(self, count: int) -> Words:
        """The integers of the chunk that comes next.

        Args:
            count: how many it must hold; bounded by the caller.

        Raises:
            Refused: ``malformed``, ``too_large``.
        """
        source = self._source
        form, code = self._form()
        if form == _LINE:
            first, step = source.signed(), source.signed()
            places = np.arange(count, dtype=np.uint64)
            return places * np.uint64(step % 2**64) + np.uint64(first % 2**64)
        if code >= _FLOAT:
            raise Refused(RefusedBecause.MALFORMED, f"floats in form {form} for integers")
        base, scale = source.signed(), source.unsigned()
        if form == _PLAIN:
            kind = _UNSIGNED[code]
            narrow = np.frombuffer(source.take(count * kind.itemsize), kind)
        else:
            narrow = self._unpacked(count, code)
        return narrow.astype(np.uint64) * np.uint64(scale) + np.uint64(base % 2**64)

    def floats(self, count: int) -> Floats:
        """The floats of the chunk that comes next; arguments and errors as of ``integers``."""
        form, code = self._form()
        if form == _LINE or code != _FLOAT:
            raise Refused(RefusedBecause.MALFORMED, f"form {form}, type {code} for floats")
        if form == _PLAIN:
            return np.frombuffer(self._source.take(8 * count), "<f8").astype(np.float64)
        return self._unpacked(count, code)

    def _form(self) -> tuple[int, int]:
        byte = self._source.byte()
        form, code = byte & 15, byte >> 4
        if form > _PACKED or code > _FLOAT or (form == _LINE and code):
            raise Refused(RefusedBecause.MALFORMED, f"chunk of form {form}, type {code}")
        return form, code

    def _unpacked(self, count: int, code: int) -> npt.NDArray[Any]:
        source, name = self._source, _PCODEC_NAMES[code]
        if not name:
            raise Refused(RefusedBecause.MALFORMED, "a packed chunk of bytes")
        meta_bytes, page_bytes = source.unsigned(_PART_BYTES_MAX), source.unsigned(_PART_BYTES_MAX)
        meta, page = source.take(meta_bytes), source.take(page_bytes)
        values = np.empty(count, np.float64 if code == _FLOAT else _UNSIGNED[code])
        try:
            chunk, meta_used = self._files.chunk_decompressor(meta, name)
            # It fills what is handed to it and no more, whatever the page holds.
            progress, page_used = chunk.read_page_into(page, count, values)
        except (RuntimeError, TypeError) as wrong:
            raise Refused(RefusedBecause.MALFORMED, f"pcodec: {str(wrong)[:120]}") from wrong
        whole = progress.finished and progress.n_processed == count
        if not whole or (meta_used, page_used) != (len(meta), len(page)):
            raise Refused(
                RefusedBecause.MALFORMED, f"pcodec: not {count} numbers, or bytes are left"
            )
        return values


def _packed(values: npt.NDArray[Any], trials: tuple[tuple[Any, Any], ...]) -> bytes:
    paging = PagingSpec.exact_page_sizes([len(values)])
    found: list[tuple[bytes, bytes]] = []
    for mode, delta in trials:
        config = ChunkConfig(mode_spec=mode, delta_spec=delta, paging_spec=paging)
        chunk = wrapped.FileCompressor().chunk_compressor(values, config)
        found.append((chunk.write_meta(), chunk.write_page(0)))
    meta, page = min(found, key=lambda parts: len(parts[0]) + len(parts[1]))
    return unsigned(len(meta)) + unsigned(len(page)) + meta + page
