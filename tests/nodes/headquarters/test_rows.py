"""Rows and their fields: what a query finds is what the records say, whichever way they came."""

import random
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.spool import batch
from mesh.spool.batch import Batch
from nodes.headquarters import archive as archives
from nodes.headquarters.archive import Archive
from nodes.headquarters.rows import accounts, rows_of, show
from schemas import wire
from schemas.messages import (
    Codec,
    Decision,
    Event,
    Lane,
    LogLine,
    MetricPoint,
    Origin,
    Reading,
    Severity,
)
from schemas.ranges import Ranges
from schemas.wire import Message
from tests.nodes.headquarters.world import Sender
from tests.schemas.samples import EXAMPLES

WALL = 1_767_225_600_123_456_789


def _look(root: Path, query: str, *batches: Batch) -> list[tuple[object, ...]]:
    """What a query over ``archived`` finds when these batches are archived in one commit."""
    archive = Archive(root)
    opened = [(made, batch.open_batch(made)) for made in batches]
    archive.stage("000-a", [rows_of(it.header, it.header.present, raw) for it, raw in opened])
    archive.publish("000-a")
    archive.close()
    with duckdb.connect(":memory:") as database:
        source = f"read_parquet('{root}/archive/**/*.parquet', union_by_name = true)"
        return database.execute(query.replace("archived", source)).fetchall()


def _metrics(count: int) -> list[Message]:
    names = [("up", {}), ("load", {"cpu": "0", "mode": "ü"}), ("heat", {"pump": "1"})]
    return [
        MetricPoint(WALL + n, 10**12 + n, names[n % 3][0], n / 8, names[n % 3][1])
        for n in range(count)
    ]


def _readings(count: int) -> list[Message]:
    return [
        Reading(
            WALL + n, 10**12 + n, f"t/{n % 2}", {"a": n / 4, "b": -0.5} if n % 3 else {"a": 1.5}
        )
        for n in range(count)
    ]


def _sent(lane: Lane, messages: list[Message]) -> Batch:
    return Sender(lane=lane).batch([wire.encode(message) for message in messages])


def test_metrics_have_their_columns_however_they_came(tmp_path: Path) -> None:
    """From columns and from rows, in one file: names, labels, values, times, bytes."""
    wide, narrow = _sent(Lane.METRICS, _metrics(60)), _sent(Lane.METRICS, _metrics(7))
    assert (wide.header.codec, narrow.header.codec) == (Codec.COLUMNS, Codec.ROWS_ZSTD)
    query = (
        "SELECT name, value, map_from_entries(labels), epoch_ns(wall_at), mono_ns, record, day"
        " FROM archived"
    )
    found = _look(tmp_path, query, wide, narrow)
    expected = [
        (it.name, it.value, it.labels, it.wall_ns, it.mono_ns, wire.encode(it))
        for it in (*_metrics(60), *_metrics(7))
        if isinstance(it, MetricPoint)
    ]
    assert sorted(repr(row[:-1]) for row in found) == sorted(map(repr, expected))
    assert {str(row[-1]) for row in found} == {"2026-01-01"}


def test_readings_have_their_values_by_name(tmp_path: Path) -> None:
    """Also where records lack a field that others have."""
    made = _sent(Lane.READINGS, _readings(50))
    assert made.header.codec is Codec.COLUMNS
    query = "SELECT topic, map_from_entries(values), mono_ns FROM archived ORDER BY seq"
    assert _look(tmp_path, query, made) == [
        (it.topic, dict(it.values), it.mono_ns) for it in _readings(50) if isinstance(it, Reading)
    ]


def test_decisions_can_be_asked_by_rule_verdict_and_value(tmp_path: Path) -> None:
    """Values under their labels; under their places where the labels do not fit."""
    origin = Origin("state", "t/1", "m", "1", b"d" * 32, b"p" * 32, "s1", ("ok", "leak"))
    bare = Origin("flow", "t/2", "m", "1", b"d" * 32, b"p" * 32, "s1")

    def decision(origin: Origin, values: tuple[float, ...], *reasons: str) -> Message:
        return Decision(
            origin,
            WALL,
            7,
            WALL - 5,
            "ok",
            0.5,
            values,
            reasons,
            1,
            b"",
            9,
            replay=False,
            trace=b"t" * 16,
        )

    made = _sent(
        Lane.DECISIONS,
        [decision(origin, (0.25, 0.75), "late"), decision(bare, (1.5,)), decision(origin, ())],
    )
    query = (
        "SELECT rule, topic, verdict, confidence, map_from_entries(values), reasons, replay,"
        " valid_for_ms, epoch_ns(read_at) FROM archived ORDER BY seq"
    )
    assert _look(tmp_path, query, made) == [
        ("state", "t/1", "ok", 0.5, {"ok": 0.25, "leak": 0.75}, ["late"], False, 9, WALL - 5),
        ("flow", "t/2", "ok", 0.5, {"0": 1.5}, [], False, 9, WALL - 5),
        ("state", "t/1", "ok", 0.5, {}, [], False, 9, WALL - 5),
    ]


def test_logs_and_events_can_be_searched(tmp_path: Path) -> None:
    """Severity by its name, texts in any script, attributes by name."""
    logs = _sent(Lane.LOGS, [LogLine(WALL, 1, Severity.WARNING, "modbus", "Ventil öffnet ✓\0")])
    event = Event(WALL, 1, "door", Severity.NOTICE, "opened", {"by": "Åsa"})
    events = _sent(Lane.EVENTS, [event])
    query = (
        "SELECT lane, severity, logger, name, text, map_from_entries(attributes)"
        " FROM archived ORDER BY lane"
    )
    assert _look(tmp_path, query, logs, events) == [
        ("events", "notice", None, "door", "opened", {"by": "Åsa"}),
        ("logs", "warning", "modbus", None, "Ventil öffnet ✓\0", None),
    ]


def test_accounts_say_what_they_are_about(tmp_path: Path) -> None:
    """So a query finds what was explained; and the ingest finds them among other records."""
    event, account = EXAMPLES["event"], EXAMPLES["account"]
    made = Sender(lane=Lane.ACCOUNT).batch(
        [wire.encode(event), wire.encode(account), b"\x92\x06\x01"]
    )
    fresh = rows_of(made.header, made.header.present, batch.open_batch(made))
    assert accounts(fresh) == [account]
    query = "SELECT kind, about_lane, statement FROM archived ORDER BY seq"
    assert _look(tmp_path, query, made) == [
        ("event", None, None),
        ("account", str(account.lane), account.number),  # type: ignore[attr-defined]
        ("unknown", None, None),
    ]


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("odd", ["array", "number", "type", "twice", "kind", "text", "deep"])
def test_an_odd_record_has_its_bytes_and_the_others_their_fields(
    lane: Lane, odd: str, tmp_path: Path
) -> None:
    """Whatever is wrong with it, it blocks nobody, and nothing of the others is lost."""
    good = wire.encode(EXAMPLES[_EXAMPLE[lane]])
    bad = {
        "array": b"\x90",
        "number": b"\x07",
        "type": b"\x97\x04\x01\xa1x\xa1y\xa1z\xa1w\xa1v",
        "twice": b"\x97\x04\x01\x00\x00\xa1n\xcb" + bytes(8) + b"\x82\xa1a\xa1b\xa1a\xa1c",
        "kind": b"\x92\x63\x01",
        "text": b"\x97\x03\x01\x00\x00\x06\xa1l\xa2\xff\xfe",
        "deep": b"\x91" * 40 + b"\x00",
    }[odd]
    made = Sender(lane=lane).batch([good, bad, good])
    query = "SELECT kind, record, epoch_ns(wall_at) FROM archived ORDER BY seq"
    first, second, third = _look(tmp_path, query, made)
    assert first == third
    assert first[0] == _KIND[lane]
    assert first[2] is not None
    assert second == ("unknown", bad, None)


_EXAMPLE = {
    Lane.ACCOUNT: "account",
    Lane.ALARMS: "event",
    Lane.DECISIONS: "decision",
    Lane.EVENTS: "event",
    Lane.METRICS: "metricpoint",
    Lane.READINGS: "reading",
    Lane.LOGS: "logline",
}
_KIND = _EXAMPLE


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), lane=st.sampled_from(list(Lane)))
def test_records_of_noise_have_rows(seed: int, lane: Lane) -> None:
    """Bytes that msgpack can skip, of whatever shape: each a row with just these bytes."""
    rng = random.Random(seed)
    records = [_noise(rng, 3) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.5:
        records.append(wire.encode(EXAMPLES[_EXAMPLE[lane]]))
    made = Sender(lane=lane).batch(records)
    rows = rows_of(made.header, made.header.present, batch.open_batch(made))
    table = archives._table([rows])
    with duckdb.connect(":memory:") as database:
        database.register("rows", table)
        assert database.execute("SELECT record FROM rows ORDER BY seq").fetchall() == [
            (record,) for record in records
        ]


def _noise(rng: random.Random, depth: int) -> bytes:
    choice = rng.randrange(9 if depth else 6)
    if choice == 0:
        return bytes([rng.randrange(128)])
    if choice == 1:
        return b"\xcf" + rng.randbytes(8)
    if choice == 2:
        return b"\xcb" + rng.randbytes(8)
    if choice == 3:
        return b"\xa3" + rng.randbytes(3)
    if choice == 4:
        return rng.choice([b"\xc0", b"\xc2", b"\xc3", b"\xd6\xff" + rng.randbytes(4)])
    if choice == 5:
        return b"\xc4\x02" + rng.randbytes(2)
    inner = [_noise(rng, depth - 1) for _ in range(rng.randrange(8))]
    if choice == 6:
        pairs = [b"\xa1" + bytes([97 + n % 3]) + it for n, it in enumerate(inner)]
        return bytes([0x80 | len(pairs)]) + b"".join(pairs)
    if choice == 7:
        # As a record begins: a kind that is known, in a version that is known.
        return bytes([0x92 + len(inner), rng.randrange(1, 7), 1]) + b"".join(inner)
    return bytes([0x90 | len(inner)]) + b"".join(inner)


def test_a_slice_has_the_fields_of_its_records() -> None:
    """Of a batch that came as columns, of which some numbers are held already."""
    made = _sent(Lane.METRICS, _metrics(40))
    new = Ranges(((3, 5), (30, 31)))
    taken = rows_of(made.header, new, batch.open_batch(made))
    shown = show(taken)
    assert taken.records == [wire.encode(_metrics(40)[n]) for n in new]
    assert shown.fields["value"].values.tolist() == [n / 8 for n in new]  # type: ignore[union-attr]
