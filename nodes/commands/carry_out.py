"""``holdfast carry out``: what waits in the spool of a node, onto a medium."""

import time
from functools import partial
from typing import Final

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.loading import Loading
from mesh.adapters.carrier.medium import Medium
from mesh.adapters.carrier.outward import CarriedOut, Origin, Outward
from mesh.adapters.system import SystemClock, SystemDisk
from mesh.ports import Disk
from mesh.spool.batch import Labels
from mesh.spool.view.onlooker import ReadOnlyDisk
from mesh.spool.view.sight import look
from mesh.transfer.carried import FOLDER, CarriedFile, node_folder
from mesh.transfer.room import Stay
from nodes.commands.amounts import size
from nodes.commands.carry_outcome import (
    CarryOutcome,
    Tell,
    by_lane,
    flaw_documents,
    flaw_lines,
)
from nodes.settings import NodeSection, Settings
from schemas.errors import ConfigurationInvalid, Damaged, ExitCode, StoreUnusable

__all__ = ["carry_out"]

_PAUSE_SECONDS: Final = 0.05
_NS_PER_MS: Final = 1_000_000
_LATER: Final = frozenset({Stay.FILES, Stay.SPACE})


def carry_out(
    settings: Settings,
    disk: Disk,
    medium: Medium,
    limit_bytes: int | None,
    reserve_bytes: int,
    tell: Tell,
) -> CarryOutcome:
    """Puts what waits onto a medium.

    Args:
        settings: of the node.
        disk: the medium.
        medium: the same.
        limit_bytes: how much to take; ``None`` for all.
        reserve_bytes: what must stay free on it.
        tell: is told how far it has come.

    Raises:
        ConfigurationInvalid: there is no node in it.
        StoreUnusable: the node has no spool that can be read.
        Overloaded: the node is too busy for it; later there may be a moment.
        DiskFailed: there is no manifest of what was taken.
    """
    node = settings.node
    if node is None and settings.gateway is not None:
        problem = (
            "[gateway] hands on over its uplinks only, and none of it is carried out: what an edge "
            "still holds is carried out there, with the edge's configuration"
        )
        raise ConfigurationInvalid((problem,))
    if node is None:
        raise ConfigurationInvalid(("[node] is missing: it says where the spool stands",))
    folder = CarriedFolder(disk, medium, f"{FOLDER}/{node_folder(node.site, node.name)}")
    loading = Loading(folder, node.site, node.name)
    taken = 0

    def count(file: CarriedFile) -> None:
        nonlocal taken
        taken += 1
        tell(file.name, taken, None)

    outward = Outward(_origin(node), loading, disk.free_bytes, medium.cluster_bytes(), count)
    now_ms = SystemClock().now().wall_ns // _NS_PER_MS
    try:
        done = outward.run(now_ms, limit_bytes, reserve_bytes)
    except (Damaged, StoreUnusable) as unusable:
        raise StoreUnusable(f"{node.state_directory / 'spool'}: {unusable}") from unusable
    return _outcome(node, folder.path, done)


def _origin(node: NodeSection) -> Origin:
    disk = SystemDisk(node.state_directory / "spool")
    labels = Labels(node.site, node.name, node.region, node.tenant)
    pause = partial(time.sleep, _PAUSE_SECONDS)
    return Origin(disk, lambda: look(ReadOnlyDisk(disk), pause), labels)


def _outcome(node: NodeSection, path: str, done: CarriedOut) -> CarryOutcome:
    taken = by_lane(done.taken)
    assert done.manifest is not None, "a carrying that ends has written it"
    document: dict[str, object] = {
        "site": node.site,
        "node": node.name,
        "folder": path,
        "manifest": done.manifest.number,
        "there_before": done.there,
        "batches": len(done.manifest.files),
        "taken": taken,
        "stays": [
            {"lane": one.lane, "why": one.why, "records": one.records, "bytes": one.size_bytes}
            for one in done.stay
        ],
        "flaws": flaw_documents(done.flaws),
    }
    lines = [f"{node.site}/{node.name} to {path}"]
    for lane, counts in taken.items():
        lines.append(
            f"taken: {lane}: {counts['records']} records in {counts['batches']} batches,"
            f" {size(counts['bytes'])}"
        )
    if not taken:
        lines.append("taken: nothing that was not there already")
    lines += [
        f"stays: {one.lane}: {one.records} records, at most {size(one.size_bytes)}: {one.why}"
        for one in done.stay
    ]
    lines += flaw_lines(done.flaws)
    lines.append(
        f"manifest {done.manifest.number}: {len(done.manifest.files)} batches,"
        f" {done.there} of them there before; nothing is released until receipts come back"
    )
    return CarryOutcome(document, lines, _exit_code(done))


def _exit_code(done: CarriedOut) -> int:
    failed = any(one.why not in set(Stay) for one in done.stay)
    if failed or any(not flaw.harmless for flaw in done.flaws):
        return ExitCode.FAILED
    return ExitCode.TRY_LATER if any(one.why in _LATER for one in done.stay) else ExitCode.FINE
