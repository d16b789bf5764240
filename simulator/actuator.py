"""An actuator that does what it is told, and says so when what it is told cannot be right.

It trusts nobody: a decision that is malformed, replayed, past its time, older than one that it has
already obeyed, or that names a verdict it does not know, is complained of and changes nothing.
Where no decision was obeyed for ``silence_seconds``, it goes to its safe position by itself; it
also starts there.

Of a decision's JSON it reads ``identity`` (``node``, ``epoch``, ``lane``: text; ``seq``: whole
number), ``verdict`` (a label, or ``fallback``), ``valid_until`` (UTC milliseconds) and ``replay``
(true or false).

The machine is pure: ``now`` comes in, frozen events come out, and `timer` says when to call `tick`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["FALLBACK", "Actuator", "ActuatorEvent", "Complained", "FellBack", "Obeyed", "Reason"]

FALLBACK: Final = "fallback"
"""The verdict of a node whose model may not speak: safe, unless `positions` says otherwise."""

_STREAMS_MAX: Final = 64


class Reason(StrEnum):
    """Why a decision was not obeyed, in the order in which it is judged."""

    MALFORMED = "malformed"
    """Not an object, or a key is missing or of another type."""
    REPLAYED = "replayed"
    """It is marked as history: it was about another time."""
    STALE = "stale"
    """It held until an instant that has passed."""
    OUT_OF_ORDER = "out_of_order"
    """One with a higher number of the same node, epoch and lane was obeyed before."""
    UNKNOWN_VERDICT = "unknown_verdict"
    """No position belongs to its verdict."""


@dataclass(frozen=True, slots=True)
class Obeyed:
    """A decision was carried out.

    Attributes:
        at_ns: When, UTC nanoseconds.
        verdict: What the decision said.
        position: Where the actuator stands now.
        node: Who decided.
        epoch: The life of that node's spool.
        lane: The lane that the decision belongs to.
        seq: The number of the decision in that epoch and lane.
    """

    at_ns: int
    verdict: str
    position: str
    node: str
    epoch: str
    lane: str
    seq: int


@dataclass(frozen=True, slots=True)
class Complained:
    """A decision was not carried out; the position is what it was.

    Attributes:
        at_ns: When, UTC nanoseconds.
        reason: Why.
        detail: The numbers or names that show it.
    """

    at_ns: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """Nothing was obeyed for too long: the actuator went to its safe position.

    Attributes:
        at_ns: When, UTC nanoseconds.
        position: The safe position.
        silent_ns: How long after the last decision obeyed, nanoseconds.
    """

    at_ns: int
    position: str
    silent_ns: int


ActuatorEvent = Obeyed | Complained | FellBack
"""What an actuator does."""


class Actuator:
    """One valve, drive or relay: where it stands, and what it has obeyed.

    Args:
        positions: The position for each verdict that it obeys.
        safe: Where it starts, and where silence and the verdict ``fallback`` put it.
        silence_seconds: How long it stays without a decision that it can obey, above 0.

    Raises:
        ValueError: `silence_seconds` is not above 0.
    """

    def __init__(self, positions: Mapping[str, str], *, safe: str, silence_seconds: float) -> None:
        if not silence_seconds > 0:
            raise ValueError(f"silence_seconds must be above 0, not {silence_seconds}")
        self.position = safe
        self._positions = {FALLBACK: safe, **positions}
        self._safe = safe
        self._silence_ns = int(silence_seconds * 1e9)
        self._obeyed_ns: int | None = None  # None: in the safe position of its own accord
        self._newest: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def __repr__(self) -> str:
        state = "waiting" if self._obeyed_ns is None else f"obeyed at {self._obeyed_ns}"
        return f"<Actuator {self.position} ({state})>"

    def timer(self) -> int | None:
        """When `tick` is due, UTC nanoseconds, or None while nothing can become due."""
        return None if self._obeyed_ns is None else self._obeyed_ns + self._silence_ns

    def receive(self, decision: object, now: int) -> Obeyed | Complained:
        """Carries out a decision, or says why not.

        The same decision delivered twice is obeyed twice: it says the same.

        Args:
            decision: What the JSON of a decision decoded to.
            now: UTC nanoseconds.

        Returns:
            What was done; only `Obeyed` changes anything.
        """
        match decision:
            case {
                "identity": {
                    "node": str(node),
                    "epoch": str(epoch),
                    "lane": str(lane),
                    "seq": int(seq),
                },
                "verdict": str(verdict),
                "valid_until": int(valid_until),
                "replay": bool(replay),
            } if seq >= 0 and not isinstance(seq, bool) and not isinstance(valid_until, bool):
                stream = (node, epoch, lane)
            case _:
                return Complained(now, Reason.MALFORMED, f"not a decision: {str(decision)[:200]}")
        newest = self._newest.get(stream, seq)
        if replay:
            return Complained(now, Reason.REPLAYED, f"{_name(stream, seq)} is history")
        if now > valid_until * 1_000_000:
            late_ms = now // 1_000_000 - valid_until
            return Complained(now, Reason.STALE, f"{_name(stream, seq)} ended {late_ms} ms ago")
        if seq < newest:
            return Complained(now, Reason.OUT_OF_ORDER, f"{_name(stream, seq)} after {newest}")
        if verdict not in self._positions:
            return Complained(now, Reason.UNKNOWN_VERDICT, f"{_name(stream, seq)}: {verdict!r}")
        self._remember(stream, seq)
        self._obeyed_ns = now
        self.position = self._positions[verdict]
        return Obeyed(now, verdict, self.position, node, epoch, lane, seq)

    def tick(self, now: int) -> FellBack | None:
        """Goes to the safe position where silence has lasted too long.

        Args:
            now: UTC nanoseconds.

        Returns:
            That it did, once for each silence; or None.
        """
        if self._obeyed_ns is None or now < self._obeyed_ns + self._silence_ns:
            return None
        silent_ns = now - self._obeyed_ns
        self._obeyed_ns = None
        self.position = self._safe
        return FellBack(now, self._safe, silent_ns)

    def _remember(self, stream: tuple[str, str, str], seq: int) -> None:
        """Keeps the newest number of each stream, for the streams obeyed last: a bounded number."""
        self._newest[stream] = seq
        self._newest.move_to_end(stream)
        if len(self._newest) > _STREAMS_MAX:
            self._newest.popitem(last=False)


def _name(stream: tuple[str, str, str], seq: int) -> str:
    return f"{'/'.join(stream)}/{seq}"
