"""The trace: every event of a world, in order, and the hash by which two runs are the same."""

from collections.abc import Callable
from hashlib import sha256

__all__ = ["Trace"]


class Trace:
    """Takes events; keeps their hash, and tells them to whoever asked.

    Args:
        time: virtual seconds since the world began.
        say: is told one line for each event.
    """

    def __init__(self, time: Callable[[], float], say: Callable[[str], None] | None = None) -> None:
        self._time = time
        self._say = say
        self._hash = sha256()
        self.events = 0
        """How many there were."""

    def __repr__(self) -> str:
        return f"<Trace {self.events} events, {self.digest[:16]}>"

    @property
    def digest(self) -> str:
        """SHA-256 over all events so far, in hex."""
        return self._hash.hexdigest()

    def note(self, what: str, who: str, detail: object = "") -> None:
        """Takes one event.

        Args:
            what: what happened.
            who: to whom.
            detail: what else matters; its text must not depend on addresses or hashes.
        """
        line = f"{self._time():.6f} {what} {who} {detail}".rstrip()
        self._hash.update(line.encode() + b"\n")
        self.events += 1
        if self._say is not None:
            self._say(line)
