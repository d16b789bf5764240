"""The driver of a child that owns a spool, and the audit of what it leaves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mesh.spool.spool import SpoolSettings
from schemas.messages import Explained
from tests.processes import ROOT
from tests.spool.telling import Said
from tests.spool.verifier import LABELS, Findings, opened, verify

__all__ = ["Child", "audited", "child"]

_POLL_SECONDS: Final = 0.05


class Child:
    """A child that runs.

    Args:
        process: which process; a tracer's, when it was traced from the start.
        folder: of its spool.
        told: what it says.

    ``opening`` is what it said first: the epoch that it opened, or why it did not.
    """

    def __init__(self, process: "subprocess.Popen[str]", folder: Path, told: Path) -> None:
        self.process = process
        self.folder = folder
        self.told = told
        self.opening = self.hear()
        self.process_id = int(self.opening["process_id"])

    def ask(self, do: str, **request: object) -> dict[str, Any]:
        """Asks, and waits for the answer."""
        self.tell(do, **request)
        return self.hear()

    def tell(self, do: str, **request: object) -> None:
        """Asks, and goes on."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as ended:
            raise EOFError(f"the child ended with {self.process.wait(10)}") from ended

    def hear(self) -> dict[str, Any]:
        """Waits for an answer.

        Raises:
            EOFError: the child has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the child ended with {self.process.wait(10)}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def append(self, lane: str = "events", count: int = 1, size: int = 100) -> dict[str, Any]:
        """Appends and waits."""
        return self.ask("append", lane=lane, count=count, size=size)

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> None:
        """Asks for the status again and again until it is as wanted."""
        status: dict[str, Any] = {}
        for _ in range(int(seconds / _POLL_SECONDS)):
            status = self.ask("status")
            if wanted(status):
                return
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"not in {seconds} s: {status}")

    def kill(self) -> None:
        """``kill -9``."""
        os.kill(self.process_id, signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> bool:
        """Lets it close the spool in order; whether it came to that, or was killed on the way."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        ended = self.process.wait(30)
        assert ended in {0, -signal.SIGKILL}, ended
        return ended == 0


@contextmanager
def child(
    folder: Path, *, told: Path | None = None, before: Sequence[str] = (), **options: object
) -> Iterator[Child]:
    """A child with an open spool; killed at the end unless it has ended.

    Args:
        folder: of its spool.
        told: where it tells; beside the folder by default.
        before: what comes before its command, for example a tracer.
        options: of ``SpoolSettings``; ``threads`` and ``maintain`` as ``opened`` takes them.
    """
    told = told or folder.with_suffix(".told")
    with subprocess.Popen(
        [
            *before,
            *(sys.executable, "-m", "tests.spool.child"),
            *(str(folder), str(told), json.dumps(options)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        running: Child | None = None
        try:
            running = Child(process, folder, told)
            yield running
        finally:
            if process.poll() is None:
                _end(process, running)
            _drop(process)


def _end(process: "subprocess.Popen[str]", running: Child | None) -> None:
    """Kills a child; where it is traced, the tracer ends with it."""
    if running is None:
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.kill(running.process_id, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _drop(process: "subprocess.Popen[str]") -> None:
    """Closes the way to a child that may have ended with something still on its way."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def audited(
    folder: Path,
    told: Path,
    given_up: Collection[Explained] = (),
    **options: int,
) -> Findings:
    """Opens what a child left, compares, closes, and compares once more.

    Args:
        folder: the spool's.
        told: what was said of it.
        given_up: the reasons for which an acknowledged record may be gone.
        options: of ``SpoolSettings``.
    """

    async def compare() -> Findings:
        said = Said.read(told)
        async with opened(folder, SpoolSettings(LABELS, **options)) as spool:
            return await verify(spool, said, given_up)

    first = asyncio.run(compare())
    second = asyncio.run(compare())
    assert first.clean, first
    assert second.clean, second
    for lane, reasons in first.explained.items():
        for why, numbers in reasons.items():
            assert not numbers - second.explains(lane, Explained(why)), "what is stated stays"
    return second
