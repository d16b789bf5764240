"""One message of each kind, and hypothesis strategies for all of them."""

import math

from hypothesis import strategies as st

from schemas import messages, stored
from schemas.messages import Codec, Epoch, Explained, Lane, Origin, Severity, Stage
from schemas.ranges import Ranges
from schemas.wire import Message

__all__ = ["EXAMPLES", "messages_of_any_kind", "ranges"]

EPOCH = Epoch(3, 0x0123456789ABCDEF)
_DIGEST = bytes(range(32))
_ID = bytes(range(16))
_SOME = Ranges(((0, 4), (6, 7)))

_LEDGER = stored.LaneLedger(
    "hall",
    "pump",
    EPOCH,
    Lane.EVENTS,
    _SOME,
    {Explained.VOID: Ranges(((4, 6),))},
    9,
    2,
    _ID,
    4,
    1,
    5,
)

EXAMPLES: dict[str, Message] = {
    "decision": messages.Decision(
        Origin("dry", "hall/pump/1", "skab", "1.2", _DIGEST, _DIGEST[::-1], "00ff", ("score",)),
        1_767_225_600_000_000_000,
        12_345,
        1_767_225_599_999_000_000,
        "anomaly",
        0.75,
        (1.5, -math.inf),
        ("confidence",),
        3,
        _ID,
        30_000,
        replay=False,
        trace=_ID[::-1],
    ),
    "event": messages.Event(-1, 0, "started", Severity.NOTICE, "Grüße", {"b": "2", "a": "1"}),
    "logline": messages.LogLine(1, 2, Severity.ERROR, "mesh", "line\n"),
    "metricpoint": messages.MetricPoint(1, 2, "up", 1.0, {"lane": "logs"}),
    "reading": messages.Reading(1, 2, "plant/p1", {"flow": 1.25, "pressure": -0.0}),
    "account": messages.Account(
        1, 2, Lane.LOGS, EPOCH, 4, 9, {Explained.EVICTED: _SOME}, {"headquarters": 4}
    ),
    "batchheader": messages.BatchHeader(
        store=_ID,
        site="hall",
        node="pump",
        epoch=EPOCH,
        lane=Lane.EVENTS,
        first=7,
        last=9,
        count=3,
        present=Ranges(((7, 10),)),
        frames=(1, 2),
        chain_before=_ID,
        chain_after=_ID[::-1],
        first_wall_ns=1,
        last_wall_ns=2,
        clock_trusted=True,
        boot=_ID,
        running_ns=3,
        codec=Codec.ROWS_ZSTD,
        schema="records.v1",
        raw_bytes=10,
        body_bytes=20,
        body_digest=_DIGEST,
        priority=3,
        expires_wall_ns=5,
        region="eu",
        tenant="acme",
        key_ids=("k1",),
        derived_from=(_DIGEST,),
        method="mean",
        critical={"sealed": b"\1"},
        optional={"note": b""},
        signature=bytes(64),
    ),
    "receipt": messages.Receipt(
        "hq",
        EPOCH,
        5,
        Stage.ARCHIVED,
        "hall",
        "pump",
        EPOCH,
        Lane.LOGS,
        4,
        _ID,
        4,
        Ranges(((6, 7),)),
    ),
    "storeidentity": stored.StoreIdentity(
        _ID,
        "hall",
        "pump",
        EPOCH,
        Epoch(2, 7),
        _ID[::-1],
        (stored.PastEpoch(Epoch(2, 7), {Lane.LOGS: stored.Numbers(stored.LaneMark(5, _ID), 5)}),),
    ),
    "journalheader": stored.JournalHeader(
        _ID,
        EPOCH,
        _ID,
        42,
        1,
        2,
        3,
        {Lane.LOGS: stored.Numbers(stored.LaneMark(5, _ID), 9, {Explained.VOID: _SOME}, 3)},
    ),
    "reserved": stored.Reserved({Lane.LOGS: 9, Lane.ALARMS: 3}),
    "closed": stored.Closed({Lane.LOGS: 9}),
    "cursor": stored.Cursor(7, {"3-0/logs": _SOME}, {"3-0/logs/hq": 4}),
    "partitionledger": stored.PartitionLedger("hq", EPOCH, 9, (_LEDGER,), ("007-ab",)),
}
"""Each kind of message, in version 1, as golden files know it."""

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_name = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=63)
_seq = st.integers(0, 2**63 - 1)
_time = st.integers(-(2**63), 2**63 - 1)
_number = st.floats(allow_nan=False)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_id = st.binary(min_size=16, max_size=16)
_digest = st.binary(min_size=32, max_size=32)
_epoch = st.builds(Epoch, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
_lane = st.sampled_from(Lane)
_severity = st.sampled_from(Severity)


@st.composite
def ranges(draw: st.DrawFn, highest: int = 2**63 - 1) -> Ranges:
    """Any set of numbers."""
    bounds = sorted(draw(st.sets(st.integers(0, highest), max_size=20)))
    return Ranges.of(list(zip(bounds[::2], bounds[1::2], strict=False)))


_reasons = st.dictionaries(_name, ranges(), max_size=4)
_labels = st.dictionaries(_text, _text, max_size=4)
_origin = st.builds(
    Origin,
    _name,
    _text,
    _text,
    _text,
    _digest,
    _digest,
    _name,
    st.lists(_text, max_size=3).map(tuple),
)
_numbers = st.builds(
    stored.Numbers, st.builds(stored.LaneMark, _seq, _id), _seq, _reasons, st.integers(0, 2**63 - 1)
)
_past = st.builds(stored.PastEpoch, _epoch, st.dictionaries(_lane, _numbers, max_size=3))
_ledger = st.builds(
    stored.LaneLedger,
    _name,
    _name,
    _epoch,
    _lane,
    ranges(),
    _reasons,
    _seq,
    _seq,
    _id,
    _seq,
    _seq,
    _time,
    st.dictionaries(_name, _seq, max_size=3),
    _time,
    ranges(),
)


def messages_of_any_kind() -> st.SearchStrategy[Message]:
    """Messages within the bounds."""
    return st.one_of(
        st.builds(
            messages.Decision,
            _origin,
            _time,
            _time,
            _time,
            _text,
            _finite,
            st.lists(_number, max_size=4).map(tuple),
            st.lists(_text, max_size=4).map(tuple),
            _seq,
            st.sampled_from([b"", bytes(16)]),
            _seq,
            st.booleans(),
            _id,
        ),
        st.builds(messages.Event, _time, _time, _text, _severity, _text, _labels),
        st.builds(messages.LogLine, _time, _time, _severity, _text, _text),
        st.builds(messages.MetricPoint, _time, _time, _text, _number, _labels),
        st.builds(
            messages.Reading, _time, _time, _text, st.dictionaries(_text, _number, max_size=4)
        ),
        st.builds(
            messages.Account,
            _time,
            _time,
            _lane,
            _epoch,
            _seq,
            _seq,
            _reasons,
            st.dictionaries(_name, _seq, max_size=3),
        ),
        st.builds(
            messages.Receipt,
            _name,
            _epoch,
            _seq,
            st.sampled_from(Stage),
            _name,
            _name,
            _epoch,
            _lane,
            _seq,
            st.sampled_from([b"", bytes(16)]),
            _seq,
            ranges(),
            _seq,
            _seq,
            _text,
            st.sampled_from([b"", bytes(64)]),
        ),
        st.builds(
            stored.StoreIdentity,
            _id,
            _name,
            _name,
            _epoch,
            st.one_of(st.none(), _epoch),
            _id,
            st.lists(_past, max_size=2).map(tuple),
        ),
        st.builds(
            stored.JournalHeader,
            _id,
            _epoch,
            _id,
            _seq,
            _time,
            _time,
            _time,
            st.dictionaries(_lane, _numbers, max_size=3),
        ),
        st.builds(stored.Reserved, st.dictionaries(_lane, _seq)),
        st.builds(stored.Closed, st.dictionaries(_lane, _seq)),
        st.builds(
            stored.Cursor,
            _seq,
            st.dictionaries(_text, ranges(), max_size=3),
            st.dictionaries(_text, _seq, max_size=3),
        ),
        st.builds(
            stored.PartitionLedger,
            _name,
            _epoch,
            _seq,
            st.lists(_ledger, max_size=2).map(tuple),
            st.lists(_text, max_size=2).map(tuple),
        ),
    )
