"""Inference: every reading ends as one thing, every decision is numbered, recorded, published."""

# ruff: noqa: ANN401 - settings and JSON are of any type

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.ports import Delivery
from nodes.edge.inference import Inference, ModelRunFailed, Place, Unrecorded
from nodes.edge.readings import ReadingsRefused, ReadingsShed
from nodes.edge.rule import Rule
from nodes.settings import DecisionSection
from schemas import wire
from schemas.documents import decision_json
from schemas.errors import ConfigurationInvalid, ModelUnusable, RefusedBecause
from schemas.messages import Decision, Identity, Lane, Reading
from tests.nodes.edge.fakes import (
    EPOCH,
    UNRECORDED,
    FakeBroker,
    FakeModel,
    FakeSpool,
    HandClock,
    Kept,
)

TOPIC = "plant/p1/telemetry"


class World:
    """An inference among fakes."""

    def __init__(self, model: FakeModel | None = None, **settings: Any) -> None:
        self.model = model or FakeModel()
        self.clock = HandClock()
        self.spool = FakeSpool()
        self.broker = FakeBroker()
        self.kept = Kept()
        self.inference = self.build(**settings)

    def build(self, **settings: Any) -> Inference:
        """An inference of one rule."""
        section = {"name": "pump", "topics": ("plant/+/telemetry",), "model": "m", **settings}
        rule = Rule.of(DecisionSection.model_validate(section), self.model.contract)
        return Inference(
            Place("plant", "edge-1", "0123456789abcdef"),
            [(rule, self.model)],
            self.spool,
            self.broker,
            self.clock,
            self.kept,
            Random(1),
        )

    def reading(
        self, payload: object = None, *, topic: str = TOPIC, qos: int = 0, retained: bool = False
    ) -> Delivery:
        """A delivery that has just arrived."""
        body = {"a": 1, "b": 2} if payload is None else payload
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Delivery(topic, data, qos, retained, False, self.clock.now(), object())  # noqa: FBT003

    async def decide(self, *payloads: object, **how: Any) -> None:
        """Decides on a group, and checks the books."""
        await self.inference.decide([self.reading(payload, **how) for payload in payloads])
        account = self.inference.account()
        assert account.balance == 0, account

    @property
    def decisions(self) -> list[Decision]:
        """What was recorded."""
        return [wire.decode_as(Decision, data) for data in self.spool.records[Lane.DECISIONS]]

    @property
    def told(self) -> list[dict[str, Any]]:
        """What was published."""
        return [json.loads(publication.payload) for publication in self.broker.published]


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Runs a story to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(bounded())


def test_a_reading_becomes_a_decision() -> None:
    """It is numbered, recorded, published under its topic, and says the same in both places."""

    async def story() -> None:
        world = World(publish_qos=1, valid_for_ms=700)
        await world.decide({"a": 1, "b": 2}, {"a": 3, "b": 4})
        first, second = world.decisions
        assert (first.verdict, first.values, first.reasons) == ("normal", (3.0,), ())
        assert second.values == (7.0,)
        assert first.confidence == pytest.approx(0.9)
        assert (first.inputs, len(first.input_digest), first.replay) == (1, 16, False)
        assert first.origin.topic == TOPIC
        assert first.trace != second.trace
        for seq, (decision, publication) in enumerate(
            zip(world.decisions, world.broker.published, strict=True)
        ):
            assert publication.topic == "mesh/v1/plant/edge-1/decision/pump"
            assert (publication.qos, publication.retain) == (1, False)
            identity = Identity("edge-1", EPOCH, Lane.DECISIONS, seq)
            assert publication.payload == decision_json("plant", identity, decision)
        assert world.told[0]["valid_until"] == world.clock.wall_ms + 700
        assert len(world.model.batches) == 1, "one run for the group"

    run(story)


def test_windows_fill_before_they_are_decided_on() -> None:
    """Readings wait until the window is full, and are counted as new input once."""

    async def story() -> None:
        world = World(FakeModel(window=3), hop=2)
        for _ in range(7):
            await world.decide(None)
        assert [decision.inputs for decision in world.decisions] == [3, 2, 2]
        await world.decide(None)
        account = world.inference.account()
        assert (account.received, account.used, account.waiting) == (8, 7, 1)

    run(story)


def test_readings_that_a_hop_skips_are_shed() -> None:
    """With a hop larger than the window what falls between is counted."""

    async def story() -> None:
        world = World(hop=3)
        await world.decide(*[None] * 7)
        assert [decision.inputs for decision in world.decisions] == [1, 1, 1]
        assert world.inference.account().shed == {"skipped": 4}

    run(story)


def test_bad_readings_are_refused_and_the_rest_is_decided_on() -> None:
    """Each bad reading is counted by reason and told once; its neighbours get their decisions."""

    async def story() -> None:
        world = World()
        bad = [b"\xff", b"{}", {"a": "1", "b": 2}, b'{"a":NaN,"b":1}', b"x" * 10_000_000]
        await world.decide(None, *bad, None)
        assert len(world.decisions) == 2
        reasons = {"malformed", "missing_field", "wrong_type", "not_a_number", "too_large"}
        assert set(world.inference.account().refused) == reasons
        events = [event for event in world.kept.events if isinstance(event, ReadingsRefused)]
        assert {event.reason for event in events} == reasons
        assert all(event.topic == TOPIC and event.detail for event in events)

    run(story)


def test_refusals_are_told_at_a_bounded_rate() -> None:
    """One event for a reason at once, the next after ten seconds with the count since."""

    async def story() -> None:
        world = World()
        for _ in range(500):
            await world.decide(b"{}")
        assert [event.count for event in world.kept.events] == [1]
        world.clock.advance(9_999)
        world.inference.complain()
        assert len(world.kept.events) == 1
        world.clock.advance(2)
        world.inference.complain()
        assert [event.count for event in world.kept.events] == [1, 499]
        world.clock.advance(20_000)
        world.inference.complain()
        assert len(world.kept.events) == 2

    run(story)


def test_bad_topics_are_refused() -> None:
    """Forbidden characters in a topic are refused, told with escapes, and decided on nowhere."""

    async def story() -> None:
        world = World(topics=("#",))
        for topic in ("plant/\x1b[2J/x", "plant/\ud800", "a\x00b"):
            await world.decide(None, topic=topic)
        assert world.decisions == []
        assert world.inference.account().refused == {"bad_name": 3}
        (event,) = world.kept.events
        assert isinstance(event, ReadingsRefused)
        assert event.reason is RefusedBecause.BAD_NAME
        assert event.topic.isprintable()
        assert event.detail.isprintable()

    run(story)


def test_a_node_does_not_read_itself() -> None:
    """Its own topics are shed even where a filter selects them; others' are read."""

    async def story() -> None:
        world = World(topics=("#",))
        await world.decide(None, topic="mesh/v1/plant/edge-1/decision/pump")
        await world.decide(None, topic="mesh/v1/plant/edge-2/decision/pump")
        assert len(world.decisions) == 1
        assert world.inference.account().shed == {"own_topic": 1}

    run(story)


def test_sources_beyond_the_bound_are_refused() -> None:
    """More topics than the rule takes are refused by reason; the known ones go on."""

    async def story() -> None:
        world = World(sources_max=2)
        for pump in ("p1", "p2", "p3", "p3", "p1"):
            await world.decide(None, topic=f"plant/{pump}/telemetry")
        assert len(world.decisions) == 3
        assert world.inference.account().refused == {"full": 2}

    run(story)


def test_retained_readings_without_a_time_are_shed() -> None:
    """Nobody knows how old they are; with a time of their own they are judged by it."""

    async def story() -> None:
        world = World()
        await world.decide(None, retained=True)
        assert world.decisions == []
        assert world.inference.account().shed == {"retained": 1}
        timed = World(time_field="t", stale_after_ms=1000)
        await timed.decide({"a": 1, "b": 2, "t": timed.clock.wall_ms}, retained=True)
        assert len(timed.decisions) == 1

    run(story)


def test_stale_readings_are_not_decided_on() -> None:
    """The first of a source that has nothing fresh says so once; the others are shed."""

    async def story() -> None:
        world = World(time_field="t", stale_after_ms=1000)
        now = world.clock.wall_ms
        await world.decide(*[{"a": 1, "b": 2, "t": now - 1001 - i} for i in range(3)])
        (decision,) = world.decisions
        assert (decision.verdict, decision.reasons) == ("fallback", ("input_stale",))
        assert (decision.confidence, decision.inputs, decision.input_digest) == (0.0, 1, b"")
        assert world.inference.account().shed == {"stale": 2}
        assert any(isinstance(event, ReadingsShed) for event in world.kept.events)
        # One that is late among fresh ones changes nothing.
        await world.decide({"a": 1, "b": 2, "t": now})
        await world.decide({"a": 1, "b": 2, "t": now - 5000})
        assert [d.verdict for d in world.decisions] == ["fallback", "normal"]
        # But when nothing fresh has come for as long, it is said again.
        world.clock.advance(1500)
        await world.decide({"a": 1, "b": 2, "t": now})
        assert world.decisions[-1].reasons == ("input_stale",)

    run(story)


def test_a_clock_that_is_behind_makes_nothing_stale() -> None:
    """A board that boots in 1970 decides."""

    async def story() -> None:
        world = World(time_field="t", stale_after_ms=1000)
        now = world.clock.wall_ms
        world.clock.wall_ns, world.clock.trusted = 5_000_000_000, False
        await world.decide({"a": 1, "b": 2, "t": now})
        assert world.decisions[0].verdict == "normal"

    run(story)


def test_replays_are_marked_and_kept_apart() -> None:
    """A replayed reading is never stale, is marked, and never meets live ones in a window."""

    async def story() -> None:
        world = World(FakeModel(window=2), time_field="t", stale_after_ms=1000)
        now = world.clock.wall_ms
        live = {"a": 1, "b": 0, "t": now}
        old = {"a": 5, "b": 0, "t": 1000, "replay": True}
        await world.decide(live, old, live, old)
        assert [(d.replay, d.values) for d in world.decisions] == [(False, (2.0,)), (True, (10.0,))]

    run(story)


def test_silence_gets_one_fallback() -> None:
    """One for each silence, also for a sensor that never spoke; the window begins anew."""

    async def story() -> None:
        world = World(
            FakeModel(window=2),
            topics=(TOPIC, "plant/+/other"),
            silent_after_ms=1000,
            fallback="stop",
        )
        inference = world.inference
        assert inference.next_silence_ns() == world.clock.mono_ns + 1_000_000_000
        world.clock.advance(999)
        await inference.fall_silent()
        assert world.decisions == []
        world.clock.advance(1)
        await inference.fall_silent()
        await inference.fall_silent()
        (decision,) = world.decisions
        assert (decision.verdict, decision.reasons, decision.inputs) == (
            "stop",
            ("input_silent",),
            0,
        )
        assert inference.next_silence_ns() is None
        await world.decide(None)
        world.clock.advance(1000)
        await inference.fall_silent()
        assert len(world.decisions) == 2
        await world.decide(None)
        assert len(world.decisions) == 2, "no window reaches across the silence"
        assert inference.account().shed == {"restarted": 1}
        await world.decide(None)
        assert world.decisions[-1].verdict == "normal"

    run(story)


def test_guardrails_take_the_word() -> None:
    """A breach makes a fallback that keeps what the model said."""

    async def story() -> None:
        world = World(input_range={"a": (0, 2)}, confidence_min=0.5)
        await world.decide({"a": 1, "b": 2}, {"a": 3, "b": 2})
        fine, breach = world.decisions
        assert fine.verdict == "normal"
        assert (breach.verdict, breach.reasons) == ("fallback", ("input_out_of_range",))
        assert breach.confidence == pytest.approx(0.9)
        assert breach.values == (5.0,)
        assert world.inference.counts.fallbacks == {"input_out_of_range": 1}

    run(story)


def test_a_model_that_fails_gives_fallbacks() -> None:
    """Deciding goes on, the failure is told, and the model speaks again when it can."""

    async def story() -> None:
        world = World()
        world.model.broken = True
        await world.decide(None)
        world.inference.complain()
        world.model.broken = False
        await world.decide(None)
        assert [decision.reasons for decision in world.decisions] == [("model_failed",), ()]
        assert world.kept.events == [ModelRunFailed("pump", 1)]

    run(story)


def test_a_model_that_is_slow_is_not_listened_to() -> None:
    """A run longer than its limit gives a fallback."""

    async def story() -> None:
        world = World(slow_after_ms=5)
        says = world.model.says

        def slowly(batch: Any) -> Any:
            world.clock.advance(6)
            return says(batch)

        world.model.says = slowly
        await world.decide(None)
        assert world.decisions[0].reasons == ("model_slow",)

    run(story)


def test_acknowledged_only_when_settled() -> None:
    """QoS 1 readings of a group are acknowledged after their decisions are durable."""

    async def story() -> None:
        world = World(qos=1)
        assert world.inference.filters == {"plant/+/telemetry": 1}
        await world.decide(None, b"{}", qos=1)
        assert world.spool.appends == [(Lane.DECISIONS, 1, True)]
        assert len(world.broker.published) == 1, "publishing does not wait for the disk"
        await asyncio.sleep(0)
        assert world.broker.acknowledged == []
        world.spool.settled[0].set_result(True)
        await asyncio.sleep(0)
        assert len(world.broker.acknowledged) == 2

    run(story)


def test_nothing_decided_is_acknowledged_at_once() -> None:
    """Refused readings, and those that wait in a window, do not block the broker."""

    async def story() -> None:
        world = World(FakeModel(window=3), qos=1)
        await world.decide(None, b"{}", qos=1)
        assert len(world.broker.acknowledged) == 2
        assert world.spool.appends == []

    run(story)


def test_a_degraded_spool_does_not_stop_deciding() -> None:
    """Decisions are published with numbers of an epoch that is never recorded, and it is told."""

    async def story() -> None:
        world = World(qos=1, keep_readings=True)
        world.spool.degraded = "disk gone"
        await world.decide(None, None, qos=1)
        assert [told["identity"]["seq"] for told in world.told] == [0, 1]
        assert {told["identity"]["epoch"] for told in world.told} == {str(UNRECORDED)}
        assert len(world.broker.acknowledged) == 2
        assert world.inference.counts.unrecorded == 2
        assert world.inference.counts.readings_unrecorded == 2
        assert world.kept.events == [Unrecorded(2, "disk gone")]

    run(story)


def test_a_broker_that_is_gone_leaves_the_record() -> None:
    """The decision stays recorded and is counted; it is not said later."""

    async def story() -> None:
        world = World()
        world.broker.down = True
        await world.decide(None)
        world.broker.down = False
        await world.decide(None)
        assert len(world.decisions) == 2
        assert world.inference.counts.unpublished == 1
        assert [told["identity"]["seq"] for told in world.told] == [1]

    run(story)


def test_readings_are_kept_where_a_rule_says_so() -> None:
    """They go to their lane with their values, and nobody awaits them."""

    async def story() -> None:
        world = World(keep_readings=True)
        await world.decide({"a": 1.5, "b": 2})
        (reading,) = (wire.decode_as(Reading, data) for data in world.spool.records[Lane.READINGS])
        assert (reading.topic, reading.values) == (TOPIC, {"a": 1.5, "b": 2.0})
        assert (Lane.READINGS, 1, False) in world.spool.appends

    run(story)


def test_latency_is_from_received_to_published() -> None:
    """Measured on the monotonic clock, each decision once."""

    async def story() -> None:
        world = World()
        delivery = world.reading()
        world.clock.advance(3)
        await world.inference.decide([delivery])
        assert world.inference.take_latencies() == [3_000_000]
        assert world.inference.take_latencies() == []

    run(story)


def test_two_rules_may_read_one_topic() -> None:
    """Each has its own windows and books, and all decisions of a group are numbered together."""

    async def story() -> None:
        world = World()
        slow, fast = FakeModel(window=2), FakeModel()
        rules = [
            (
                Rule.of(
                    DecisionSection(name=name, topics=topics, model=Path("m"), qos=qos),
                    model.contract,
                ),
                model,
            )
            for name, topics, qos, model in (
                ("slow", ("plant/#",), 0, slow),
                ("fast", ("plant/#", "other"), 1, fast),
            )
        ]
        world.inference = Inference(
            Place("plant", "edge-1", "0" * 16),
            rules,
            world.spool,
            world.broker,
            world.clock,
            world.kept,
            Random(1),
        )
        assert world.inference.filters == {"plant/#": 1, "other": 1}
        await world.decide(*[None] * 3)
        assert [decision.origin.name for decision in world.decisions] == [
            "slow",
            "slow",
            "fast",
            "fast",
            "fast",
        ]
        assert [publication.topic.rsplit("/", 1)[1] for publication in world.broker.published] == [
            decision.origin.name for decision in world.decisions
        ]
        assert len(world.spool.appends) == 1
        account = world.inference.account()
        assert (account.received, account.used) == (6, 6)
        await world.decide(None, topic="elsewhere")
        assert world.inference.account().shed == {"no_rule": 1}

    run(story)


def test_large_groups_go_through_whole_and_in_order() -> None:
    """More than a piece: every reading has its decision, numbered in order of arrival."""

    async def story() -> None:
        world = World()
        await world.decide(*[{"a": number, "b": 0} for number in range(1000)])
        assert [decision.values[0] for decision in world.decisions] == list(range(1000))
        assert [told["identity"]["seq"] for told in world.told] == list(range(1000))

    run(story)


def test_a_rule_must_fit_its_model() -> None:
    """Fields, window, mapping and ranges that do not fit are said all at once."""
    section = DecisionSection.model_validate(
        {
            "name": "pump",
            "topics": ("x",),
            "model": "m",
            "window": 5,
            "field": {"c": "d"},
            "input_range": {"z": (0, 1)},
        }
    )
    with pytest.raises(ConfigurationInvalid) as invalid:
        Rule.of(section, FakeModel().contract)
    told = "\n".join(invalid.value.problems)
    assert len(invalid.value.problems) == 3
    assert "window = 5, but the model takes 1" in told
    assert "field names c" in told
    assert "input_range: z" in told


def test_decisions_that_fit_no_record_are_refused_at_the_start() -> None:
    """A model whose names would never fit is refused before the first reading."""
    model = FakeModel()
    model.contract = model.contract.__class__(
        "fake",
        "1",
        b"m" * 32,
        ("a", "b"),
        1,
        2,
        ("normal", "anomaly"),
        tuple(f"{number:0256d}" for number in range(256)),
    )

    async def story() -> None:
        with pytest.raises(ModelUnusable, match="shorter names"):
            World(model)

    run(story)
