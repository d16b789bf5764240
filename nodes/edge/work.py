"""One rule at work: its sources, their windows, its model; a group of readings to conclusions.

No waiting and no I/O: everything here runs to its end between two turns of the loop.

A source that says nothing fresh for ``silent_after_ms``, or nothing but stale readings, gets one
fallback decision, and none more until it is fresh again; its window begins anew then, so that no
window ever holds readings from both sides of a silence. Topics that a rule names without wildcards
are sources from the beginning: a sensor that is dead when the node starts is missed, too.

Staleness is judged by the wall clock as it stands. A board that boots in 1970 sees readings from
the future, which are not stale; a clock that is ahead makes everything stale, and the node says so.

Readings that are marked as replayed have windows of their own, are never stale, and keep no source
from falling silent.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mesh.ports import Clock, Delivery
from nodes.edge.decode import Decoder
from nodes.edge.fallback import Saying, fall_back
from nodes.edge.guardrails import Guardrails, Reason, is_stale
from nodes.edge.model import Model, ModelFailed, Outputs
from nodes.edge.readings import Complaints, ReadingAccount, ShedBecause
from nodes.edge.rule import Rule
from nodes.edge.window import Due, Windows
from schemas.errors import Refused
from schemas.messages import Decision, Instant, Origin, Reading

__all__ = ["Conclusion", "RuleAtWork", "Source"]

_MS: Final = 1_000_000
_DIGEST_BYTES: Final = 16
_FEW: Final = 8  # rows below which numpy's fixed cost is larger than the work


class Source:
    """One topic as one rule reads it."""

    __slots__ = (
        "index",
        "origin",
        "quiet",
        "read_mono_ns",
        "read_wall_ns",
        "replays",
        "spoke",
        "twin",
    )

    def __init__(self, index: int, origin: Origin, since: Instant, *, replays: bool) -> None:
        self.index = index
        self.origin = origin
        self.read_mono_ns = since.mono_ns
        self.read_wall_ns = since.wall_ns
        self.replays = replays
        self.spoke = False
        self.quiet = False
        self.twin: Source | None = None


class Conclusion(NamedTuple):
    """A decision, and when its newest reading was received, on the monotonic clock."""

    decision: Decision
    received_mono_ns: int | None


class RuleAtWork:
    """A rule, its model, and what is known of its sources.

    Args:
        rule: what to do.
        model: what to ask.
        session: one run of the node.
        clock: for the time of decisions and of runs.
        next_trace: a new trace id, 16 bytes.
        complaints: is told of what is not decided on.
    """

    def __init__(
        self,
        rule: Rule,
        model: Model,
        session: str,
        clock: Clock,
        next_trace: Callable[[], bytes],
        complaints: Complaints,
    ) -> None:
        self.rule = rule
        self.failures = 0
        """Runs of the model that failed."""
        self._model = model
        self._session = session
        self._clock = clock
        self._next_trace = next_trace
        self._complaints = complaints
        self._decoder = Decoder(rule.layout)
        contract = model.contract
        self._labels = contract.labels
        self._guardrails = Guardrails(rule.limits, rule.layout.fields, contract.values)
        self._windows = Windows(
            rule.window, len(rule.layout.fields), hop=rule.hop, sources_max=rule.sources_max
        )
        self._account = ReadingAccount()
        self._sources: list[Source] = []
        now = clock.now()
        for topic in rule.filters:
            if "+" not in topic and "#" not in topic:
                self._sources.append(self._new_source(topic, now, replays=False))
        self._by_topic = {source.origin.topic: source for source in self._sources}

    @property
    def account(self) -> ReadingAccount:
        """What became of its readings."""
        self._account.waiting = self._windows.waiting
        if self._windows.skipped:
            self._account.shed[ShedBecause.SKIPPED] = self._windows.skipped
        return self._account

    @property
    def sources(self) -> int:
        """How many sources it has."""
        return len(self._sources)

    def source(self, topic: str, now: Instant) -> Source:
        """The source of a topic, new where there is none yet.

        Raises:
            Refused: ``full``.
        """
        source = self._by_topic.get(topic)
        if source is None:
            source = self._new_source(topic, now, replays=False)
            self._sources.append(source)
            self._by_topic[topic] = source
        return source

    def refuse(self, topic: str, refusal: Refused) -> None:
        """Accounts for a reading that came to no source."""
        self._account.received += 1
        self._refuse(topic, refusal)

    def shed(self, topic: str, reason: ShedBecause) -> None:
        """Accounts for a reading that came and was shed before it was decoded."""
        self._account.received += 1
        self._account.shed[reason] += 1
        self._complaints.shed(topic, reason)

    # --- a group of readings -----------------------------------------------------------------

    def conclude(
        self, sources: Sequence[Source], deliveries: Sequence[Delivery], now: Instant
    ) -> tuple[list[Conclusion], list[Reading]]:
        """Takes a group of readings.

        Args:
            sources: [n], at least one.
            deliveries: [n].
            now: the time of the group.

        Returns:
            What was decided, and the readings to keep.
        """
        self._account.received += len(deliveries)
        decoded = self._decoder.decode([delivery.payload for delivery in deliveries])
        for place, refusal in decoded.refused:
            self._refuse(deliveries[place].topic, refusal)
        if decoded.refused:
            sources = [sources[place] for place in decoded.kept]
            deliveries = [deliveries[place] for place in decoded.kept]
        rows, times = decoded.rows, decoded.times_ms
        concluded: list[Conclusion] = []
        if True in decoded.replays:
            sources, deliveries, rows, times = self._set_replays_apart(
                sources, deliveries, rows, times, decoded.replays, now
            )
        kept = self._kept(deliveries, rows) if self.rule.keep_readings else []
        stale_after_ms = self.rule.limits.stale_after_ms
        if times and stale_after_ms is not None:
            now_ms = now.wall_ns / _MS
            if is_stale(min(times), now_ms, stale_after_ms):
                stale = [is_stale(time, now_ms, stale_after_ms) for time in times]
                concluded, fresh = self._set_stale_apart(sources, deliveries, stale, times, now)
                sources = [sources[place] for place in fresh]
                deliveries = [deliveries[place] for place in fresh]
                rows = rows[fresh]
        if not sources:
            return concluded, kept
        for source, delivery in zip(sources, deliveries, strict=True):
            received = delivery.received
            source.read_mono_ns = received.mono_ns
            source.read_wall_ns = received.wall_ns
            source.quiet = False
            source.spoke = True
        due = self._windows.push([source.index for source in sources], rows.astype(np.float32))
        if due.places:
            concluded += self._decide(sources, deliveries, due)
        return concluded, kept

    def _set_replays_apart(
        self,
        sources: Sequence[Source],
        deliveries: Sequence[Delivery],
        rows: NDArray[np.float64],
        times: Sequence[float] | None,
        replays: Sequence[bool],
        now: Instant,
    ) -> tuple[Sequence[Source], Sequence[Delivery], NDArray[np.float64], Sequence[float] | None]:
        """Replayed readings go to the twins of their sources, and count as taken now."""
        taken: list[Source] = []
        places: list[int] = []
        for place, (source, replay) in enumerate(zip(sources, replays, strict=True)):
            try:
                taken.append(self._twin(source, now) if replay else source)
            except Refused as full:
                self._refuse(source.origin.topic, full)
            else:
                places.append(place)
        now_ms = now.wall_ns / _MS
        return (
            taken,
            [deliveries[place] for place in places],
            rows[places],
            times and [now_ms if replays[place] else times[place] for place in places],
        )

    def _twin(self, source: Source, now: Instant) -> Source:
        if source.twin is None:
            source.twin = self._new_source(source.origin.topic, now, replays=True)
        return source.twin

    def _kept(self, deliveries: Sequence[Delivery], rows: NDArray[np.float64]) -> list[Reading]:
        fields = self.rule.layout.fields
        return [
            Reading(
                delivery.received.wall_ns,
                delivery.received.mono_ns,
                delivery.topic,
                dict(zip(fields, row, strict=True)),
            )
            for delivery, row in zip(deliveries, rows.tolist(), strict=True)
        ]

    def _set_stale_apart(
        self,
        sources: Sequence[Source],
        deliveries: Sequence[Delivery],
        stale: Sequence[bool],
        times: Sequence[float],
        now: Instant,
    ) -> tuple[list[Conclusion], list[int]]:
        """A fallback where a source has nothing fresh; and the places of the fresh readings."""
        concluded, fresh = [], []
        stale_after_ns = (self.rule.limits.stale_after_ms or 0) * _MS
        # What comes fresh in this very group counts for all of it.
        alive = {source for source, old in zip(sources, stale, strict=True) if not old}
        for place, (source, delivery, old) in enumerate(
            zip(sources, deliveries, stale, strict=True)
        ):
            if not old:
                fresh.append(place)
                continue
            late = source in alive or (
                source.spoke and now.mono_ns - source.read_mono_ns <= stale_after_ns
            )
            if source.quiet or late:
                age = f"taken {now.wall_ns / _MS - times[place]:.0f} ms ago"
                self._account.shed[ShedBecause.STALE] += 1
                self._complaints.shed(delivery.topic, ShedBecause.STALE, age)
                continue
            self._account.used += 1
            concluded.append(self._fall_silent(source, Reason.INPUT_STALE, now, delivery))
        return concluded, fresh

    # --- deciding ------------------------------------------------------------------------------

    def _decide(
        self, sources: Sequence[Source], deliveries: Sequence[Delivery], due: Due
    ) -> list[Conclusion]:
        """One run of the model for all windows that are due."""
        begun_ns = self._clock.now().mono_ns
        try:
            outputs = self._model.run(due.batch)
        except ModelFailed:
            self.failures += 1
            now = self._clock.now()
            against = self._guardrails.judge_input(due.batch)
            sayings = [
                fall_back(self.rule.fallback, against[row]) for row in range(len(due.places))
            ]
        else:
            now = self._clock.now()
            against = self._guardrails.judge(due.batch, outputs, now.mono_ns - begun_ns)
            sayings = self._sayings(outputs, against)
        self._account.used += sum(due.inputs)
        content = due.batch.tobytes()
        size = len(content) // len(due.places)
        valid_for_ms = self.rule.limits.valid_for_ms
        next_trace = self._next_trace
        concluded = []
        start = 0
        for place, inputs, saying in zip(due.places, due.inputs, sayings, strict=True):
            source, received = sources[place], deliveries[place].received
            stop = start + size
            decision = Decision(
                source.origin,
                now.wall_ns,
                now.mono_ns,
                received.wall_ns,
                *saying,
                inputs,
                sha256(content[start:stop]).digest()[:_DIGEST_BYTES],
                valid_for_ms,
                source.replays,
                next_trace(),
            )
            concluded.append(Conclusion(decision, received.mono_ns))
            start = stop
        return concluded

    def _sayings(self, outputs: Outputs, against: Mapping[int, tuple[Reason, ...]]) -> list[Saying]:
        """The model's words, or a fallback where there is something against them."""
        labels = self._labels
        probabilities = outputs.probabilities
        if len(probabilities) <= _FEW:
            rows = probabilities.tolist()
            certain = list(map(max, rows))
            best = [row.index(most) for row, most in zip(rows, certain, strict=True)]
        else:
            certain = probabilities.max(axis=1).tolist()
            best = probabilities.argmax(axis=1).tolist()
        values = list(map(tuple, outputs.values.tolist()))
        sayings = [
            Saying(labels[column], confidence, told, ())
            for column, confidence, told in zip(best, certain, values, strict=True)
        ]
        for row, reasons in against.items():
            sayings[row] = fall_back(
                self.rule.fallback, reasons, confidence=certain[row], values=values[row]
            )
        return sayings

    # --- silence -------------------------------------------------------------------------------

    def fall_silent(self, now: Instant) -> list[Conclusion]:
        """A fallback for each source that has said nothing for too long; one for each silence."""
        return [
            self._fall_silent(source, Reason.INPUT_SILENT, now, None)
            for source in self._sources
            if not source.quiet and self._silent_ns(source) <= now.mono_ns
        ]

    def next_silence_ns(self) -> int | None:
        """When the next source falls silent if it says nothing, monotonic; ``None`` for never."""
        if self.rule.limits.silent_after_ms is None:
            return None
        waits = (self._silent_ns(source) for source in self._sources if not source.quiet)
        return min(waits, default=None)

    def _silent_ns(self, source: Source) -> int:
        silent_after_ms = self.rule.limits.silent_after_ms
        if silent_after_ms is None:
            return source.read_mono_ns + (1 << 62)
        return source.read_mono_ns + silent_after_ms * _MS

    def _fall_silent(
        self, source: Source, reason: Reason, now: Instant, delivery: Delivery | None
    ) -> Conclusion:
        source.quiet = True
        dropped = self._windows.restart(source.index)
        if dropped:
            self._account.shed[ShedBecause.RESTARTED] += dropped
        received = delivery.received if delivery else None
        decision = Decision(
            source.origin,
            now.wall_ns,
            now.mono_ns,
            received.wall_ns if received else source.read_wall_ns,
            *fall_back(self.rule.fallback, (reason,)),
            1 if delivery else 0,
            b"",
            self.rule.limits.valid_for_ms,
            source.replays,
            self._next_trace(),
        )
        return Conclusion(decision, received.mono_ns if received else None)

    # --- its books -----------------------------------------------------------------------------

    def _new_source(self, topic: str, now: Instant, *, replays: bool) -> Source:
        index = self._windows.add_source()
        contract = self._model.contract
        origin = Origin(
            self.rule.name,
            topic,
            contract.name,
            contract.version,
            contract.digest,
            self.rule.policy_digest,
            self._session,
            contract.values,
        )
        return Source(index, origin, now, replays=replays)

    def _refuse(self, topic: str, refusal: Refused) -> None:
        self._account.refused[refusal.reason] += 1
        self._complaints.refuse(topic, refusal)
