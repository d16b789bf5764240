"""Unloading: what a carried directory holds for the next holder, judged file by file.

Taken is what a whole manifest names, lies in the folder of the node that it speaks of, has the
digest that it states, and opens to its last record. Everything else is named, with the reason, and
stays where it is: files of somebody else, links, names that lead elsewhere, what is too large, half
copied, rotten, of another version, or there twice under one name.

Of several manifests all are believed that are whole: they name files by what is in them, so an
older one can bring nothing wrong back. A file that only an older one names may have been taken away
since, which is no flaw.
"""

from dataclasses import dataclass
from typing import Final

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.medium import Medium
from mesh.ports import Disk
from mesh.spool.batch import Batch
from mesh.transfer.carried import (
    FOLDER,
    RECEIPTS,
    CarriedFile,
    Flaw,
    Manifest,
    check_batch,
    is_batch_name,
    manifest_number,
    node_folder,
    node_of,
    read_manifest,
    sound_files,
)
from schemas.errors import DiskFailed, Refused, RefusedBecause
from schemas.limits import (
    BATCH_BYTES_MAX,
    CARRIED_MANIFESTS_MAX,
    CARRIED_NODES_MAX,
    MANIFEST_BYTES_MAX,
)

__all__ = ["Load", "loads", "look", "read"]

_LEFT: Final = "none of ours: left alone"


@dataclass(frozen=True, slots=True)
class Load:
    """What the folder of one node holds.

    Args:
        site: of the node.
        node: the node.
        folder: where it lies.
        files: what is there and can be what its manifest says, the most urgent and oldest first.
        flaws: what is not taken, and why.
    """

    site: str
    node: str
    folder: CarriedFolder
    files: tuple[CarriedFile, ...]
    flaws: tuple[Flaw, ...]


def loads(disk: Disk, medium: Medium) -> tuple[list[Load], list[Flaw]]:
    """The loads of a carried directory, and what is no folder of a node.

    Raises:
        Refused: ``bad_name``: a link stands in the place of the folder.
        DiskFailed: the medium does not tell what is there.
    """
    found: list[Load] = []
    flaws: list[Flaw] = []
    root = CarriedFolder(disk, medium, FOLDER)
    for name in root.names():
        owner = node_of(name)
        if owner is None:
            flaws.append(Flaw(f"{FOLDER}/{name}", _LEFT, harmless=True))
        elif len(found) == CARRIED_NODES_MAX:
            what = f"more than {CARRIED_NODES_MAX} nodes: left for another time"
            flaws.append(Flaw(f"{FOLDER}/{name}", what))
        else:
            try:
                found.append(look(disk, medium, *owner))
            except (Refused, DiskFailed) as wrong:
                flaws.append(Flaw(f"{FOLDER}/{name}", str(wrong)))
    return found, flaws


def look(disk: Disk, medium: Medium, site: str, node: str) -> Load:
    """What the folder of a node holds; no batch is opened yet.

    Raises:
        Refused: ``bad_name``: a link stands in its place.
        DiskFailed: the medium does not tell what is there.
    """
    folder = CarriedFolder(disk, medium, f"{FOLDER}/{node_folder(site, node)}")
    names = folder.names()
    looking = _Looking(folder, site, node, names)
    numbered = sorted((manifest_number(name) or 0, name) for name in names if _is_manifest(name))
    for position, (number, name) in enumerate(reversed(numbered)):
        if position == CARRIED_MANIFESTS_MAX:
            looking.flaw(name, f"more than {CARRIED_MANIFESTS_MAX} manifests: not read")
            break
        looking.take_manifest(number, name, newest=position == 0)
    for name in names:
        looking.take_name(name)
    files = sorted(looking.files.values(), key=lambda file: (file.lane.priority, file.first))
    return Load(site, node, folder, tuple(files), tuple(looking.flaws))


def read(load: Load, file: CarriedFile) -> Batch:
    """A batch of a load, opened to its last record and found whole.

    Raises:
        FileNotFoundError: it has gone.
        Refused: why it is not taken.
        DiskFailed: the medium does not give it back.
    """
    data = load.folder.read(file.name, BATCH_BYTES_MAX)
    return check_batch(load.site, load.node, file, data)


class _Looking:
    """What was found so far."""

    def __init__(self, folder: CarriedFolder, site: str, node: str, names: list[str]) -> None:
        self._folder = folder
        self._site = site
        self._node = node
        self._names = frozenset(names)
        self.files: dict[str, CarriedFile] = {}
        self.flaws: list[Flaw] = []

    def flaw(self, name: str, what: str, *, harmless: bool = False) -> None:
        self.flaws.append(Flaw(f"{self._folder.path}/{name}", what, harmless))

    def take_manifest(self, number: int, name: str, *, newest: bool) -> None:
        try:
            manifest = self._manifest(number, name)
        except (FileNotFoundError, DiskFailed, Refused) as wrong:
            self.flaw(name, str(wrong))
            return
        sound, flaws = sound_files(manifest)
        self.flaws += [Flaw(f"{self._folder.path}/{flaw.path}", flaw.what) for flaw in flaws]
        for file in sound:
            if file.name not in self._names:
                if newest:
                    self.flaw(file.name, f"{name} names it, and it is not there")
            elif self.files.setdefault(file.name, file) != file:
                self.flaw(file.name, f"{name} says otherwise of it than a later manifest")

    def _manifest(self, number: int, name: str) -> Manifest:
        manifest = read_manifest(self._folder.read(name, MANIFEST_BYTES_MAX))
        said = (manifest.number, manifest.site, manifest.node)
        if said != (number, self._site, self._node):
            told = f"manifest {manifest.number} of {manifest.site}/{manifest.node}"
            raise Refused(RefusedBecause.FOREIGN, f"it is {told}")
        return manifest

    def take_name(self, name: str) -> None:
        if name in self.files or name == RECEIPTS or _is_manifest(name):
            return
        if self._folder.is_link(name):
            self.flaw(name, "a symbolic link: not followed", harmless=True)
        elif is_batch_name(name):
            self.flaw(name, "no whole manifest names it: it was not copied to its end")
        else:
            self.flaw(name, _LEFT, harmless=True)


def _is_manifest(name: str) -> bool:
    return manifest_number(name) is not None
