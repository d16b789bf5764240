"""Columns as the Arrow C stream interface has them: how numpy's buffers reach DuckDB uncopied.

DuckDB reads whatever has ``__arrow_c_stream__``. What stands behind it are four C structures with
pointers to buffers (arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html), so
neither pyarrow nor an object for each value is needed. A stream gives one array: a struct with a
child for each column.

Ownership. The structures and buffers belong to the ``Table``, which must outlive the query that
reads it; the callbacks ``release`` therefore free nothing.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Buffer", "Field", "Table"]

Buffer: TypeAlias = npt.NDArray[Any] | bytes | None

_NULLABLE: Final = 2
_CAPSULE_NAME: Final = b"arrow_array_stream"


class _Schema(ctypes.Structure):
    """``struct ArrowSchema``."""


class _Array(ctypes.Structure):
    """``struct ArrowArray``."""


class _Stream(ctypes.Structure):
    """``struct ArrowArrayStream``."""


_SchemaRelease: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))
_ArrayRelease: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))
_StreamRelease: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Stream))
_GetSchema: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Schema))
_GetNext: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Array))
_GetLastError: Final = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(_Stream))

_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", _SchemaRelease),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", _ArrayRelease),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", _GetSchema),
    ("get_next", _GetNext),
    ("get_last_error", _GetLastError),
    ("release", _StreamRelease),
    ("private_data", ctypes.c_void_p),
]

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _releasing(kind: Any) -> Any:  # noqa: ANN401 - types of ctypes
    """A callback that marks a structure as released; nothing is freed by it."""
    none = kind()

    def release(pointer: Any) -> None:  # noqa: ANN401 - an item of it is the structure itself
        pointer[0].release = none

    return kind(release)


_release_schema: Final = _releasing(_SchemaRelease)
_release_array: Final = _releasing(_ArrayRelease)
_release_stream: Final = _releasing(_StreamRelease)
_no_error: Final = _GetLastError(lambda _stream: b"")


@dataclass(frozen=True, slots=True)
class Field:
    """One column, or a part of one.

    Args:
        name: as in queries.
        format: Arrow's word for its type, ``l`` or ``u`` say.
        length: how many values.
        buffers: as the type wants them: validity (a bit a value, ``None`` where none is null), then
            offsets or values, then the bytes of texts.
        children: of a list or struct.
        dictionary: the distinct values, where the values are their numbers.
    """

    name: str
    format: str
    length: int
    buffers: tuple[Buffer, ...]
    children: tuple["Field", ...] = ()
    dictionary: "Field | None" = None


class Table:
    """Columns of one length, to be read by DuckDB once.

    Args:
        columns: at least one.
    """

    def __init__(self, columns: Sequence[Field]) -> None:
        self._root = Field("", "+s", columns[0].length, (None,), tuple(columns))
        self._kept: list[object] = [columns]

    def __len__(self) -> int:
        return self._root.length

    def close(self) -> None:
        """Gives the buffers back, which would else wait for the garbage collector: they are many.

        To be called when the query has ended; nothing may read it after that.
        """
        self._kept.clear()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """A capsule with a stream of one array; the protocol's own name."""
        stream = _Stream()
        given = False

        def get_schema(_stream: Any, out: Any) -> int:  # noqa: ANN401 - pointers of ctypes
            self._describe(out[0], self._root)
            return 0

        def get_next(_stream: Any, out: Any) -> int:  # noqa: ANN401 - pointers of ctypes
            nonlocal given
            if given:
                out[0].release = _ArrayRelease()
            else:
                given = True
                self._fill(out[0], self._root)
            return 0

        stream.get_schema, stream.get_next = _GetSchema(get_schema), _GetNext(get_next)
        stream.get_last_error = _no_error
        stream.release = _release_stream
        self._kept.append(stream)
        return _new_capsule(ctypes.addressof(stream), _CAPSULE_NAME, None)

    def _describe(self, schema: Any, field: Field) -> None:  # noqa: ANN401 - a structure of ctypes
        name, kind = field.name.encode(), field.format.encode()
        schema.name, schema.format, schema.metadata = name, kind, None
        schema.flags = _NULLABLE
        schema.n_children = len(field.children)
        schema.children = self._pointers(_Schema, field.children, self._describe)
        if field.dictionary is not None:
            words = _Schema()
            self._describe(words, field.dictionary)
            schema.dictionary = ctypes.pointer(words)
            self._kept.append(words)
        schema.release = _release_schema
        self._kept += [name, kind]

    def _fill(self, array: Any, field: Field) -> None:  # noqa: ANN401 - a structure of ctypes
        array.length, array.offset = field.length, 0
        array.null_count = -1 if field.buffers[0] is not None else 0
        buffers = (ctypes.c_void_p * len(field.buffers))(*map(self._address, field.buffers))
        array.n_buffers, array.buffers = len(field.buffers), buffers
        array.n_children = len(field.children)
        array.children = self._pointers(_Array, field.children, self._fill)
        if field.dictionary is not None:
            words = _Array()
            self._fill(words, field.dictionary)
            array.dictionary = ctypes.pointer(words)
            self._kept.append(words)
        array.release = _release_array
        self._kept.append(buffers)

    def _pointers(self, kind: Any, children: Sequence[Field], write: Any) -> Any:  # noqa: ANN401 - ctypes
        pointers = (ctypes.POINTER(kind) * max(1, len(children)))()
        for index, child in enumerate(children):
            made = kind()
            write(made, child)
            pointers[index] = ctypes.pointer(made)
            self._kept.append(made)
        self._kept.append(pointers)
        return pointers

    def _address(self, buffer: Buffer) -> int | None:
        if buffer is None:
            return None
        values = np.frombuffer(buffer or b"\0", np.uint8) if isinstance(buffer, bytes) else buffer
        assert values.flags.c_contiguous, "C reads it"
        self._kept.append(values)
        return int(values.ctypes.data)
