"""Finds tensors of an ONNX file that lie outside of it. Pure, and it reads no tensor.

A tensor may say that its bytes stand in another file, at any path that the file's author chose
(onnx.proto3, ``TensorProto.data_location`` and ``external_data``). A model that was signed or
hashed as one file must not do that, and the runtime must not be asked to open it. The file is
protocol buffers: a field is a varint ``number << 3 | type``, then a varint (type 0), 8 bytes (1), a
length and as many bytes (2), or 4 bytes (5). Only the messages that can hold a tensor are entered.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["BrokenModelError", "external_tensors"]

_DEPTH_MAX: Final = 32
_VARINT_BYTES_MAX: Final = 10
_DATA_LOCATION: Final = 14
_NAME: Final = 8
_EXTERNAL_DATA: Final = 13

# Message: which message stands in which of its fields. From onnx.proto3 of ONNX 1.19.
_INSIDE: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


class BrokenModelError(ValueError):
    """The bytes are not protocol buffers all the way to their end."""


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    stop: int
    value: int


def external_tensors(data: bytes) -> list[str]:
    """The names of the tensors whose bytes stand in other files.

    Args:
        data: an ONNX file.

    Raises:
        BrokenModelError: it is truncated, nested too deep, or something else.
    """
    found: list[str] = []
    _walk(data, 0, len(data), "model", found, 0)
    return found


def _walk(data: bytes, start: int, stop: int, message: str, found: list[str], depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise BrokenModelError(f"messages nested more than {_DEPTH_MAX} deep")
    inside = _INSIDE[message]
    name, outside = "", False
    for field in _fields(data, start, stop):
        within = inside.get(field.number)
        if within is not None and field.kind == 2:  # noqa: PLR2004 - a message has a length
            _walk(data, field.start, field.stop, within, found, depth + 1)
        elif message == "tensor":
            if field.number == _NAME:
                name = data[field.start : field.stop].decode("utf-8", "replace")
            outside |= field.number == _EXTERNAL_DATA
            outside |= field.number == _DATA_LOCATION and field.value != 0
    if outside:
        found.append(name or "without a name")


def _fields(data: bytes, start: int, stop: int) -> Iterator[_Field]:
    at = start
    while at < stop:
        tag, at = _varint(data, at, stop)
        number, kind = tag >> 3, tag & 7
        value = 0
        begin = at
        if kind == 0:
            value, at = _varint(data, at, stop)
        elif kind == 1:
            at += 8
        elif kind == 2:  # noqa: PLR2004 - the kinds stand in the docstring
            length, begin = _varint(data, at, stop)
            at = begin + length
        elif kind == 5:  # noqa: PLR2004
            at += 4
        else:
            raise BrokenModelError(f"field of kind {kind} at byte {begin}")
        if number == 0 or at > stop:
            raise BrokenModelError(f"field {number} at byte {begin} ends beyond byte {stop}")
        yield _Field(number, kind, begin, at, value)


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(_VARINT_BYTES_MAX):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if not byte & 0x80:
            return value, at
    raise BrokenModelError(f"number at byte {at} does not end")
