"""The child: a process that owns a spool and does what it is told, a line at a time.

``python -m tests.spool.child FOLDER TOLD OPTIONS``: requests come as JSON lines on standard input,
each is answered by one on standard output. What was promised goes to the file of the told, so it
outlives the process. A task ticks every 10 ms: how late it ever was says whether the loop was held.
"""

import asyncio
import ctypes
import json
import os
import random
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from mesh.spool.spool import Appended, Spool, SpoolSettings
from schemas import wire
from schemas.errors import DiskFailed, MeshError, Overloaded
from schemas.messages import Event, Lane, Severity
from schemas.ranges import Ranges
from tests.spool.telling import Said, Teller
from tests.spool.verifier import LABELS, opened, verify

__all__ = ["record"]

_TICK_SECONDS: Final = 0.01
_PR_SET_PTRACER: Final = 0x59616D61
_ANYBODY: Final = ctypes.c_ulong(-1)


def record(name: str, size: int) -> bytes:
    """The canonical bytes of an event with so much incompressible text in it."""
    text = random.Random(name).randbytes(size // 2).hex()
    return wire.encode(Event(0, 0, name, Severity.NOTICE, text[:4000], {"rest": text[4000:]}))


class _Child:
    """Answers requests."""

    def __init__(self, spool: Spool, told: Path) -> None:
        self._spool = spool
        self._told = told
        self._tell = Teller(told)
        self._flood: list[tuple[Lane, Appended]] = []
        self._late = 0.0
        self._counter = 0

    async def tick(self) -> None:
        """Notes how late the loop comes, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self._late = max(self._late, loop.time() - due)

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does one thing."""
        try:
            match request.pop("do"):
                case "append":
                    return await self._append(**request)
                case "fill":
                    return await self._fill_journal(**request)
                case "flood":
                    return self._pour(**request)
                case "settle":
                    return await self._settle()
                case "release":
                    return self._release(**request)
                case "status":
                    return self._status()
                case "read":
                    return await self._read(**request)
                case "verify":
                    return await self._verify()
                case "limit":
                    return _limit(**request)
                case other:
                    raise ValueError(f"unknown request {other!r}")
        except (MeshError, MemoryError, OSError) as refused:
            return {"refused": type(refused).__name__, "said": str(refused)}

    def _take(self, lane: Lane, count: int, size: int) -> Appended:
        records = []
        for _ in range(count):
            self._counter += 1
            records.append(record(f"{lane}-{self._spool.next_seq(lane)}-{self._counter}", size))
        appended = self._spool.append(lane, records)
        self._tell.handed(lane, appended, records)
        return appended

    async def _append(self, lane: str, count: int = 1, size: int = 100) -> dict[str, Any]:
        appended = self._take(Lane(lane), count, size)
        settled = await appended.settled
        if settled:
            self._tell.acknowledged(Lane(lane), appended)
        return {"first": appended.first, "settled": settled}

    async def _fill_journal(self, lane: str, bytes_min: int) -> dict[str, Any]:
        """Appends and waits until so much was appended."""
        for _ in range(bytes_min // 50_000 + 1):
            await self._append(lane, size=50_000)
        return {}

    def _pour(self, lane: str, size: int, bytes_max: int) -> dict[str, Any]:
        """Appends without waiting, until so much waits or the spool says that it is too much."""
        taken = 0
        while taken < bytes_max:
            try:
                self._flood.append((Lane(lane), self._take(Lane(lane), 1, size)))
            except Overloaded as refused:
                return {"taken": taken, "refused": "Overloaded", "said": str(refused)}
            taken += size
        return {"taken": taken}

    async def _settle(self) -> dict[str, Any]:
        kept = shed = 0
        for lane, appended in self._flood:
            if await appended.settled:
                self._tell.acknowledged(lane, appended)
                kept += 1
            else:
                shed += 1
        self._flood.clear()
        return {"kept": kept, "shed": shed}

    def _release(self, lane: str, stop: int) -> dict[str, Any]:
        numbers = Ranges.of([(0, stop)])
        self._tell.releasing(self._spool.epoch, Lane(lane), numbers)
        self._spool.release(Lane(lane), numbers, "hq")
        return {}

    def _status(self) -> dict[str, Any]:
        status = self._spool.status()
        late, self._late = self._late, 0.0
        pending = {lane: item.pending_records for lane, item in status.lanes.items()}
        explained = {lane: dict(item.explained) for lane, item in status.lanes.items()}
        return {
            "degraded": status.degraded,
            "used_bytes": status.used_bytes,
            "pending": pending,
            "explained": explained,
            "late_seconds": late,
        }

    async def _read(self, lane: str, start: int = 0) -> dict[str, Any]:
        numbers = Ranges()
        while (batch := await self._spool.next_batch(Lane(lane), start)) is not None:
            numbers |= batch.header.present
            start = batch.header.last + 1
        return {"numbers": numbers.spans}

    async def _verify(self) -> dict[str, Any]:
        findings = await verify(self._spool, Said.read(self._told))
        explained = {
            lane: {why: numbers.spans for why, numbers in reasons.items()}
            for lane, reasons in findings.explained.items()
        }
        return {
            "lost": findings.lost,
            "reused": findings.reused,
            "untrue": findings.untrue,
            "explained": explained,
        }


def _limit(what: str, soft: int) -> dict[str, Any]:
    """Lowers or raises a soft limit of this process; -1 for as high as it may be."""
    kind = getattr(resource, what)
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard if soft < 0 else soft, hard))
    return {}


async def _requests() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer, separators=(",", ":")), flush=True)


async def _run(folder: Path, told: Path, options: dict[str, Any]) -> None:
    how = {name: options.pop(name) for name in ("threads", "maintain") if name in options}
    settings = SpoolSettings(LABELS, **options)
    try:
        async with opened(folder, settings, **how) as spool, asyncio.TaskGroup() as tasks:
            child = _Child(spool, told)
            ticking = tasks.create_task(child.tick())
            _say({"open": str(spool.epoch), "process_id": os.getpid()})
            async for request in _requests():
                _say(await child.answer(request))
            ticking.cancel()
    except* (MeshError, DiskFailed) as errors:
        error = errors.exceptions[0]
        _say({"refused": type(error).__name__, "said": str(error), "process_id": os.getpid()})


def _main() -> None:
    # Where only ancestors may trace, anybody of the same user may trace this process.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    asyncio.run(_run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))


if __name__ == "__main__":
    _main()
