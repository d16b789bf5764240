"""The demonstration's judgement: what it must notice is planted, and must be noticed."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from mesh.spool.batch import Opened
from nodes.headquarters.archive import Archive
from nodes.headquarters.rows import rows_of
from schemas import wire
from schemas.messages import (
    Account,
    BatchHeader,
    Codec,
    Epoch,
    Event,
    Lane,
    Severity,
)
from schemas.ranges import Ranges
from simulator.demo.audit import audit, total
from simulator.demo.log import Seen, read
from simulator.demo.outcome import judge
from simulator.demo.script import Act, Kill, plan

EPOCH = Epoch(1, 7)
SECOND = 1_000_000_000


def header(lane: Lane, first: int, count: int) -> BatchHeader:
    """A header as far as the archive reads it."""
    return BatchHeader(
        store=bytes(16),
        site="harbour",
        node="edge-1",
        epoch=EPOCH,
        lane=lane,
        first=first,
        last=first + count - 1,
        count=count,
        present=Ranges(((first, first + count),)),
        frames=(count,),
        chain_before=bytes(16),
        chain_after=bytes(16),
        first_wall_ns=0,
        last_wall_ns=0,
        clock_trusted=True,
        boot=bytes(16),
        running_ns=0,
        codec=Codec.ROWS_ZSTD,
        schema="records.v1",
        raw_bytes=1,
        body_bytes=1,
        body_digest=bytes(32),
        priority=lane.priority,
    )


def archived(root: Path, *batches: tuple[Lane, int, list[object]]) -> Path:
    """An archive with these messages, one file a batch."""
    archive = Archive(root)
    for index, (lane, first, messages) in enumerate(batches):
        head = header(lane, first, len(messages))
        records = [wire.encode(message) for message in messages]
        bounds = np.cumsum([0, *map(len, records)])
        rows = rows_of(head, head.present, Opened(b"".join(records), bounds, None))
        archive.stage(f"{index:03d}-a", [rows])
        archive.publish(f"{index:03d}-a")
    archive.close()
    return root


def events(count: int) -> list[object]:
    """Some records."""
    return [Event(0, 0, "x", Severity.NOTICE, str(n), {}) for n in range(count)]


def heard(*spans: tuple[int, int], lane: Lane = Lane.EVENTS) -> Seen:
    """A testimony that heard these numbers."""
    seen = Seen()
    seen.lane(str(EPOCH), lane).heard = Ranges.of(spans)
    return seen


def test_a_decision_that_was_heard_and_is_nowhere_is_unaccounted(tmp_path: Path) -> None:
    """What the broker saw and nobody has, and nobody explains, is unaccounted."""
    lines = audit(heard((0, 10)), archived(tmp_path, (Lane.EVENTS, 0, events(7))))
    assert lines[Lane.EVENTS].unaccounted == 3
    assert lines[Lane.EVENTS].produced == 10
    assert lines[Lane.EVENTS].delivered == 7


def test_a_hole_between_rows_is_unaccounted_though_nobody_heard_it(tmp_path: Path) -> None:
    """Numbers below the highest row that have no row are missing, in lanes that nobody can hear."""
    root = archived(tmp_path, (Lane.EVENTS, 0, events(3)), (Lane.EVENTS, 5, events(2)))
    line = audit(Seen(), root)[Lane.EVENTS]
    assert (line.produced, line.delivered, line.unaccounted) == (7, 5, 2)


def test_an_identity_in_two_rows_is_counted(tmp_path: Path) -> None:
    """A second row of an identity is archived twice, however many files lie between."""
    root = archived(tmp_path, (Lane.EVENTS, 0, events(4)), (Lane.EVENTS, 2, events(3)))
    line = audit(Seen(), root)[Lane.EVENTS]
    assert (line.archived_twice, line.delivered) == (2, 5)


def test_a_void_that_was_heard_is_explained_and_one_unheard_is_only_told(tmp_path: Path) -> None:
    """Void numbers count as produced only where somebody heard them; the rest is unseen."""
    account = Account(0, 0, Lane.EVENTS, EPOCH, 1, 9, {"void": Ranges(((3, 8),))}, {})
    root = archived(
        tmp_path,
        (Lane.EVENTS, 0, events(3)),
        (Lane.EVENTS, 8, events(1)),
        (Lane.ACCOUNT, 0, [account]),
    )
    line = audit(heard((0, 5)), root)[Lane.EVENTS]
    assert line.explained == {"void": 2}
    assert line.unseen == 3
    assert line.unaccounted == 0
    assert line.produced == line.delivered + line.pending + 2 + line.unaccounted


def test_the_sum_of_lines_is_the_sum_of_each_column(tmp_path: Path) -> None:
    """The last line of the table adds up."""
    root = archived(tmp_path, (Lane.EVENTS, 0, events(3)), (Lane.LOGS, 0, events(5)))
    assert total(list(audit(Seen(), root).values())).delivered == 8


def test_an_empty_archive_delivers_nothing(tmp_path: Path) -> None:
    """No file is no row, and no error."""
    line = audit(heard((0, 4)), archived(tmp_path))[Lane.EVENTS]
    assert (line.delivered, line.unaccounted) == (0, 4)


def log(path: Path, lines: list[dict[str, object]]) -> Path:
    """A witness's log."""
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def reading(number: int, at: float, flaw: str = "") -> dict[str, object]:
    """A reading that was published."""
    ns = int(at * SECOND)
    return {"reading": number, "ns": ns, "digest": str(number), "flaw": flaw}


def decision(seq: int, at: float, trace: object) -> dict[str, object]:
    """A decision that was heard."""
    ns = int(at * SECOND)
    base = {"decision": seq, "ns": ns, "epoch": str(EPOCH), "lane": "decisions", "ms": 1.0}
    return base | {"digest": str(trace), "verdict": "normal"}


def mark(act: Act, at: float) -> dict[str, object]:
    """Something that the demonstration did."""
    return {"mark": act, "ns": int(at * SECOND)}


def steady(gap: range = range(0)) -> list[dict[str, object]]:
    """Ten readings a second for ten seconds, cut from 2 to 6, decisions for all but a gap."""
    lines: list[dict[str, object]] = [mark(Act.CUT, 2), mark(Act.RESTORE, 6), mark(Act.STOP, 10)]
    for n in range(100):
        lines.append(reading(n, n / 10 + 0.01))
        if n not in gap:
            lines.append(decision(n, n / 10 + 0.02, n))
    receipt = {"receipt": 100, "epoch": str(EPOCH), "lane": "decisions", "ns": 7 * SECOND}
    return [*lines, receipt]


def test_a_steady_run_is_as_it_must_be(tmp_path: Path) -> None:
    """The rate in each second of the outage is that of the readings.

    The drain ends with the receipt.
    """
    outcome = judge(read(log(tmp_path / "log", steady())), {}, 50.0, Kill.NONE)
    assert outcome.failures == ()
    assert (outcome.outage_rate_min, outcome.outage_rate_max) == (1.0, 1.0)
    assert outcome.drain_seconds == 1.0
    assert outcome.decided_during_outage == 40


def test_a_second_without_decisions_fails_the_run(tmp_path: Path) -> None:
    """A lull of a second during the outage is more than five percent."""
    lines = steady(range(30, 40))
    outcome = judge(read(log(tmp_path / "log", lines)), {}, 50.0, Kill.NONE)
    assert any("second of the outage" in failure for failure in outcome.failures)


def test_a_backlog_without_a_receipt_fails_the_run(tmp_path: Path) -> None:
    """Without a receipt nothing is known to have drained."""
    outcome = judge(read(log(tmp_path / "log", steady()[:-1])), {}, 50.0, Kill.NONE)
    assert "the backlog did not drain" in outcome.failures


def test_readings_while_the_edge_is_dead_are_not_received(tmp_path: Path) -> None:
    """They are counted apart from those that a window holds back."""
    lines = steady(range(30, 42))
    lines += [mark(Act.KILL_EDGE, 3.0), mark(Act.RESTART_EDGE, 3.5)]
    lines.append({"mark": "edge online", "ns": 4 * SECOND})
    outcome = judge(read(log(tmp_path / "log", lines)), {}, 50.0, Kill.EDGE)
    assert outcome.not_received == 10
    assert outcome.waiting == 2


def test_a_decision_on_a_flawed_reading_fails_the_run(tmp_path: Path) -> None:
    """What is no reading must not be decided on."""
    lines = [
        line | {"flaw": "not JSON"} if line.get("reading") == 50 else line for line in steady()
    ]
    outcome = judge(read(log(tmp_path / "log", lines)), {}, 50.0, Kill.NONE)
    assert "1 flawed readings decided on" in outcome.failures


def test_the_script_keeps_its_order_and_fits() -> None:
    """An edge is killed inside the outage, headquarters after it.

    An outage that does not fit is refused.
    """
    edge = [step.act for step in plan(30, 12, Kill.EDGE)]
    assert edge == [Act.CUT, Act.KILL_EDGE, Act.RESTART_EDGE, Act.RESTORE, Act.STOP]
    later = [step.act for step in plan(30, 12, Kill.HEADQUARTERS)]
    assert later.index(Act.KILL_HEADQUARTERS) > later.index(Act.RESTORE)
    with pytest.raises(ValueError, match="needs a run of at least"):
        plan(10, 12, Kill.NONE)
