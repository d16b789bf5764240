"""The packer: the same batch from a child process, and a batch whatever becomes of the child."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mesh.spool import batch
from mesh.spool.batch import COLUMN_RECORDS_MIN, Labels
from mesh.spool.frame import FrameHeader
from mesh.spool.packing import Packer, pack_run
from schemas.messages import Codec, Lane
from tests.spool.columns.numbers import framed, reading

LABELS = Labels("hall", "pump", "eu", "acme")
RECORDS = [reading(n, {"a": n / 8, "b": float(n % 5)}) for n in range(200)]
HEADERS, BODIES = framed(RECORDS, 50, Lane.READINGS)


@pytest.fixture(name="told")
def fixture_told() -> list[str]:
    """What the packer said."""
    return []


@pytest.fixture(name="packer")
def fixture_packer(told: list[str]) -> Iterator[Packer]:
    """A packer whose child ends with the test."""
    packer = Packer(told.append)
    yield packer
    packer.close()


def test_the_child_makes_the_same_batch(packer: Packer, told: list[str]) -> None:
    """As a call in this process would; it yields to everybody else, and one serves all runs."""
    made = packer.pack(LABELS, HEADERS, BODIES)
    assert made == pack_run(LABELS, HEADERS, BODIES)
    assert made.header.codec is Codec.COLUMNS
    pid = packer.child_pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert packer.pack(LABELS, HEADERS[1:], BODIES[1:]).header.first == HEADERS[1].first
    assert packer.child_pid == pid
    assert not told


def _small() -> tuple[list[FrameHeader], list[bytes]]:
    return framed(RECORDS[: COLUMN_RECORDS_MIN - 1], 50, Lane.READINGS)


@pytest.mark.parametrize("run", [_small(), framed(RECORDS, 50, Lane.EVENTS)], ids=["few", "events"])
def test_what_has_no_columns_needs_no_child(
    packer: Packer, run: tuple[list[FrameHeader], list[bytes]]
) -> None:
    """A few records, or a lane of words: rows, here, and nothing is started."""
    assert packer.pack(LABELS, *run).header.codec is Codec.ROWS_ZSTD
    assert packer.child_pid is None


def test_a_lost_child_costs_bytes_and_not_records(packer: Packer, told: list[str]) -> None:
    """Killed between two runs: the run is packed as rows, and the next one has a new child."""
    packer.pack(LABELS, HEADERS, BODIES)
    lost = packer.child_pid
    assert lost is not None
    os.kill(lost, signal.SIGKILL)
    made = packer.pack(LABELS, HEADERS, BODIES)
    assert made.header.codec is Codec.ROWS_ZSTD
    assert batch.open_records(made) == RECORDS
    assert packer.pack(LABELS, HEADERS, BODIES).header.codec is Codec.COLUMNS
    assert packer.child_pid not in {None, lost}
    assert not told


@pytest.mark.parametrize(
    "command",
    [
        ("/nowhere/python",),
        (sys.executable, "-c", "pass"),
        (sys.executable, "-c", "import sys; sys.stdin.close(); raise SystemExit(3)"),
    ],
    ids=["missing", "silent", "failing"],
)
def test_no_child_is_told_once(told: list[str], command: tuple[str, ...]) -> None:
    """A few attempts, then none: all runs are packed, and one line says why they are larger."""
    packer = Packer(told.append, command=command)
    for _ in range(6):
        made = packer.pack(LABELS, HEADERS, BODIES)
        assert made.header.codec is Codec.ROWS_ZSTD
        assert batch.open_records(made) == RECORDS
        assert packer.child_pid is None
    assert len(told) == 1
    packer.close()


def test_a_child_that_hangs_is_ended(told: list[str]) -> None:
    """It reads and never answers: the run is packed as rows once patience is out."""
    program = "import sys, time; time.sleep(60)"
    packer = Packer(told.append, command=(sys.executable, "-c", program), patience_seconds=0.2)
    assert packer.pack(LABELS, HEADERS, BODIES).header.codec is Codec.ROWS_ZSTD
    assert packer.child_pid is None
    packer.close()


def test_a_closed_packer_packs_rows(packer: Packer, told: list[str]) -> None:
    """Closing ends the child, starts none again, and is no failure to tell of."""
    packer.pack(LABELS, HEADERS, BODIES)
    pid = packer.child_pid
    assert pid is not None
    packer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert packer.pack(LABELS, HEADERS, BODIES).header.codec is Codec.ROWS_ZSTD
    assert packer.child_pid is None
    assert not told


def test_threads_take_turns(packer: Packer) -> None:
    """Each gets the batch of its own run."""
    found: dict[int, int] = {}

    def work(index: int) -> None:
        made = packer.pack(LABELS, HEADERS[index:], BODIES[index:])
        found[index] = made.header.first

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: HEADERS[index].first for index in range(3)}


_PARENT = """
import sys
from mesh.spool.packing import Packer
from tests.spool.columns.test_columns_packing import BODIES, HEADERS, LABELS
packer = Packer(print)
packer.pack(LABELS, HEADERS, BODIES)
print(packer.child_pid, flush=True)
sys.stdin.read()
"""


def test_the_child_ends_with_its_parent() -> None:
    """Row 1: however that ends: a killed parent leaves nobody behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        ended = os.pidfd_open(child)
        parent.kill()
    try:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        assert poller.poll(10_000), "the child ends within seconds"
    finally:
        os.close(ended)
