"""Messages to canonical msgpack bytes and back: versioned, bounded, strict.

The only importer of msgpack.

A message is an array ``[kind, version, field, field, …]`` in the order of ``schemas.layouts``.
*Canonical* means that equal messages have equal bytes, so that digests and chains can be taken over
them:

- integers in their shortest form, floats always as float64, text as UTF-8 ``str``, bytes as
  ``bin``;
- mappings with their keys sorted; sets of numbers as a flat array ``start, stop, start, stop, …``
  of sorted disjoint spans;
- no extension types, no timestamps, no repeated keys, nothing after the last field.

``decode`` takes nothing else: it checks type, length and bound of each field, and refuses bytes
that ``encode`` would not have written. Kinds and versions never change their meaning; a new layout
takes a new version. (Format: msgpack specification,
github.com/msgpack/msgpack/blob/master/spec.md.)
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, TypeVar

import msgpack

from schemas.errors import Refused, RefusedBecause
from schemas.forms import wrong
from schemas.layouts import LAYOUTS
from schemas.messages import BatchHeader, Receipt, Record
from schemas.stored import (
    Closed,
    Cursor,
    CustodyHead,
    CustodyLane,
    CustodyRelease,
    JournalHeader,
    PartitionLedger,
    Reserved,
    StoreIdentity,
)

__all__ = [
    "Message",
    "bounds",
    "decode",
    "decode_as",
    "encode",
    "kind_of",
    "split",
    "unpack_many",
    "unpack_plain",
]

Message = (
    Record
    | BatchHeader
    | Receipt
    | StoreIdentity
    | JournalHeader
    | Reserved
    | Closed
    | Cursor
    | PartitionLedger
    | CustodyHead
    | CustodyLane
    | CustodyRelease
)

_M = TypeVar("_M")
_TIMESTAMP_HEADS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")

_BY_KIND: Final = {layout.kind: layout for layout in LAYOUTS}
_WRITERS: Final = {layout.cls: (layout.kind, layout.version, layout.writer()) for layout in LAYOUTS}
assert len(_BY_KIND) == len(LAYOUTS), "each kind stands once"


def encode(message: Message) -> bytes:
    """The canonical bytes of a message.

    Raises:
        Refused: ``malformed``, when it holds what cannot be written, such as a lone surrogate.
    """
    kind, version, plain = _WRITERS[type(message)]
    try:
        data: bytes = msgpack.packb((kind, version, *plain(message)))
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, struct.error) as wrong:
        raise Refused(RefusedBecause.MALFORMED, f"{type(message).__name__}: {wrong}") from wrong
    return data


def decode(data: bytes) -> Message:
    """The message whose canonical bytes these are, all of them.

    Raises:
        Refused: ``malformed``, ``bad_version``, ``wrong_type``, ``out_of_range``, ``too_large`` or
            ``not_a_number``.
    """
    raw = _unpack(data)
    if type(raw) is not list or len(raw) < 2:  # noqa: PLR2004 - kind and version
        raise wrong(raw, "an array [kind, version, …]")
    layout = _BY_KIND.get(raw[0]) if type(raw[0]) is int else None
    if layout is None or type(raw[1]) is not int or raw[1] != layout.version:
        known = ", ".join(f"{kind}" for kind in _BY_KIND)
        raise Refused(
            RefusedBecause.BAD_VERSION,
            f"kind {_shown(raw[0])} version {_shown(raw[1])}; known: {known} in version 1",
        )
    message: Message = layout.parse(raw[2:])
    if encode(message) != data:
        raise Refused(RefusedBecause.MALFORMED, f"{layout.cls.__name__}: not canonical")
    return message


def _shown(raw: object) -> str:
    return str(raw) if type(raw) is int else f"of type {type(raw).__name__}"


def decode_as(cls: type[_M], data: bytes) -> _M:
    """As ``decode``, for a message that must be of one class.

    Raises:
        Refused: as ``decode``, and ``wrong_type`` for a message of another class.
    """
    message = decode(data)
    if not isinstance(message, cls):
        raise wrong(message, cls.__name__)
    return message


def kind_of(data: bytes) -> str:
    """The class name that a message's bytes announce, in lower case, or ``unknown``.

    Reads two bytes.
    """
    if len(data) > 1 and (data[0] & 0xF0 == 0x90 or data[0] == 0xDC):  # noqa: PLR2004 - array heads
        code = data[1] if data[0] != 0xDC else (data[3] if len(data) > 3 else 0)  # noqa: PLR2004
        layout = _BY_KIND.get(code)
        if layout is not None:
            return layout.cls.__name__.lower()
    return "unknown"


def split(body: bytes, count: int) -> list[bytes]:
    """Cuts a body into the canonical bytes of its records, without reading them.

    Args:
        body: messages one after another.
        count: how many there must be.

    Raises:
        Refused: ``malformed``, when there are more or fewer, or one is broken.
    """
    return [body[start:stop] for start, stop in pairwise(bounds(body, count))]


def bounds(body: bytes, count: int) -> list[int]:
    """Where the records of a body begin, and where the last one ends, without reading them.

    Args:
        body: messages one after another.
        count: how many there must be.

    Raises:
        Refused: ``malformed``, when there are more or fewer, or one is broken.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(body), 1))
    unpacker.feed(body)
    skip, tell = unpacker.skip, unpacker.tell
    found = [0]
    try:
        for _ in range(count):
            skip()
            found.append(tell())
    except (ValueError, msgpack.exceptions.UnpackException) as broken:
        where = f"record {len(found) - 1} of {count} at byte {found[-1]}"
        raise Refused(RefusedBecause.MALFORMED, f"{where} is broken or missing") from broken
    if found[-1] != len(body):
        raise Refused(
            RefusedBecause.MALFORMED, f"{len(body) - found[-1]} bytes after {count} records"
        )
    return found


def unpack_many(body: bytes) -> list[object]:
    """What messages one after another say in plain words, in one go, unchecked.

    For those who want columns of many records: whatever is odd about a record is theirs to find,
    and ``decode`` is what judges it.

    Args:
        body: messages one after another; the caller bounds its length.

    Returns:
        For each its plain value; maps as lists of pairs, in their order.

    Raises:
        Refused: ``malformed``: one of them is not msgpack, or text that is not UTF-8.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(len(body), 1),
        strict_map_key=True,
        ext_hook=_refuse_extension,
        object_pairs_hook=list,
    )
    unpacker.feed(body)
    try:
        return list(unpacker)
    except (ValueError, msgpack.exceptions.UnpackException) as broken:
        raise Refused(RefusedBecause.MALFORMED, f"not msgpack: {str(broken)[:120]}") from broken


def unpack_plain(data: bytes) -> object:
    """What one msgpack value says in plain words: a sensor's, which is no message of ours.

    Args:
        data: one value, all of it; the caller bounds its length.

    Returns:
        Numbers, text, bytes, booleans, ``None``, lists, and dicts whose keys are text or bytes.

    Raises:
        Refused: ``malformed``: not msgpack, bytes after the value, an extension type, a key that
            stands twice, or deeper than the library goes.
    """
    plain = _unpack(data)
    # The library reads timestamps by itself and never asks about them. Few bytes begin like one.
    if any(head in data for head in _TIMESTAMP_HEADS) and _holds_timestamp(plain):
        _refuse_extension(-1, b"")
    return plain


def _holds_timestamp(plain: object) -> bool:
    # No recursion: the library goes deeper than the interpreter's stack does.
    values = [plain]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, msgpack.Timestamp):
            return True
    return False


def _unpack(data: bytes) -> object:
    try:
        plain: object = msgpack.unpackb(
            data, strict_map_key=True, ext_hook=_refuse_extension, object_pairs_hook=_unique
        )
    except (ValueError, msgpack.exceptions.UnpackException) as broken:
        if isinstance(broken.__cause__, Refused):
            raise broken.__cause__ from None
        detail = str(broken)[:120] or type(broken).__name__
        raise Refused(RefusedBecause.MALFORMED, f"not msgpack: {detail}") from broken
    return plain


def _refuse_extension(code: int, _data: bytes) -> object:
    raise Refused(RefusedBecause.MALFORMED, f"extension type {code}; none is allowed")


def _unique(pairs: Iterable[tuple[object, object]]) -> dict[object, object]:
    items: Sequence[tuple[object, object]] = list(pairs)
    mapping = dict(items)
    if len(mapping) != len(items):
        raise Refused(RefusedBecause.MALFORMED, "a key stands twice")
    return mapping
