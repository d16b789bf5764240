"""The table of messages on the wire: kind, version, fields in their order, their bounds. Pure.

Kinds and versions never change their meaning; a new layout takes a new version. Kinds below 16 are
records of lanes, below 32 what holders say to each other, the rest what they write about
themselves.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from schemas.errors import Refused, RefusedBecause
from schemas.forms import (
    BOOLEAN,
    COUNT,
    FINITE,
    FLOAT,
    NUMBER,
    RANGES,
    SEQ,
    TIME,
    UINT64,
    Form,
    binary,
    integer,
    layout,
    mapping,
    one_of,
    optional,
    sequence,
    text,
)
from schemas.limits import (
    BATCH_BYTES_MAX,
    BATCH_RAW_BYTES_MAX,
    CUSTODY_JOURNALS_MAX,
    DECISION_REASONS_MAX,
    DECISION_VALUES_MAX,
    EXTENSIONS_MAX,
    FRAMES_PER_BATCH_MAX,
    HOLDERS_MAX,
    IDENTIFIER_CHARS_MAX,
    LEDGER_FILES_MAX,
    LEDGER_LANES_MAX,
    MODEL_FIELDS_MAX,
    PAST_EPOCHS_MAX,
    RECORDS_PER_FRAME_MAX,
    TEXT_CHARS_MAX,
    TOPIC_BYTES_MAX,
)
from schemas.messages import (
    Account,
    BatchHeader,
    Codec,
    Decision,
    Epoch,
    Event,
    Lane,
    LogLine,
    MetricPoint,
    Origin,
    Reading,
    Receipt,
    Severity,
    Stage,
)
from schemas.stored import (
    Closed,
    Cursor,
    CustodyHead,
    CustodyLane,
    CustodyRelease,
    JournalHeader,
    LaneLedger,
    LaneMark,
    Numbers,
    PartitionLedger,
    PastEpoch,
    Reserved,
    StoreIdentity,
)

__all__ = ["LAYOUTS"]

_NAME: Final = text(IDENTIFIER_CHARS_MAX)
_LABEL: Final = text(256)
_TEXT: Final = text(TEXT_CHARS_MAX)
_TOPIC: Final = text(TOPIC_BYTES_MAX)
_ID: Final = binary(16)
_DIGEST: Final = binary(32)
_MAYBE_ID: Final = binary(0, 16)
_CHAIN: Final = binary(16)
_LANE: Final = one_of(Lane)
_REASONS: Final = mapping(_NAME, RANGES, 64)
_EXTENSION: Final = Form(lambda raw: raw if type(raw) is bytes else binary().parse(raw))
_EXTENSIONS: Final = mapping(_LABEL, _EXTENSION, EXTENSIONS_MAX)
_LABELS: Final = mapping(_LABEL, _TEXT, 64)
_SIGNATURE: Final = binary(0, 64)


def _parse_frames(raw: object) -> tuple[int, ...]:
    """What ``_plain_frames`` wrote: never more frames than there may be, however it is said."""
    runs = sequence(integer(1, RECORDS_PER_FRAME_MAX), 2 * FRAMES_PER_BATCH_MAX).parse(raw)
    if len(runs) % 2 or sum(runs[1::2]) > FRAMES_PER_BATCH_MAX:
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"{sum(runs[1::2])} frames, at most {FRAMES_PER_BATCH_MAX}, each count with its times",
        )
    return tuple(n for n, times in zip(runs[::2], runs[1::2], strict=True) for _ in range(times))


def _plain_frames(counts: Iterable[int]) -> list[int]:
    """Counts run by run: ``[5, 5, 1]`` is ``[5, 2, 1, 1]``."""
    return [n for count, run in groupby(counts) for n in (count, len(list(run)))]


_FRAMES: Final = Form(_parse_frames, _plain_frames)
_EPOCH: Final = layout(0, Epoch, counter=UINT64, random=UINT64).form()
_ORIGIN: Final = layout(
    0,
    Origin,
    name=_NAME,
    topic=_TOPIC,
    model_name=_LABEL,
    model_version=_LABEL,
    model_digest=_DIGEST,
    policy_digest=_DIGEST,
    session=_NAME,
    labels=sequence(_LABEL, DECISION_VALUES_MAX),
).form()
_MARK: Final = layout(0, LaneMark, next_seq=SEQ, chain=_CHAIN).form()
_NUMBERS: Final = layout(
    0, Numbers, mark=_MARK, reserved=SEQ, explained=_REASONS, statement=COUNT
).form()
_LANES: Final = mapping(_LANE, _NUMBERS, len(Lane))
_PAST: Final = layout(0, PastEpoch, epoch=_EPOCH, lanes=_LANES, changed=UINT64).form()
_LANE_LEDGER: Final = layout(
    0,
    LaneLedger,
    4,
    site=_NAME,
    node=_NAME,
    epoch=_EPOCH,
    lane=_LANE,
    held=RANGES,
    explained=_REASONS,
    next_seq=SEQ,
    statement=COUNT,
    chain=_CHAIN,
    chain_at=SEQ,
    duplicates=COUNT,
    seen_wall_ns=TIME,
    released=mapping(_NAME, SEQ, HOLDERS_MAX),
    stated_wall_ns=TIME,
    disputed=RANGES,
    succession=COUNT,
).form()

LAYOUTS: Final = (
    layout(
        1,
        Decision,
        origin=_ORIGIN,
        wall_ns=TIME,
        mono_ns=TIME,
        read_ns=TIME,
        verdict=_LABEL,
        confidence=FINITE,
        values=sequence(NUMBER, DECISION_VALUES_MAX),
        reasons=sequence(_LABEL, DECISION_REASONS_MAX),
        inputs=COUNT,
        input_digest=_MAYBE_ID,
        valid_for_ms=COUNT,
        replay=BOOLEAN,
        trace=_ID,
    ),
    layout(
        2,
        Event,
        wall_ns=TIME,
        mono_ns=TIME,
        name=_LABEL,
        severity=one_of(Severity),
        text=_TEXT,
        attributes=_LABELS,
    ),
    layout(
        3,
        LogLine,
        wall_ns=TIME,
        mono_ns=TIME,
        severity=one_of(Severity),
        logger=_LABEL,
        text=_TEXT,
    ),
    layout(4, MetricPoint, wall_ns=TIME, mono_ns=TIME, name=_LABEL, value=FLOAT, labels=_LABELS),
    layout(
        5,
        Reading,
        wall_ns=TIME,
        mono_ns=TIME,
        topic=_TOPIC,
        values=mapping(_LABEL, FLOAT, MODEL_FIELDS_MAX),
    ),
    layout(
        6,
        Account,
        wall_ns=TIME,
        mono_ns=TIME,
        lane=_LANE,
        epoch=_EPOCH,
        number=COUNT,
        next_seq=SEQ,
        explained=_REASONS,
        released=mapping(_LABEL, SEQ, 64),
    ),
    layout(
        16,
        BatchHeader,
        store=_ID,
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        lane=_LANE,
        first=SEQ,
        last=SEQ,
        count=SEQ,
        present=RANGES,
        frames=_FRAMES,
        chain_before=_CHAIN,
        chain_after=_CHAIN,
        first_wall_ns=TIME,
        last_wall_ns=TIME,
        clock_trusted=BOOLEAN,
        boot=_ID,
        running_ns=TIME,
        codec=one_of(Codec),
        schema=_LABEL,
        raw_bytes=integer(1, BATCH_RAW_BYTES_MAX),
        # What does not shrink grows by the frame around it.
        body_bytes=integer(1, BATCH_BYTES_MAX),
        body_digest=_DIGEST,
        priority=integer(0, 255),
        expires_wall_ns=optional(TIME),
        region=_LABEL,
        tenant=_LABEL,
        sealed=BOOLEAN,
        key_ids=sequence(_LABEL, 16),
        derived_from=sequence(_DIGEST, 64),
        method=_LABEL,
        critical=_EXTENSIONS,
        optional=_EXTENSIONS,
        signature=_SIGNATURE,
    ),
    layout(
        17,
        Receipt,
        holder=_NAME,
        life=_EPOCH,
        number=COUNT,
        stage=one_of(Stage),
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        lane=_LANE,
        watermark=SEQ,
        chain=_MAYBE_ID,
        chain_at=SEQ,
        held=RANGES,
        credit_bytes=COUNT,
        not_before_ms=COUNT,
        key_id=_LABEL,
        signature=_SIGNATURE,
    ),
    layout(
        32,
        StoreIdentity,
        store=_ID,
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        parent=optional(_EPOCH),
        machine=_ID,
        past=sequence(_PAST, 2 * PAST_EPOCHS_MAX),
    ),
    layout(
        33,
        JournalHeader,
        store=_ID,
        epoch=_EPOCH,
        boot=_ID,
        number=COUNT,
        wall_ns=TIME,
        mono_ns=TIME,
        running_ns=TIME,
        lanes=_LANES,
    ),
    layout(34, Reserved, lanes=mapping(_LANE, SEQ, len(Lane))),
    layout(35, Closed, lanes=mapping(_LANE, SEQ, len(Lane))),
    layout(
        36,
        Cursor,
        generation=COUNT,
        released=mapping(_LABEL, RANGES, 1024),
        holders=mapping(_LABEL, SEQ, 1024),
    ),
    layout(
        37,
        PartitionLedger,
        holder=_NAME,
        life=_EPOCH,
        receipts=COUNT,
        lanes=sequence(_LANE_LEDGER, LEDGER_LANES_MAX),
        files=sequence(_LABEL, LEDGER_FILES_MAX),
    ),
    layout(
        40,
        CustodyHead,
        store=_ID,
        holder=_NAME,
        life=_EPOCH,
        machine=_ID,
        number=COUNT,
        wall_ns=TIME,
        lanes=COUNT,
        ends=mapping(_NAME, COUNT, CUSTODY_JOURNALS_MAX),
    ),
    layout(
        41,
        CustodyLane,
        ledger=_LANE_LEDGER,
        released=RANGES,
        holders=mapping(_NAME, SEQ, HOLDERS_MAX),
    ),
    layout(
        42,
        CustodyRelease,
        site=_NAME,
        node=_NAME,
        epoch=_EPOCH,
        lane=_LANE,
        numbers=RANGES,
        holder=_NAME,
        mark=SEQ,
    ),
)
