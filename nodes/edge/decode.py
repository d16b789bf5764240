"""Payloads to rows of numbers, strictly, a group at a time. Pure.

A reading is a JSON object, a msgpack map, or one bare number as JSON writes it. Invariants:

1. A row holds finite numbers that fit into float32, one for each field of the model, or there is no
   row. Booleans and numeric text are no numbers. Nothing is guessed and nothing is filled in.
2. A payload is refused for itself alone: what stands beside it in a group changes nothing.
3. A refusal has one reason of the fixed list, and a detail that names the field and what was found.

Further keys are passed over. In JSON a key that stands twice counts with its last value, as RFC
8259, section 4, warns; msgpack maps with such keys are refused. The key ``replay`` (true or false)
says that the reading comes late on purpose.

The whole group is tried first, on the assumption that all is well: that costs a third of judging
each payload by itself, which is done as soon as anything is not. Payloads are parsed one by one: a
group joined into one JSON array parses 15 % faster, and would let crafted payloads reach each
other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import READING_BYTES_MAX

__all__ = ["Decoded", "Decoder", "Layout"]

REPLAY_KEY: Final = "replay"
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_NUMBERS: Final = frozenset({int, float})
_FEW_NUMBERS: Final = 32  # below which numpy's fixed cost is larger than the work
_BOOLEAN: Final = frozenset({bool})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a reading's numbers stand.

    Args:
        fields: F names, as the model calls them, in its order.
        keys: where each stands in the payload; a dot descends into an object. Not used by
            ``number``, which has one field.
        format: how payloads are written.
        time_key: where the time of the reading stands, UTC milliseconds; empty for nowhere.
    """

    fields: tuple[str, ...]
    keys: tuple[str, ...]
    format: Literal["json", "msgpack", "number"] = "json"
    time_key: str = ""

    def __post_init__(self) -> None:
        assert self.fields, "a reading has a field"
        assert len(self.fields) == len(self.keys), "each field stands somewhere"
        assert self.format != "number" or (len(self.fields) == 1 and not self.time_key), (
            "a bare number is one field and has no time"
        )


class Decoded(NamedTuple):
    """What a group of payloads said; n of them were readings."""

    kept: Sequence[int]
    """The places of the n readings within the group, rising."""
    rows: NDArray[np.float64]
    """[n, F], finite."""
    times_ms: Sequence[float] | None
    """[n], UTC; ``None`` where the layout has no time."""
    replays: Sequence[bool]
    """[n], whether each comes late on purpose."""
    refused: Sequence[tuple[int, Refused]]
    """The places of the others, rising, and why."""


class Decoder:
    """Decodes the payloads of one rule."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        keys = (*layout.keys, layout.time_key) if layout.time_key else layout.keys
        self._width = len(layout.fields)
        self._keys = keys
        self._bare = layout.format == "number"
        self._load: Callable[[bytes], Any] = (
            wire.unpack_plain if layout.format == "msgpack" else orjson.loads
        )
        self._pick = _picker(keys)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """The rows of a group of at least one payload."""
        if max(map(len, payloads)) <= READING_BYTES_MAX:
            try:
                return self._decode_all(payloads)
            except (Refused, ValueError, KeyError, TypeError, _DoubtError):
                pass  # at least one is refused: each for itself, to find out which
        return self._decode_each(payloads)

    def _decode_all(self, payloads: Sequence[bytes]) -> Decoded:
        """All of them, or an exception that does not say which is to blame."""
        values = list(map(self._load, payloads))
        if self._bare:
            flat = values
            replays: Sequence[bool] = (False,) * len(values)
        else:
            # What is no object does not let itself be looked into: a TypeError.
            flat = list(chain.from_iterable(map(self._pick, values)))
            replays = [value.get(REPLAY_KEY, False) for value in values]
            if not _BOOLEAN.issuperset(map(type, replays)):
                raise _DoubtError
        if not _NUMBERS.issuperset(map(type, flat)):
            raise _DoubtError
        table = np.array(flat, np.float64).reshape(len(values), -1)
        # Not a number compares as false, so it does not pass either.
        if len(flat) <= _FEW_NUMBERS:
            fits = all(-FLOAT32_MAX <= number <= FLOAT32_MAX for number in flat)
        else:
            fits = np.abs(table).max() <= FLOAT32_MAX
        if not fits:
            raise _DoubtError
        return self._decoded(range(len(values)), table, replays, ())

    def _decode_each(self, payloads: Sequence[bytes]) -> Decoded:
        kept, flat, replays, refused = [], [], [], []
        for place, payload in enumerate(payloads):
            try:
                row, replay = self._read(payload)
            except Refused as refusal:
                refused.append((place, refusal))
            else:
                kept.append(place)
                flat += row
                replays.append(replay)
        table = np.array(flat, np.float64).reshape(len(kept), len(self._keys))
        return self._decoded(kept, table, replays, refused)

    def _decoded(
        self,
        kept: Sequence[int],
        table: NDArray[np.float64],
        replays: Sequence[bool],
        refused: Sequence[tuple[int, Refused]],
    ) -> Decoded:
        if len(self._keys) == self._width:
            return Decoded(kept, table, None, replays, refused)
        times = table[:, self._width].tolist()
        return Decoded(kept, table[:, : self._width], times, replays, refused)

    def _read(self, payload: bytes) -> tuple[list[float], bool]:
        """One payload: its numbers, the time last, and whether it is a replay.

        Raises:
            Refused: with what is wrong first.
        """
        if len(payload) > READING_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE, f"{len(payload)} bytes, at most {READING_BYTES_MAX}"
            )
        try:
            value = self._load(payload)
        except orjson.JSONDecodeError as broken:
            raise _not_json(payload, broken) from broken
        if self._bare:
            return [_number(self.layout.fields[0], value)], False
        if type(value) is not dict:
            raise Refused(RefusedBecause.WRONG_TYPE, f"{_word(value)} where an object belongs")
        row = [_number(key, _descend(key, value)) for key in self._keys]
        replay = value.get(REPLAY_KEY, False)
        if type(replay) is not bool:
            raise Refused(
                RefusedBecause.WRONG_TYPE,
                f"{REPLAY_KEY!r}: {_word(replay)} where true or false belongs",
            )
        return row, replay


class _DoubtError(Exception):
    """Something in the group is not as it should be."""


def _picker(keys: Sequence[str]) -> Callable[[dict[str, Any]], Sequence[Any]]:
    """A function from an object to the values under some keys, which raises as indexing does."""
    if any("." in key for key in keys):
        return lambda value: [_descend(key, value) for key in keys]
    if len(keys) == 1:
        only = keys[0]
        return lambda value: (value[only],)
    return itemgetter(*keys)


def _descend(key: str, value: Mapping[str, object]) -> object:
    """What stands under a key, whose dots descend into objects.

    Raises:
        Refused: ``missing_field``.
    """
    found: object = value
    for level in key.split("."):
        if not isinstance(found, dict) or level not in found:
            raise Refused(
                RefusedBecause.MISSING_FIELD,
                f"{key!r} is missing; there is {_some(list(map(str, value)))}",
            )
        found = found[level]
    return found


def _number(key: str, value: object) -> float:
    if type(value) is not int and type(value) is not float:
        raise Refused(RefusedBecause.WRONG_TYPE, f"{key!r}: {_word(value)} where a number belongs")
    if value != value or value in {float("inf"), float("-inf")}:  # noqa: PLR0124 - only NaN differs
        raise Refused(RefusedBecause.NOT_A_NUMBER, f"{key!r}: {value}")
    if abs(value) > FLOAT32_MAX:
        raise Refused(RefusedBecause.OUT_OF_RANGE, f"{key!r}: {value:g} does not fit into float32")
    return float(value)


def _not_json(payload: bytes, broken: orjson.JSONDecodeError) -> Refused:
    """Why a payload is no JSON; NaN and infinities, which many programs write, have their own."""
    said = f"{broken.msg} at character {broken.pos}"
    near = payload.decode("utf-8", "replace")[broken.pos :]
    if "infinity" in broken.msg or near.startswith(("NaN", "Infinity", "-Infinity", "Inf")):
        return Refused(RefusedBecause.NOT_A_NUMBER, f"JSON has no such number: {said}")
    return Refused(RefusedBecause.MALFORMED, f"not JSON: {said}, of {len(payload)} bytes")


def _word(value: object) -> str:
    """The kind of a value, for a person."""
    words = {
        bool: "a boolean",
        bytes: "bytes",
        dict: "an object",
        float: "a number",
        int: "a number",
        list: "an array",
        str: "text",
        type(None): "null",
    }
    return words.get(type(value), type(value).__name__)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return (shown or "nothing") + (", …" if len(names) > 8 else "")  # noqa: PLR2004 - a line's worth
