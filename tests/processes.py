"""The command ``holdfast`` as processes for tests: started, awaited, ended.

Their logs shown when a test fails.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ROOT", "holdfast", "run"]

ROOT = Path(__file__).parent.parent
_END_SECONDS_MAX = 30.0


def run(
    *arguments: str, seconds: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "nodes", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextmanager
def holdfast(log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command beside the test.

    Ends it with SIGTERM, or SIGKILL where that takes too long.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodes", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_SECONDS_MAX)
        print(f"--- {' '.join(arguments)}\n{log.read_text('utf-8', 'replace')[-4000:]}")
