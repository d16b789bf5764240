"""Fields: what the archive says of a record beside its bytes, a column for each. Pure.

Each kind of record has columns of its own. They are read from many records
at once, from the plain values that msgpack gives. They are for queries: the canonical bytes beside
them are the record, and are what chains are checked over. So a text that is longer than it may be
is shown as it is; but a value of another type than its field has makes the reading ``Odd``, and the
caller must look at each record by itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np

from nodes.headquarters.columns import Column, Lists, Numbers, Sizes, Texts, Words
from schemas.layouts import LAYOUTS
from schemas.messages import (
    Account,
    Decision,
    Epoch,
    Event,
    Lane,
    LogLine,
    MetricPoint,
    Reading,
    Severity,
)

__all__ = ["KINDS", "Odd", "Plain", "no_fields", "pick", "read_plain"]

Plain: TypeAlias = Sequence[Sequence[Any]]
"""A sequence for each field of a record, of the values of all records."""


class Odd(Exception):
    """A value is not what its field holds."""


def read_plain(cls: type, plain: Sequence[Any]) -> dict[str, Column]:
    """The columns of records of one kind, at least one.

    Args:
        cls: their class.
        plain: their plain values, maps as lists of pairs.

    Raises:
        Odd: not all of them are of that kind, in the version that is known here.
    """
    if set(map(type, plain)) != {list} or len(set(map(len, plain))) != 1:
        raise Odd
    columns = list(zip(*plain, strict=True))
    layout = _LAYOUTS[cls]
    if len(columns) != len(layout.fields) + 2:
        raise Odd
    if not _all(columns[0], int, {layout.kind}) or not _all(columns[1], int, {layout.version}):
        raise Odd
    try:
        return _READERS[cls](columns[2:])
    except (ValueError, TypeError, OverflowError, KeyError, IndexError) as wrong:
        raise Odd from wrong


def no_fields(cls: type) -> dict[str, Column]:
    """The columns of no record of a kind: which there are."""
    return _READERS[cls]([()] * len(_LAYOUTS[cls].fields))


def pick(starts: Sizes, sizes: Sizes, which: Sizes) -> Sizes:
    """The places of the items of some stretches, one stretch after another.

    Args:
        starts: where each known stretch begins.
        sizes: how long each is.
        which: which of them, in which order.
    """
    taken = sizes[which]
    ends = np.cumsum(taken)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts[which] - ends + taken, taken)


def _decisions(plain: Plain) -> dict[str, Column]:
    (origin, wall, mono, read, verdict, confidence, values, reasons, inputs, digest, valid) = plain[
        :11
    ]
    replay, trace = plain[11:]
    origins, which = _distinct(origin)
    return {
        **_times(wall, mono),
        "rule": _chosen(origins, 0, which),
        "topic": _chosen(origins, 1, which),
        "model_name": _chosen(origins, 2, which),
        "model_version": _chosen(origins, 3, which),
        "session": _chosen(origins, 6, which),
        "read_at": Numbers(_integers(read), times=True),
        "verdict": _words(verdict),
        "confidence": _floats(confidence),
        "values": _named_values(origins, which, values),
        "reasons": Lists(_lengths(reasons), _words(tuple(chain.from_iterable(reasons)))),
        "inputs": Numbers(_integers(inputs)),
        "input_digest": _binary(digest),
        "valid_for_ms": Numbers(_integers(valid)),
        "replay": _truths(replay),
        "trace": _binary(trace),
    }


def _events(plain: Plain) -> dict[str, Column]:
    wall, mono, name, severity, text, attributes = plain
    return {
        **_times(wall, mono),
        "name": _words(name),
        "severity": _severities(severity),
        "text": _texts(text),
        "attributes": _map(attributes, _texts),
    }


def _log_lines(plain: Plain) -> dict[str, Column]:
    wall, mono, severity, logger, text = plain
    return {
        **_times(wall, mono),
        "severity": _severities(severity),
        "logger": _words(logger),
        "text": _texts(text),
    }


def _metric_points(plain: Plain) -> dict[str, Column]:
    wall, mono, name, value, labels = plain
    return {
        **_times(wall, mono),
        "name": _words(name),
        "value": _floats(value),
        "labels": _map(labels, _words),
    }


def _readings(plain: Plain) -> dict[str, Column]:
    wall, mono, topic, values = plain
    return {**_times(wall, mono), "topic": _words(topic), "values": _map(values, _floats)}


def _accounts(plain: Plain) -> dict[str, Column]:
    wall, mono, lane, epoch, number, next_seq, explained, _ = plain
    return {
        **_times(wall, mono),
        "about_lane": _words(lane),
        "about_epoch": _words([str(Epoch(*pair)) for pair in epoch]),
        "statement": Numbers(_integers(number)),
        "next_seq": Numbers(_integers(next_seq)),
        "explained": _map(
            [[(why, _spans(bounds)) for why, bounds in pairs] for pairs in explained], _texts
        ),
    }


def _times(wall: Sequence[Any], mono: Sequence[Any]) -> dict[str, Column]:
    return {"wall_at": Numbers(_integers(wall), times=True), "mono_ns": Numbers(_integers(mono))}


def _all(column: Sequence[Any], kind: type, among: set[int]) -> bool:
    return set(map(type, column)) <= {kind} and set(column) <= among


def _check(column: Sequence[Any], kind: type) -> None:
    if not set(map(type, column)) <= {kind}:
        raise Odd


def _integers(column: Sequence[Any]) -> Sizes:
    _check(column, int)
    return np.fromiter(column, np.int64, len(column))


def _floats(column: Sequence[Any]) -> Numbers:
    _check(column, float)
    return Numbers(np.fromiter(column, np.float64, len(column)))


def _truths(column: Sequence[Any]) -> Numbers:
    _check(column, bool)
    return Numbers(np.fromiter(column, np.bool_, len(column)))


def _texts(column: Sequence[Any]) -> Texts:
    _check(column, str)
    joined = "".join(column)
    data = joined.encode()
    if len(data) == len(joined):
        return Texts(data, _lengths(column))
    return Texts(data, _lengths([text.encode() for text in column]))


def _binary(column: Sequence[Any]) -> Texts:
    _check(column, bytes)
    return Texts(b"".join(column), _lengths(column), binary=True)


def _words(column: Sequence[Any]) -> Words:
    _check(column, str)
    words = tuple(dict.fromkeys(column))
    codes = {word: code for code, word in enumerate(words)}
    return Words(words, np.fromiter(map(codes.__getitem__, column), np.int64, len(column)))


def _severities(column: Sequence[Any]) -> Words:
    _check(column, int)
    return _words([_SEVERITIES[number] for number in column])


def _lengths(column: Iterable[Any]) -> Sizes:
    return np.fromiter(map(len, column), np.int64)


def _map(column: Sequence[Any], look: Callable[[Sequence[Any]], Column]) -> Lists:
    """Maps as they came, as lists of pairs; a name may stand once in each."""
    _check(column, list)
    if any(len(pairs) != len(dict(pairs)) for pairs in column):
        raise Odd
    names, values = zip(*chain.from_iterable(column), strict=True) if any(column) else ((), ())
    return Lists(_lengths(column), look(values), _words(names))


def _distinct(column: Sequence[Any]) -> tuple[list[list[Any]], Sizes]:
    """The few different ones among many lists, and which of them each is."""
    found: list[list[Any]] = []
    by_key: dict[Any, list[int]] = {}
    which = []
    for item in column:
        codes = by_key.setdefault((item[0], item[1]), [])
        for code in codes:
            if found[code] == item:
                break
        else:
            code = len(found)
            codes.append(code)
            found.append(item)
        which.append(code)
    return found, np.array(which, np.int64)


def _chosen(items: Sequence[list[Any]], place: int, which: Sizes) -> Words:
    words = [item[place] for item in items]
    _check(words, str)
    return Words(tuple(words), which)


def _named_values(origins: Sequence[list[Any]], which: Sizes, values: Sequence[Any]) -> Lists:
    """Each value under its label; under its place, where the labels do not fit."""
    _check(values, list)
    sizes = _lengths(values)
    labels = [item[7] for item in origins]
    _check(labels, list)
    counts = np.array([len(it) if len(set(it)) == len(it) else -1 for it in labels], np.int64)
    starts = np.cumsum([0, *map(len, labels)])
    places = [str(place) for place in range(int(sizes.max(initial=0)))]
    words = (*chain.from_iterable(labels), *places)
    _check(words, str)
    begin = np.where(counts[which] == sizes, starts[which], starts[-1])
    codes = pick(begin, sizes, np.arange(len(sizes)))
    return Lists(sizes, _floats(tuple(chain.from_iterable(values))), Words(words, codes))


def _spans(bounds: Sequence[int]) -> str:
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return ", ".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in pairs)


_LAYOUTS: Final = {layout.cls: layout for layout in LAYOUTS}
_SEVERITIES: Final = {int(severity): severity.name.lower() for severity in Severity}
_READERS: Final[Mapping[type, Callable[[Plain], dict[str, Column]]]] = {
    Decision: _decisions,
    Event: _events,
    LogLine: _log_lines,
    MetricPoint: _metric_points,
    Reading: _readings,
    Account: _accounts,
}
KINDS: Final[Mapping[Lane, type]] = {
    Lane.ACCOUNT: Account,
    Lane.ALARMS: Event,
    Lane.DECISIONS: Decision,
    Lane.EVENTS: Event,
    Lane.METRICS: MetricPoint,
    Lane.READINGS: Reading,
    Lane.LOGS: LogLine,
}
"""What each lane is for. A record of another kind is kept there too, without fields."""
