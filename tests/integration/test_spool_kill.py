"""A spool whose process is killed: at each system call, and again and again while it writes."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import pytest

from schemas.messages import Explained
from tests.bench.kill.rounds import kill_often
from tests.spool.driving import audited, child
from tests.spool.tracing import calls_of, traced_from_start

pytestmark = pytest.mark.timeout(300)

CHANGING = "pwrite64,fdatasync,fsync,?rename,?renameat,?unlink,?unlinkat,?mkdir,?mkdirat"
"""All system calls by which a spool changes what is on disk."""


def history(folder: Path, before: list[str]) -> bool:
    """Makes a spool; appends, rotates, seals, releases, evicts; closes. All calls in one thread.

    Returns:
        Whether it came to the end.
    """
    options = {
        "threads": 1,
        "journal_bytes_max": 3000,
        "spare_bytes": 4096,
        "bytes_max": 72_000,
    }
    with suppress(EOFError), child(folder, before=before, **options) as process:
        for _ in range(4):
            for lane in ("events", "logs", "decisions"):
                process.append(lane=lane, count=2, size=600)
        process.until(lambda _: bool(list(folder.glob("lanes/events/*/*.batch"))))
        process.ask("release", lane="events", stop=4)
        for _ in range(6):
            process.append(lane="logs", count=2, size=2000)
        process.until(lambda status: bool(status["explained"]["logs"]))
        process.append(lane="events")
        return process.close()
    return False


def test_a_kill_at_a_call(tmp_path: Path) -> None:
    """Row 1: killed at any system call, it opens again by itself and nothing said is untrue."""
    kill_at_calls(tmp_path, 9)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_kill_at_every_call(tmp_path: Path) -> None:
    """Row 1: the same at each of the calls, first to last."""
    kill_at_calls(tmp_path, 0)


def kill_at_calls(folder: Path, samples: int) -> None:
    """Lives the history with a kill at the n-th call, for all n, or so many spread over them."""
    log = folder / "log"
    assert history(folder / "whole", traced_from_start(log, f"{CHANGING}:error=EIO:when=65535"))
    calls = calls_of(log)
    assert len({call.thread for call in calls}) == 1, "each call has its place in one order"
    # The tracer counts each name by itself.
    names = Counter(call.name for call in calls)
    points = [(name, n) for name, count in names.items() for n in range(1, count + 1)]
    assert len(points) > 100
    chosen = points[:: len(points) // samples] if samples else points
    killed = 0
    for name, number in chosen:
        spool = folder / f"{name}-{number}"
        tracer = traced_from_start(log, f"{name}:signal=KILL:when={number}")
        killed += not history(spool, tracer)
        audited(spool, spool.with_suffix(".told"), [Explained.EVICTED])
        rmtree(spool)
    assert killed >= len(chosen) * 3 // 4, "too few were killed"


def test_kills_of_a_writing_process() -> None:
    """Row 1: killed within each phase of its work, nothing said is lost, no number comes twice."""
    tally = kill_often(40, seed=11)
    assert tally.rounds == 40
    assert (tally.lost, tally.reused, tally.untrue) == (0, 0, 0), tally
    assert tally.acknowledged > 1000
    assert tally.audits > 30
    for phase in ("append", "seal", "release", "evict"):
        assert tally.during[phase] >= 2, tally


def test_a_writer_that_lies_is_found() -> None:
    """A writer that acknowledges before the spool did is caught by the same kills."""
    assert kill_often(20, seed=12, hasty=True).lost > 0
