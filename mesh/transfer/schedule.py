"""The schedule: which lane goes over which link now, and why the rest waits. Pure.

One plan is one decision: the caller sends what was chosen, says so with ``on_sent``, and asks
again. The rules:

- Links are preferences in the order in which they are configured. A lane uses the first that is up,
  in its window, within its day's budget, and not too costly for the lane. A link that came back is
  used again after ``return_seconds``, at once where no other carries the lane: a link that flaps
  draws nobody to and fro.
- An empty bucket or a full send window is waited for: neither moves a lane to another link.
- A day's budget is never exceeded: parts are cut to what is left of it, and where that is less than
  the smallest part it counts as spent.
- Which of the queues at a link goes next says ``mesh.transfer.turns``. Nothing overtakes it while
  it waits for the bucket.
- What waits for the wall clock is looked at every minute, since that clock may step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from mesh.transfer.budget import Bucket, Day, LinkRule, Spent, Window, seconds_to_open
from mesh.transfer.turns import LaneRule, Queue, Turns
from schemas.limits import PART_BYTES_MIN
from schemas.messages import Lane

__all__ = [
    "Choice",
    "LaneRule",
    "LinkRule",
    "LinkView",
    "Plan",
    "Queue",
    "Schedule",
    "Spent",
    "Why",
    "Window",
]

_LOWEST: Final = tuple(Lane)[-1]
_LOWEST_SHARE: Final = 0.05
_WALL_SECONDS_MAX: Final = 60.0


class Choice(NamedTuple):
    """What to send next, and over which link."""

    link: str
    queue: Queue


class Why(StrEnum):
    """Why a lane waits at a link."""

    BEHIND = "something else goes first"
    BUCKET = "the rate is used up"
    BUDGET = "the day's budget is spent"
    CLOSED = "outside its windows"
    COSTLY = "not urgent enough for its cost"
    DOWN = "it is down"
    FULL = "the send window is full"
    HELD = "it came back only now"
    NOTHING = "nothing waits"
    OTHER = "another link carries it"


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision.

    Args:
        choice: what to send now; ``None`` for nothing.
        again_at: when to ask again though nothing else happens, seconds on the monotonic clock;
            ``None`` for never.
        waits: why each lane that does not go waits at each link.
    """

    choice: Choice | None
    again_at: float | None
    waits: Mapping[tuple[str, Lane], Why]


@dataclass(frozen=True, slots=True)
class LinkView:
    """How a link stands with its rule.

    Args:
        rule: its rule.
        up: whether it is up.
        held_seconds: how long it is held back after it came back; 0 where it is not.
        opens_seconds: how long until a window opens; 0 where one is, ``None`` for never.
        bucket_bytes: how much may go at once; ``None`` for any amount.
        spent_bytes: what went today.
        left_bytes: what is left of the day's budget; ``None`` for any amount.
        carries: the lanes that it carries now.
    """

    rule: LinkRule
    up: bool
    held_seconds: float
    opens_seconds: float | None
    bucket_bytes: float | None
    spent_bytes: int
    left_bytes: int | None
    carries: tuple[Lane, ...]


class _Link:
    __slots__ = ("bucket", "day", "held_until", "rule", "turns", "up", "was_up")

    def __init__(self, rule: LinkRule, lanes: Mapping[Lane, LaneRule], spent: Spent | None) -> None:
        self.rule = rule
        self.bucket = Bucket(rule.bytes_per_second, rule.burst_bytes)
        self.day = Day(rule.bytes_per_day, spent)
        self.turns = Turns(lanes)
        self.up = False
        self.was_up = False
        self.held_until = float("-inf")

    def refuses(self, lane: Lane, size: int, now: float, wall_ns: int) -> Why | None:
        """Why it cannot be used for a lane whose next part has so many bytes."""
        if not self.up:
            return Why.DOWN
        if not self.rule.serves(lane):
            return Why.COSTLY
        if seconds_to_open(self.rule.windows, wall_ns) != 0.0:
            return Why.CLOSED
        left = self.day.left(now, wall_ns)
        return Why.BUDGET if left is not None and left < min(size, PART_BYTES_MIN) else None


class Schedule:
    """Decides what goes over which link.

    Args:
        links: their rules, the preferred first.
        lanes: how each lane is sent; missing ones as ``LaneRule()``. The least urgent lane always
            has a share: without one it could wait for ever.
        return_seconds: how long a link that came back must stay up before it is preferred again.
        spent: what the links sent today before this process began.
    """

    def __init__(
        self,
        links: Sequence[LinkRule],
        lanes: Mapping[Lane, LaneRule],
        *,
        return_seconds: float = 10.0,
        spent: Mapping[str, Spent] = {},
    ) -> None:
        lowest = lanes.get(_LOWEST, LaneRule())
        if lowest.share <= 0:
            taken = sum(rule.share for rule in lanes.values())
            share = min(_LOWEST_SHARE, max(0.0, 1.0 - taken))
            lanes = {**lanes, _LOWEST: LaneRule(share, lowest.live, lowest.linger_seconds)}
        self._links = {rule.name: _Link(rule, lanes, spent.get(rule.name)) for rule in links}
        assert len(self._links) == len(links), "each link has a name of its own"
        self._return_seconds = return_seconds

    def __repr__(self) -> str:
        return f"<Schedule {[name for name, link in self._links.items() if link.up]} up>"

    # --- queries -----------------------------------------------------------------------------

    def link_for(self, lane: Lane, now: float, wall_ns: int) -> str | None:
        """Which link carries a lane now; ``None`` for none."""
        link = self._carrier(lane, 1, now, wall_ns)
        return None if link is None else link.rule.name

    def left(self, name: str, now: float, wall_ns: int) -> int | None:
        """How many bytes of the day's budget a link has left; ``None`` for any amount."""
        return self._links[name].day.left(now, wall_ns)

    def spent(self) -> Mapping[str, Spent]:
        """What each link sent on its newest day, to be handed to the next ``Schedule``."""
        days = {name: link.day.spent for name, link in self._links.items()}
        return {name: spent for name, spent in days.items() if spent is not None}

    def view(self, now: float, wall_ns: int) -> Sequence[LinkView]:
        """How each link stands, in the order of preference."""
        carriers = {lane: self._carrier(lane, 1, now, wall_ns) for lane in Lane}
        views = []
        for link in self._links.values():
            left = link.day.left(now, wall_ns)
            spent = link.day.spent
            views.append(
                LinkView(
                    rule=link.rule,
                    up=link.up,
                    held_seconds=max(0.0, link.held_until - now) if link.up else 0.0,
                    opens_seconds=seconds_to_open(link.rule.windows, wall_ns),
                    bucket_bytes=link.bucket.level(now),
                    spent_bytes=0 if spent is None else spent.bytes,
                    left_bytes=left,
                    carries=tuple(lane for lane in Lane if carriers[lane] is link),
                )
            )
        return views

    # --- what happens ------------------------------------------------------------------------

    def on_link(self, name: str, up: bool, now: float) -> None:  # noqa: FBT001 - the state itself
        """A link came up or went down.

        Args:
            name: which.
            up: how it stands now.
            now: seconds on the monotonic clock.
        """
        link = self._links[name]
        if up and not link.up and link.was_up:
            link.held_until = now + self._return_seconds
        link.up = up
        link.was_up |= up

    def on_sent(self, choice: Choice, size: int, now: float, wall_ns: int) -> None:
        """What was chosen is on its way.

        Args:
            choice: of the newest plan.
            size: how many bytes it has.
            now: seconds on the monotonic clock.
            wall_ns: UTC in ns since 1970.
        """
        link = self._links[choice.link]
        link.bucket.take(size, now)
        link.day.take(size, now, wall_ns)
        link.turns.on_sent(choice.queue, size)

    def choose(
        self, now: float, wall_ns: int, queues: Sequence[Queue], room: Mapping[str, int]
    ) -> Choice | None:
        """What to send next, as ``plan`` says it, without the reasons.

        Args:
            now: seconds on the monotonic clock.
            wall_ns: UTC in ns since 1970.
            queues: all that could send a part now.
            room: how many bytes the send window of each link still takes. A part goes while it is
                above 0: a window may be passed by less than a part.
        """
        carriers = self._carriers(now, wall_ns, _sizes(queues))
        for link, here in self._at_links(queues, carriers):
            picked = link.turns.pick(here)
            if picked is not None and self._holds_up(link, picked, now, room) is None:
                return Choice(link.rule.name, picked)
        return None

    def plan(
        self, now: float, wall_ns: int, queues: Sequence[Queue], room: Mapping[str, int]
    ) -> Plan:
        """What to send next, and why the rest waits.

        Args:
            now: seconds on the monotonic clock.
            wall_ns: UTC in ns since 1970.
            queues: all that could send a part now.
            room: how many bytes the send window of each link still takes.
        """
        waits: dict[tuple[str, Lane], Why] = {}
        times: list[float] = []
        sizes = _sizes(queues)
        carriers = self._carriers(now, wall_ns, sizes)
        for lane in Lane:
            for name, link in self._links.items():
                if lane not in sizes:
                    waits[name, lane] = Why.NOTHING
                elif carriers[lane] is not link:
                    waits[name, lane] = self._passed_over(link, lane, sizes[lane], now, wall_ns)
                    times += self._timers(link, waits[name, lane], now, wall_ns)
        choice = None
        for link, here in self._at_links(queues, carriers):
            name, picked = link.rule.name, link.turns.pick(here)
            if picked is None:
                continue
            why = self._holds_up(link, picked, now, room)
            if why is Why.BUCKET:
                times.append(now + link.bucket.seconds_to(picked.bytes, now))
            elif why is None and choice is None:
                choice = Choice(name, picked)
            waits |= {(name, queue.lane): why or Why.BEHIND for queue in here}
        if choice is not None:
            del waits[choice.link, choice.queue.lane]
        return Plan(choice, min(times, default=None), waits)

    # --- privates ----------------------------------------------------------------------------

    def _carriers(
        self, now: float, wall_ns: int, sizes: Mapping[Lane, int]
    ) -> dict[Lane, _Link | None]:
        """Which link carries each lane, whose next part has so many bytes at most."""
        return {lane: self._carrier(lane, size, now, wall_ns) for lane, size in sizes.items()}

    def _at_links(
        self, queues: Sequence[Queue], carriers: Mapping[Lane, _Link | None]
    ) -> Sequence[tuple[_Link, list[Queue]]]:
        """The links in the order of preference, and what waits at each."""
        at: dict[_Link | None, list[Queue]] = {link: [] for link in (*self._links.values(), None)}
        for queue in queues:
            at[carriers[queue.lane]].append(queue)
        return [(link, here) for link, here in at.items() if link is not None]

    @staticmethod
    def _holds_up(link: _Link, picked: Queue, now: float, room: Mapping[str, int]) -> Why | None:
        """Why what goes next over a link cannot go now."""
        if room.get(link.rule.name, 0) <= 0:
            return Why.FULL
        return Why.BUCKET if link.bucket.seconds_to(picked.bytes, now) > 0 else None

    def _carrier(self, lane: Lane, size: int, now: float, wall_ns: int) -> _Link | None:
        held_back = None
        for link in self._links.values():
            if link.refuses(lane, size, now, wall_ns) is None:
                if now >= link.held_until:
                    return link
                held_back = held_back or link
        return held_back

    def _passed_over(self, link: _Link, lane: Lane, size: int, now: float, wall_ns: int) -> Why:
        why = link.refuses(lane, size, now, wall_ns)
        if why is not None:
            return why
        return Why.HELD if now < link.held_until else Why.OTHER

    @staticmethod
    def _timers(link: _Link, why: Why, now: float, wall_ns: int) -> list[float]:
        """When a link that was passed over may be usable again."""
        if why is Why.HELD:
            return [link.held_until]
        if why is Why.BUDGET:
            return [now + min(_WALL_SECONDS_MAX, Day.seconds_to_midnight(wall_ns))]
        if why is Why.CLOSED:
            opens = seconds_to_open(link.rule.windows, wall_ns)
            return [now + min(_WALL_SECONDS_MAX, opens or _WALL_SECONDS_MAX)]
        return []


def _sizes(queues: Sequence[Queue]) -> dict[Lane, int]:
    """How large the largest part is that each lane could send next; at least a byte."""
    sizes: dict[Lane, int] = {}
    for queue in queues:
        sizes[queue.lane] = max(queue.bytes, sizes.get(queue.lane, 1))
    return sizes
