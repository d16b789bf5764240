"""The writer: a process that works on a disk until the power is cut, and tells the bench meanwhile.

It tells of each acknowledgement at once, through a pipe. The bench believes what it has read before
the cut, and nothing later. A writer ends with the bench, however that ends.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mesh.adapters.child import bound_to_parent
from tests.processes import ROOT

__all__ = ["Writer", "say", "writing"]

_START_SECONDS_MAX: Final = 30.0
_READ_BYTES: Final = 1 << 20


def say(kind: str, *words: object) -> None:
    """Tells the bench at once; called by a writer."""
    os.write(1, " ".join((kind, *map(str, words))).encode("ascii") + b"\n")


class Writer:
    """A running writer, and what it has told so far.

    Args:
        process: its process; standard output is the pipe.
        log: where it complains.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        assert process.stdout is not None, "it tells through a pipe"
        self._process = process
        self._pipe = process.stdout.fileno()
        self._log = log
        self._told: list[bytes] = []
        os.set_blocking(self._pipe, False)

    def listen(self, seconds: float) -> bytes:
        """Listens until so many seconds after the first acknowledgement; returns what was told.

        Raises:
            AssertionError: the writer ended, or acknowledged nothing.
        """
        begun = time.monotonic()
        until = begun + _START_SECONDS_MAX
        heard = False
        while (now := time.monotonic()) < until:
            if not self._read():
                time.sleep(min(0.001, until - now))
            elif not heard and b"A " in self._told[-1]:
                heard, until = True, time.monotonic() + seconds
            assert self._process.poll() is None, f"the writer ended: {self._complaint()}"
        assert heard, f"nothing was acknowledged: {self._complaint()}"
        return b"".join(self._told)

    def end(self) -> bytes:
        """Kills it; returns what it told since ``listen`` has returned."""
        self._process.kill()
        self._process.wait()
        known = len(self._told)
        while self._read():
            pass
        return b"".join(self._told[known:])

    def _read(self) -> bool:
        """Whether anything was there to be read."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._told.append(data)
        return bool(data)

    def _complaint(self) -> str:
        return self._log.read_text("utf-8", "replace")[-2000:]


@contextmanager
def writing(log: Path, module: str, arguments: Iterable[object]) -> Iterator[Writer]:
    """Runs a module of this folder as a writer; it ends with the block, or with this process."""
    command = (sys.executable, "-m", f"tests.bench.powercut.{module}", *map(str, arguments))
    with log.open("ab") as output:
        process = subprocess.Popen(
            bound_to_parent(command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            # Ctrl-C is for the bench, which then ends its children in order.
            start_new_session=True,
        )
    with process:
        try:
            yield Writer(process, log)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
