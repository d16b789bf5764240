"""Messages to canonical msgpack bytes and back: versioned, bounded, strict.

The only importer of msgpack.

A message is an array ``[kind, version, field, field, …]`` in the order of the table below.
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

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgpack

from schemas.errors import Refused, RefusedBecause
from schemas.limits import (
    BATCH_BYTES_MAX,
    BATCH_RAW_BYTES_MAX,
    DECISION_REASONS_MAX,
    DECISION_VALUES_MAX,
    EXTENSIONS_MAX,
    FRAMES_PER_BATCH_MAX,
    IDENTIFIER_CHARS_MAX,
    LEDGER_FILES_MAX,
    LEDGER_LANES_MAX,
    MODEL_FIELDS_MAX,
    RANGES_MAX,
    RECORDS_PER_FRAME_MAX,
    SEQ_MAX,
    TEXT_CHARS_MAX,
    TOPIC_BYTES_MAX,
)
from schemas.messages import (
    Account,
    BatchHeader,
    Codec,
    Decision,
    Epoch,
    Event,
    Lane,
    LogLine,
    MetricPoint,
    Origin,
    Reading,
    Receipt,
    Record,
    Severity,
    Stage,
)
from schemas.ranges import Ranges
from schemas.stored import (
    Closed,
    Cursor,
    JournalHeader,
    LaneLedger,
    LaneMark,
    Numbers,
    PartitionLedger,
    Reserved,
    StoreIdentity,
)

__all__ = ["Message", "decode", "decode_as", "encode", "kind_of", "split", "unpack_plain"]

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
)

_M = TypeVar("_M")
_E = TypeVar("_E", bound=Enum)
Parse = Callable[[object], Any]
Plain = Callable[[Any], object]

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
_TIMESTAMP_HEADS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")


# --- one field each way -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """How one field is written (``None``: as it is) and read."""

    parse: Parse
    plain: Plain | None = None


def _wrong(raw: object, wanted: str) -> Refused:
    return Refused(RefusedBecause.WRONG_TYPE, f"{type(raw).__name__} where {wanted} belongs")


def _integer(low: int, high: int) -> _Form:
    def parse(raw: object) -> int:
        if type(raw) is not int:
            raise _wrong(raw, "an integer")
        if not low <= raw <= high:
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"{raw} is not within {low} to {high}")
        return raw

    return _Form(parse)


def _parse_number(raw: object) -> float:
    if type(raw) is not float:
        raise _wrong(raw, "a float")
    return raw


def _parse_finite(raw: object) -> float:
    number = _parse_number(raw)
    if not math.isfinite(number):
        raise Refused(RefusedBecause.NOT_A_NUMBER, f"{number} where a finite number belongs")
    return number


def _parse_boolean(raw: object) -> bool:
    if type(raw) is not bool:
        raise _wrong(raw, "a boolean")
    return raw


def _text(longest: int) -> _Form:
    def parse(raw: object) -> str:
        if type(raw) is not str:
            raise _wrong(raw, "text")
        if len(raw) > longest:
            raise Refused(
                RefusedBecause.TOO_LARGE, f"text of {len(raw)} characters, at most {longest}"
            )
        return raw

    return _Form(parse)


def _binary(*sizes: int) -> _Form:
    def parse(raw: object) -> bytes:
        if type(raw) is not bytes:
            raise _wrong(raw, "bytes")
        if len(raw) not in sizes:
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"{len(raw)} bytes where {sizes} belong")
        return raw

    return _Form(parse)


def _sequence(item: _Form, most: int) -> _Form:
    def parse(raw: object) -> tuple[Any, ...]:
        if type(raw) is not list:
            raise _wrong(raw, "an array")
        if len(raw) > most:
            raise Refused(RefusedBecause.TOO_LARGE, f"array of {len(raw)}, at most {most}")
        return tuple(map(item.parse, raw))

    write = item.plain
    return _Form(parse, None if write is None else lambda items: tuple(map(write, items)))


def _mapping(key: _Form, value: _Form, most: int) -> _Form:
    def parse(raw: object) -> dict[Any, Any]:
        if type(raw) is not dict:
            raise _wrong(raw, "a map")
        if len(raw) > most:
            raise Refused(RefusedBecause.TOO_LARGE, f"map of {len(raw)}, at most {most}")
        return {key.parse(name): value.parse(item) for name, item in raw.items()}

    def plain(mapping: Mapping[Any, Any]) -> dict[object, object]:
        write = value.plain
        if write is None:
            return {str(name): mapping[name] for name in sorted(mapping)}
        return {str(name): write(mapping[name]) for name in sorted(mapping)}

    return _Form(parse, plain)


def _one_of(kind: type[_E]) -> _Form:
    def parse(raw: object) -> _E:
        try:
            return kind(raw)
        except ValueError as unknown:
            raise Refused(
                RefusedBecause.OUT_OF_RANGE, f"{str(raw)[:40]!r} is no {kind.__name__.lower()}"
            ) from unknown

    return _Form(parse, attrgetter("value"))


def _optional(form: _Form) -> _Form:
    write = form.plain
    return _Form(
        lambda raw: None if raw is None else form.parse(raw),
        None if write is None else lambda value: None if value is None else write(value),
    )


def _parse_ranges(raw: object) -> Ranges:
    if type(raw) is not list or len(raw) % 2:
        raise _wrong(raw, "an array of starts and stops")
    if len(raw) > 2 * RANGES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{len(raw) // 2} ranges, at most {RANGES_MAX}")
    bounds = [_SEQ.parse(bound) for bound in raw]
    try:
        return Ranges(tuple(zip(bounds[::2], bounds[1::2], strict=True)))
    except ValueError as wrong:
        raise Refused(RefusedBecause.OUT_OF_RANGE, str(wrong)) from wrong


def _plain_ranges(ranges: Ranges) -> list[int]:
    return [bound for span in ranges.spans for bound in span]


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """The fields of one kind in their order on the wire."""

    kind: int
    version: int
    cls: type
    fields: tuple[tuple[str, _Form], ...]

    def form(self) -> _Form:
        """As a field within another message: an array without kind and version."""
        return _Form(self.parse, self.writer())

    def writer(self) -> Callable[[Any], tuple[object, ...]]:
        """A function from a message to its plain fields."""
        look = attrgetter(*(name for name, _ in self.fields))
        rewritten = [(i, form.plain) for i, (_, form) in enumerate(self.fields) if form.plain]
        if len(self.fields) == 1:
            return lambda message: tuple(write(look(message)) for _, write in rewritten)
        if not rewritten:
            return look

        def write_all(message: object) -> tuple[object, ...]:
            values = list(look(message))
            for index, write in rewritten:
                values[index] = write(values[index])
            return tuple(values)

        return write_all

    def parse(self, raw: object) -> Any:  # noqa: ANN401 - the class is data of the table
        """The message whose plain fields these are."""
        if type(raw) is not list or len(raw) != len(self.fields):
            raise _wrong(raw, f"an array of {len(self.fields)} for {self.cls.__name__}")
        values = {}
        for (name, form), item in zip(self.fields, raw, strict=True):
            try:
                values[name] = form.parse(item)
            except Refused as refused:
                where = f"{self.cls.__name__}.{name}: {refused.detail}"
                raise Refused(refused.reason, where) from refused
        return self.cls(**values)


_SEQ: Final = _integer(0, SEQ_MAX)
_TIME: Final = _integer(_INT64_MIN, _INT64_MAX)
_COUNT: Final = _integer(0, _INT64_MAX)
_FLOAT: Final = _Form(_parse_number, float)
_CONFIDENCE: Final = _Form(_parse_finite)
_BOOLEAN: Final = _Form(_parse_boolean)
_NAME: Final = _text(IDENTIFIER_CHARS_MAX)
_LABEL: Final = _text(256)
_TEXT: Final = _text(TEXT_CHARS_MAX)
_TOPIC: Final = _text(TOPIC_BYTES_MAX)
_ID: Final = _binary(16)
_DIGEST: Final = _binary(32)
_MAYBE_ID: Final = _binary(0, 16)
_CHAIN: Final = _binary(16)
_RANGES: Final = _Form(_parse_ranges, _plain_ranges)
_LANE: Final = _one_of(Lane)
_REASONS: Final = _mapping(_NAME, _RANGES, 64)
_EXTENSION: Final = _Form(lambda raw: raw if type(raw) is bytes else _binary().parse(raw))
_EXTENSIONS: Final = _mapping(_LABEL, _EXTENSION, EXTENSIONS_MAX)
_LABELS: Final = _mapping(_LABEL, _TEXT, 64)
_SIGNATURE: Final = _binary(0, 64)


def _layout(kind: int, cls: type, /, **fields: _Form) -> _Layout:
    return _Layout(kind, 1, cls, tuple(fields.items()))


_EPOCH: Final = _layout(
    0, Epoch, counter=_integer(0, _UINT64_MAX), random=_integer(0, _UINT64_MAX)
).form()
_ORIGIN: Final = _layout(
    0,
    Origin,
    name=_NAME,
    topic=_TOPIC,
    model_name=_LABEL,
    model_version=_LABEL,
    model_digest=_DIGEST,
    policy_digest=_DIGEST,
    session=_NAME,
    labels=_sequence(_LABEL, DECISION_VALUES_MAX),
).form()
_MARK: Final = _layout(0, LaneMark, next_seq=_SEQ, chain=_CHAIN).form()
_NUMBERS: Final = _layout(
    0, Numbers, mark=_MARK, reserved=_SEQ, explained=_REASONS, statement=_COUNT
).form()
_LANE_LEDGER: Final = _layout(
    0,
    LaneLedger,
    site=_NAME,
    node=_NAME,
    epoch=_EPOCH,
    lane=_LANE,
    held=_RANGES,
    explained=_REASONS,
    next_seq=_SEQ,
    statement=_COUNT,
    chain=_CHAIN,
    chain_at=_SEQ,
    duplicates=_COUNT,
    seen_wall_ns=_TIME,
).form()

_LAYOUTS: Final = (
    _layout(
        1,
        Decision,
        origin=_ORIGIN,
        wall_ns=_TIME,
        mono_ns=_TIME,
        read_ns=_TIME,
        verdict=_LABEL,
        confidence=_CONFIDENCE,
        values=_sequence(_Form(_parse_number), DECISION_VALUES_MAX),
        reasons=_sequence(_LABEL, DECISION_REASONS_MAX),
        inputs=_COUNT,
        input_digest=_MAYBE_ID,
        valid_for_ms=_COUNT,
        replay=_BOOLEAN,
        trace=_ID,
    ),
    _layout(
        2,
        Event,
        wall_ns=_TIME,
        mono_ns=_TIME,
        name=_LABEL,
        severity=_one_of(Severity),
        text=_TEXT,
        attributes=_LABELS,
    ),
    _layout(
        3,
        LogLine,
        wall_ns=_TIME,
        mono_ns=_TIME,
        severity=_one_of(Severity),
        logger=_LABEL,
        text=_TEXT,
    ),
    _layout(
        4, MetricPoint, wall_ns=_TIME, mono_ns=_TIME, name=_LABEL, value=_FLOAT, labels=_LABELS
    ),
    _layout(
        5,
        Reading,
        wall_ns=_TIME,
        mono_ns=_TIME,
        topic=_TOPIC,
        values=_mapping(_LABEL, _FLOAT, MODEL_FIELDS_MAX),
    ),
    _layout(
        6,
        Account,
        wall_ns=_TIME,
        mono_ns=_TIME,
        lane=_LANE,
        epoch=_EPOCH,
        number=_COUNT,
        next_seq=_SEQ,
        explained=_REASONS,
        released=_mapping(_LABEL, _SEQ, 64),
    ),
    _layout(
        16,
        BatchHeader,
        store=_ID,
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        lane=_LANE,
        first=_SEQ,
        last=_SEQ,
        count=_SEQ,
        present=_RANGES,
        frames=_sequence(_integer(1, RECORDS_PER_FRAME_MAX), FRAMES_PER_BATCH_MAX),
        chain_before=_CHAIN,
        chain_after=_CHAIN,
        first_wall_ns=_TIME,
        last_wall_ns=_TIME,
        clock_trusted=_BOOLEAN,
        boot=_ID,
        codec=_one_of(Codec),
        schema=_LABEL,
        raw_bytes=_integer(1, BATCH_RAW_BYTES_MAX),
        # What does not shrink grows by the frame around it.
        body_bytes=_integer(1, BATCH_BYTES_MAX),
        body_digest=_DIGEST,
        priority=_integer(0, 255),
        expires_wall_ns=_optional(_TIME),
        region=_LABEL,
        tenant=_LABEL,
        sealed=_BOOLEAN,
        key_ids=_sequence(_LABEL, 16),
        derived_from=_sequence(_DIGEST, 64),
        method=_LABEL,
        critical=_EXTENSIONS,
        optional=_EXTENSIONS,
        signature=_SIGNATURE,
    ),
    _layout(
        17,
        Receipt,
        holder=_NAME,
        life=_EPOCH,
        number=_COUNT,
        stage=_one_of(Stage),
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        lane=_LANE,
        watermark=_SEQ,
        chain=_MAYBE_ID,
        chain_at=_SEQ,
        held=_RANGES,
        credit_bytes=_COUNT,
        not_before_ms=_COUNT,
        key_id=_LABEL,
        signature=_SIGNATURE,
    ),
    _layout(
        32,
        StoreIdentity,
        store=_ID,
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        parent=_optional(_EPOCH),
        machine=_ID,
    ),
    _layout(
        33,
        JournalHeader,
        store=_ID,
        epoch=_EPOCH,
        boot=_ID,
        number=_COUNT,
        wall_ns=_TIME,
        lanes=_mapping(_LANE, _NUMBERS, len(Lane)),
    ),
    _layout(34, Reserved, lanes=_mapping(_LANE, _SEQ, len(Lane))),
    _layout(35, Closed, lanes=_mapping(_LANE, _SEQ, len(Lane))),
    _layout(
        36,
        Cursor,
        generation=_COUNT,
        released=_mapping(_LABEL, _RANGES, 1024),
        holders=_mapping(_LABEL, _SEQ, 1024),
    ),
    _layout(
        37,
        PartitionLedger,
        holder=_NAME,
        life=_EPOCH,
        receipts=_COUNT,
        lanes=_sequence(_LANE_LEDGER, LEDGER_LANES_MAX),
        files=_sequence(_LABEL, LEDGER_FILES_MAX),
    ),
)
_BY_KIND: Final = {layout.kind: layout for layout in _LAYOUTS}
_WRITERS: Final = {
    layout.cls: (layout.kind, layout.version, layout.writer()) for layout in _LAYOUTS
}
assert len(_BY_KIND) == len(_LAYOUTS), "each kind stands once"


# --- messages -----------------------------------------------------------------------------------


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
        raise _wrong(raw, "an array [kind, version, …]")
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
        raise _wrong(message, cls.__name__)
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
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(body), 1))
    unpacker.feed(body)
    bounds = [0]
    try:
        for _ in range(count):
            unpacker.skip()
            bounds.append(unpacker.tell())
    except (ValueError, msgpack.exceptions.UnpackException) as broken:
        where = f"record {len(bounds) - 1} of {count} at byte {bounds[-1]}"
        raise Refused(RefusedBecause.MALFORMED, f"{where} is broken or missing") from broken
    if bounds[-1] != len(body):
        raise Refused(
            RefusedBecause.MALFORMED, f"{len(body) - bounds[-1]} bytes after {count} records"
        )
    return [body[start:stop] for start, stop in pairwise(bounds)]


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
