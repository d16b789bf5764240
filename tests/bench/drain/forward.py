"""A process that drains a spool to a nats-server as an edge does, and says how long that took.

``python -m tests.bench.drain.forward FOLDER URL receipts`` ends when headquarters has receipted all
of it. ``… accepted`` ends when the server has acknowledged all of it, with receipts as often as
headquarters gives them, and ``… bare`` hands the same batches to ``publish_async`` of nats-py in a
loop, which is the least that anybody could do. On standard output: seconds from the moment the link
is up, records or batches, bytes on the wire.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

import nats

from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.system import SystemClock, SystemDisk
from mesh.ports import Accepted, Link, Part, Refusal
from mesh.spool.batch import Batch
from mesh.spool.spool import Spool
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from nodes.forwarder import Forwarder
from nodes.forwarding.route import Uplink
from nodes.spool_source import SpoolSource
from schemas.limits import BATCH_RAW_BYTES_MAX, INGEST_RAW_BYTES_MAX
from schemas.messages import BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.wire import decode_as
from tests.bench.drain.load import LANES
from tests.bench.spool.load import Ignoring, opened

__all__ = ["main"]

_SITE, _NODE = "bench", "edge-1"
_SECONDS_MAX = 120.0
# What headquarters takes in one commit, and gives one receipt for.
_RECEIPT_BATCHES = INGEST_RAW_BYTES_MAX // BATCH_RAW_BYTES_MAX
_LENGTH = slice(8, 12)
_HEAD_BYTES = 16


def main() -> None:
    """Drains, and says how it went."""
    folder, url, until = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    work = {"receipts": _receipted, "accepted": _accepted, "bare": _bare}[until]
    print(json.dumps(asyncio.run(work(folder, url))))


async def _receipted(folder: Path, url: str) -> dict[str, float]:
    async with opened(SystemDisk(folder)) as spool, _link(url) as link:
        records = sum(spool.durable(lane) for lane in Lane)
        await _up(link)
        begun = perf_counter()
        forwarder = _forwarder(spool, link)
        async with asyncio.timeout(_SECONDS_MAX), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(forwarder.run())
            await forwarder.drained()
            seconds = perf_counter() - begun
            running.cancel()
        return {"seconds": seconds, "records": records, "wire_bytes": _wire_bytes(url)}


async def _accepted(folder: Path, url: str) -> dict[str, float]:
    async with opened(SystemDisk(folder), maintain=False) as spool, _link(url) as link:
        batches = await _batches(spool)
        counted = _Counted(link, batches)
        await _up(link)
        begun = perf_counter()
        async with asyncio.timeout(_SECONDS_MAX), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(_forwarder(spool, counted).run())
            await counted.done.wait()
            seconds = perf_counter() - begun
            running.cancel()
        return {"seconds": seconds, "batches": len(batches)}


async def _bare(folder: Path, url: str) -> dict[str, float]:
    async with opened(SystemDisk(folder), maintain=False) as spool:
        batches = await _batches(spool)
    client = await nats.connect(url)
    stream = client.jetstream()
    begun = perf_counter()
    for batch in batches:
        header = batch.header
        subject = f"mesh.v1.{header.site}.{header.node}.up.{header.lane}"
        await stream.publish_async(subject, batch.data, wait_stall=60.0)
    await stream.publish_async_completed()
    seconds = perf_counter() - begun
    await client.close()
    return {"seconds": seconds, "batches": len(batches)}


class _Counted:
    """A link that receipts what the server has acknowledged, and knows when that is all."""

    def __init__(self, link: JetStreamLink, batches: list[Batch]) -> None:
        self._link = link
        self._left = sum(it.header.count for it in batches if it.header.lane in LANES)
        self._headers = {it.digest: it.header for it in batches}
        self._held: dict[Lane, Ranges] = {}
        self._newest: dict[Lane, BatchHeader] = {}
        self._accepted = 0
        self._receipts: asyncio.Queue[Receipt] = asyncio.Queue()
        self.done = asyncio.Event()
        self.wait_changed = link.wait_changed
        self.reset = link.reset

    async def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts for what was acknowledged."""
        while True:
            yield await self._receipts.get()

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part, and counts it."""
        answer = await self._link.send(part)
        assert isinstance(answer, Accepted), answer
        if part.offset == 0 and part.digest not in self._headers:
            size = int.from_bytes(part.payload[_LENGTH], "little")
            head = part.payload[_HEAD_BYTES : _HEAD_BYTES + size]
            self._headers[part.digest] = decode_as(BatchHeader, head)
        # The last part of a batch goes last.
        if part.offset + len(part.payload) < part.total:
            return answer
        header = self._headers.pop(part.digest)
        held = self._held.get(header.lane, Ranges())
        if header.lane in LANES and not held.covers(header.first, header.last + 1):
            self._left -= header.count
        self._held[header.lane] = held.add(header.first, header.last + 1)
        self._newest[header.lane] = header
        self._accepted += 1
        if self._accepted % _RECEIPT_BATCHES == 0:
            self._tell()
        if self._left <= 0:
            self.done.set()
        return answer

    def _tell(self) -> None:
        """A receipt for each lane of which something came since the last time."""
        for lane, header in self._newest.items():
            self._receipts.put_nowait(_receipt(header, self._held[lane]))
        self._newest.clear()


def _forwarder(spool: Spool, link: object) -> Forwarder:
    uplink = Uplink(link, LinkRule("up"))  # type: ignore[arg-type]
    source = SpoolSource(_SITE, _NODE, spool)
    return Forwarder(source, [uplink], {}, DeliverySettings(), SystemClock(), Ignoring())


def _receipt(header: BatchHeader, held: Ranges) -> Receipt:
    watermark = held.watermark()
    whole = watermark == header.last + 1
    return Receipt(
        holder="bench",
        life=Epoch(1, 1),
        number=len(held),
        stage=Stage.HELD,
        site=header.site,
        node=header.node,
        epoch=header.epoch,
        lane=header.lane,
        watermark=watermark,
        chain=header.chain_after if whole else b"",
        chain_at=watermark if whole else 0,
        held=held - Ranges.of([(0, watermark)]),
    )


def _link(url: str) -> JetStreamLink:
    settings = LinkSettings(SessionSettings("up", (url,)), _SITE, _NODE)
    return JetStreamLink(settings, SystemClock(), random.Random(1))


async def _up(link: Link) -> None:
    async with asyncio.timeout(60):
        state = link.state
        while not state.up:
            state = await link.wait_changed(state)


async def _batches(spool: Spool) -> list[Batch]:
    found = []
    for lane in Lane:
        start = 0
        while (batch := await spool.next_batch(lane, start)) is not None:
            found.append(batch)
            start = batch.header.last + 1
    return found


def _wire_bytes(url: str) -> int:
    """What TCP has carried between this process and the server, both ways, without its headers."""
    port = url.rpartition(":")[2]
    told = subprocess.run(
        ["ss", "-tinHOp", f"dport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    words = [
        word for line in told.splitlines() if f"pid={os.getpid()}," in line for word in line.split()
    ]
    return sum(
        int(word.partition(":")[2])
        for word in words
        if word.startswith(("bytes_acked:", "bytes_received:"))
    )


if __name__ == "__main__":
    main()
