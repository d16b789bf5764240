"""The rounds: who is killed where, store after store.

A writer dies where it was told to (before, within or after the n-th call of a phase of the spool's
work), at a random moment from outside, or at the n-th system call under ``strace``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.bench.kill.marks import PAGE_BYTES, phases_at_the_end
from tests.bench.kill.nursery import Nursery, nursery
from tests.bench.kill.tally import Tally, judge
from tests.bench.kill.writer import Orders, as_line
from tests.processes import ROOT
from tests.spool.telling import Said

__all__ = ["kill_often"]

_ROUNDS_PER_STORE: Final = 50
_BYTES_MAX: Final = 384 * 1024
_BYTES_TIGHT: Final = 192 * 1024
_CALLS_MAX: Final = {
    "append": 40,
    "rotate": 12,
    "seal": 40,
    "release": 12,
    "evict": 16,
    "open": 30,
    "close": 4,
}
"""How deep into a phase a writer may be killed: so many calls come soon enough."""
_WHERE: Final = ("before", "half", "after")
_CYCLE: Final = (
    *("append", "seal", "release", "evict") * 3,
    "evict",
    *("rotate", "open") * 2,
    *("close", "outside", "outside", "strace"),
)
"""What the rounds are, in turn; shuffled for each store."""
_TRACED: Final = ("pwrite64", "fdatasync", "fsync", "?rename,?renameat", "?unlink,?unlinkat")


def kill_often(
    rounds: int, seed: int, *, jobs: int = 2, hasty: bool = False, progress: bool = False
) -> Tally:
    """Kills writers.

    Args:
        rounds: how many.
        seed: of all that is drawn; moments of kills from outside differ nevertheless.
        jobs: how many stores at a time.
        hasty: whether writers acknowledge before the spool does: then losses must be found.
        progress: whether to say on standard error how far it is.
    """
    began = time.monotonic()
    starts = range(0, rounds, _ROUNDS_PER_STORE)
    total = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-kill-") as folder,
        ThreadPoolExecutor(jobs) as pool,
    ):
        stores = pool.map(
            lambda start: _one_store(
                Path(folder) / f"store-{start}",
                min(_ROUNDS_PER_STORE, rounds - start),
                seed * 1_000_003 + start,
                hasty=hasty,
            ),
            starts,
        )
        for tally in stores:
            total.add(tally)
            if progress:
                print(f"{total.rounds} of {rounds}: {dict(total.during)}", file=sys.stderr)
    total.seconds = round(time.monotonic() - began, 1)
    return total


def _one_store(folder: Path, rounds: int, seed: int, *, hasty: bool) -> Tally:
    rng = random.Random(seed)
    kinds = [_CYCLE[number % len(_CYCLE)] for number in range(rounds)]
    rng.shuffle(kinds)
    tally = Tally(stores=1)
    page = Path(f"{folder}.page")
    with nursery() as writers:
        for kind in kinds:
            page.write_bytes(bytes(PAGE_BYTES))
            orders = _orders(folder, kind, rng, hasty=hasty)
            means = _one_round(writers, orders, kind, rng)
            tally.rounds += 1
            tally.means[means] += 1
            tally.during.update(["closed"] if means == "closed" else phases_at_the_end(page))
        last = Orders(str(folder), rng.getrandbits(32), _BYTES_MAX, "audit", seconds_max=60)
        writers.begin(last)
        if (status := writers.end()) != 0:
            raise RuntimeError(f"the last audit of {folder} ended with {status}")
    judge(Said.read(last.told), tally)
    shutil.rmtree(folder)
    return tally


def _orders(folder: Path, kind: str, rng: random.Random, *, hasty: bool) -> Orders:
    death = None
    if kind in _CALLS_MAX:
        death = (kind, rng.randint(1, _CALLS_MAX[kind]), rng.choice(_WHERE))
    tight = kind == "evict" or rng.random() < 0.1
    return Orders(
        str(folder),
        rng.getrandbits(32),
        _BYTES_TIGHT if tight else _BYTES_MAX,
        kind,
        death,
        hoards=tight,
        hasty=hasty,
    )


def _one_round(writers: Nursery, orders: Orders, kind: str, rng: random.Random) -> str:
    """Lets a writer live and die; says by what means it died."""
    if kind == "strace" and shutil.which("strace") is not None:
        return _traced(orders, rng)
    child = writers.begin(orders)
    if kind in {"outside", "strace"}:
        _wait_ready(orders)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
    status = writers.end()
    if status == -signal.SIGKILL:
        return "marks" if orders.death else "outside"
    if status == 3 and kind in {"close", "open"}:
        return "closed"
    raise RuntimeError(f"a writer ended with {status}: {orders}")


def _wait_ready(orders: Orders) -> None:
    """Returns once the writer of these orders appends, or a second later."""
    before = orders.told.stat().st_size if orders.told.exists() else 0
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if orders.told.exists():
            with orders.told.open("rb") as told:
                told.seek(max(0, before - 8))
                if b"\nready ." in told.read():
                    return
        time.sleep(0.005)


def _traced(orders: Orders, rng: random.Random) -> str:
    calls = rng.choice(_TRACED)
    number = rng.randint(1, 20)
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"),
            *("-e", f"inject={calls}:signal=KILL:when={number}"),
            *(sys.executable, "-m", "tests.bench.kill.writer", as_line(orders)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
        timeout=60,
    )
    if done.returncode not in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        raise RuntimeError(f"a traced writer ended with {done.returncode}: {orders}")
    return "strace"
