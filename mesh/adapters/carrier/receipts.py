"""Receipts in a carried folder: put there by who received, taken by the node that they are for.

A receipt is cumulative, so of each holder, epoch and lane the newest suffices; what it replaces is
removed after it is durable. An older one that comes back on another stick changes nothing.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from mesh.adapters.carrier.folder import NEW, CarriedFolder
from mesh.transfer.carried import RECEIPT, Flaw, read_receipt, receipt_name, write_receipt
from schemas.errors import DiskFailed, Refused, RefusedBecause
from schemas.limits import CARRIED_RECEIPTS_MAX, KIB, RECEIPT_BYTES_MAX
from schemas.messages import Receipt

__all__ = ["RECEIPT_FILE_BYTES_MAX", "put_receipts", "read_receipts"]

RECEIPT_FILE_BYTES_MAX: Final = RECEIPT_BYTES_MAX + KIB
"""A receipt and the line before it."""


def put_receipts(folder: CarriedFolder, receipts: Iterable[Receipt]) -> list[str]:
    """Puts receipts into a folder; durable on return. Then removes those that they replace.

    Args:
        folder: of the receipts.
        receipts: of one node.

    Returns:
        The names of the files that say what these say: their own, or those of later ones that are
        there already.

    Raises:
        Refused: ``bad_name``: a link stands in the folder's place.
        DiskFailed: not all are there.
    """
    folder.prepare()
    known = _known(folder)
    said = set()
    for receipt in receipts:
        data = write_receipt(receipt)
        name = receipt_name(data, receipt)
        later = (file for file, other in known.items() if _replaces(other, receipt))
        place = next(later, name)
        if place == name:
            folder.put(name, data)
            known[name] = receipt
        said.add(place)
    folder.settle()
    for name, receipt in known.items():
        if any(_replaces(other, receipt) for other in known.values()):
            folder.remove(name)
    for name in folder.names():
        if name.endswith(RECEIPT + NEW):
            folder.remove(name)
    folder.settle()
    return sorted(said)


def _known(folder: CarriedFolder) -> dict[str, Receipt]:
    """The receipts that are there, by name; what is none is left alone."""
    known: dict[str, Receipt] = {}
    for name in folder.names():
        if name.endswith(RECEIPT) and len(known) < CARRIED_RECEIPTS_MAX:
            with suppress(FileNotFoundError, Refused, DiskFailed):
                data = folder.read(name, RECEIPT_FILE_BYTES_MAX)
                known[name] = read_receipt(data, RECEIPT_FILE_BYTES_MAX)
    return known


def _replaces(later: Receipt, receipt: Receipt) -> bool:
    """Whether one says all that another does: of two lives of a holder neither is the later."""
    return _about(later) == _about(receipt) and later.number > receipt.number


def _about(receipt: Receipt) -> tuple[object, ...]:
    """What a receipt speaks of, and who says it."""
    origin = (receipt.site, receipt.node, receipt.epoch, receipt.lane)
    return (receipt.holder, receipt.life, *origin)


def read_receipts(
    folder: CarriedFolder, site: str, node: str
) -> tuple[dict[str, Receipt], list[Flaw]]:
    """The receipts of a node, oldest first, by the names of their files; and what else is there.

    Args:
        folder: of the receipts.
        site: of the node.
        node: the node.

    Raises:
        Refused: ``bad_name``: a link stands in the folder's place.
        DiskFailed: the medium does not tell what is there.
    """
    found: dict[str, Receipt] = {}
    flaws = []
    for name in folder.names():
        path = f"{folder.path}/{name}"
        if not name.endswith(RECEIPT):
            half = name.endswith(RECEIPT + NEW)
            what = "half written" if half else "none of ours: left alone"
            flaws.append(Flaw(path, what, harmless=True))
        elif len(found) == CARRIED_RECEIPTS_MAX:
            flaws.append(Flaw(path, f"more than {CARRIED_RECEIPTS_MAX} receipts: left there"))
        else:
            try:
                found[name] = _read(folder, name, site, node)
            except (FileNotFoundError, Refused, DiskFailed) as wrong:
                flaws.append(Flaw(path, str(wrong)))
    # What an earlier life of a holder states may be gone: the later ones have the last word.
    in_order = sorted(found.items(), key=lambda item: (item[1].life.counter, item[1].number))
    return dict(in_order), flaws


def _read(folder: CarriedFolder, name: str, site: str, node: str) -> Receipt:
    data = folder.read(name, RECEIPT_FILE_BYTES_MAX)
    receipt = read_receipt(data, RECEIPT_FILE_BYTES_MAX)
    if (receipt.site, receipt.node) != (site, node):
        raise Refused(RefusedBecause.FOREIGN, f"{receipt} of {receipt.site}: this is {site}/{node}")
    if receipt_name(data, receipt) != name:
        raise Refused(RefusedBecause.BAD_NAME, f"not the name of this receipt, {receipt}")
    return receipt
