"""``holdfast carry in`` on an edge: receipts come back, and what they state is released.

They are first put into the inbox of the node, durably, where a running node looks every second.
Where none runs, this command opens the spool for as long as it takes, and hands the inbox over by
the node's own forwarder: what is refused, and what is released, follows from the same rules.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.inbox import INBOX, CarriedReceipts
from mesh.adapters.carrier.medium import Medium, SystemMedium
from mesh.adapters.carrier.receipts import put_receipts, read_receipts
from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.adapters.thread import LoopThread
from mesh.ports import Disk, Observer
from mesh.spool.batch import Labels
from mesh.spool.spool import Resources, Spool, SpoolSettings
from mesh.transfer.carried import FOLDER, RECEIPTS, Flaw, node_folder
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import LinkRule
from nodes.commands.carry_outcome import CarryOutcome, flaw_documents, flaw_lines
from nodes.commands.owner import owner_of
from nodes.forwarder import Forwarder, ReceiptRefused, Uplink
from nodes.settings import NodeSection, Settings
from nodes.spool_source import SpoolSource
from schemas.errors import ExitCode, StoreInUse
from schemas.messages import Lane, Receipt

__all__ = ["take_receipts"]

_ID_BYTES: Final = 16
_TAKEN_SECONDS_MAX: Final = 5.0
_POLL_SECONDS: Final = 0.1


def take_receipts(settings: Settings, disk: Disk, medium: Medium) -> CarryOutcome:
    """Takes the receipts of this node from a medium, and hands them to the node.

    Args:
        settings: of the node.
        disk: the medium.
        medium: the same.

    Raises:
        Refused: ``bad_name``: a link stands in the place of a folder.
        StoreUnusable: no node runs, and its spool cannot be opened.
        DiskFailed: the medium cannot be read, or the state directory not be written.
    """
    node = settings.node
    assert node is not None, "the command has looked"
    path = f"{FOLDER}/{node_folder(node.site, node.name)}/{RECEIPTS}"
    found, flaws = read_receipts(CarriedFolder(disk, medium, path), node.site, node.name)
    receipts = list(found.values())
    handed = _Handed(receipts, flaws)
    if receipts:
        state = node.state_directory
        inbox = CarriedFolder(SystemDisk(state), SystemMedium(state), INBOX)
        names = put_receipts(inbox, receipts)
        owner = owner_of(state / "spool")
        if owner.known and owner.pid is None:
            try:
                asyncio.run(_apply(settings, node, handed))
            except StoreInUse:
                owner = owner_of(state / "spool")
        if not handed.applied:
            handed.taken = _wait_taken(inbox, names)
            handed.pid = owner.pid
    return _outcome(node, path, handed)


@dataclass(slots=True)
class _Handed:
    """What became of the receipts.

    Args:
        receipts: that were taken from the medium.
        flaws: what was not taken, and why.
        applied: whether they were applied here, since no node runs.
        taken: whether the running node took them while this command watched.
        pid: the process of that node.
        refused: what was not believed, and why.
        released: how many records were released here, by lane.
        outdated: why the spool will begin a new life; empty when it will not.
    """

    receipts: Sequence[Receipt]
    flaws: list[Flaw]
    applied: bool = False
    taken: bool = False
    pid: int | None = None
    refused: list[str] = field(default_factory=list)
    released: dict[Lane, int] = field(default_factory=dict)
    outdated: bool = False

    def observe(self, event: object) -> None:
        """Notes what was not believed; of the rest a person here need not be told."""
        if isinstance(event, ReceiptRefused):
            self.refused.append(f"{event.lane}: {event.reason}")


async def _apply(settings: Settings, node: NodeSection, handed: _Handed) -> None:
    """Opens the spool, applies what lies in the inbox, and closes it in order."""
    async with AsyncExitStack() as stack:
        spool = await _open_spool(settings, node, handed, stack)
        try:
            before = _pending(spool)
            executor = stack.enter_context(ThreadPoolExecutor(1, "carried"))
            state = node.state_directory
            link = CarriedReceipts(
                *(SystemDisk(state), SystemMedium(state), executor, node.site, node.name),
                *(SystemClock(), handed),
            )
            await _forward(spool, link, node, handed)
            after = _pending(spool)
        finally:
            # What was released is durable once it has closed, and not before.
            await spool.close()
        await link.clear()
    handed.released = {lane: before[lane] - after[lane] for lane in Lane if before[lane]}
    handed.applied = True


async def _forward(spool: Spool, link: CarriedReceipts, node: NodeSection, handed: _Handed) -> None:
    """Runs the node's forwarder over this one link until the inbox is empty."""

    def outdated() -> None:
        handed.outdated = True

    source = SpoolSource(node.site, node.name, spool)
    uplink = Uplink(link, LinkRule(link.state.name))
    forwarder = Forwarder(
        *(source, [uplink], {}, DeliverySettings(), SystemClock(), handed, outdated)
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(forwarder.run(), name="forwarder")
        await link.wait_emptied()
        running.cancel()


async def _open_spool(
    settings: Settings, node: NodeSection, observer: Observer, stack: AsyncExitStack
) -> Spool:
    writer = stack.enter_context(LoopThread("spool-writer"))
    worker = stack.enter_context(ThreadPoolExecutor(1, "spool-worker"))
    resources = Resources(
        SystemDisk(node.state_directory / "spool"),
        SystemClock(),
        writer,
        worker,
        entropy,
        boot_id(),
        machine_id() or bytes(_ID_BYTES),
        observer,
    )
    return await Spool.open(
        resources,
        SpoolSettings(
            Labels(node.site, node.name, node.region, node.tenant),
            int(settings.spool.bytes_max),
            settings.spool.lane_settings(),
            headroom_bytes=int(settings.spool.headroom),
        ),
    )


def _pending(spool: Spool) -> dict[Lane, int]:
    return {lane: status.pending_records for lane, status in spool.status().lanes.items()}


def _wait_taken(inbox: CarriedFolder, names: Sequence[str]) -> bool:
    """Whether a running node takes the receipts soon."""
    polls = int(_TAKEN_SECONDS_MAX / _POLL_SECONDS)
    for _ in range(polls):
        if not set(names) & set(inbox.names()):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _outcome(node: NodeSection, path: str, handed: _Handed) -> CarryOutcome:
    document: dict[str, object] = {
        "site": node.site,
        "node": node.name,
        "folder": path,
        "receipts": len(handed.receipts),
        "applied": handed.applied,
        "taken_by": handed.pid if handed.taken else None,
        "released": handed.released,
        "refused": handed.refused,
        "outdated": handed.outdated,
        "flaws": flaw_documents(handed.flaws),
    }
    lines = [f"{node.site}/{node.name}: {receipt}" for receipt in handed.receipts]
    lines += _lines(node, handed)
    lines += [f"refused: {why}" for why in handed.refused] + flaw_lines(handed.flaws)
    wrong = bool(handed.refused) or any(not flaw.harmless for flaw in handed.flaws)
    return CarryOutcome(document, lines, ExitCode.FAILED if wrong else ExitCode.FINE)


def _lines(node: NodeSection, handed: _Handed) -> list[str]:
    if not handed.receipts:
        return [f"{node.site}/{node.name}: no receipt for it lies here"]
    if handed.applied:
        released = handed.released.items()
        lines = [f"released: {lane}: {count} records" for lane, count in released if count]
        if handed.outdated:
            lines.append("the spool is an older copy: it begins a new life at its next start")
        return lines or ["released: nothing that was not released before"]
    if handed.taken:
        return [f"the running node, process {handed.pid}, has taken them"]
    where = node.state_directory / INBOX
    return [f"they lie in {where}: the node takes them when it looks there, or starts"]
