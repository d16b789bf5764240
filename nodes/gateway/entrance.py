"""An entrance: a way by which edges come, of which somebody should know whether it is open.

A gateway whose broker is away, or does not let it in, looks as one to which nobody sends anything.
"""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

from mesh.ports import LinkState, Observer
from nodes.gateway.events import EntranceChanged

__all__ = ["Entrance", "Opened"]

_LOOK_SECONDS: Final = 10.0
_MOMENT_SECONDS: Final = 0.5


class Opened(Protocol):
    """What comes up and goes down: an intake."""

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        ...

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        ...


class Entrance:
    """Tells how an intake stands.

    Args:
        url: what was configured.
        intake: what stands there.
        observer: is told.
    """

    def __init__(self, url: str, intake: Opened, observer: Observer) -> None:
        self._url = url
        self._intake = intake
        self._observer = observer

    def __repr__(self) -> str:
        return f"<Entrance {self._url} {self._intake.state}>"

    async def run(self) -> None:
        """Tells each change until cancelled, and each other reason for which it is shut."""
        told: tuple[bool, str] | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._intake.wait_changed(self._intake.state)
            # What passes in a moment needs no word: a broker that is asked for another version.
            await asyncio.sleep(_MOMENT_SECONDS)
            state = self._intake.state
            if (state.up, state.reason) != told:
                told = (state.up, state.reason)
                self._observer.observe(EntranceChanged(self._url, state.up, state.reason))
