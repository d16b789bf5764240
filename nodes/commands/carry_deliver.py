"""``holdfast carry in`` where batches are taken: each node's go the way its own link would take."""

import asyncio
import random
from typing import Final

from mesh.adapters.carrier.medium import Medium
from mesh.adapters.carrier.receipts import put_receipts
from mesh.adapters.carrier.unloading import Load, loads
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.system import SystemClock, entropy
from mesh.ports import Disk
from mesh.transfer.carried import RECEIPTS, Flaw
from nodes.commands.carry_delivering import Delivered, Delivering
from nodes.commands.carry_outcome import (
    CarryOutcome,
    Tell,
    by_lane,
    flaw_documents,
    flaw_lines,
)
from nodes.commands.endpoints import password, receiving_urls, tls_context
from nodes.gateway_section import GatewaySection
from nodes.settings import HeadquartersSection, Settings, UplinkSection
from schemas.errors import ConfigurationInvalid, DiskFailed, DiskReadOnly, ExitCode

__all__ = ["deliver_loads"]

_Receiver = HeadquartersSection | GatewaySection | UplinkSection
_SHOWN_MAX: Final = 20
_SCHEMES: Final = ("nats://", "tls://")


def deliver_loads(
    settings: Settings, disk: Disk, medium: Medium, patience_seconds: float, tell: Tell
) -> CarryOutcome:
    """Delivers all that a medium holds, and puts the receipts beside it.

    Args:
        settings: of headquarters, of a gateway, or with an uplink to one.
        disk: the medium.
        medium: the same.
        patience_seconds: how long nothing may come of it before it is given up.
        tell: is told how far it has come.

    Raises:
        ConfigurationInvalid: it does not say where the server is.
        Refused: ``bad_name``: a link stands in the place of the carried folder.
        DiskFailed: the medium does not tell what is there, or does not take the receipts.
    """
    section = _receiver(settings)
    session = SessionSettings(
        section.name,
        section.urls if isinstance(section, UplinkSection) else receiving_urls(section),
        section.username or "",
        password(section),
        tls_context(section),
        reconnect_seconds_max=2.0,
    )
    found, flaws = loads(disk, medium)
    all_delivered = []
    unwritten: DiskFailed | None = None
    for load in found:
        done = asyncio.run(_deliver(session, load, patience_seconds, tell))
        all_delivered.append(done)
        try:
            if done.receipts:
                put_receipts(load.folder.within(RECEIPTS), done.receipts.values())
        except DiskFailed as failure:
            unwritten = failure
    if unwritten is not None:
        what = f"the batches were delivered, and the receipts cannot be put back: {unwritten}"
        raise (DiskReadOnly if isinstance(unwritten, DiskReadOnly) else DiskFailed)(what)
    return _outcome(all_delivered, flaws)


def _receiver(settings: Settings) -> _Receiver:
    """Where batches are handed over: this holder's own server, or the way of an uplink.

    Raises:
        ConfigurationInvalid: no uplink leads to a NATS server.
    """
    holder = settings.headquarters or settings.gateway
    if holder is not None:
        return holder
    for uplink in settings.uplinks:
        if (uplink.url or "").startswith(_SCHEMES):
            return uplink
    told = " or ".join(f"{scheme}host:4222" for scheme in _SCHEMES)
    raise ConfigurationInvalid((f"[[uplinks]]: none has a url of {told}: batches go there",))


async def _deliver(
    session: SessionSettings, load: Load, patience_seconds: float, tell: Tell
) -> Delivered:
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    settings = LinkSettings(session, load.site, load.node)
    async with JetStreamLink(settings, SystemClock(), rng) as link:
        return await Delivering(link, load, patience_seconds, tell).run()


def _outcome(delivered: list[Delivered], flaws: list[Flaw]) -> CarryOutcome:
    all_flaws = [*flaws, *(flaw for done in delivered for flaw in done.flaws)]
    document: dict[str, object] = {
        "nodes": [_document(done) for done in delivered],
        "flaws": flaw_documents(all_flaws),
    }
    lines = [line for done in delivered for line in _lines(done)]
    if not delivered:
        lines.append("nothing of any node lies here")
    lines += flaw_lines(all_flaws)
    exit_code = ExitCode.FINE
    if any(done.gave_up for done in delivered):
        exit_code = ExitCode.TRY_LATER
    if any(not flaw.harmless for flaw in all_flaws):
        exit_code = ExitCode.FAILED
    return CarryOutcome(document, lines, exit_code)


def _document(done: Delivered) -> dict[str, object]:
    return {
        "site": done.load.site,
        "node": done.load.node,
        "sent": by_lane(file for file, _, _ in done.sent),
        "receipts": [
            {
                "holder": receipt.holder,
                "stage": receipt.stage,
                "number": receipt.number,
                "epoch": receipt.epoch,
                "lane": receipt.lane,
                "watermark": receipt.watermark,
                "held": receipt.held,
            }
            for receipt in done.receipts.values()
        ],
        "without_receipt": [file.name for file in done.waiting()],
        "gave_up": done.gave_up,
    }


def _lines(done: Delivered) -> list[str]:
    where = f"{done.load.site}/{done.load.node}"
    lines = [
        f"{where}: sent: {lane}: {counts['records']} records in {counts['batches']} batches"
        for lane, counts in by_lane(file for file, _, _ in done.sent).items()
    ]
    if not done.sent:
        lines.append(f"{where}: sent: nothing")
    lines += [f"{where}: {receipt}, put back" for receipt in done.receipts.values()]
    if done.gave_up:
        lines.append(f"{where}: given up: {done.gave_up}")
        waiting = done.waiting()
        what = "not taken yet, or refused there"
        shown = waiting[:_SHOWN_MAX]
        lines += [f"{where}: without a receipt: {file.name}: {what}" for file in shown]
        if len(waiting) > len(shown):
            more = len(waiting) - len(shown)
            lines.append(f"{where}: without a receipt: {more} more, which --json names")
    return lines
