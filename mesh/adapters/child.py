"""Children that die with their parent, however the parent dies.

The kernel sends a signal when the parent is gone (``PR_SET_PDEATHSIG``, prctl(2)). It must be asked
by the child itself, after the fork; so the child begins as a small launcher, which asks, makes sure
that the parent was not gone before it asked, and becomes the command. No further process stays. The
signal comes at the end of the *thread* that started the child, so children are started from the
thread that runs the loop.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

__all__ = ["bound_to_parent"]

_LAUNCHER: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
if prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_parent(command: Sequence[str], parent: int | None = None) -> tuple[str, ...]:
    """The command line that runs a command as a child that dies with its parent.

    Args:
        command: the path of a program, and its arguments.
        parent: process id of the parent; this process by default.
    """
    return (
        *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
        str(os.getpid() if parent is None else parent),
        *command,
    )
