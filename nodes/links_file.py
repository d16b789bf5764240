"""The links file: ``links.json`` in a node's state directory, the newest report of its links.

It is written beside and renamed, so a reader finds the last one or the one before. While it says
something that it did not say before it is written every ten seconds, else every minute: flash wears
out. Where a link has a budget for the day it is synced as well, and a crash forgets at most ten
seconds of what was spent; without budgets nothing in it is worth a sync. A disk that does not take
it costs the report, and nothing else: that is told once.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from mesh.ports import Clock, Disk, Observer
from mesh.transfer.schedule import Spent
from nodes.forwarder import ForwarderView
from nodes.links_report import links_document, spent_in
from schemas.errors import DiskFailed
from schemas.limits import KIB
from schemas.messages import Severity

__all__ = ["Linked", "LinksFile", "LinksUnwritten", "read_links", "read_spent"]

LINKS_SECONDS_MAX: Final = 60.0
_LINKS_SECONDS: Final = 10.0
_NAME: Final = "links.json"
_BYTES_MAX: Final = 256 * KIB
# What passes by itself while nothing happens.
_PASSING: Final = frozenset({"since_seconds", "bucket_bytes", "opens_in_seconds", "held_seconds"})


@dataclass(frozen=True, slots=True)
class LinksUnwritten:
    """The report of the links could not be written."""

    reason: str

    @property
    def severity(self) -> Severity:
        """A warning: a budget may be forgotten by a restart."""
        return Severity.WARNING


class Linked(Protocol):
    """What has links: a forwarder."""

    def view(self) -> ForwarderView:
        """How it stands now."""
        ...

    def spent(self) -> Mapping[str, Spent]:
        """What the links have spent of their budgets."""
        ...


class LinksFile:
    """Writes the report of a forwarder's links.

    Args:
        disk: the node's state directory.
        executor: where the disk is called.
        forwarder: whose links.
        clock: says when that was.
        observer: is told when the disk does not take it.
    """

    def __init__(
        self,
        disk: Disk,
        executor: Executor,
        forwarder: Linked,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._disk = disk
        self._executor = executor
        self._forwarder = forwarder
        self._clock = clock
        self._observer = observer
        self._said: object = None
        self._written_at = float("-inf")
        self._failed = False

    def __repr__(self) -> str:
        return f"<LinksFile of {self._forwarder}>"

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(_LINKS_SECONDS)

    async def end(self) -> None:
        """Writes the last report: the node ends in order."""
        await self.write(running=False)

    async def write(self, *, running: bool = True) -> None:
        """Writes the report, if it says something that the last one did not, or that was long ago.

        Args:
            running: whether there will be another one.
        """
        loop = asyncio.get_running_loop()
        view = self._forwarder.view()
        spent, now = self._forwarder.spent(), self._clock.now()
        document = links_document(view, spent, now, LINKS_SECONDS_MAX, running=running)
        said = _lasting(document)
        due = self._written_at + LINKS_SECONDS_MAX - _LINKS_SECONDS
        if said == self._said and loop.time() < due:
            return
        durable = any(link.rule.bytes_per_day is not None for link in view.schedule)
        data = orjson.dumps(document)
        try:
            await loop.run_in_executor(self._executor, _store, self._disk, data, durable)
        except DiskFailed as failure:
            if not self._failed:
                self._observer.observe(LinksUnwritten(str(failure)))
            self._failed = True
            return
        self._failed = False
        self._said, self._written_at = said, loop.time()


def read_links(disk: Disk) -> Mapping[str, Any] | None:
    """The newest report; ``None`` where there is none that can be read.

    Raises:
        DiskFailed: the medium does not give it back.
    """
    try:
        if disk.size(_NAME) > _BYTES_MAX:
            return None
        file = disk.open(_NAME, "read")
    except FileNotFoundError:
        return None
    try:
        document = orjson.loads(file.read(0, _BYTES_MAX))
    except orjson.JSONDecodeError:
        return None
    finally:
        file.close()
    return document if isinstance(document, dict) else None


def read_spent(disk: Disk) -> Mapping[str, Spent]:
    """What the links have spent of their budgets; nothing where that cannot be read."""
    with suppress(DiskFailed):
        return spent_in(read_links(disk) or {})
    return {}


def _lasting(document: Mapping[str, Any]) -> object:
    """What a document says beside the time."""
    links = [
        {key: value for key, value in link.items() if key not in _PASSING}
        for link in document["links"]
    ]
    return links, document["spent"], document["running"]


def _store(disk: Disk, data: bytes, durable: bool) -> None:  # noqa: FBT001 - on the executor
    beside = f"{_NAME}.new"
    disk.unlink(beside)
    file = disk.open(beside, "create")
    try:
        file.write(data, 0)
        if durable:
            file.sync()
    finally:
        file.close()
    disk.rename(beside, _NAME)
    if durable:
        disk.sync_directory("")
