"""Which lane over which link now, and why the rest waits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.transfer.schedule import (
    LaneRule,
    LinkRule,
    Plan,
    Queue,
    Schedule,
    Spent,
    Why,
    Window,
)
from mesh.transfer.source import Life
from schemas.messages import Epoch, Lane

LIFE = Life("hall", "pump", Epoch(1, 1))
DAY_NS = 86_400 * 10**9
ROOM = {"lan": 1, "sat": 1}
LAN, SAT = LinkRule("lan"), LinkRule("sat")


def _queue(lane: Lane = Lane.EVENTS, size: int = 1000) -> Queue:
    return Queue(LIFE, lane, live=False, bytes=size)


def _up(*links: LinkRule, **lanes: LaneRule) -> Schedule:
    schedule = Schedule(links, {Lane(name): given_rule for name, given_rule in lanes.items()})
    for link in links:
        schedule.on_link(link.name, up=True, now=0.0)
    return schedule


def _link(plan: Plan) -> str | None:
    return None if plan.choice is None else plan.choice.link


def test_links_are_preferences_in_their_order() -> None:
    """The first that can carry a lane does; the others say that another one does."""
    schedule = _up(LAN, SAT)
    plan = schedule.plan(0.0, 0, [_queue()], ROOM)
    assert _link(plan) == "lan"
    assert plan.waits["sat", Lane.EVENTS] is Why.OTHER
    assert plan.waits["lan", Lane.LOGS] is Why.NOTHING
    assert ("lan", Lane.EVENTS) not in plan.waits


def test_a_lane_moves_to_the_next_link_and_back() -> None:
    """At once when its link goes down; back only once that has been up for a while."""
    schedule = _up(LAN, SAT)
    schedule.on_link("lan", up=False, now=5.0)
    plan = schedule.plan(5.0, 0, [_queue()], ROOM)
    assert (_link(plan), plan.waits["lan", Lane.EVENTS]) == ("sat", Why.DOWN)
    schedule.on_link("lan", up=True, now=6.0)
    plan = schedule.plan(15.9, 0, [_queue()], ROOM)
    assert (_link(plan), plan.waits["lan", Lane.EVENTS]) == ("sat", Why.HELD)
    assert plan.again_at == 16.0
    assert _link(schedule.plan(16.0, 0, [_queue()], ROOM)) == "lan"


def test_a_link_that_came_back_is_used_at_once_where_there_is_no_other() -> None:
    """Holding it back would only delay."""
    schedule = _up(LAN, SAT)
    for name in ("lan", "sat"):
        schedule.on_link(name, up=False, now=1.0)
    assert _link(schedule.plan(1.0, 0, [_queue()], ROOM)) is None
    schedule.on_link("lan", up=True, now=2.0)
    assert schedule.link_for(Lane.EVENTS, 2.0, 0) == "lan"
    assert _link(schedule.plan(2.0, 0, [_queue()], ROOM)) == "lan"


def test_the_first_time_that_a_link_comes_up_it_is_not_held() -> None:
    """It did not come back: nothing speaks against it."""
    schedule = Schedule([LAN, SAT], {})
    schedule.on_link("sat", up=True, now=0.0)
    schedule.on_link("lan", up=True, now=0.5)
    assert schedule.link_for(Lane.EVENTS, 0.5, 0) == "lan"


def test_a_flapping_link_draws_nobody_to_and_fro() -> None:
    """Row 32: 200 flaps of two seconds; the lane stays on the steady link."""
    schedule = _up(LAN, SAT)
    used = set()
    for flap in range(200):
        schedule.on_link("lan", up=False, now=4.0 * flap + 2)
        schedule.on_link("lan", up=True, now=4.0 * flap + 4)
        used.add(_link(schedule.plan(4.0 * flap + 5, 0, [_queue()], ROOM)))
    assert used == {"sat"}


def test_a_dear_link_carries_what_is_urgent() -> None:
    """The others wait, though it is the only one that is up."""
    schedule = Schedule([LAN, LinkRule("sat", least=Lane.ALARMS)], {})
    schedule.on_link("sat", up=True, now=0.0)
    plan = schedule.plan(0.0, 0, [_queue(Lane.EVENTS), _queue(Lane.ALARMS)], ROOM)
    assert plan.choice == ("sat", _queue(Lane.ALARMS))
    assert plan.waits["sat", Lane.EVENTS] is Why.COSTLY
    assert schedule.link_for(Lane.EVENTS, 0.0, 0) is None


def test_a_link_is_used_in_its_windows() -> None:
    """When one opens the plan says, but at most a minute ahead, since the wall clock may step."""
    night = Window(frozenset(range(7)), 22 * 60, 6 * 60)
    schedule = _up(LinkRule("lan", windows=(night,)))
    noon = DAY_NS // 2
    plan = schedule.plan(0.0, noon, [_queue()], ROOM)
    assert (plan.choice, plan.waits["lan", Lane.EVENTS]) == (None, Why.CLOSED)
    assert plan.again_at == 60.0
    close = DAY_NS * 22 // 24 - 5 * 10**9
    assert schedule.plan(0.0, close, [_queue()], ROOM).again_at == 5.0
    assert _link(schedule.plan(0.0, DAY_NS * 22 // 24, [_queue()], ROOM)) == "lan"


def test_a_day_is_never_overspent_and_the_next_link_takes_over() -> None:
    """Where less is left than the next part, the budget counts as spent."""
    schedule = _up(LinkRule("lan", bytes_per_day=2500), SAT)
    used = []
    for _ in range(4):
        plan = schedule.plan(0.0, 0, [_queue()], ROOM)
        assert plan.choice is not None
        used.append(plan.choice.link)
        schedule.on_sent(plan.choice, 1000, 0.0, 0)
    assert used == ["lan", "lan", "sat", "sat"]
    assert schedule.plan(0.0, 0, [_queue()], ROOM).waits["lan", Lane.EVENTS] is Why.BUDGET
    assert schedule.spent() == {"lan": Spent(0, 2000), "sat": Spent(0, 2000)}
    again = Schedule([LinkRule("lan", bytes_per_day=2500)], {}, spent=schedule.spent())
    again.on_link("lan", up=True, now=0.0)
    plan = again.plan(0.0, 0, [_queue()], ROOM)
    assert (plan.choice, plan.waits["lan", Lane.EVENTS]) == (None, Why.BUDGET)
    assert plan.again_at == 60.0
    assert _link(again.plan(0.0, DAY_NS, [_queue()], ROOM)) == "lan"


def test_an_empty_bucket_is_waited_for() -> None:
    """No other link takes over, nothing overtakes what waits, and the plan says how long."""
    schedule = _up(LinkRule("lan", bytes_per_second=100, burst_bytes=1000), SAT)
    urgent, large = _queue(Lane.ALARMS, 1000), _queue(Lane.LOGS, 10)
    plan = schedule.plan(0.0, 0, [urgent, large], ROOM)
    assert plan.choice is not None
    schedule.on_sent(plan.choice, 1000, 0.0, 0)
    plan = schedule.plan(0.0, 0, [urgent, large], ROOM)
    assert plan.choice is None
    assert plan.waits["lan", Lane.ALARMS] is plan.waits["lan", Lane.LOGS] is Why.BUCKET
    assert plan.again_at == 10.0
    assert schedule.plan(10.0, 0, [urgent, large], ROOM).choice == ("lan", urgent)


def test_a_full_window_is_waited_for() -> None:
    """Nothing but an acceptance can change that: there is no time to look again."""
    schedule = _up(LAN, SAT)
    plan = schedule.plan(0.0, 0, [_queue()], {"lan": 0, "sat": 1})
    assert (plan.choice, plan.again_at) == (None, None)
    assert plan.waits["lan", Lane.EVENTS] is Why.FULL
    assert plan.waits["sat", Lane.EVENTS] is Why.OTHER


def test_links_work_side_by_side() -> None:
    """While one link waits another sends what is its own."""
    schedule = _up(LinkRule("lan", least=Lane.ALARMS), SAT)
    queues = [_queue(Lane.ALARMS), _queue(Lane.LOGS)]
    plan = schedule.plan(0.0, 0, queues, {"lan": 0, "sat": 1})
    assert plan.choice == ("sat", _queue(Lane.LOGS))
    plan = schedule.plan(0.0, 0, queues, ROOM)
    assert plan.choice == ("lan", _queue(Lane.ALARMS))
    assert plan.waits["sat", Lane.LOGS] is Why.BEHIND


def test_the_least_urgent_lane_always_has_a_share() -> None:
    """Without one it could wait for ever behind a backlog."""
    schedule = _up(LAN)
    lanes = [_queue(Lane.DECISIONS), _queue(Lane.LOGS)]
    sent = dict.fromkeys(Lane, 0)
    for _ in range(1000):
        plan = schedule.plan(0.0, 0, lanes, ROOM)
        assert plan.choice is not None
        schedule.on_sent(plan.choice, 1000, 0.0, 0)
        sent[plan.choice.queue.lane] += 1
    assert 45 <= sent[Lane.LOGS] <= 55


def test_the_view_tells_each_link() -> None:
    """What is left, what may go at once, what it carries, how long until it may be used."""
    rules = (LinkRule("lan", bytes_per_second=10, bytes_per_day=5000, burst_bytes=2000), SAT)
    schedule = _up(*rules)
    schedule.on_link("sat", up=False, now=1.0)
    schedule.on_link("sat", up=True, now=2.0)
    plan = schedule.plan(2.0, 0, [_queue()], ROOM)
    assert plan.choice is not None
    schedule.on_sent(plan.choice, 1000, 2.0, 0)
    lan, sat = schedule.view(4.0, 0)
    assert (lan.left_bytes, lan.spent_bytes, lan.bucket_bytes) == (4000, 1000, 1020)
    assert (lan.carries, sat.carries) == (tuple(Lane), ())
    assert (sat.up, sat.held_seconds, sat.opens_seconds, sat.left_bytes) == (True, 8.0, 0.0, None)


class Links(RuleBasedStateMachine):
    """Three links with all kinds of rules, against what a person would say of each plan."""

    @initialize()
    def begin(self) -> None:
        """Nothing is up."""
        night = Window(frozenset(range(7)), 12 * 60, 0)
        self.rules = (
            LinkRule("a", bytes_per_second=5000, burst_bytes=3000),
            LinkRule("b", bytes_per_day=20_000, windows=(night,)),
            LinkRule("c", least=Lane.EVENTS),
        )
        self.schedule = Schedule(self.rules, {Lane.METRICS: LaneRule(0.2)})
        self.up = {link.name: False for link in self.rules}
        self.now, self.lag_ns = 0.0, 0
        self.sent: dict[tuple[str, int], int] = {}
        self.newest = 0

    @property
    def wall_ns(self) -> int:
        """What the wall clock shows."""
        return 20_000 * DAY_NS + int(self.now * 1e9) - self.lag_ns

    @rule(seconds=st.floats(0.01, 30_000), lag_hours=st.integers(0, 30))
    def wait(self, seconds: float, lag_hours: int) -> None:
        """Time passes, and the wall clock may fall behind."""
        self.now += seconds
        self.lag_ns = lag_hours * 3600 * 10**9

    @rule(name=st.sampled_from("abc"), up=st.booleans())
    def change(self, name: str, up: bool) -> None:  # noqa: FBT001 - drawn by name
        """A link comes or goes."""
        self.up[name] = up
        self.schedule.on_link(name, up=up, now=self.now)

    @rule(
        lanes=st.sets(st.sampled_from(list(Lane)), min_size=1),
        size=st.integers(1, 4000),
        full=st.sets(st.sampled_from("abc")),
    )
    def send(self, lanes: set[Lane], size: int, full: set[str]) -> None:
        """One decision, carried out."""
        queues = [_queue(lane, size) for lane in lanes]
        room = {name: int(name not in full) for name in self.up}
        plan = self.schedule.plan(self.now, self.wall_ns, queues, room)
        chosen = self.schedule.choose(self.now, self.wall_ns, queues, room)
        assert chosen == plan.choice, "the same, with the reasons and without"
        said = {lane for _, lane in plan.waits} | (
            {plan.choice.queue.lane} if plan.choice else set()
        )
        assert said == set(Lane), "each lane goes or says why not"
        assert plan.again_at is None or plan.again_at > self.now
        if plan.choice is None:
            assert all(why is not Why.BEHIND for why in plan.waits.values())
            return
        name, queue = plan.choice
        assert self.up[name]
        assert name not in full
        assert queue in queues
        assert name != "c" or queue.lane.priority <= Lane.EVENTS.priority
        self.schedule.on_sent(plan.choice, size, self.now, self.wall_ns)

    @invariant()
    def never_overspent(self) -> None:
        """No day of link b has more than its budget."""
        if hasattr(self, "schedule") and "b" in self.schedule.spent():
            assert self.schedule.spent()["b"].bytes <= 20_000


TestLinks = Links.TestCase
TestLinks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.sampled_from(list(Lane)), st.integers(0, 10 * DAY_NS))
def test_what_link_for_says_is_what_the_plan_does(lane: Lane, wall_ns: int) -> None:
    """One lane waits, nothing is full: it goes where ``link_for`` says, or nowhere."""
    noon = Window(frozenset({1, 3, 5}), 8 * 60, 16 * 60)
    schedule = _up(LinkRule("lan", windows=(noon,)), LinkRule("sat", least=Lane.METRICS))
    plan = schedule.plan(0.0, wall_ns, [_queue(lane)], ROOM)
    assert _link(plan) == schedule.link_for(lane, 0.0, wall_ns)


def test_shares_of_more_than_the_whole_are_our_own_mistake() -> None:
    """A configuration that asks for it is refused before."""
    with pytest.raises(AssertionError, match="more than the whole"):
        Schedule([LAN], {Lane.EVENTS: LaneRule(0.7), Lane.METRICS: LaneRule(0.4)})
