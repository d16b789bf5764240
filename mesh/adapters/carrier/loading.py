"""Loading: batches go into the folder of their node, and a manifest after them.

What the folder holds is found by reading it, not by believing a manifest: a name that is ours, with
whole bytes under it, belongs to the load again, however the last loading ended. So a stick that was
pulled out is simply loaded once more, and nothing that is there already is written twice.

The order: batches, each synced; their names; the manifest that names all of them; its name; only
then is removed what it replaces: earlier manifests, what a crash left half written, and batches
whose numbers are released by now. At each moment every manifest that is there names files that are
there, or that nobody needs any more.
"""

from collections.abc import Callable

from mesh.adapters.carrier.folder import NEW, CarriedFolder
from mesh.spool import batch
from mesh.spool.batch import Batch
from mesh.transfer.carried import (
    RECEIPTS,
    CarriedFile,
    Flaw,
    Manifest,
    file_of,
    is_batch_name,
    manifest_name,
    manifest_number,
    numbers_of,
    read_manifest,
    write_manifest,
)
from schemas.errors import DiskFailed, Refused
from schemas.limits import BATCH_BYTES_MAX, MANIFEST_BYTES_MAX
from schemas.messages import Lane
from schemas.ranges import Ranges

__all__ = ["Loading"]


class Loading:
    """What the folder of a node holds, and what is put there. Synchronous.

    Args:
        folder: of the node.
        site: of the node.
        node: the node.
    """

    def __init__(self, folder: CarriedFolder, site: str, node: str) -> None:
        self._folder = folder
        self._site = site
        self._node = node
        self._left: list[str] = []
        self._manifests: list[int] = []
        self.files: dict[str, CarriedFile] = {}
        """The batches that are there and whole, by name."""
        self.flaws: list[Flaw] = []
        """What else is there."""

    def __repr__(self) -> str:
        return f"<Loading {self._folder.path}: {len(self.files)} batches>"

    def carried(self) -> dict[tuple[str, Lane], Ranges]:
        """The numbers that are there, by epoch and lane."""
        return numbers_of(self.files.values())

    def open(self) -> None:
        """Makes the folder, and looks at what is there.

        Raises:
            Refused: ``bad_name``: a link stands in its place.
            DiskFailed: it cannot be made or read; ``DiskReadOnly`` where it cannot be written.
        """
        self._folder.prepare()
        for name in self._folder.names():
            number = manifest_number(name)
            if number is not None:
                self._manifests.append(number)
            elif is_batch_name(name):
                self._look(name)
            elif name.endswith(NEW) and _is_ours(name.removesuffix(NEW)):
                self._left.append(name)
            elif name != RECEIPTS:
                self._flaw(name, "none of ours: left alone", harmless=True)

    def _look(self, name: str) -> None:
        try:
            data = self._folder.read(name, BATCH_BYTES_MAX)
        except (FileNotFoundError, DiskFailed, Refused) as failure:
            self._flaw(name, f"left alone: {failure}")
            return
        try:
            found = batch.parse(data)
        except Refused as refused:
            self._left.append(name)
            self._flaw(name, f"not whole, and taken away: {refused}", harmless=True)
            return
        file = file_of(found)
        if (file.name, found.header.site, found.header.node) != (name, self._site, self._node):
            what = f"it is {found.header} of {found.header.site}: left alone"
            self._flaw(name, what, harmless=True)
            return
        self.files[name] = file

    def _flaw(self, name: str, what: str, *, harmless: bool = False) -> None:
        self.flaws.append(Flaw(f"{self._folder.path}/{name}", what, harmless))

    def put(self, found: Batch) -> CarriedFile:
        """Puts a batch there; nothing is promised before ``finish``.

        Raises:
            DiskFailed: it is not there.
        """
        file = file_of(found)
        self._folder.put(file.name, found.data)
        self.files[file.name] = file
        return file

    def finish(
        self, store: str, created_ms: int, is_released: Callable[[CarriedFile], bool]
    ) -> Manifest:
        """Writes the manifest, unless the newest says the same, and takes away what it replaces.

        Args:
            store: id of the spool that is loaded from, in hex.
            created_ms: now, UTC.
            is_released: whether nobody needs a batch any more.

        Raises:
            DiskFailed: the manifest is not there; or something that it replaces still is, which
                does no harm.
        """
        gone = [name for name, file in self.files.items() if is_released(file)]
        files = tuple(file for name, file in sorted(self.files.items()) if name not in gone)
        self._folder.settle()
        manifest = self._newest()
        if manifest is None or manifest.files != files:
            number = max(self._manifests, default=0) + 1
            manifest = Manifest(
                number=number,
                site=self._site,
                node=self._node,
                store=store,
                created_ms=created_ms,
                files=files,
            )
            self._folder.put(manifest_name(number), write_manifest(manifest))
            self._folder.settle()
        older = [number for number in self._manifests if number != manifest.number]
        replaced = [*map(manifest_name, older), *gone, *self._left]
        for name in replaced:
            if name in gone or name not in self.files:
                self._folder.remove(name)
        for name in gone:
            del self.files[name]
        if replaced:
            self._folder.settle()
        self._left, self._manifests = [], [manifest.number]
        return manifest

    def _newest(self) -> Manifest | None:
        """The newest manifest, where it can be read and is this node's."""
        number = max(self._manifests, default=0)
        try:
            data = self._folder.read(manifest_name(number), MANIFEST_BYTES_MAX)
            found = read_manifest(data)
        except (FileNotFoundError, DiskFailed, Refused):
            return None
        ours = (number, self._site, self._node)
        return found if (found.number, found.site, found.node) == ours else None


def _is_ours(name: str) -> bool:
    return is_batch_name(name) or manifest_number(name) is not None
