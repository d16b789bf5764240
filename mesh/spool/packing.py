"""A packer: makes batches in a child process, so that nothing here waits for the interpreter.

Columns take milliseconds of Python for a batch, and a thread that takes them takes them from the
loop as well. So a child of low priority packs what has columns; the rest is packed where it is
asked for, in calls that release the interpreter.

The child is this module run by itself: it imports what packs and nothing else, where a pool of
``multiprocessing`` would import the main program once more and keep a process beside it that tracks
resources. It is started by the first run that needs it. It ends when its pipe does, and so with its
parent, however that ends. It touches no file.

A run that the child does not bring back is packed as rows instead, which is the same records in
more bytes. A child that was lost is replaced, but not for ever: after a few losses in a row there
is none any more. That is told once.

The pipe carries pickled values between two processes of one program and one user; nothing that
comes from outside is unpickled, since bodies are bytes here and are not read.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Final

from mesh.spool import batch
from mesh.spool.batch import Batch, Labels, has_columns
from mesh.spool.frame import FrameHeader
from schemas.errors import Refused

__all__ = ["Packer", "pack_run"]

_NICE: Final = 10
_PATIENCE_SECONDS: Final = 30.0
_END_SECONDS: Final = 2.0
_LOSSES_MAX: Final = 3
_ROOT: Final = Path(__file__).resolve().parents[2]


def pack_run(labels: Labels, headers: Sequence[FrameHeader], bodies: Sequence[bytes]) -> Batch:
    """A run of frames as a batch, in whichever codec is smaller: what the child does."""
    return batch.pack(labels, headers, bodies)


class Packer:
    """Packs runs of frames. Any thread may call it; one run at a time goes to the child.

    Args:
        tell: is called once, with the reason, when the child is given up.
        command: what is run as the child; its last argument will be the number of its pipe.
        patience_seconds: how long the child may take for a batch.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        command: Sequence[str] = (sys.executable, "-m", "mesh.spool.packing"),
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._tell = tell
        self._command = command
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._losses = 0

    @property
    def child_pid(self) -> int | None:
        """The child's process id; ``None`` while there is none."""
        child = self._child
        return None if child is None else child.process.pid

    def pack(
        self, labels: Labels, headers: Sequence[FrameHeader], bodies: Sequence[bytes]
    ) -> Batch:
        """A run of frames as a batch. Blocks; never fails for want of a child.

        Args:
            labels: the origin.
            headers: consecutive frames of one lane and epoch.
            bodies: their bodies.
        """
        if has_columns(headers):
            found = self._ask(labels, headers, bodies)
            if found is not None:
                return found
        return batch.pack(labels, headers, bodies, rows_only=True)

    def close(self) -> None:
        """Ends the child. A run after that is packed as rows."""
        with self._lock:
            self._losses = _LOSSES_MAX
            self._drop()

    def _ask(
        self, labels: Labels, headers: Sequence[FrameHeader], bodies: Sequence[bytes]
    ) -> Batch | None:
        with self._lock:
            if self._losses >= _LOSSES_MAX:
                return None
            try:
                if self._child is None:
                    self._child = _Child.start(self._command)
                found = self._child.ask((labels, headers, bodies), self._patience_seconds)
            except (OSError, EOFError) as lost:
                self._drop(kill=True)
                self._losses += 1
                if self._losses == _LOSSES_MAX:
                    why = str(lost) or type(lost).__name__
                    self._tell(f"no child packs any more, batches will be larger: {why}")
                return None
            self._losses = 0
            return found

    def _drop(self, *, kill: bool = False) -> None:
        if self._child is not None:
            self._child.end(kill=kill)
            self._child = None


class _Child:
    """The process and our end of its pipe."""

    def __init__(self, process: "subprocess.Popen[bytes]", pipe: "Connection") -> None:
        self.process = process
        self._pipe = pipe

    @classmethod
    def start(cls, command: Sequence[str]) -> "_Child":
        """Starts the process; it is not waited for.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = Pipe()
        environment = dict(os.environ)
        found = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(_ROOT) if not found else f"{_ROOT}{os.pathsep}{found}"
        try:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours)

    def ask(self, run: object, patience_seconds: float) -> Batch | None:
        """What the child makes of a run; ``None`` where it refuses.

        Raises:
            OSError: it is gone, or takes too long.
            EOFError: it is gone.
        """
        self._pipe.send(run)
        if not self._pipe.poll(patience_seconds):
            raise TimeoutError(f"no batch after {patience_seconds:g} s")
        found = self._pipe.recv()
        return found if isinstance(found, Batch) else None

    def end(self, *, kill: bool) -> None:
        """Ends the process and waits for it; unless it is to be killed, it may finish its run."""
        self._pipe.close()
        try:
            self.process.wait(0 if kill else _END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _serve(pipe: "Connection") -> None:
    """Packs what comes until the parent hangs up."""
    while True:
        try:
            labels, headers, bodies = pipe.recv()
        except (EOFError, OSError):
            return
        found: Batch | None
        try:
            found = pack_run(labels, headers, bodies)
        except Refused:
            found = None
        try:
            pipe.send(found)
        except OSError:
            return


def _main() -> None:
    # Who stops the whole group means the parent, which may still seal before it ends this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(_NICE)
    _serve(Connection(int(sys.argv[-1])))


if __name__ == "__main__":
    _main()
