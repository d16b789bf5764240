"""The load: what an edge of a pump station records in a day, and the spool in which it waits."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

from mesh.adapters.system import SystemDisk
from mesh.spool.journal import numbers
from schemas import wire
from schemas.documents import decision_json, record_json
from schemas.messages import (
    Decision,
    Epoch,
    Identity,
    Lane,
    LogLine,
    MetricPoint,
    Origin,
    Record,
    Severity,
)
from tests.bench.spool.load import BULK_RECORDS, opened

__all__ = ["LANES", "documents", "fill", "records"]

LANES = (Lane.DECISIONS, Lane.METRICS, Lane.LOGS)
_WALL_NS = 1_767_225_600_000_000_000
_BOOT_NS = 10**12
_PUMPS = 4
_POLL_SECONDS = 0.1
_REST_SECONDS = 1.0
_JOURNALS_MAX = 4
_VERDICTS = ("normal", "cavitation", "leak", "blocked")
_METRICS: tuple[tuple[str, dict[str, str]], ...] = (
    ("holdfast_decisions_total", {"rule": "pump-state", "verdict": "normal"}),
    ("holdfast_spool_bytes", {"lane": "decisions"}),
    ("node_cpu_seconds_total", {"cpu": "0", "mode": "user"}),
    ("node_memory_free_bytes", {}),
    ("plant_temperature_celsius", {"pump": "1"}),
    ("plant_pressure_pascals", {"pump": "1"}),
)
_LINES = (
    "connection to 10.0.3.{} took {} ms",
    "sensor {} read {} values",
    "wrote {} bytes in {} ms",
    "client {} subscribed, {} filters",
)
_LOGGERS = ("holdfast.forwarder", "plant.modbus", "mqtt")


def records(count: int) -> dict[Lane, list[bytes]]:
    """So many records, a third in each lane, always the same ones: their canonical bytes."""
    return {lane: list(map(wire.encode, kept)) for lane, kept in _records(count)}


def documents(count: int) -> dict[Lane, list[bytes]]:
    """The same records as a node publishes them on its own broker: JSON, a message each."""
    return {
        lane: [_document(lane, number, record) for number, record in enumerate(kept)]
        for lane, kept in _records(count)
    }


def _records(count: int) -> Iterator[tuple[Lane, Iterator[Record]]]:
    rng = random.Random(1)
    origins = [_origin(rng, pump) for pump in range(_PUMPS)]
    makers = {
        Lane.DECISIONS: lambda n: _decision(rng, origins, n),
        Lane.METRICS: lambda n: _metric(rng, n),
        Lane.LOGS: lambda n: _line(rng, n),
    }
    share, rest = divmod(count, len(LANES))
    for index, lane in enumerate(LANES):
        yield lane, map(makers[lane], range(share + (index < rest)))


def _document(lane: Lane, number: int, record: Record) -> bytes:
    if isinstance(record, Decision):
        return decision_json("bench", Identity("edge-1", Epoch(1, 7), lane, number), record)
    return record_json(record)


def fill(folder: Path, made: dict[Lane, list[bytes]]) -> None:
    """Puts them into a spool that no link drains, and lets it seal its journals."""
    asyncio.run(_fill(SystemDisk(folder), made))


async def _fill(disk: SystemDisk, made: dict[Lane, list[bytes]]) -> None:
    async with opened(disk) as spool:
        most = max(map(len, made.values()))
        for start in range(0, most, BULK_RECORDS):
            settled = [
                spool.append(lane, kept[start : start + BULK_RECORDS]).settled
                for lane, kept in made.items()
                if start < len(kept)
            ]
            assert all(await asyncio.gather(*settled)), "the disk failed"
            while len(numbers(disk)) > _JOURNALS_MAX:  # noqa: ASYNC110 - only the files tell
                await asyncio.sleep(_POLL_SECONDS)
        before: list[int] = []
        while (now := numbers(disk)) != before:
            before = now
            await asyncio.sleep(_REST_SECONDS)


def _origin(rng: random.Random, pump: int) -> Origin:
    return Origin(
        "pump-state",
        f"plant/pump-{pump}/telemetry",
        "pump",
        "3.1.0",
        rng.randbytes(32),
        rng.randbytes(32),
        "0123456789abcdef",
        _VERDICTS,
    )


def _decision(rng: random.Random, origins: list[Origin], number: int) -> Record:
    wall_ns = _WALL_NS + number * 50_000_000 + rng.randrange(1_000_000)
    values = tuple(round(rng.random(), 4) for _ in _VERDICTS)
    return Decision(
        origin=origins[number % _PUMPS],
        wall_ns=wall_ns,
        mono_ns=wall_ns - _WALL_NS + _BOOT_NS,
        read_ns=wall_ns - 200_000,
        verdict="normal" if rng.random() < 0.95 else "leak",
        confidence=max(values),
        values=values,
        reasons=() if rng.random() < 0.9 else ("late",),
        inputs=1,
        input_digest=rng.randbytes(16),
        valid_for_ms=2000,
        replay=False,
        trace=rng.randbytes(16),
    )


def _metric(rng: random.Random, number: int) -> Record:
    wall_ns = _WALL_NS + number // len(_METRICS) * 5_000_000_000
    name, labels = _METRICS[number % len(_METRICS)]
    value = 3.0 * number if name.endswith("_total") else round(20 + rng.gauss(0, 1), 3)
    return MetricPoint(wall_ns, wall_ns - _WALL_NS + _BOOT_NS, name, value, labels)


def _line(rng: random.Random, number: int) -> Record:
    wall_ns = _WALL_NS + number * 10_000_000 + rng.randrange(1_000_000)
    severity = Severity.INFORMATIONAL if rng.random() < 0.9 else Severity.WARNING
    text = rng.choice(_LINES).format(rng.randrange(256), rng.randrange(1000))
    return LogLine(wall_ns, wall_ns - _WALL_NS + _BOOT_NS, severity, rng.choice(_LOGGERS), text)
