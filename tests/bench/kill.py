"""``kill -9`` of a writing process, again and again, on the same stores.

A writer appends to all lanes, acknowledges what the spool called durable, forwards, releases, and
has so little room that the spool seals and evicts all the time. It dies where it was told to
(before, within or after the n-th call of a phase of the spool's work), at a random moment from
outside, or at the n-th system call under ``strace``. The next writer opens what it left and
compares everything that can be read with everything that was ever said of that store. The page
cache survives a kill: what this proves is the order of the calls, not of the platters.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from tests.bench.kill_marks import PAGE_BYTES, phases_at_the_end
from tests.bench.kill_writer import Orders, as_line
from tests.spool.telling import Said

__all__ = ["Tally", "kill_often", "main"]

_ROOT: Final = Path(__file__).parent.parent.parent
_ROUNDS_PER_STORE: Final = 50
_BYTES_MAX: Final = 224 * 1024
_BYTES_TIGHT: Final = 96 * 1024
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


@dataclass
class Tally:
    """What came of all rounds.

    Args:
        rounds: writers that were killed, or closed in order.
        stores: how many stores they shared.
        acknowledged: records that were said to be durable.
        lost: acknowledged records that are neither there, nor released, nor stated as evicted.
        reused: numbers that came to name two records.
        untrue: anything else that does not add up.
        during: how many writers died in each phase.
        means: how many died by marks, from outside, under strace; how many closed in order.
        audits: how often everything was compared.
        seconds: how long all took.
        examples: the first few of what is wrong.
    """

    rounds: int = 0
    stores: int = 0
    acknowledged: int = 0
    lost: int = 0
    reused: int = 0
    untrue: int = 0
    during: Counter[str] = field(default_factory=Counter)
    means: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Takes another store's."""
        for name in ("rounds", "stores", "acknowledged", "lost", "reused", "untrue", "audits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.during += other.during
        self.means += other.means
        self.examples = [*self.examples, *other.examples][:10]

    def document(self) -> dict[str, object]:
        """As JSON says it."""
        return {**vars(self), "during": dict(self.during), "means": dict(self.means)}


class _Nursery:
    """A process that has imported everything, and forks writers."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.kill_writer"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, orders: Orders) -> int:
        """Starts a writer; returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(as_line(orders) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Waits for the writer's end: what it exited with, or minus the signal that ended it."""
        return self._answer()

    def close(self) -> None:
        """Ends the nursery."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery of writers has died")
        return int(line)


@contextmanager
def _nursery() -> Iterator[_Nursery]:
    nursery = _Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


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
    with _nursery() as nursery:
        for kind in kinds:
            page.write_bytes(bytes(PAGE_BYTES))
            orders = _orders(folder, kind, rng, hasty=hasty)
            means = _one_round(nursery, orders, kind, rng)
            tally.rounds += 1
            tally.means[means] += 1
            tally.during.update(["closed"] if means == "closed" else phases_at_the_end(page))
        last = Orders(str(folder), rng.getrandbits(32), _BYTES_MAX, "audit", seconds_max=60)
        nursery.begin(last)
        if (status := nursery.end()) != 0:
            raise RuntimeError(f"the last audit of {folder} ended with {status}")
    _judge(Said.read(last.told), tally)
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


def _one_round(nursery: _Nursery, orders: Orders, kind: str, rng: random.Random) -> str:
    """Lets a writer live and die; says by what means it died."""
    if kind == "strace" and shutil.which("strace") is not None:
        return _traced(orders, rng)
    child = nursery.begin(orders)
    if kind in {"outside", "strace"}:
        _wait_ready(orders)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
    status = nursery.end()
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
            *(sys.executable, "-m", "tests.bench.kill_writer", as_line(orders)),
        ],
        cwd=_ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
        timeout=60,
    )
    if done.returncode not in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        raise RuntimeError(f"a traced writer ended with {done.returncode}: {orders}")
    return "strace"


def _judge(said: Said, tally: Tally) -> None:
    """Counts what the audits found: each loss once, however often it was seen."""
    lost: set[str] = set()
    reused: set[str] = set(said.reused)
    untrue: set[str] = set()
    for words in said.other:
        if words[0] == "audit":
            found = json.loads(" ".join(words[1:]))
            tally.audits += 1
            lost.update(found["lost"])
            reused.update(found["reused"])
            untrue.update(found["untrue"])
    tally.acknowledged += said.acknowledged
    tally.lost += len(lost)
    tally.reused += len(reused)
    tally.untrue += len(untrue)
    tally.examples += sorted(lost)[:3] + sorted(reused)[:3] + sorted(untrue)[:3]


def main(
    rounds: Annotated[int, typer.Option(help="how many writers to kill")] = 1000,
    seed: Annotated[int, typer.Option(help="of all that is drawn")] = 1,
    jobs: Annotated[int, typer.Option(help="how many stores at a time")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="figures as JSON")] = False,
) -> None:
    """Kill -9 of a writing process: what was acknowledged is there, no number is used twice."""
    tally = kill_often(rounds, seed, jobs=jobs, progress=not as_json)
    if as_json:
        print(json.dumps(tally.document(), indent=2))
    else:
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(tally.during.items()))
        print(f"{tally.rounds} kills in {tally.seconds:.0f} s, during: {phases}")
        print(f"acknowledged {tally.acknowledged}, lost {tally.lost}, reused {tally.reused}")
        for example in tally.examples:
            print(f"  {example}")
    if tally.lost or tally.reused or tally.untrue:
        raise typer.Exit(1)
