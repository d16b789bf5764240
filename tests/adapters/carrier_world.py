"""A spool to carry from, and sticks that are pulled out, on simulated disks."""

import random
from collections.abc import Mapping

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.loading import Loading
from mesh.adapters.carrier.medium import Medium
from mesh.adapters.carrier.outward import CarriedOut, Origin, Outward
from mesh.adapters.carrier.unloading import look as look_at_load
from mesh.adapters.carrier.unloading import read as read_file
from mesh.ports import Disk
from mesh.spool.view.onlooker import ReadOnlyDisk
from mesh.spool.view.sight import look
from mesh.transfer.carried import FOLDER, node_folder
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from simulator.disk_tree import Link, Unlink
from tests.spool.world import CALM, LABELS, SMALL, opened, play, record

__all__ = ["FatDisk", "Plain", "carried", "folder", "loaded", "numbers_in", "spool_disk", "unload"]

NODE = f"{FOLDER}/{node_folder(LABELS.site, LABELS.node)}"
Numbers = Mapping[tuple[str, Lane], Ranges]


class Plain(Medium):
    """Port ``Medium`` of a simulated disk: no links but those that a test plants."""

    def __init__(self, disk: SimDisk, links: frozenset[str] = frozenset()) -> None:
        self._disk = disk
        self._links = links

    def is_link(self, path: str) -> bool:
        """As planted."""
        return path in self._links

    def forget(self, path: str) -> None:
        """The whole cache goes, of whichever file: what failed syncs left is seen no more."""
        del path
        self._disk.drop_caches()

    def cluster_bytes(self) -> int:
        """Pages."""
        return 4096


class FatDisk(SimDisk):
    """A disk whose renaming is two changes, of which a crash leaves any: one, both, none."""

    def rename(self, source: str, target: str) -> None:
        """As FAT: the old name of the target goes, the new one comes, the source goes."""
        self._begin("rename", source)
        node, replaced = self._find(source), self._find(target)
        if node is None:
            raise FileNotFoundError(source)
        if replaced is not None:
            self._medium.do(Unlink(*self._place(target), replaced))
        self._medium.do(Link(*self._place(target), node))
        self._medium.do(Unlink(*self._place(source), node))


def spool_disk(*, more: bool = False, released: int = 0, clean: bool = True) -> SimDisk:
    """A spool of three lanes, batches on the shelf and frames in the journal.

    Args:
        more: whether more was appended since.
        released: how many of its events are released.
        clean: whether it was closed in order.
    """
    disk = SimDisk()

    async def main(_: random.Random) -> None:
        async with opened(disk, SMALL, maintain=False) as spool:
            for text in ("one", "two", "three"):
                assert await spool.append(Lane.EVENTS, [record(text)]).settled
                assert await spool.append(Lane.ALARMS, [record(f"alarm {text}")]).settled
            while spool._pump.closed_journals:
                await spool._chores.do()
        async with opened(disk, CALM, maintain=False, close=clean) as spool:
            assert await spool.append(Lane.EVENTS, [record("fresh")] * 3).settled
            assert await spool.append(Lane.LOGS, [record("a line")] * 2).settled
            if more:
                assert await spool.append(Lane.EVENTS, [record("more")] * 2).settled
            if released:
                spool.release(Lane.EVENTS, Ranges(((0, released),)), "hq")
                await spool._chores.flush()

    play(main)
    return disk


def folder(stick: SimDisk, links: frozenset[str] = frozenset()) -> CarriedFolder:
    """The node's folder on a stick."""
    return CarriedFolder(stick, Plain(stick, links), NODE)


def carried(
    spool: Disk, stick: SimDisk, *, limit_bytes: int | None = None, reserve_bytes: int = 0
) -> CarriedOut:
    """Carries out."""
    origin = Origin(spool, lambda: look(ReadOnlyDisk(spool), lambda: None), LABELS)
    loading = Loading(folder(stick), LABELS.site, LABELS.node)
    outward = Outward(origin, loading, stick.free_bytes, 4096)
    return outward.run(1_767_225_600_000, limit_bytes, reserve_bytes)


def loaded(stick: SimDisk) -> Numbers:
    """The numbers of all batches that a holder would take from a stick; each opens to its end."""
    return numbers_in(unload(stick))


def unload(stick: SimDisk) -> list[tuple[Epoch, Lane, Ranges]]:
    """Epoch, lane and numbers of each batch that a holder would take; none of them is missing."""
    load = look_at_load(stick, Plain(stick), LABELS.site, LABELS.node)
    assert not [flaw for flaw in load.flaws if "not there" in flaw.what]
    headers = [read_file(load, file).header for file in load.files]
    return [(header.epoch, header.lane, header.present) for header in headers]


def numbers_in(batches: list[tuple[Epoch, Lane, Ranges]]) -> Numbers:
    """The numbers of batches, by epoch and lane."""
    found: dict[tuple[str, Lane], Ranges] = {}
    for epoch, lane, numbers in batches:
        key = (str(epoch), lane)
        found[key] = found.get(key, Ranges()) | numbers
    return found
