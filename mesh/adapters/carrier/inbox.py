"""The link of a carried directory, as a running node has it: receipts come in, nothing goes out.

``holdfast carry in`` puts receipts into ``carried/`` of the node's state directory; the node looks
there every second. Batches go out with ``holdfast carry out``, which reads the spool beside its
node, so as a link this one is never up.

A receipt is *consumed* once the reader has asked for the one after it. Its file is removed when the
folder is looked at again, an interval later, by when what it released has been written down; if
that is lost all the same, the numbers are pending again, and the next receipt says them too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

from mesh.adapters.carrier.folder import NEW, CarriedFolder
from mesh.adapters.carrier.medium import Medium
from mesh.adapters.carrier.receipts import read_receipts
from mesh.ports import Accepted, Clock, Disk, Link, LinkState, Observer, Part, Refusal
from mesh.transfer.carried import RECEIPT
from schemas.errors import DiskFailed, LinkDown, Refused
from schemas.messages import Receipt

__all__ = ["INBOX", "CarriedReceipts", "CarriedReceiptsUnread"]

INBOX: Final = "carried"
"""Its folder, in the node's state directory."""
_T = TypeVar("_T")
_LOOK_SECONDS: Final = 1.0
_REASON: Final = "batches are carried by a person: holdfast carry out"


@dataclass(frozen=True, slots=True)
class CarriedReceiptsUnread:
    """Something in the inbox is no receipt for this node, or cannot be read; told once."""

    path: str
    reason: str


class CarriedReceipts(Link):
    """Port ``Link``, of which only ``receipts`` ever says something.

    Args:
        disk: the node's state directory.
        medium: the same.
        executor: where the disk is called.
        site: of the node.
        node: the node.
        clock: for the time since when it is as it is.
        observer: is told what cannot be read.
        name: what the link is called.
        look_seconds: how often it looks.
    """

    def __init__(
        self,
        disk: Disk,
        medium: Medium,
        executor: Executor,
        site: str,
        node: str,
        clock: Clock,
        observer: Observer,
        name: str = "carried",
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._folder = CarriedFolder(disk, medium, INBOX)
        self._executor = executor
        self._owner = (site, node)
        self._observer = observer
        self._look_seconds = look_seconds
        self._consumed: set[str] = set()
        self._told: frozenset[str] = frozenset()
        self._emptied = asyncio.Event()
        self._state = LinkState(name, up=False, reason=_REASON, since_mono_ns=clock.now().mono_ns)

    def __repr__(self) -> str:
        return f"<CarriedReceipts {self._folder!r}, {len(self._consumed)} consumed>"

    @property
    def state(self) -> LinkState:
        """Never up."""
        return self._state

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Never returns, for it never changes."""
        del seen
        await asyncio.Event().wait()
        return self._state

    def reset(self, reason: str) -> None:
        """There is no connection to tear down."""

    async def send(self, part: Part) -> Accepted | Refusal:
        """Takes nothing.

        Raises:
            LinkDown: always.
        """
        raise LinkDown(f"{self._state.name}: {part.lane} of {part.node} was not sent: {_REASON}")

    async def receipts(self) -> AsyncIterator[Receipt]:
        """The receipts that lie in the inbox, and those that are put there. One reader."""
        while True:
            for name, receipt in (await self._run(self._look)).items():
                yield receipt
                self._consumed.add(name)
            self._emptied.set()
            await asyncio.sleep(self._look_seconds)
            await self._run(self._clear)

    async def wait_emptied(self) -> None:
        """Returns once all that lay there at a look has been consumed."""
        await self._emptied.wait()

    async def clear(self) -> None:
        """Removes what was consumed, now: for who has made durable what it released."""
        await self._run(self._clear)

    async def _run(self, job: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    def _look(self) -> dict[str, Receipt]:
        """The receipts that were not consumed yet."""
        try:
            found, flaws = read_receipts(self._folder, *self._owner)
        except (Refused, DiskFailed) as failure:
            self._tell({self._folder.path: str(failure)})
            return {}
        on_its_way = RECEIPT + NEW
        self._tell({flaw.path: flaw.what for flaw in flaws if not flaw.path.endswith(on_its_way)})
        return {name: one for name, one in found.items() if name not in self._consumed}

    def _tell(self, wrong: dict[str, str]) -> None:
        for path, reason in wrong.items():
            if path not in self._told:
                self._observer.observe(CarriedReceiptsUnread(path, reason))
        self._told = frozenset(wrong)

    def _clear(self) -> None:
        try:
            for name in sorted(self._consumed):
                self._folder.remove(name)
                self._consumed.discard(name)
        except DiskFailed as failure:
            # They are passed over meanwhile, and removed at another look.
            self._tell({self._folder.path: str(failure)})
