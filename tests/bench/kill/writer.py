"""The writer that is killed: opens a spool, audits it, then appends, forwards and dies.

``python -m tests.bench.kill.writer`` is a nursery: it imports everything once, reads orders as JSON
lines, forks a child for each, and says how the child began and ended. With orders as an argument it
carries them out itself, for a tracer to hold.
"""

import asyncio
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from mesh.adapters.system import SystemDisk
from mesh.spool.spool import DEFAULT_LANES, Appended, Spool, SpoolSettings
from schemas import wire
from schemas.errors import Overloaded
from schemas.messages import Event, Lane, Severity
from schemas.ranges import Ranges
from tests.bench.kill.marks import Death, MarkedDisk, Marks
from tests.spool.telling import Said, Teller
from tests.spool.verifier import LABELS, Findings, opened, verify

__all__ = ["Orders", "as_line", "live"]

_PRODUCED: Final = (Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.METRICS, Lane.LOGS)
_NEVER_GIVEN_UP: Final = (Lane.ALARMS, Lane.ACCOUNT)
_CLEAN_STEPS: Final = 20
_JOURNAL_BYTES: Final = 24 * 1024
_DONE: Final = 0
_FAILED: Final = 1
_CLOSED: Final = 3


@dataclass(frozen=True, slots=True)
class Orders:
    """What a writer does.

    Args:
        folder: the spool's; beside it stand ``<folder>.told`` and ``<folder>.page``.
        seed: of all that is drawn.
        bytes_max: what the spool may take.
        kind: ``audit`` ends after the audit; ``close`` closes in order after a while; anything else
            appends until it is killed.
        death: phase, number and place of the call that is the last; empty for none.
        hoards: whether it releases only what is never given up, so that the rest must be evicted.
        hasty: whether to acknowledge before the disk did, as no writer may.
        seconds_max: after so long it kills itself wherever it is.
    """

    folder: str
    seed: int
    bytes_max: int
    kind: str
    death: tuple[str, int, str] | None = None
    hoards: bool = False
    hasty: bool = False
    seconds_max: float = 4.0

    @property
    def told(self) -> Path:
        """What was said by all writers of this spool."""
        return Path(f"{self.folder}.told")

    @property
    def page(self) -> Path:
        """In which phase the last writer died."""
        return Path(f"{self.folder}.page")

    def settings(self) -> SpoolSettings:
        """Small in everything, so that all happens all the time."""
        lanes = {lane: replace(DEFAULT_LANES[lane], reserved=128) for lane in Lane}
        return SpoolSettings(
            LABELS,
            self.bytes_max,
            lanes,
            journal_bytes_max=_JOURNAL_BYTES,
            spare_bytes=_JOURNAL_BYTES,
        )


def live(orders: Orders) -> int:
    """Carries orders out; returns how it ended, where it comes to that."""
    return asyncio.run(_Writer(orders).run())


class _Writer:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._rng = random.Random(orders.seed)
        self._tell = Teller(orders.told)
        self._marks = Marks(orders.page, Death(*orders.death) if orders.death else None)
        self._counter = 0

    async def run(self) -> int:
        orders = self._orders
        asyncio.get_running_loop().call_later(orders.seconds_max, _die)
        disk = MarkedDisk(SystemDisk(orders.folder), self._marks)
        mark_opening = orders.death is not None and orders.death[0] == "open"
        self._marks.stage = "open" if mark_opening else "none"
        async with opened(
            Path(orders.folder),
            orders.settings(),
            disk=disk,
            observer=self._marks,
            maintain=False,
        ) as spool:
            self._marks.stage = "none"
            await self._audit(spool)
            if orders.kind == "audit":
                # Nothing is closed: the next one opens what a crash left.
                os._exit(_DONE)
            if mark_opening:
                # Opening took fewer calls than it was to die after.
                _die()
            self._tell.say("ready")
            self._marks.stage = "run"
            await self._work(spool)
            self._marks.stage = "close"
        self._tell.say("closed")
        return _CLOSED

    async def _audit(self, spool: Spool) -> None:
        findings = await verify(spool, Said.read(self._orders.told))
        self._tell.saw(spool.epoch, Lane.ACCOUNT, findings.own.items())
        self._tell.say("audit", json.dumps(_summary(findings), separators=(",", ":")))

    async def _work(self, spool: Spool) -> None:
        async with asyncio.TaskGroup() as tasks:
            endless = [
                tasks.create_task(spool.maintain()),
                tasks.create_task(self._forward(spool)),
            ]
            producing = [tasks.create_task(self._produce(spool, lane)) for lane in _PRODUCED]
            await asyncio.wait(producing)
            for task in endless:
                task.cancel()

    async def _produce(self, spool: Spool, lane: Lane) -> None:
        steps = _CLEAN_STEPS if self._orders.kind == "close" else sys.maxsize
        for _ in range(steps):
            records = [self._record() for _ in range(self._rng.randint(1, 6))]
            try:
                appended = spool.append(lane, records, awaited=self._rng.random() < 0.8)
            except Overloaded:
                await asyncio.sleep(0.002)
                continue
            self._tell.handed(lane, appended, records)
            self._tell.next(spool.epoch, Lane.ACCOUNT, spool.next_seq(Lane.ACCOUNT))
            await self._acknowledge(lane, appended)
            await asyncio.sleep(self._rng.uniform(0, 0.02))

    async def _acknowledge(self, lane: Lane, appended: Appended) -> None:
        if self._orders.hasty:
            self._tell.acknowledged(lane, appended)
            await appended.settled
        elif await appended.settled:
            self._tell.acknowledged(lane, appended)

    def _record(self) -> bytes:
        self._counter += 1
        # Random text, so that compression does not make the store look empty.
        text = self._rng.randbytes(self._rng.randint(20, 500)).hex()
        name = f"{self._orders.seed}-{self._counter}"
        return wire.encode(Event(0, 0, name, Severity.NOTICE, text))

    async def _forward(self, spool: Spool) -> None:
        """Takes batches as a forwarder would, and releases them, not always the oldest first."""
        lanes = _NEVER_GIVEN_UP if self._orders.hoards else (*_NEVER_GIVEN_UP, *_PRODUCED)
        while True:
            lane = self._rng.choice(lanes)
            start = 0
            if lane not in _NEVER_GIVEN_UP and self._rng.random() < 0.3:
                start = self._rng.randrange(spool.durable(lane) + 1)
            batch = await spool.next_batch(lane, start)
            if batch is not None:
                self._release(spool, lane, batch.header.present)
            await asyncio.sleep(self._rng.uniform(0, 0.03))

    def _release(self, spool: Spool, lane: Lane, numbers: Ranges) -> None:
        self._tell.releasing(spool.epoch, lane, numbers)
        self._marks.releasing(lane, numbers)
        spool.release(lane, numbers, "hq")


def _summary(findings: Findings) -> dict[str, Sequence[str]]:
    return {"lost": findings.lost, "reused": findings.reused, "untrue": findings.untrue}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _parse(text: str) -> Orders:
    fields = json.loads(text)
    death = fields.pop("death")
    return Orders(**fields, death=tuple(death) if death else None)


def _nurse() -> None:
    """Forks a child for each line of orders. One thread, so a fork is safe."""
    for line in sys.stdin:
        orders = _parse(line)
        child = os.fork()
        if child == 0:
            try:
                os._exit(live(orders))
            except BaseException:  # noqa: BLE001 - the child must not go on as a nursery
                traceback.print_exc()
                os._exit(_FAILED)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def as_line(orders: Orders) -> str:
    """Orders as a nursery reads them."""
    return json.dumps(asdict(orders))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(live(_parse(sys.argv[1])))
    _nurse()
