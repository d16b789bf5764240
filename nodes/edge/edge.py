"""The edge role: everything that runs beside deciding, and the order in which it ends.

While it runs: readings are taken and decided on; silence is watched; the spool does its chores;
records go upstream where there is a way; health is told at intervals, accounts are stated. Deciding
waits for none of the others.

It ends by ``drain``, in this order: no more readings are taken, those in hand are decided on and
published; health says so; the retained state says offline; the accounts are stated; what waits is
committed, and sent while there is a way and time. Each step has a deadline, so ending takes a
bounded time even with a dead broker and a dead disk.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mesh.ports import BrokerState, Clock, LinkState, LocalBroker, Publication
from mesh.spool.spool import Spool
from nodes.edge.inference import Inference, Place
from nodes.edge.recorder import Recorder
from nodes.health import EdgeVitals, edge_document, edge_points
from schemas.documents import state_json, to_json
from schemas.errors import LinkDown
from schemas.messages import Instant, NodeState, Severity
from schemas.topics import Channel, LocalTopic

__all__ = [
    "BrokerChanged",
    "BrokerRefused",
    "Edge",
    "EdgeParts",
    "Forwarding",
    "state_publication",
]

_ACCOUNT_SECONDS: Final = 30.0
_STEP_SECONDS_MAX: Final = 2.0
_SILENCE_SECONDS_MIN: Final = 0.001
_SILENCE_SECONDS_MAX: Final = 1.0
_CONNECTED_SECONDS: Final = 0.2
_NODE: Final = "node"


@dataclass(frozen=True, slots=True)
class BrokerChanged:
    """The local broker came or went; decisions are recorded all the same."""

    connected: bool
    reason: str
    protocol: str

    @property
    def severity(self) -> Severity:
        """Without a broker nobody hears a decision."""
        return Severity.NOTICE if self.connected else Severity.WARNING


@dataclass(frozen=True, slots=True)
class BrokerRefused:
    """The local broker did not let messages or filters pass, or a message was no reading at all.

    Args:
        messages: publications that it refused, and arrivals passed over for topic or size.
        filters: topic filters that it does not let us read, now.
    """

    messages: int
    filters: str

    @property
    def severity(self) -> Severity:
        """An alarm: decisions do not reach whom they should, or readings us."""
        return Severity.ERROR


class Forwarding(Protocol):
    """What carries records upstream."""

    async def run(self) -> None:
        """Runs until cancelled; no failure of a link ends it."""
        ...

    def states(self) -> Sequence[LinkState]:
        """How each of its links stands."""
        ...

    async def drained(self) -> None:
        """Returns once nothing is pending; perhaps never."""
        ...


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """What the composition root hands to an edge.

    Args:
        place: site, node and session.
        inference: the rules at work.
        spool: open; closed by whoever opened it.
        broker: entered; left by whoever entered it.
        recorder: attached to the spool.
        clock: for all times.
        forwarders: ways upstream; none is fine.
        resident_bytes: the memory of the process.
        health_seconds: between two health documents.
        drain_seconds: how long ending waits until upstream has what is pending.
    """

    place: Place
    inference: Inference
    spool: Spool
    broker: LocalBroker
    recorder: Recorder
    clock: Clock
    forwarders: Sequence[Forwarding] = ()
    resident_bytes: Callable[[], int | None] = field(default=lambda: None)
    health_seconds: float = 10.0
    drain_seconds: float = 10.0


def state_publication(
    place: Place,
    since: Instant,
    *,
    online: bool,
    epoch: str = "",
    details: Mapping[str, str] | None = None,
) -> Publication:
    """A node's retained state: its birth, and with ``online`` false its will or its farewell.

    Args:
        place: site, node and session; the same session in the birth and in the will.
        since: when the node started.
        online: whether it is there.
        epoch: of its spool.
        details: for people, such as the program's version.
    """
    state = NodeState(
        place.site, place.node, place.session, online, since.wall_ns, epoch, details or {}
    )
    topic = LocalTopic(place.site, place.node, Channel.STATE, _NODE)
    return Publication(str(topic), state_json(state), 1, retain=True)


class Edge:
    """Runs an edge: ``run`` until ``drain`` was called from another task."""

    def __init__(self, parts: EdgeParts) -> None:
        self._parts = parts
        self._since = parts.clock.now()
        self._health_topic = str(
            LocalTopic(parts.place.site, parts.place.node, Channel.HEALTH, _NODE)
        )
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Runs until it is drained, or until a part fails that nothing goes on without.

        Raises:
            ExceptionGroup: what failed.
        """
        try:
            self._parts.broker.subscribe(self._parts.inference.filters)
            async with asyncio.TaskGroup() as tasks:
                await self._run_until_drained(tasks)
        finally:
            self._drained.set()

    async def _run_until_drained(self, tasks: asyncio.TaskGroup) -> None:
        parts = self._parts
        deciding = [
            tasks.create_task(self._read(), name="read"),
            tasks.create_task(self._watch_silence(), name="silence"),
            tasks.create_task(self._tell_health(), name="health"),
            tasks.create_task(self._state_accounts(), name="accounts"),
        ]
        keeping = [tasks.create_task(parts.spool.maintain(), name="spool")]
        keeping += [
            tasks.create_task(forwarder.run(), name="forward") for forwarder in parts.forwarders
        ]
        await self._draining.wait()
        await self._step(self._idle.wait)
        _cancel(deciding)
        offline = state_publication(
            parts.place, self._since, online=False, epoch=str(parts.spool.epoch)
        )
        await self._step(self._publish_health)
        await self._step(lambda: self._publish(offline))
        await self._step(parts.spool.state_accounts)
        parts.recorder.flush()
        await self._step(parts.spool.commit)
        await self._send_the_rest()
        _cancel(keeping)

    async def _send_the_rest(self) -> None:
        """Lets the backlog go on its way where there is one, for as long as was configured."""
        ways = [
            forwarder
            for forwarder in self._parts.forwarders
            if any(state.up for state in forwarder.states())
        ]
        if ways:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._parts.drain_seconds):
                    await ways[0].drained()

    async def drain(self) -> None:
        """Ends ``run`` in order; returns once it has. May be called twice."""
        self._draining.set()
        await self._drained.wait()

    def vitals(self) -> EdgeVitals:
        """How everything stands; takes the latencies that came since it was last asked."""
        parts = self._parts
        counts = parts.inference.counts
        return EdgeVitals(
            parts.clock.now(),
            self._since,
            parts.place.session,
            parts.spool.status(),
            parts.broker.state,
            [state for forwarder in parts.forwarders for state in forwarder.states()],
            parts.inference.account().as_plain(),
            parts.inference.sources,
            counts.decisions,
            counts.fallbacks,
            counts.unpublished,
            counts.unrecorded,
            counts.readings_unrecorded,
            parts.recorder.dropped,
            parts.inference.take_latencies(),
            parts.resident_bytes(),
            self._draining.is_set(),
        )

    # --- what runs ---------------------------------------------------------------------------

    async def _read(self) -> None:
        """Takes readings. ``_idle`` is set while none is in hand, so that nothing is torn apart."""
        async for group in self._parts.broker.groups():
            self._idle.clear()
            try:
                await self._parts.inference.decide(group)
            finally:
                self._idle.set()
            if self._draining.is_set():
                return

    async def _watch_silence(self) -> None:
        inference, clock = self._parts.inference, self._parts.clock
        while True:
            await inference.fall_silent()
            at_ns = inference.next_silence_ns()
            wait = _SILENCE_SECONDS_MAX
            if at_ns is not None:
                wait = (at_ns - clock.now().mono_ns) / 1e9
            # A source that appears meanwhile falls silent later than all that are waited for; the
            # upper bound is for rules that differ.
            await asyncio.sleep(min(max(wait, _SILENCE_SECONDS_MIN), _SILENCE_SECONDS_MAX))

    async def _tell_health(self) -> None:
        """At intervals, and after each connection: a broker that restarted may have forgotten."""
        clock = asyncio.get_running_loop().time
        due, told_on = clock(), -1
        before = BrokerState(connected=False)
        while True:
            broker = self._parts.broker.state
            self._tell_broker(before, broker)
            before = broker
            connected_anew = broker.connected and broker.connections != told_on
            if connected_anew or clock() >= due:
                told_on = broker.connections if broker.connected else -1
                self._parts.inference.complain()
                await self._publish_health()
                due = clock() + self._parts.health_seconds
            await asyncio.sleep(min(_CONNECTED_SECONDS, self._parts.health_seconds))

    def _tell_broker(self, before: BrokerState, now: BrokerState) -> None:
        """Tells what changed at the local broker since it was last looked at."""
        observe = self._parts.recorder.observe
        if before.connected != now.connected:
            observe(BrokerChanged(now.connected, now.reason, now.protocol))
        if before.refused != now.refused or before.refused_filters != now.refused_filters:
            filters = ", ".join(sorted(now.refused_filters))
            observe(BrokerRefused(now.refused - before.refused, filters))

    async def _publish_health(self) -> None:
        vitals = self.vitals()
        self._parts.recorder.metrics(edge_points(vitals))
        document = to_json(edge_document(vitals))
        await self._publish(Publication(self._health_topic, document, 0, retain=True))

    async def _publish(self, publication: Publication) -> None:
        """Says something that will be said anew; nothing is lost where the broker is gone."""
        try:
            await self._parts.broker.publish([publication])
        except LinkDown:
            return

    async def _state_accounts(self) -> None:
        while True:
            await asyncio.sleep(_ACCOUNT_SECONDS)
            await self._parts.spool.state_accounts()

    async def _step(self, step: Callable[[], Awaitable[object]]) -> None:
        """A step of ending; the rest is still worth trying when it takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEP_SECONDS_MAX):
                await step()


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
