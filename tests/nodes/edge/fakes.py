"""Fakes of what an edge is handed: a clock, a spool, a broker, a model, an observer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mesh.ports import BrokerState, Delivery, Publication
from mesh.spool.pump import Appended
from nodes.edge.model import Contract, ModelFailed, Outputs
from schemas.errors import DiskFailed, LinkDown
from schemas.messages import Epoch, Identity, Instant, Lane

EPOCH = Epoch(1, 0xABC)
UNRECORDED = Epoch(1, 0xDEF)
START_WALL_NS = 1_790_000_000_000_000_000
MS = 1_000_000


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.wall_ns = START_WALL_NS
        self.mono_ns = 5_000_000_000
        self.trusted = True

    def now(self) -> Instant:
        """The time as it was set."""
        return Instant(self.wall_ns, self.mono_ns, self.trusted)

    def advance(self, milliseconds: float) -> None:
        """Moves both clocks."""
        self.wall_ns += int(milliseconds * MS)
        self.mono_ns += int(milliseconds * MS)

    @property
    def wall_ms(self) -> int:
        """UTC in milliseconds."""
        return self.wall_ns // MS


class FakeSpool:
    """Keeps records in memory; settles when it is told to, refuses while ``degraded``."""

    def __init__(self) -> None:
        self.records: dict[Lane, list[bytes]] = {lane: [] for lane in Lane}
        self.appends: list[tuple[Lane, int, bool]] = []
        self.forgone: dict[Lane, int] = dict.fromkeys(Lane, 0)
        self.degraded = ""
        self.settled: list[asyncio.Future[bool]] = []

    def append(self, lane: Lane, records: list[bytes], *, awaited: bool = True) -> Appended:
        """As the port says."""
        if self.degraded:
            raise DiskFailed(self.degraded)
        first = len(self.records[lane])
        self.records[lane] += records
        self.appends.append((lane, len(records), awaited))
        self.settled.append(asyncio.get_running_loop().create_future())
        return Appended(EPOCH, first, len(records), self.settled[-1])

    def forgo(self, lane: Lane, count: int) -> Identity:
        """As the port says."""
        first = self.forgone[lane]
        self.forgone[lane] += count
        return Identity("edge-1", UNRECORDED, lane, first)


class FakeBroker:
    """Keeps what is published and acknowledged; ``down`` as a broker that is gone."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.acknowledged: list[Delivery] = []
        self.subscribed: dict[str, int] = {}
        self.down = False
        self.arrived: asyncio.Queue[Sequence[Delivery]] = asyncio.Queue()

    @property
    def state(self) -> BrokerState:
        """As the port says."""
        return BrokerState(connected=not self.down, reason="gone" if self.down else "")

    def subscribe(self, filters: Mapping[str, int]) -> None:
        """As the port says."""
        self.subscribed.update(filters)

    async def groups(self) -> AsyncIterator[Sequence[Delivery]]:
        """As the port says."""
        while True:
            yield await self.arrived.get()

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """As the port says."""
        self.acknowledged += [delivery for delivery in deliveries if delivery.qos]

    async def publish(self, publications: Sequence[Publication]) -> None:
        """As the port says."""
        if self.down:
            raise LinkDown("gone")
        self.published += publications


class FakeModel:
    """Says what ``says`` says of each window, [n, L + K]; fails while ``broken``."""

    def __init__(
        self,
        *,
        window: int = 1,
        fields: tuple[str, ...] = ("a", "b"),
        says: Callable[[NDArray[np.float32]], Sequence[Sequence[float]]] | None = None,
    ) -> None:
        self.contract = Contract(
            "fake",
            "1",
            b"m" * 32,
            fields,
            window,
            len(fields),
            ("normal", "anomaly"),
            ("score",),
        )
        self.says = says or (lambda batch: [[0.9, 0.1, float(w.sum())] for w in batch])
        self.broken = False
        self.batches: list[NDArray[np.float32]] = []

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """As the port says."""
        if self.broken:
            raise ModelFailed("broken on purpose")
        self.batches.append(batch.copy())
        said = np.array(self.says(batch), np.float32).reshape(len(batch), 3)
        return Outputs(said[:, :2], said[:, 2:])


class Kept:
    """An observer that keeps events."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def observe(self, event: object) -> None:
        """As the port says."""
        self.events.append(event)
