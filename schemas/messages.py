"""The messages: frozen, slotted, plain. What they mean; ``schemas.wire`` says how they are written.

Three families stand here. *Records* are what lanes keep: decisions, events, log lines, metric
points, readings, accounts. *Custody* is what holders say to each other: batch headers and receipts.
*Node state* is what a person or a PLC reads.

Times: ``wall_ns`` is UTC in nanoseconds since 1970, ``mono_ns`` the monotonic clock of one boot. A
record does not carry its
identity: ``(node, epoch, lane, seq)`` follows from where it stands, so it cannot disagree with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from schemas.errors import Refused, RefusedBecause
from schemas.ranges import Ranges

__all__ = [
    "Account",
    "BatchHeader",
    "Codec",
    "Decision",
    "Epoch",
    "Event",
    "Explained",
    "Identity",
    "Instant",
    "Lane",
    "LogLine",
    "MetricPoint",
    "NodeState",
    "Origin",
    "Reading",
    "Receipt",
    "Record",
    "Severity",
    "Stage",
]


class Lane(StrEnum):
    """The named queues, most urgent first: the order of declaration is the order of priority."""

    ACCOUNT = "account"
    ALARMS = "alarms"
    DECISIONS = "decisions"
    EVENTS = "events"
    METRICS = "metrics"
    READINGS = "readings"
    LOGS = "logs"

    @property
    def priority(self) -> int:
        """0 is the most urgent."""
        return _LANES.index(self)

    @property
    def code(self) -> int:
        """The lane's number on disk. Never changes, never used again."""
        return _LANES.index(self) + 1

    @classmethod
    def of_code(cls, code: int) -> "Lane":
        """The lane of a number on disk.

        Raises:
            ValueError: no lane has it.
        """
        if not 1 <= code <= len(_LANES):
            raise ValueError(f"lane code {code} is none of 1 to {len(_LANES)}")
        return _LANES[code - 1]


_LANES = tuple(Lane)


@dataclass(frozen=True, slots=True)
class Instant:
    """One look at the clock.

    Args:
        wall_ns: UTC, ns since 1970.
        mono_ns: monotonic, ns since some moment of this boot.
        trusted: whether the wall clock is known to be right.
    """

    wall_ns: int
    mono_ns: int
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Epoch:
    """One life of a spool. Compared only for equality; the counter is for people.

    Args:
        counter: how many lives this store has had.
        random: 64 random bits.
    """

    counter: int
    random: int

    def __str__(self) -> str:
        return f"{self.counter}-{self.random:016x}"

    @classmethod
    def parse(cls, text: str) -> "Epoch":
        """The epoch that ``str()`` wrote.

        Raises:
            Refused: ``malformed``.
        """
        counter, dash, random = text.partition("-")
        try:
            epoch = cls(int(counter), int(random, 16))
        except ValueError:
            epoch = None
        if not dash or epoch is None or str(epoch) != text:
            raise Refused(
                RefusedBecause.MALFORMED, f"epoch {text[:40]!r} is not <counter>-<16 hex digits>"
            )
        return epoch


@dataclass(frozen=True, slots=True)
class Identity:
    """What names a record, for ever. A number once handed out never names another record."""

    node: str
    epoch: Epoch
    lane: Lane
    seq: int

    def __str__(self) -> str:
        return f"{self.node}/{self.epoch}/{self.lane}/{self.seq}"


class Severity(IntEnum):
    """Severities, numbered as in RFC 5424, section 6.2.1."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFORMATIONAL = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Origin:
    """What all decisions of one rule, source and session share.

    Args:
        name: the rule's name; the last level of the decision's topic.
        topic: the sensor topic that was read.
        model_name: as the model calls itself.
        model_version: as the model calls itself.
        model_digest: SHA-256 of the model file.
        policy_digest: SHA-256 of the rule's configuration, guardrails included.
        session: one run of the node, 16 hex digits.
        labels: names of the values, in their order.
    """

    name: str
    topic: str
    model_name: str
    model_version: str
    model_digest: bytes
    policy_digest: bytes
    session: str
    labels: tuple[str, ...] = ()

    def __hash__(self) -> int:
        # Equal origins agree in these; hashing all of it would cost each decision a microsecond.
        return hash((self.name, self.topic, self.session))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a node concluded from readings.

    Args:
        origin: what it shares with others of its rule, source and session.
        wall_ns: when it was decided.
        mono_ns: the same, monotonic.
        read_ns: when its newest reading arrived, UTC.
        verdict: a label of the model, or ``fallback``.
        confidence: 0 to 1; 0 for a fallback that no model spoke for.
        values: further outputs of the model, named by ``origin.labels``; empty where none spoke.
        reasons: why, in words of the fixed list in ``nodes.edge.guardrails``.
        inputs: how many readings it was made from that no earlier decision had used.
        input_digest: SHA-256 of the model's input, first 16 bytes; empty when there was none.
        valid_for_ms: how long it holds, in ms from ``wall_ns``.
        replay: whether it was made from data that came late on purpose.
        trace: W3C trace id, 16 bytes.
    """

    origin: Origin
    wall_ns: int
    mono_ns: int
    read_ns: int
    verdict: str
    confidence: float
    values: tuple[float, ...]
    reasons: tuple[str, ...]
    inputs: int
    input_digest: bytes
    valid_for_ms: int
    replay: bool
    trace: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on the node; an alarm is an event in the lane ``alarms``."""

    wall_ns: int
    mono_ns: int
    name: str
    severity: Severity
    text: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the node's log."""

    wall_ns: int
    mono_ns: int
    severity: Severity
    logger: str
    text: str


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric, named and labelled as Prometheus does, in base units."""

    wall_ns: int
    mono_ns: int
    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor said, where a rule keeps it: values by field name."""

    wall_ns: int
    mono_ns: int
    topic: str
    values: Mapping[str, float]


class Explained(StrEnum):
    """Why a number will never arrive.

    An open set on the wire; these are the ones that this program says.
    """

    VOID = "void"
    """Handed out but never durable, or never handed out: what a crash left of a reservation."""
    DAMAGED = "damaged"
    """Was durable; the disk no longer gives it back."""
    EVICTED = "evicted"
    """Given up for space."""
    EXPIRED = "expired"
    """Given up for its age."""
    FORGOTTEN = "forgotten"
    """Given up with a whole life of the spool, of which too many were kept.

    Or lost by a holder that had it, when it was no longer retained here.
    """
    SHED = "shed"
    """Published, but the spool could not take it."""


@dataclass(frozen=True, slots=True)
class Account:
    """A full statement of one lane and epoch; the newest replaces the older ones.

    Args:
        wall_ns: when it was stated.
        mono_ns: the same, monotonic.
        lane: which lane.
        epoch: which life of the spool.
        number: of this statement, counting up within the lane and epoch.
        next_seq: the number that the next record will take: all below were handed out.
        explained: numbers that will never arrive, by reason.
        released: up to where each holder has released, by the holder's name.
    """

    wall_ns: int
    mono_ns: int
    lane: Lane
    epoch: Epoch
    number: int
    next_seq: int
    explained: Mapping[str, Ranges] = field(default_factory=dict)
    released: Mapping[str, int] = field(default_factory=dict)


Record = Decision | Event | LogLine | MetricPoint | Reading | Account


class Codec(StrEnum):
    """How the body of a batch is written."""

    ROWS_ZSTD = "rows+zstd"
    """The canonical bytes of the records, one after another, in one zstd frame."""
    COLUMNS = "columns"
    """Their numbers as columns, number by number, exact to the byte."""


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What a batch says of itself, readable without opening its body.

    Args:
        store: id of the spool, 16 bytes.
        site: the origin's site.
        node: the origin.
        epoch: the life of its spool.
        lane: the lane.
        first: the first number.
        last: the last number, inclusive.
        count: how many records; fewer than the span where numbers are missing.
        present: which numbers, in the order of the body.
        frames: how many records each frame has; the chain is taken frame by frame.
        chain_before: the lane's chain before the first record, 16 bytes.
        chain_after: the chain after the last record, 16 bytes.
        first_wall_ns: commit of the first frame, UTC.
        last_wall_ns: commit of the last frame, UTC.
        clock_trusted: whether the clock was trusted for all frames.
        boot: boot id of the last frame, 16 bytes.
        running_ns: the spool's running time at the commit of the last frame: what age is counted
            by, since no step of a clock touches it.
        codec: how the body is written.
        schema: id of the record layout.
        raw_bytes: length of the opened body.
        body_bytes: length of the body as it stands.
        body_digest: SHA-256 of the body as it stands.
        priority: 0 is the most urgent.
        expires_wall_ns: when it loses its use, UTC; ``None`` for never.
        region: label for residency; empty for none.
        tenant: label for tenancy; empty for none.
        sealed: whether the body is encrypted.
        key_ids: the keys that open it.
        derived_from: digests of batches that this one was thinned from.
        method: how it was thinned; empty for not at all.
        critical: extensions that a reader must know, by name.
        optional: extensions that a reader may pass over.
        signature: room for a signature over the rest; empty until there is one.
    """

    store: bytes
    site: str
    node: str
    epoch: Epoch
    lane: Lane
    first: int
    last: int
    count: int
    present: Ranges
    frames: tuple[int, ...]
    chain_before: bytes
    chain_after: bytes
    first_wall_ns: int
    last_wall_ns: int
    clock_trusted: bool
    boot: bytes
    running_ns: int
    codec: Codec
    schema: str
    raw_bytes: int
    body_bytes: int
    body_digest: bytes
    priority: int
    expires_wall_ns: int | None = None
    region: str = ""
    tenant: str = ""
    sealed: bool = False
    key_ids: tuple[str, ...] = ()
    derived_from: tuple[bytes, ...] = ()
    method: str = ""
    critical: Mapping[str, bytes] = field(default_factory=dict)
    optional: Mapping[str, bytes] = field(default_factory=dict)
    signature: bytes = b""

    def __str__(self) -> str:
        return f"{self.node}/{self.epoch}/{self.lane}/{self.first}-{self.last}"


class Stage(StrEnum):
    """How far a holder has taken what it states."""

    HELD = "held"
    """Durable in the holder's spool, still to be forwarded."""
    ARCHIVED = "archived"
    """Durable in the archive."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A holder's cumulative statement of what it durably holds of one (node, epoch, lane).

    Only a receipt releases.

    Args:
        holder: who states it.
        life: the holder's own life; another one means that its store was replaced.
        number: counts up within the holder's life.
        stage: how far it has been taken.
        site: the origin's site.
        node: the origin.
        epoch: the life of its spool.
        lane: the lane.
        watermark: all numbers below are held or explained.
        chain: the lane's chain where ``chain_at`` stands, 16 bytes; empty when nothing is held.
        chain_at: the number up to which ``chain`` was computed, at or below the watermark.
        held: ranges above the watermark that are held, bounded in number.
        credit_bytes: how much more it takes.
        not_before_ms: how long to wait before sending more.
        key_id: the key of the signature; empty until there is one.
        signature: over the rest; empty until there is one.
    """

    holder: str
    life: Epoch
    number: int
    stage: Stage
    site: str
    node: str
    epoch: Epoch
    lane: Lane
    watermark: int
    chain: bytes
    chain_at: int
    held: Ranges = field(default_factory=Ranges)
    credit_bytes: int = 0
    not_before_ms: int = 0
    key_id: str = ""
    signature: bytes = b""

    def __str__(self) -> str:
        return (
            f"receipt {self.number} of {self.holder} for {self.node}/{self.epoch}/{self.lane}"
            f" below {self.watermark}"
        )


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node says of itself on its retained ``state`` topic.

    The will says the same with ``online`` false.
    """

    site: str
    node: str
    session: str
    online: bool
    since_wall_ns: int
    epoch: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
