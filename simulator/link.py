"""A network between links and an intake, in this process: delay, loss, repetition, cuts.

It behaves as JetStream does between a node and its headquarters, with worse manners: a bounded
queue that refuses when it is full and delivers again what was not acknowledged; the newest receipt
of each (site, node, lane) kept for whoever connects; and between the two a path for each node that
delays, loses, repeats and so reorders messages, lets only so many bytes a second through, breaks
openly (``cut``) or in silence (``silence``: half-open, nobody is told).

Everything random comes from one generator and every wait is a timer of the running loop, so on
virtual time one seed replays exactly. A path that is closed costs no timers: its links wait for it,
and come back jittered as if they had tried all along. All is bounded: the queue by bytes, what is
under way by each link's window, unread receipts by the number of lanes.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from mesh.ports import Accepted, Arrival, Clock, LinkState, Part, Refusal
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Receipt
from schemas.topics import Subject
from simulator.link_queue import ArrivalQueue

__all__ = ["NetworkSettings", "SimIntake", "SimLink", "SimNetwork"]

_MIB = 1024 * 1024

_Key = tuple[str, str, str]
_BACKOFFS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How a simulated network behaves.

    Args:
        delay_seconds_min: the least time a message takes, each way.
        delay_seconds_max: the most; unequal delays are what reorders.
        loss: chance that a message, or its answer, or word of a receipt, is lost.
        repetition: chance that a part arrives twice.
        bytes_per_second: what a path lets through; ``None`` for all there is.
        send_seconds: how long a link awaits the answer to a part.
        window_parts_max: how many parts of one link may be under way.
        ping_seconds: a silent path is noticed within twice this.
        reconnect_seconds_min: the first pause before reconnecting; jittered, growing.
        reconnect_seconds_max: the longest one.
        queue_bytes_max: how much waits at the far end before it refuses.
        full_seconds: what a refusal for lack of room tells the sender to wait.
        ack_seconds: after how long an arrival that was not accepted comes again.
    """

    delay_seconds_min: float = 0.01
    delay_seconds_max: float = 0.05
    loss: float = 0.0
    repetition: float = 0.0
    bytes_per_second: float | None = None
    send_seconds: float = 20.0
    window_parts_max: int = 64
    ping_seconds: float = 5.0
    reconnect_seconds_min: float = 0.25
    reconnect_seconds_max: float = 30.0
    queue_bytes_max: int = 512 * _MIB
    full_seconds: float = 5.0
    ack_seconds: float = 60.0


@dataclass(slots=True)
class _Path:
    """One way to the far end: how it stands, how it behaves, and the links that wait for it."""

    cut: bool = False
    silent: bool = False
    settings: NetworkSettings | None = None
    free_at: float = 0.0
    links: "dict[int, SimLink]" = field(default_factory=dict)
    waiting: "dict[int, tuple[SimLink, float]]" = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return not self.cut and not self.silent


class SimNetwork:
    """The far end and the paths to it. Makes links and intakes; breaks and mends what is between.

    Args:
        clock: for the time of changes.
        rng: decides all that is random.
        settings: how each path behaves that has no manners of its own (``alter``), and the queue.
    """

    def __init__(
        self, clock: Clock, rng: random.Random, settings: NetworkSettings | None = None
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.settings = settings or NetworkSettings()
        self.queue = ArrivalQueue(
            self.settings.queue_bytes_max, self.settings.full_seconds, self.settings.ack_seconds
        )
        self.receipts: dict[tuple[str, str], dict[str, Receipt]] = {}
        """The newest of each lane, by site and node."""
        self._paths: dict[str, _Path] = {}
        self._listeners: dict[tuple[str, str] | None, dict[int, SimLink]] = {}
        self._numbers = 0

    def __repr__(self) -> str:
        closed = sorted(name for name, path in self._paths.items() if not path.is_open)
        return f"<SimNetwork closed={closed} {self.queue}>"

    def link(
        self, site: str | None, node: str | None, name: str = "up", *, path: str = ""
    ) -> "SimLink":
        """A link of a node, or of a gateway, which hears the receipts of all.

        Args:
            site: whose receipts it hears; ``None`` for those of all.
            node: the same.
            name: as configured.
            path: which way it goes; the one called by the node's name where none is said.
        """
        self._numbers += 1
        origin = None if site is None or node is None else (site, node)
        return SimLink(self, origin, name, path or node or name, self._numbers)

    def intake(self, name: str = "intake") -> "SimIntake":
        """A receiving end; several share the work. Its own path can be cut by its name."""
        return SimIntake(self, name)

    def path(self, name: str) -> _Path:
        """How a path stands; a good one where nothing was said of it."""
        found = self._paths.get(name)
        if found is None:
            found = self._paths[name] = _Path()
        return found

    def cut(self, name: str) -> None:
        """Breaks a path so that both ends see it at once."""
        path = self.path(name)
        path.cut = True
        for link in list(path.links.values()):
            link.drop("cut off")

    def silence(self, name: str) -> None:
        """Swallows all that crosses a path; nobody is told."""
        path = self.path(name)
        path.silent = True
        for link in path.links.values():
            self.after(self.settings.ping_seconds * self.rng.uniform(1, 2), link.notice_silence)

    def mend(self, name: str) -> None:
        """Lets messages pass again; a link that went down comes up again by itself."""
        path = self.path(name)
        path.cut = path.silent = False
        now = asyncio.get_running_loop().time()
        waiting, path.waiting = path.waiting, {}
        for link, since in waiting.values():
            # It would have tried all the time, at pauses that grew: the next try is anywhere in it.
            settings = self.settings
            longest = max(settings.reconnect_seconds_min, now - since)
            link.retry(self.rng.random() * min(settings.reconnect_seconds_max, longest))
        self.queue.wake()

    def alter(self, name: str, settings: NetworkSettings | None) -> None:
        """Gives a path manners of its own; ``None`` gives it those of the network again."""
        path = self.path(name)
        path.settings = settings
        path.free_at = 0.0

    def is_open(self, name: str) -> bool:
        """Whether messages pass."""
        return self.path(name).is_open

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls back on the running loop."""
        asyncio.get_running_loop().call_later(seconds, act)

    def carry(self, name: str, act: Callable[[], None], size: int = 0) -> None:
        """A message on its way: it arrives once, or not at all.

        Args:
            name: of the path.
            act: what its arrival does.
            size: bytes that wait for their turn where the path is narrow.
        """
        path = self.path(name)
        settings = path.settings or self.settings
        if settings.loss and self.rng.random() < settings.loss:
            return
        delay = self.rng.uniform(settings.delay_seconds_min, settings.delay_seconds_max)
        if settings.bytes_per_second is not None and size:
            now = asyncio.get_running_loop().time()
            path.free_at = max(now, path.free_at) + size / settings.bytes_per_second
            delay += path.free_at - now
        self.after(delay, act)

    def repeats(self, name: str) -> bool:
        """Whether a part arrives twice."""
        settings = self.path(name).settings or self.settings
        return settings.repetition > 0 and self.rng.random() < settings.repetition

    def delay(self) -> float:
        """How long one message takes, in seconds."""
        return self.rng.uniform(self.settings.delay_seconds_min, self.settings.delay_seconds_max)

    def keep(self, receipt: Receipt) -> None:
        """Keeps a receipt in place of the one before, and tells the links that hear of it."""
        origin, lane = (receipt.site, receipt.node), str(receipt.lane)
        self.receipts.setdefault(origin, {})[lane] = receipt
        for listeners in (self._listeners.get(origin), self._listeners.get(None)):
            for link in list((listeners or {}).values()):
                link.announce((*origin, lane))

    def newest(self, origin: tuple[str, str] | None) -> list[_Key]:
        """The lanes of a node, or of all nodes, of which there is a receipt."""
        origins = self.receipts if origin is None else (origin,)
        return [(*one, lane) for one in origins for lane in self.receipts.get(one, ())]

    def enter(self, link: "SimLink") -> None:
        """A link begins to listen."""
        self.path(link.path).links[link.number] = link
        self._listeners.setdefault(link.origin, {})[link.number] = link

    def leave(self, link: "SimLink") -> None:
        """A link listens no more."""
        path = self.path(link.path)
        path.links.pop(link.number, None)
        path.waiting.pop(link.number, None)
        listeners = self._listeners.get(link.origin, {})
        listeners.pop(link.number, None)
        if not listeners:
            self._listeners.pop(link.origin, None)

    def wait_open(self, link: "SimLink") -> None:
        """A link tries again once its path is mended."""
        self.path(link.path).waiting[link.number] = (link, asyncio.get_running_loop().time())


class SimLink:
    """A node's end, port ``Link``: ``async with network.link(...) as link``."""

    def __init__(
        self,
        network: SimNetwork,
        origin: tuple[str, str] | None,
        name: str,
        path: str,
        number: int,
    ) -> None:
        self.origin = origin
        self.path = path
        self.number = number
        self._network = network
        self._state = LinkState(name, up=False, reason="not started", since_mono_ns=_now(network))
        self._changed = asyncio.Event()
        self._window = asyncio.Semaphore(network.settings.window_parts_max)
        # In the order in which they were sent: a set would let addresses decide what fails first.
        self._answers: dict[asyncio.Future[Accepted | Refusal], None] = {}
        self._unread: dict[_Key, Receipt] = {}
        self._arrived = asyncio.Event()
        self._entered = False
        self._failures = 0

    def __repr__(self) -> str:
        return f"<SimLink {self.path} {self._state}>"

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        return self._state

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        while (self._state.up, self._state.connections) == (seen.up, seen.connections):
            await self._changed.wait()
        return self._state

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew."""
        if self._state.up:
            self.drop(reason)

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part; many may be under way at once.

        Raises:
            LinkDown: it is not up, broke, or did not answer in time.
        """
        if not self._state.up:
            raise LinkDown(f"{self._state.name} is down: {self._state.reason}")
        if len(part.payload) > BATCH_BYTES_MAX:
            return Refusal(RefusedBecause.TOO_LARGE, f"{len(part.payload)} bytes", 0.0)
        try:
            Subject(part.site, part.node, "up", part.lane)
        except Refused as error:
            return Refusal(error.reason, error.detail, 0.0)
        try:
            async with asyncio.timeout(self._network.settings.send_seconds), self._window:
                outcome = await self._exchange(part)
        except TimeoutError:
            raise LinkDown(f"{self._state.name}: {part.lane} was not acknowledged") from None
        if isinstance(outcome, Accepted):
            sent = self._state.sent_bytes + len(part.payload)
            self._state = replace(self._state, sent_bytes=sent)
        return outcome

    async def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts as they come; after every connection the newest of each lane come first."""
        while True:
            while not self._unread:
                self._arrived.clear()
                await self._arrived.wait()
            yield self._unread.pop(next(iter(self._unread)))

    async def __aenter__(self) -> Self:
        self._entered = True
        self._network.enter(self)
        self._retry()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered = False
        self.drop("stopped")
        self._network.leave(self)

    def drop(self, reason: str) -> None:
        """Goes down: what is under way fails, and the next connection is tried for."""
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(LinkDown(f"{self._state.name}: {reason}"))
        if self._state.up:
            self._move(up=False, reason=reason)
            self._retry()

    def notice_silence(self) -> None:
        """What a watchdog does when no sign of life came for too long."""
        if self._state.up and self._network.path(self.path).silent:
            self.drop("no sign of life")

    def announce(self, key: _Key) -> None:
        """Word of a new receipt, which may be lost; what arrives is what is the newest then."""
        connection = self._state.connections

        def arrive() -> None:
            if self._reached(connection):
                self._take(key)

        if self._state.up:
            self._network.carry(self.path, arrive)

    async def _exchange(self, part: Part) -> Accepted | Refusal:
        network, connection = self._network, self._state.connections
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Accepted | Refusal] = loop.create_future()

        def arrive() -> None:
            if self._reached(connection):
                outcome = network.queue.put(part, loop.time())
                network.carry(self.path, lambda: respond(outcome))

        def respond(outcome: Accepted | Refusal) -> None:
            if self._reached(connection) and not answer.done():
                answer.set_result(outcome)

        self._answers[answer] = None
        try:
            network.carry(self.path, arrive, len(part.payload))
            if network.repeats(self.path):
                network.carry(self.path, arrive, len(part.payload))
            return await answer
        finally:
            del self._answers[answer]

    def _reached(self, connection: int) -> bool:
        """Whether what was sent on that connection still gets through."""
        state = self._state
        return state.up and state.connections == connection and self._network.is_open(self.path)

    def _take(self, key: _Key) -> None:
        self._unread.pop(key, None)
        self._unread[key] = self._network.receipts[key[:2]][key[2]]
        self._arrived.set()

    def _retry(self) -> None:
        settings = self._network.settings
        longest = min(
            settings.reconnect_seconds_max, settings.reconnect_seconds_min * 2.0**self._failures
        )
        self.retry(longest * self._network.rng.uniform(0.5, 1.0))

    def retry(self, pause: float) -> None:
        """Tries to connect after a pause, in seconds, and the way there and back."""
        self._network.after(pause + 2 * self._network.delay(), self._connect)

    def _connect(self) -> None:
        if self._state.up or not self._entered:
            return
        if not self._network.is_open(self.path):
            self._failures = min(self._failures + 1, _BACKOFFS_MAX)
            self._network.wait_open(self)
            return
        self._failures = 0
        self._unread.clear()
        for key in self._network.newest(self.origin):
            self._take(key)
        self._move(up=True, reason="")

    def _move(self, *, up: bool, reason: str) -> None:
        self._state = replace(
            self._state,
            up=up,
            reason=reason,
            since_mono_ns=_now(self._network),
            connections=self._state.connections + up,
        )
        self._changed.set()
        self._changed = asyncio.Event()


class SimIntake:
    """The receiving end, port ``Intake``. It sits beside the queue; its path can be cut by name."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self._refused = 0

    def __repr__(self) -> str:
        return f"<SimIntake {self._name} refused={self.refused} {self._network.queue}>"

    @property
    def refused(self) -> int:
        """How many arrivals were refused, here or on their way."""
        return self._refused + self._network.queue.refused

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Arrivals in groups; each comes again until it is accepted or refused. One reader."""
        queue = self._network.queue
        while True:
            is_open = self._network.is_open(self._name)
            arrivals = queue.take_due() if is_open else []
            if arrivals:
                yield arrivals
            else:
                await queue.wait_due(is_open=is_open)

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Makes receipts reach their nodes, and stay for those that connect later.

        Raises:
            LinkDown: some were not handed over.
        """
        await asyncio.sleep(self._network.delay())
        if not self._network.is_open(self._name):
            raise LinkDown(f"{self._name} is cut off")
        for receipt in receipts:
            self._network.keep(receipt)

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Lets the transport forget them; when it cannot be told, they come again."""
        await asyncio.sleep(self._network.delay())
        if self._network.is_open(self._name):
            for arrival in arrivals:
                assert isinstance(arrival.token, int), "a token of this intake"
                self._network.queue.forget(arrival.token)

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Takes an arrival that can never be taken out of the queue."""
        assert refusal.reason, "there is a reason"
        self._refused += 1
        await self.accept([arrival])


def _now(network: SimNetwork) -> int:
    return network.clock.now().mono_ns
