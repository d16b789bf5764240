"""Readings in, decisions out: the path that nothing upstream may ever be in the way of.

A group of messages goes through at once: each topic is looked up, each rule decodes its readings
together, asks its model once, and concludes; all decisions of the group take their numbers in one
append and are published in one go. Groups of more than 64 go through in pieces of 64: the first are
out sooner, and what a piece allocates stays below the 128 KiB at which the C library gives memory
back to the system and has it mapped anew for the next (twice the cost of a reading, measured).
Order:

1. *Number.* ``append`` hands out numbers at once. Where the spool takes nothing (it is degraded, or
   full of what waits for the disk), numbers of an epoch that is never recorded are taken: deciding
   goes on, and the account states them as ``shed``.
2. *Publish*, at once. The disk is not awaited. Where the broker is gone the decision stays
   recorded, and is counted as ``unpublished``; it is not said later, when it may no longer hold.
3. *Acknowledge* QoS 1 readings once ``settled``: their decisions are durable, or accounted for as
   given up. Readings that were refused, shed, or wait in a window are acknowledged with their
   group: else a broker that allows 1,000 unacknowledged messages would stop before a window of
   4,096 is full, or behind a sensor that talks nonsense.

Publishing keeps the order of the numbers: one group at a time.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final, Protocol

from mesh.ports import Clock, Delivery, LocalBroker, Observer, Publication
from mesh.spool.pump import Appended
from nodes.edge.guardrails import Reason
from nodes.edge.model import Model
from nodes.edge.readings import Complaints, ReadingAccount, ShedBecause
from nodes.edge.rule import Rule
from nodes.edge.work import Conclusion, RuleAtWork, Source
from schemas import wire
from schemas.documents import decision_json
from schemas.errors import DiskFailed, LinkDown, ModelUnusable, Overloaded, Refused
from schemas.limits import RECORD_BYTES_MAX, SOURCES_MAX, TOPIC_BYTES_MAX
from schemas.messages import Decision, Epoch, Identity, Instant, Lane, Origin, Reading, Severity
from schemas.topics import Channel, LocalTopic, check_topic, matches

__all__ = ["DecisionCounts", "Inference", "ModelRunFailed", "Place", "Records", "Unrecorded"]

_TOPICS_MAX: Final = 4 * SOURCES_MAX
_LATENCIES_MAX: Final = 8192
_PIECE: Final = 64
_PAUSE_NS: Final = 10_000_000_000


class Records(Protocol):
    """What of the spool deciding needs."""

    def append(self, lane: Lane, records: list[bytes], *, awaited: bool = True) -> Appended:
        """Numbers records now, and makes them durable soon."""
        ...

    def forgo(self, lane: Lane, count: int) -> Identity:
        """Numbers for records that are never recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands.

    Args:
        site: its site.
        node: its name.
        session: this run of it, 16 hex digits.
    """

    site: str
    node: str
    session: str


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """Decisions were published that the spool could not take; said once in ten seconds."""

    count: int
    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: what was decided is known only to those who heard it."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class ModelRunFailed:
    """A model's runs ended with errors, and fallbacks were decided; said once in ten seconds."""

    rule: str
    count: int

    @property
    def severity(self) -> Severity:
        """An alarm: the node decides nothing but fallbacks."""
        return Severity.ERROR


@dataclass(slots=True)
class DecisionCounts:
    """What was decided since the node started."""

    decisions: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    """By reason; a decision with two reasons counts twice."""
    unpublished: int = 0
    unrecorded: int = 0
    readings_unrecorded: int = 0


@dataclass(slots=True)
class _Route:
    """Where the readings of a topic go; gathers those of the present group."""

    work: RuleAtWork
    source: Source | Refused


class Inference:
    """All rules of a node.

    Args:
        place: where it stands.
        rules: each with its model.
        records: the spool.
        broker: where decisions are published, and readings acknowledged.
        clock: for all times.
        observer: is told what goes wrong.
        rng: for the session's part of trace ids.

    Raises:
        ModelUnusable: a decision would not fit into a record.
    """

    def __init__(
        self,
        place: Place,
        rules: Sequence[tuple[Rule, Model]],
        records: Records,
        broker: LocalBroker,
        clock: Clock,
        observer: Observer,
        rng: Random,
    ) -> None:
        self.counts = DecisionCounts()
        self._place = place
        self._records = records
        self._broker = broker
        self._clock = clock
        self._observer = observer
        self._complaints = Complaints()
        next_trace = _traces(rng)
        self._works = [
            RuleAtWork(rule, model, place.session, clock, next_trace, self._complaints)
            for rule, model in rules
        ]
        self._topics = {
            rule.name: str(LocalTopic(place.site, place.node, Channel.DECISION, rule.name))
            for rule, _ in rules
        }
        self._qos = {rule.name: rule.publish_qos for rule, _ in rules}
        self._own = f"{LocalTopic(place.site, place.node, Channel.STATE, 'x')}"[: -len("state/x")]
        self._routes: dict[str, tuple[_Route, ...]] = {}
        self._stray = ReadingAccount()
        self._publishing = asyncio.Lock()
        self._latencies: deque[int] = deque(maxlen=_LATENCIES_MAX)
        self._alarms = _Alarms()
        self._unrecorded_because = ""
        for rule, model in rules:
            _check_fits(rule, model)

    @property
    def filters(self) -> dict[str, int]:
        """What to subscribe to: each filter with the highest QoS that a rule asks for."""
        filters: dict[str, int] = {}
        for work in self._works:
            for topic_filter, qos in work.rule.filters.items():
                filters[topic_filter] = max(qos, filters.get(topic_filter, 0))
        return filters

    @property
    def sources(self) -> int:
        """How many sources all rules have."""
        return sum(work.sources for work in self._works)

    def account(self) -> ReadingAccount:
        """What became of all readings."""
        total = ReadingAccount()
        for account in (self._stray, *(work.account for work in self._works)):
            total.received += account.received
            total.used += account.used
            total.waiting += account.waiting
            total.refused += account.refused
            total.shed += account.shed
        return total

    def take_latencies(self) -> list[int]:
        """Nanoseconds from received to published of the newest decisions; each is given once."""
        taken = sorted(self._latencies)
        self._latencies.clear()
        return taken

    # --- the path ------------------------------------------------------------------------------

    async def decide(self, group: Sequence[Delivery]) -> None:
        """Takes a group of messages; returns once its decisions are with the broker."""
        for start in range(0, len(group), _PIECE):
            await self._decide_piece(group[start : start + _PIECE])
        if self._complaints.pending:
            self.complain()

    async def _decide_piece(self, group: Sequence[Delivery]) -> None:
        now = self._clock.now()
        concluded: list[Conclusion] = []
        kept: list[Reading] = []
        for work, (sources, deliveries) in self._sort(group, now).items():
            decided, readings = work.conclude(sources, deliveries, now)
            concluded += decided
            kept += readings
        if kept:
            self._keep(kept)
        to_acknowledge = [delivery for delivery in group if delivery.qos]
        if concluded:
            await self._say(concluded, to_acknowledge)
        elif to_acknowledge:
            self._broker.acknowledge(to_acknowledge)

    async def fall_silent(self) -> None:
        """Decides for the sources that have said nothing for too long."""
        now = self._clock.now()
        concluded = [silence for work in self._works for silence in work.fall_silent(now)]
        if concluded:
            await self._say(concluded, ())

    def next_silence_ns(self) -> int | None:
        """When to call ``fall_silent`` again, on the monotonic clock; ``None``: no source yet."""
        waits = [at for work in self._works if (at := work.next_silence_ns()) is not None]
        return min(waits, default=None)

    def complain(self) -> None:
        """Tells the observer what was refused and shed, as far as it is time to."""
        now_ns = self._clock.now().mono_ns
        for complaint in self._complaints.due(now_ns):
            self._observer.observe(complaint)
        for work in self._works:
            new = self._alarms.due(f"model {work.rule.name}", work.failures, now_ns)
            if new:
                self._observer.observe(ModelRunFailed(work.rule.name, new))

        self._tell_unrecorded(now_ns)

    def _tell_unrecorded(self, now_ns: int) -> None:
        new = self._alarms.due("spool", self.counts.unrecorded, now_ns)
        if new:
            self._observer.observe(Unrecorded(new, self._unrecorded_because))

    # --- where readings go -----------------------------------------------------------------------

    def _sort(
        self, group: Sequence[Delivery], now: Instant
    ) -> dict[RuleAtWork, tuple[list[Source], list[Delivery]]]:
        """The readings of a group by rule, in order, each with its source."""
        sorted_: dict[RuleAtWork, tuple[list[Source], list[Delivery]]] = {}
        routes = self._routes
        for delivery in group:
            known = routes.get(delivery.topic)
            for route in known if known is not None else self._route(delivery.topic, now):
                work, source = route.work, route.source
                if isinstance(source, Refused):
                    work.refuse(delivery.topic, source)
                    continue
                if delivery.retained and not work.rule.layout.time_key:
                    work.shed(delivery.topic, ShedBecause.RETAINED)
                    continue
                pair = sorted_.get(work)
                if pair is None:
                    pair = sorted_[work] = ([], [])
                pair[0].append(source)
                pair[1].append(delivery)
        return sorted_

    def _route(self, topic: str, now: Instant) -> tuple[_Route, ...]:
        """Finds out where a topic's readings go, and remembers it; none where nowhere."""
        if topic.startswith(self._own):
            return self._stray_shed(topic, ShedBecause.OWN_TOPIC)
        try:
            check_topic(topic)
        except Refused as refused:
            self._stray.received += 1
            self._stray.refused[refused.reason] += 1
            self._complaints.refuse(topic, refused)
            return ()
        found: list[_Route] = []
        for work in self._works:
            if any(matches(topic_filter, topic) for topic_filter in work.rule.filters):
                try:
                    found.append(_Route(work, work.source(topic, now)))
                except Refused as full:
                    found.append(_Route(work, full))
        if not found:
            return self._stray_shed(topic, ShedBecause.NO_RULE)
        if len(self._routes) >= _TOPICS_MAX:
            # Sources stay; only the way to them is found again.
            self._routes.clear()
        self._routes[topic] = routes = tuple(found)
        return routes

    def _stray_shed(self, topic: str, reason: ShedBecause) -> tuple[_Route, ...]:
        self._stray.received += 1
        self._stray.shed[reason] += 1
        self._complaints.shed(topic, reason)
        return ()

    # --- where decisions go ----------------------------------------------------------------------

    async def _say(
        self, concluded: Sequence[Conclusion], to_acknowledge: Sequence[Delivery]
    ) -> None:
        """Numbers, publishes, and acknowledges when it is time."""
        decisions = [conclusion.decision for conclusion in concluded]
        epoch, first, settled = self._record(decisions, awaited=bool(to_acknowledge))
        if to_acknowledge:
            acknowledge = _acknowledging(self._broker, to_acknowledge)
            if settled is None:
                acknowledge(None)
            else:
                settled.add_done_callback(acknowledge)
        site, node = self._place.site, self._place.node
        publications = [
            Publication(
                self._topics[name := decision.origin.name],
                decision_json(site, Identity(node, epoch, Lane.DECISIONS, seq), decision),
                self._qos[name],
            )
            for seq, decision in enumerate(decisions, first)
        ]
        self._count(decisions)
        try:
            async with self._publishing:
                await self._broker.publish(publications)
        except LinkDown:
            self.counts.unpublished += len(publications)
            return
        done_ns = self._clock.now().mono_ns
        self._latencies.extend(
            [done_ns - received for _, received in concluded if received is not None]
        )

    def _record(
        self, decisions: Sequence[Decision], *, awaited: bool
    ) -> "tuple[Epoch, int, asyncio.Future[bool] | None]":
        """Numbers decisions, recorded where the spool takes them."""
        records = list(map(wire.encode, decisions))
        try:
            appended = self._records.append(Lane.DECISIONS, records, awaited=awaited)
        except (Overloaded, DiskFailed) as reason:
            identity = self._records.forgo(Lane.DECISIONS, len(records))
            self.counts.unrecorded += len(records)
            now_ns = decisions[-1].mono_ns
            self._unrecorded_because = str(reason)
            self._tell_unrecorded(now_ns)
            return identity.epoch, identity.seq, None
        return appended.epoch, appended.first, appended.settled

    def _keep(self, readings: Sequence[Reading]) -> None:
        records = list(map(wire.encode, readings))
        try:
            self._records.append(Lane.READINGS, records, awaited=False)
        except (Overloaded, DiskFailed):
            self._records.forgo(Lane.READINGS, len(records))
            self.counts.readings_unrecorded += len(records)

    def _count(self, decisions: Iterable[Decision]) -> None:
        counts = self.counts
        for decision in decisions:
            counts.decisions += 1
            for reason in decision.reasons:
                counts.fallbacks[reason] += 1


class _Alarms:
    """Says how much a counter has grown, at most once in ten seconds for each name."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int]] = {}

    def due(self, name: str, total: int, now_ns: int) -> int:
        told, quiet_until_ns = self._told.get(name, (0, now_ns))
        if total == told or now_ns < quiet_until_ns:
            return 0
        self._told[name] = (total, now_ns + _PAUSE_NS)
        return total - told


def _acknowledging(broker: LocalBroker, deliveries: Sequence[Delivery]) -> Callable[[object], None]:
    return lambda _settled: broker.acknowledge(deliveries)


def _traces(rng: Random) -> Callable[[], bytes]:
    """W3C trace ids: eight random bytes for the session, then a counter, so no two are the same."""
    prefix = (rng.getrandbits(64) | 1).to_bytes(8, "big")
    numbers = count(1)
    return lambda: prefix + next(numbers).to_bytes(8, "big")


def _check_fits(rule: Rule, model: Model) -> None:
    """Makes sure that the longest decision of a rule fits into a record."""
    contract = model.contract
    origin = Origin(
        rule.name,
        "x" * TOPIC_BYTES_MAX,
        contract.name,
        contract.version,
        contract.digest,
        rule.policy_digest,
        "0" * 16,
        contract.values,
    )
    verdict = max((*contract.labels, rule.fallback), key=len)
    values = (0.0,) * len(contract.values)
    longest = Decision(
        origin,
        wall_ns=0,
        mono_ns=0,
        read_ns=0,
        verdict=verdict,
        confidence=0.0,
        values=values,
        reasons=tuple(Reason),
        inputs=0,
        input_digest=b"",
        valid_for_ms=0,
        replay=False,
        trace=b"0" * 16,
    )
    size = len(wire.encode(longest))
    if size > RECORD_BYTES_MAX:
        raise ModelUnusable(
            f"model {contract.name} {contract.version}: a decision takes {size} bytes, at most "
            f"{RECORD_BYTES_MAX}; shorter names of its values would be right"
        )
