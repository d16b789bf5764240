"""Makes records of what happens on the node: events, log lines, metric points.

Never raises and never blocks, from whichever thread it is told something. What it is told waits in
a bounded queue until the end of the loop's turn, and then goes to the spool, a group for each lane.
When the queue is full, or the spool takes nothing, the newest is dropped and counted by lane:
deciding never suffers from being written about. What happens before the spool is open waits for it.

An event's name is that of its class, ``SpoolDegraded`` being ``spool_degraded``; its fields become
attributes. Its severity is its own where it has one; events of severity *error* and worse are
alarms.
"""

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Final

from mesh.ports import Clock
from nodes.edge.inference import Records
from schemas import wire
from schemas.errors import DiskFailed, Overloaded, Refused
from schemas.messages import Event, Lane, LogLine, MetricPoint, Severity

__all__ = ["Recorder"]

_QUEUE_RECORDS_MAX: Final = 2048
_ATTRIBUTES_MAX: Final = 16
_ATTRIBUTE_CHARS_MAX: Final = 500
_LABEL_CHARS_MAX: Final = 256
_TEXT_CHARS_MAX: Final = 2000
_WORDS: Final = re.compile(r"(?<!^)(?=[A-Z])")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_SEVERITIES: Final[Mapping[str, Severity]] = {
    "account_delayed": Severity.WARNING,
    "batch_refused": Severity.ERROR,
    "chore_failed": Severity.ERROR,
    "damage_found": Severity.ERROR,
    "evicted": Severity.WARNING,
    "quarantined": Severity.ERROR,
    "receipt_refused": Severity.WARNING,
    "spool_degraded": Severity.CRITICAL,
    "spool_opened": Severity.INFORMATIONAL,
}


class Recorder:
    """An ``Observer`` that writes to the spool.

    Args:
        clock: for the time of what is recorded.
        records: the spool; may be given later, by ``attach``.
        tell: is told each event too, for a person who is there.
    """

    def __init__(
        self,
        clock: Clock,
        records: Records | None = None,
        tell: Callable[[Severity, str], None] | None = None,
    ) -> None:
        self.dropped: Counter[Lane] = Counter()
        """Records that were not taken, by lane."""
        self._clock = clock
        self._tell = tell
        self._records: Records | None = None
        self._queue: deque[tuple[Lane, bytes]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        if records is not None:
            self.attach(records)

    def attach(self, records: Records) -> None:
        """Gives it the spool. Called on the loop, whose turns end with what is written here."""
        self._records = records
        self._loop = asyncio.get_running_loop()
        self._schedule()

    def detach(self) -> None:
        """Writes what waits; from now on everything waits again, up to the bound."""
        self.flush()
        self._records = None
        self._loop = None

    def observe(self, event: object) -> None:
        """Records an event, or any object that stands for one."""
        now = self._clock.now()
        name = _WORDS.sub("_", type(event).__name__).lower()[:_LABEL_CHARS_MAX]
        attributes = _attributes(event)
        severity = getattr(event, "severity", None)
        if not isinstance(severity, Severity):
            severity = _SEVERITIES.get(name, Severity.NOTICE)
        told = ", ".join(f"{key}: {value}" for key, value in attributes.items())
        text = _clean(f"{name}: {told}" if told else name, _TEXT_CHARS_MAX)
        lane = Lane.ALARMS if severity <= Severity.ERROR else Lane.EVENTS
        self._put(lane, Event(now.wall_ns, now.mono_ns, name, severity, text, attributes))
        if self._tell is not None:
            self._tell(severity, getattr(event, "told", None) or text)

    def log_handler(self, level: int = logging.INFO) -> logging.Handler:
        """A handler for the ``logging`` module whose lines go to the lane ``logs``."""
        return _Handler(self, level)

    def log(self, record: logging.LogRecord) -> None:
        """Records a line of the log."""
        now = self._clock.now()
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a wrong format string is somebody else's mistake
            text = str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            failure = record.exc_info[1]
            text = f"{text}: {type(failure).__name__}: {failure}"
        line = LogLine(
            now.wall_ns,
            now.mono_ns,
            _severity_of(record.levelno),
            _clean(record.name, _LABEL_CHARS_MAX),
            _clean(text, _TEXT_CHARS_MAX),
        )
        self._put(Lane.LOGS, line)

    def metrics(self, points: Iterable[tuple[str, float, Mapping[str, str]]]) -> None:
        """Records metric points: name, value, labels; all of one moment."""
        now = self._clock.now()
        for name, value, labels in points:
            self._put(
                Lane.METRICS, MetricPoint(now.wall_ns, now.mono_ns, name, float(value), labels)
            )

    def flush(self) -> None:
        """Hands what waits to the spool. Runs on the loop."""
        self._scheduled = False
        if self._records is None:
            return
        by_lane: dict[Lane, list[bytes]] = {}
        while self._queue:
            lane, data = self._queue.popleft()
            by_lane.setdefault(lane, []).append(data)
        for lane, group in by_lane.items():
            try:
                self._records.append(lane, group, awaited=lane is Lane.ALARMS)
            except (Overloaded, DiskFailed, Refused):
                self.dropped[lane] += len(group)

    def _put(self, lane: Lane, record: Event | LogLine | MetricPoint) -> None:
        if len(self._queue) >= _QUEUE_RECORDS_MAX:
            self.dropped[lane] += 1
            return
        try:
            data = wire.encode(record)
        except Refused:
            self.dropped[lane] += 1
            return
        self._queue.append((lane, data))
        self._schedule()

    def _schedule(self) -> None:
        if self._scheduled or self._loop is None or not self._queue:
            return
        self._scheduled = True
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        try:
            if running is self._loop:
                self._loop.call_soon(self.flush)
            else:
                self._loop.call_soon_threadsafe(self.flush)
        except RuntimeError:
            self._scheduled = False  # the loop has ended; what waits is lost with the process


class _Handler(logging.Handler):
    def __init__(self, recorder: Recorder, level: int) -> None:
        super().__init__(level)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        self._recorder.log(record)


def _attributes(event: object) -> dict[str, str]:
    """The fields of an event as text, bounded in number and length."""
    if not is_dataclass(event):
        return {}
    return {
        field.name: _clean(str(getattr(event, field.name)), _ATTRIBUTE_CHARS_MAX)
        for field in fields(event)[:_ATTRIBUTES_MAX]
    }


def _clean(text: str, chars_max: int) -> str:
    """Text that is bounded, is UTF-8, and steers no terminal."""
    text = text[:chars_max].encode("utf-8", "replace").decode()
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)[:chars_max]


def _severity_of(level: int) -> Severity:
    """Of a level of the ``logging`` module, as RFC 5424 numbers it."""
    steps = (
        (logging.CRITICAL, Severity.CRITICAL),
        (logging.ERROR, Severity.ERROR),
        (logging.WARNING, Severity.WARNING),
        (logging.INFO, Severity.INFORMATIONAL),
    )
    return next((severity for least, severity in steps if level >= least), Severity.DEBUG)
