"""How single fields are written and read: their types, bounds and canonical shapes. Pure.

A *form* says how one field stands on the wire: ``plain`` makes of a value what msgpack can write,
``parse`` makes of what msgpack read the value, or refuses it. A *layout* is the fields of one
message in their order. ``schemas.layouts`` is the table of them; ``schemas.wire`` turns it into
bytes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, Final, TypeVar

from schemas.errors import Refused, RefusedBecause
from schemas.limits import RANGES_MAX, SEQ_MAX
from schemas.ranges import Ranges

__all__ = [
    "BOOLEAN",
    "COUNT",
    "FINITE",
    "FLOAT",
    "NUMBER",
    "RANGES",
    "SEQ",
    "TIME",
    "UINT64",
    "Form",
    "Layout",
    "binary",
    "integer",
    "layout",
    "mapping",
    "one_of",
    "optional",
    "sequence",
    "text",
    "wrong",
]

_E = TypeVar("_E", bound=Enum)
Parse = Callable[[object], Any]
Plain = Callable[[Any], object]

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Form:
    """How one field is written (``None``: as it is) and read."""

    parse: Parse
    plain: Plain | None = None


def wrong(raw: object, wanted: str) -> Refused:
    """The refusal of a value of another type than its field has."""
    return Refused(RefusedBecause.WRONG_TYPE, f"{type(raw).__name__} where {wanted} belongs")


def integer(low: int, high: int) -> Form:
    """An integer within two bounds, both inclusive."""

    def parse(raw: object) -> int:
        if type(raw) is not int:
            raise wrong(raw, "an integer")
        if not low <= raw <= high:
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"{raw} is not within {low} to {high}")
        return raw

    return Form(parse)


def _parse_number(raw: object) -> float:
    if type(raw) is not float:
        raise wrong(raw, "a float")
    return raw


def _parse_finite(raw: object) -> float:
    number = _parse_number(raw)
    if not math.isfinite(number):
        raise Refused(RefusedBecause.NOT_A_NUMBER, f"{number} where a finite number belongs")
    return number


def _parse_boolean(raw: object) -> bool:
    if type(raw) is not bool:
        raise wrong(raw, "a boolean")
    return raw


def text(longest: int) -> Form:
    """Text of at most so many characters."""

    def parse(raw: object) -> str:
        if type(raw) is not str:
            raise wrong(raw, "text")
        if len(raw) > longest:
            raise Refused(
                RefusedBecause.TOO_LARGE, f"text of {len(raw)} characters, at most {longest}"
            )
        return raw

    return Form(parse)


def binary(*sizes: int) -> Form:
    """Bytes of one of these lengths."""

    def parse(raw: object) -> bytes:
        if type(raw) is not bytes:
            raise wrong(raw, "bytes")
        if len(raw) not in sizes:
            raise Refused(RefusedBecause.OUT_OF_RANGE, f"{len(raw)} bytes where {sizes} belong")
        return raw

    return Form(parse)


def sequence(item: Form, most: int) -> Form:
    """At most so many values of one form, as a tuple."""

    def parse(raw: object) -> tuple[Any, ...]:
        if type(raw) is not list:
            raise wrong(raw, "an array")
        if len(raw) > most:
            raise Refused(RefusedBecause.TOO_LARGE, f"array of {len(raw)}, at most {most}")
        return tuple(map(item.parse, raw))

    write = item.plain
    return Form(parse, None if write is None else lambda items: tuple(map(write, items)))


def mapping(key: Form, value: Form, most: int) -> Form:
    """At most so many values by name; written with their names sorted."""

    def parse(raw: object) -> dict[Any, Any]:
        if type(raw) is not dict:
            raise wrong(raw, "a map")
        if len(raw) > most:
            raise Refused(RefusedBecause.TOO_LARGE, f"map of {len(raw)}, at most {most}")
        return {key.parse(name): value.parse(item) for name, item in raw.items()}

    def plain(mapping: Mapping[Any, Any]) -> dict[object, object]:
        write = value.plain
        if write is None:
            return {str(name): mapping[name] for name in sorted(mapping)}
        return {str(name): write(mapping[name]) for name in sorted(mapping)}

    return Form(parse, plain)


def one_of(kind: type[_E]) -> Form:
    """A member of an enumeration, by its value."""

    def parse(raw: object) -> _E:
        try:
            return kind(raw)
        except ValueError as unknown:
            raise Refused(
                RefusedBecause.OUT_OF_RANGE, f"{str(raw)[:40]!r} is no {kind.__name__.lower()}"
            ) from unknown

    return Form(parse, attrgetter("value"))


def optional(form: Form) -> Form:
    """A value of a form, or nothing."""
    write = form.plain
    return Form(
        lambda raw: None if raw is None else form.parse(raw),
        None if write is None else lambda value: None if value is None else write(value),
    )


def _parse_ranges(raw: object) -> Ranges:
    if type(raw) is not list or len(raw) % 2:
        raise wrong(raw, "an array of starts and stops")
    if len(raw) > 2 * RANGES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{len(raw) // 2} ranges, at most {RANGES_MAX}")
    bounds = [SEQ.parse(bound) for bound in raw]
    try:
        return Ranges(tuple(zip(bounds[::2], bounds[1::2], strict=True)))
    except ValueError as unsorted:
        raise Refused(RefusedBecause.OUT_OF_RANGE, str(unsorted)) from unsorted


def _plain_ranges(ranges: Ranges) -> list[int]:
    return [bound for span in ranges.spans for bound in span]


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of one kind in their order on the wire.

    Args:
        kind: of the message.
        version: of its layout.
        cls: its class.
        fields: how each is written.
        tail: so many of the last fields have a default, and are left out where all that follow have
            theirs too. So a field can be added without a version: what was written before it is
            still canonical, and says the default.
    """

    kind: int
    version: int
    cls: type
    fields: tuple[tuple[str, Form], ...]
    tail: int = 0

    def form(self) -> Form:
        """As a field within another message: an array without kind and version."""
        return Form(self.parse, self.writer())

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

        if not self.tail:
            return write_all
        always = len(self.fields) - self.tail
        tail = [(name, self._default(name)) for name, _ in self.fields[always:]]

        def write_short(message: object) -> tuple[object, ...]:
            said = [getattr(message, name) != default for name, default in tail]
            while said and not said[-1]:
                said.pop()
            return write_all(message)[: always + len(said)]

        return write_short

    def _default(self, name: str) -> object:
        declared = self.cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
        if declared.default_factory is not MISSING:
            return declared.default_factory()
        assert declared.default is not MISSING, f"{self.cls.__name__}.{name} has a default"
        return declared.default

    def parse(self, raw: object) -> Any:  # noqa: ANN401 - the class is data of the table
        """The message whose plain fields these are."""
        most = len(self.fields)
        if type(raw) is not list or not most - self.tail <= len(raw) <= most:
            raise wrong(raw, f"an array of {most} for {self.cls.__name__}")
        values = {}
        for (name, form), item in zip(self.fields[: len(raw)], raw, strict=True):
            try:
                values[name] = form.parse(item)
            except Refused as refused:
                where = f"{self.cls.__name__}.{name}: {refused.detail}"
                raise Refused(refused.reason, where) from refused
        return self.cls(**values)


def layout(kind: int, cls: type, tail: int = 0, /, **fields: Form) -> Layout:
    """A layout in version 1, its fields in the order in which they are given."""
    return Layout(kind, 1, cls, tuple(fields.items()), tail)


SEQ: Final = integer(0, SEQ_MAX)
TIME: Final = integer(_INT64_MIN, _INT64_MAX)
COUNT: Final = integer(0, _INT64_MAX)
UINT64: Final = integer(0, _UINT64_MAX)
NUMBER: Final = Form(_parse_number)
FLOAT: Final = Form(_parse_number, float)
FINITE: Final = Form(_parse_finite)
BOOLEAN: Final = Form(_parse_boolean)
RANGES: Final = Form(_parse_ranges, _plain_ranges)
