"""A network between links and an intake, in this process: delay, loss, repetition, cuts.

It behaves as JetStream does between a node and its headquarters, with worse manners: a bounded
queue that refuses when it is full and delivers again what was not acknowledged; the newest receipt
of each (site, node, lane) kept for whoever connects; and between the two a path that delays, loses,
repeats and so reorders messages, breaks openly (``cut``) or in silence (``silence``).

Everything random comes from one generator and every wait is a timer of the running loop, so on
virtual time one seed replays exactly. All is bounded: the queue by bytes, what is under way by each
link's window, unread receipts by the number of lanes.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from mesh.ports import Accepted, Arrival, Clock, LinkState, Part, Refusal
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, INTAKE_BATCHES_MAX
from schemas.messages import Receipt
from schemas.topics import Subject

__all__ = ["NetworkSettings", "SimIntake", "SimLink", "SimNetwork"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How a simulated network behaves.

    Args:
        delay_seconds_min: the least time a message takes, each way.
        delay_seconds_max: the most; unequal delays are what reorders.
        loss: chance that a message, or its answer, or word of a receipt, is lost.
        repetition: chance that a part arrives twice.
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
    send_seconds: float = 20.0
    window_parts_max: int = 64
    ping_seconds: float = 5.0
    reconnect_seconds_min: float = 0.25
    reconnect_seconds_max: float = 30.0
    queue_bytes_max: int = 512 * _MIB
    full_seconds: float = 5.0
    ack_seconds: float = 60.0


class SimNetwork:
    """The far end and the paths to it. Makes links and intakes; breaks and mends what is between.

    Args:
        clock: for the time of changes.
        rng: decides all that is random.
        settings: how it behaves; may be replaced while it runs, through ``settings``.
    """

    def __init__(
        self, clock: Clock, rng: random.Random, settings: NetworkSettings | None = None
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.settings = settings or NetworkSettings()
        self.queue = _Queue(self)
        self.newest: dict[tuple[str, str, str], Receipt] = {}
        self._links: list[SimLink] = []
        self._cut: set[str] = set()
        self._silent: set[str] = set()

    def __repr__(self) -> str:
        return f"<SimNetwork cut={sorted(self._cut)} silent={sorted(self._silent)} {self.queue}>"

    def link(self, site: str, node: str, name: str = "up") -> "SimLink":
        """A link of a node; its path is called by the node's name."""
        link = SimLink(self, site, node, name)
        self._links.append(link)
        return link

    def intake(self, name: str = "intake") -> "SimIntake":
        """A receiving end; several share the work. Its own path can be cut by its name."""
        return SimIntake(self, name)

    def cut(self, path: str) -> None:
        """Breaks a path so that both ends see it at once."""
        self._cut.add(path)
        for link in self._of(path):
            link.drop("cut off")

    def silence(self, path: str) -> None:
        """Swallows all that crosses a path; nobody is told."""
        self._silent.add(path)
        for link in self._of(path):
            self.after(self.settings.ping_seconds * self.rng.uniform(1, 2), link.notice_silence)

    def mend(self, path: str) -> None:
        """Lets messages pass again; a link that went down comes up again by itself."""
        self._cut.discard(path)
        self._silent.discard(path)
        self.queue.wake()

    def is_open(self, path: str) -> bool:
        """Whether messages pass."""
        return path not in self._cut and path not in self._silent

    def is_silent(self, path: str) -> bool:
        """Whether a path swallows messages."""
        return path in self._silent

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls back on the running loop."""
        asyncio.get_running_loop().call_later(seconds, act)

    def carry(self, act: Callable[[], None]) -> None:
        """A message on its way: it arrives once, or not at all."""
        if self.rng.random() >= self.settings.loss:
            self.after(self.delay(), act)

    def delay(self) -> float:
        """How long one message takes, in seconds."""
        return self.rng.uniform(self.settings.delay_seconds_min, self.settings.delay_seconds_max)

    def keep(self, receipt: Receipt) -> None:
        """Keeps a receipt in place of the one before, and tells the links of its node."""
        key = (receipt.site, receipt.node, str(receipt.lane))
        self.newest[key] = receipt
        for link in self._links:
            if (link.site, link.node) == key[:2]:
                link.announce(key)

    def _of(self, path: str) -> "list[SimLink]":
        return [link for link in self._links if link.node == path]


class SimLink:
    """A node's end, port ``Link``: ``async with network.link(...) as link``."""

    def __init__(self, network: SimNetwork, site: str, node: str, name: str) -> None:
        self.site = site
        self.node = node
        self._network = network
        self._state = LinkState(name, up=False, reason="not started", since_mono_ns=_now(network))
        self._changed = asyncio.Event()
        self._window = asyncio.Semaphore(network.settings.window_parts_max)
        self._answers: set[asyncio.Future[Accepted | Refusal]] = set()
        self._unread: dict[tuple[str, str, str], Receipt] = {}
        self._arrived = asyncio.Event()
        self._entered = False
        self._failures = 0

    def __repr__(self) -> str:
        return f"<SimLink {self.site}/{self.node} {self._state}>"

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
        if self._state.up and self._network.is_silent(self.node):
            self.drop("no sign of life")

    def announce(self, key: tuple[str, str, str]) -> None:
        """Word of a new receipt, which may be lost; what arrives is what is the newest then."""
        connection = self._state.connections

        def arrive() -> None:
            if self._reached(connection):
                self._take(key)

        if self._state.up:
            self._network.carry(arrive)

    async def _exchange(self, part: Part) -> Accepted | Refusal:
        network, connection = self._network, self._state.connections
        answer: asyncio.Future[Accepted | Refusal] = asyncio.get_running_loop().create_future()

        def arrive() -> None:
            if not self._reached(connection):
                return
            outcome = network.queue.put(part)
            network.carry(lambda: respond(outcome))

        def respond(outcome: Accepted | Refusal) -> None:
            if self._reached(connection) and not answer.done():
                answer.set_result(outcome)

        self._answers.add(answer)
        try:
            network.carry(arrive)
            if network.rng.random() < network.settings.repetition:
                network.carry(arrive)
            return await answer
        finally:
            self._answers.discard(answer)

    def _reached(self, connection: int) -> bool:
        """Whether what was sent on that connection still gets through."""
        return (
            self._state.up
            and self._state.connections == connection
            and self._network.is_open(self.node)
        )

    def _take(self, key: tuple[str, str, str]) -> None:
        self._unread.pop(key, None)
        self._unread[key] = self._network.newest[key]
        self._arrived.set()

    def _retry(self) -> None:
        settings = self._network.settings
        longest = min(
            settings.reconnect_seconds_max, settings.reconnect_seconds_min * 2.0**self._failures
        )
        pause = longest * self._network.rng.uniform(0.5, 1.0)
        self._network.after(pause + 2 * self._network.delay(), self._connect)

    def _connect(self) -> None:
        if self._state.up or not self._entered:
            return
        if not self._network.is_open(self.node):
            self._failures = min(self._failures + 1, 16)
            self._retry()
            return
        self._failures = 0
        self._unread.clear()
        for key in self._network.newest:
            if key[:2] == (self.site, self.node):
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
        return f"<SimIntake {self._name} refused={self._refused} {self._network.queue}>"

    @property
    def refused(self) -> int:
        """How many arrivals were refused, here or by ``refuse``."""
        return self._refused

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Arrivals in groups; each comes again until it is accepted or refused. One reader."""
        queue = self._network.queue
        while True:
            arrivals = []
            for waiting in queue.due() if self._network.is_open(self._name) else []:
                if _is_whole(waiting.part):
                    arrivals.append(waiting.deliver(self._network.settings.ack_seconds))
                else:
                    self._refused += 1
                    queue.forget(waiting.number)
            if arrivals:
                yield arrivals
            else:
                await queue.wait_due()

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


@dataclass(slots=True)
class _Waiting:
    """A part in the queue."""

    number: int
    part: Part
    due_at: float = 0.0
    deliveries: int = 0

    def deliver(self, ack_seconds: float) -> Arrival:
        self.deliveries += 1
        self.due_at = asyncio.get_running_loop().time() + ack_seconds
        return Arrival(
            site=self.part.site,
            node=self.part.node,
            lane=str(self.part.lane),
            payload=self.part.payload,
            redelivered=self.deliveries > 1,
            token=self.number,
        )


@dataclass(slots=True)
class _Queue:
    """What has arrived and was neither accepted nor refused, oldest first."""

    network: SimNetwork
    waiting: dict[int, _Waiting] = field(default_factory=dict)
    bytes_held: int = 0
    taken: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        return f"queue of {len(self.waiting)} parts, {self.bytes_held} bytes"

    def put(self, part: Part) -> Accepted | Refusal:
        settings = self.network.settings
        if self.bytes_held + len(part.payload) > settings.queue_bytes_max:
            detail = f"{self.bytes_held} of {settings.queue_bytes_max} bytes are taken"
            return Refusal(RefusedBecause.FULL, detail, settings.full_seconds)
        self.taken += 1
        self.waiting[self.taken] = _Waiting(self.taken, part)
        self.bytes_held += len(part.payload)
        self.wake()
        return Accepted()

    def due(self) -> list[_Waiting]:
        now = asyncio.get_running_loop().time()
        return [waiting for waiting in self.waiting.values() if waiting.due_at <= now][
            :INTAKE_BATCHES_MAX
        ]

    def forget(self, number: int) -> None:
        waiting = self.waiting.pop(number, None)
        if waiting is not None:
            self.bytes_held -= len(waiting.part.payload)

    async def wait_due(self) -> None:
        """Until something is put, mended, or may have fallen due."""
        self.changed.clear()
        later = [waiting.due_at for waiting in self.waiting.values()]
        deadline = min(later) if later else None
        if deadline is not None:
            # What is due already waits for the path: look again a little later.
            now = asyncio.get_running_loop().time()
            deadline = max(deadline, now + self.network.settings.ack_seconds / 16)
        try:
            async with asyncio.timeout_at(deadline):
                await self.changed.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        self.changed.set()


def _is_whole(part: Part) -> bool:
    return (
        part.offset == 0
        and part.total == len(part.payload)
        and part.digest == hashlib.sha256(part.payload).digest()
    )


def _now(network: SimNetwork) -> int:
    return network.clock.now().mono_ns
