"""The tracer: makes system calls of a child fail, be slow or be the last, and sees them all.

A child may be traced from its first call on, or from any moment: a fault that begins when the test
says so needs no count of the calls that came before.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import pytest

__all__ = ["Call", "calls_of", "injected", "strace", "traced_from_start"]

_CALL: Final = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)$")
_RESUMED: Final = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)$")
_UNFINISHED: Final = " <unfinished ...>"
_PATH: Final = re.compile(r"<([^>]*)>")


def strace() -> str:
    """The tracer; the test is skipped where there is none, unless it must be there."""
    found = shutil.which("strace")
    if found is None:
        _missing("strace is not installed")
    return found


def _missing(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}, and CI=true says that nothing may be missing")
    pytest.skip(why)


@dataclass(frozen=True, slots=True)
class Call:
    """A system call as the tracer saw it.

    Args:
        thread: which thread made it.
        name: which call.
        path: of its file descriptor; empty where it has none.
        arguments: as the tracer prints them.
        result: what it returned; -1 for an error.
        injected: whether the kernel never saw it.
    """

    thread: int
    name: str
    path: str
    arguments: str
    result: int
    injected: bool


@contextmanager
def injected(process_id: int, log: Path, *faults: str, calls: str = "") -> Iterator[None]:
    """Makes system calls of a running child fail, from now on and to the end of the block.

    Args:
        process_id: which process.
        log: where the tracer writes what it sees: ``calls_of`` reads it.
        faults: as ``strace -e inject=`` takes them; calls are counted in each thread from now on.
        calls: what to see beside.
    """
    names = ",".join([*(fault.partition(":")[0] for fault in faults), *calls.split(",")])
    options = [option for fault in faults for option in ("-e", f"inject={fault}")]
    tracer = subprocess.Popen(
        [
            *(strace(), "-f", "-y", "-s", "16", "-o", str(log), "-e", f"trace={names.strip(',')}"),
            *(*options, "-p", str(process_id)),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    try:
        said = tracer.stderr.readline()
        if "attached" not in said:
            _missing(f"strace may not trace another process here: {said.strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=60)


def traced_from_start(log: Path, *faults: str, path: Path | None = None) -> list[str]:
    """The command of a tracer for a child that is to be traced from its first call on.

    Args:
        log: where the tracer writes what it sees.
        faults: as ``strace -e inject=`` takes them; calls are counted in each thread.
        path: only calls on this file.
    """
    names = ",".join(fault.partition(":")[0] for fault in faults)
    options = [option for fault in faults for option in ("-e", f"inject={fault}")]
    only = ["-P", str(path)] if path is not None else []
    return [
        *(strace(), "-f", "-y", "-qq", "-s", "16", "-o", str(log), "-e", f"trace={names}"),
        *(*options, *only),
    ]


def calls_of(log: Path) -> list[Call]:
    """What a tracer saw, in order of the ends of the calls."""
    calls: list[Call] = []
    begun: dict[str, str] = {}
    for line in log.read_text("utf-8").splitlines():
        text = line
        thread = line.partition(" ")[0]
        if line.endswith(_UNFINISHED):
            begun[thread] = line.removesuffix(_UNFINISHED)
            continue
        resumed = _RESUMED.match(line)
        if resumed is not None:
            text = begun.pop(thread, "") + resumed[3]
        found = _CALL.match(text)
        if found is not None:
            path = _PATH.search(found[3])
            result = -1 if found[4] == "?" else int(found[4])
            calls.append(
                Call(
                    int(found[1]),
                    found[2],
                    path[1] if path else "",
                    found[3],
                    result,
                    "(INJECTED)" in found[5] or "DELAYED" in found[5],
                )
            )
    return calls
