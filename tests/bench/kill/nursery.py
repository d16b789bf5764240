"""The nursery: a process that has imported everything, and forks the writers that are killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.kill.writer import Orders, as_line
from tests.processes import ROOT

__all__ = ["Nursery", "nursery"]


class Nursery:
    """Begins one writer at a time, and waits for its end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.kill.writer"],
            cwd=ROOT,
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
def nursery() -> Iterator[Nursery]:
    """A nursery that ends with the block."""
    running = Nursery()
    try:
        yield running
    finally:
        running.close()
