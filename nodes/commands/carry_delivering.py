"""Delivering: the batches of one carried node go over a link, and its receipts are waited for.

Every batch is sent, also one that was brought before: the ledger takes each number once, and its
answer is what the node waits for. A receipt counts only when it is a later one than its holder had
given before the first batch went: an old one may speak of a store that was lost since.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from mesh.adapters.carrier.unloading import Load, read
from mesh.ports import Accepted, Link, Refusal
from mesh.spool.batch import Batch
from mesh.transfer.carried import CarriedFile, Flaw
from mesh.transfer.parts import part_of
from nodes.commands.carry_outcome import Tell
from schemas.errors import DiskFailed, LinkDown, Refused, RefusedBecause
from schemas.limits import SEND_WINDOW_BATCHES
from schemas.messages import Epoch, Lane, Receipt
from schemas.ranges import Ranges

__all__ = ["Delivered", "Delivering"]

_REPLAY_SECONDS: Final = 1.0
_RETRY_SECONDS_MIN: Final = 0.1
_LEAVE_SECONDS_MIN: Final = 0.001

_Key = tuple[str, Epoch, Lane]


@dataclass(slots=True)
class Delivered:
    """What became of a load.

    Args:
        load: what was carried.
        sent: the batches that the transport took, and the numbers in each.
        flaws: what was not taken, and why.
        receipts: the newest of each holder, epoch and lane.
        gave_up: why it ended before all had a receipt; empty when all have one.
    """

    load: Load
    sent: list[tuple[CarriedFile, Epoch, Ranges]] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    receipts: dict[_Key, Receipt] = field(default_factory=dict)
    gave_up: str = ""

    def stated(self, epoch: Epoch, lane: Lane) -> Ranges:
        """The numbers of a lane that some holder says it has."""
        spans = Ranges()
        for receipt in self.receipts.values():
            if (receipt.epoch, receipt.lane) == (epoch, lane):
                spans |= Ranges.of([(0, receipt.watermark)]) | receipt.held
        return spans

    def waiting(self) -> list[CarriedFile]:
        """The batches that were sent, and that no receipt covers yet."""
        stated = {(epoch, file.lane): Ranges() for file, epoch, _ in self.sent}
        stated = {key: self.stated(*key) for key in stated}
        return [file for file, epoch, numbers in self.sent if numbers - stated[epoch, file.lane]]


class Delivering:
    """One delivery over one link. ``run`` is called once.

    Args:
        link: which.
        load: what to deliver.
        patience_seconds: how long nothing may come of it before it is given up.
        tell: is told how far it has come, and what it waits for.
    """

    def __init__(self, link: Link, load: Load, patience_seconds: float, tell: Tell) -> None:
        self._link = link
        self._load = load
        self._patience_seconds = patience_seconds
        self._tell = tell
        self._done = Delivered(load, flaws=[*load.flaws])
        self._deadline = asyncio.timeout(None)
        self._room = asyncio.Semaphore(SEND_WINDOW_BATCHES)
        self._before: dict[_Key, Receipt] = {}
        self._offering = False
        self._receipted = asyncio.Event()

    async def run(self) -> Delivered:
        """Delivers until all has a receipt, or nothing comes of it any more."""
        if not self._load.files:
            return self._done
        try:
            async with self._deadline:
                self._go_on("waiting for the link")
                async with asyncio.TaskGroup() as tasks:
                    reading = tasks.create_task(self._take_receipts(), name="receipts")
                    await self._wait_up()
                    # What was stated before comes first; it must not be taken for an answer.
                    await asyncio.sleep(_REPLAY_SECONDS)
                    self._offering = True
                    await self._send_all()
                    await self._wait_receipted()
                    reading.cancel()
        except TimeoutError:
            state = self._link.state
            what = "no receipt came" if state.up else f"the link is down: {state.reason}"
            self._done.gave_up = f"{what}, for {self._patience_seconds:g} s"
        return self._done

    def _go_on(self, note: str) -> None:
        """Something came of it: patience begins anew."""
        now = asyncio.get_running_loop().time()
        self._deadline.reschedule(now + self._patience_seconds)
        self._tell(note, len(self._done.sent), len(self._load.files))

    async def _wait_up(self) -> None:
        state = self._link.state
        while not state.up:
            state = await self._link.wait_changed(state)

    # --- sending -------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for file in self._load.files:
                await self._room.acquire()
                tasks.create_task(self._send_file(file), name=f"send {file.name}")

    async def _send_file(self, file: CarriedFile) -> None:
        try:
            batch = await asyncio.to_thread(read, self._load, file)
            await self._send(batch)
        except (FileNotFoundError, DiskFailed, Refused) as wrong:
            self._done.flaws.append(Flaw(f"{self._load.folder.path}/{file.name}", str(wrong)))
        else:
            self._done.sent.append((file, batch.header.epoch, batch.header.present))
            self._go_on(f"sent {file.name}")
        finally:
            self._room.release()

    async def _send(self, batch: Batch) -> None:
        """Sends until the transport has it.

        Raises:
            Refused: it never will.
        """
        part = part_of(batch.header, batch.data, batch.digest, 0, len(batch.data))
        while True:
            await self._wait_up()
            try:
                answer = await self._link.send(part)
            except LinkDown:
                await asyncio.sleep(_RETRY_SECONDS_MIN)
                continue
            match answer:
                case Accepted():
                    return
                case Refusal(RefusedBecause.FULL, _, pause):
                    await asyncio.sleep(max(pause, _RETRY_SECONDS_MIN))
                case Refusal(reason, detail, _):
                    raise Refused(reason, detail)

    # --- receipts ------------------------------------------------------------------------------

    async def _take_receipts(self) -> None:
        async for receipt in self._link.receipts():
            if (receipt.site, receipt.node) == (self._load.site, self._load.node):
                self._take(receipt)

    def _take(self, receipt: Receipt) -> None:
        key = (receipt.holder, receipt.epoch, receipt.lane)
        if not self._offering:
            self._before[key] = receipt
            return
        known = self._done.receipts.get(key) or self._before.get(key)
        later = known is None or known.life != receipt.life or receipt.number > known.number
        if later:
            self._done.receipts[key] = receipt
            self._go_on(str(receipt))
            self._receipted.set()

    async def _wait_receipted(self) -> None:
        while self._done.waiting():
            self._receipted.clear()
            await self._receipted.wait()
