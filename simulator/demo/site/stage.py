"""One run of a site on its stage: carries out the acts of the script, and keeps what was done."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.adapters.jetstream.tap import Tap
from simulator.demo.parties import PartyFailed, running
from simulator.demo.site.cluster import ServerCluster
from simulator.demo.site.outcome import Happened
from simulator.demo.site.parties import SiteParties, Wan
from simulator.demo.site.script import CommitStep, SiteAct, SiteStep

__all__ = ["SiteProgress", "SiteStage"]

_READY_SECONDS: Final = 90.0
_DRAIN_SECONDS: Final = 90.0
_DEATH_SECONDS: Final = 40.0
_HANDOVER_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.25
_KILLED_BY: Final = -9


@dataclass(frozen=True, slots=True)
class SiteProgress:
    """For the screen: what happens now.

    Args:
        elapsed: seconds since the plant began.
        note: what is being done.
        standing: the witness's latest word.
        up: whether the WAN carries.
        parties: who is there, by name.
        happened: what was done so far.
    """

    elapsed: float
    note: str
    standing: Mapping[str, Any]
    up: bool
    parties: Mapping[str, bool]
    happened: Sequence[Happened]


class SiteStage:
    """One run.

    Args:
        parties: its processes.
        cluster: headquarters' servers.
        wan: the network between the gateway and them.
        gateway_url: of the gateway's own server.
        show: is told what happens, a few times a second.
    """

    def __init__(
        self,
        parties: SiteParties,
        cluster: ServerCluster,
        wan: Wan,
        gateway_url: str,
        show: Callable[[SiteProgress], None],
    ) -> None:
        self._parties = parties
        self._cluster = cluster
        self._wan = wan
        self._gateway_url = gateway_url
        self._show = show
        self._up = True
        self._started: float | None = None
        self._dying: asyncio.Task[None] | None = None
        self.happened: list[Happened] = []
        """What was done."""
        self.died_after: list[CommitStep] = []
        """The steps after which worker 1 was killed."""

    # --- before --------------------------------------------------------------------------------

    async def until(self, note: str, ready: Callable[[Mapping[str, Any]], bool]) -> None:
        """Until the witness says so.

        Args:
            note: what is waited for, for people.
            ready: judges the witness's word.

        Raises:
            PartyFailed: somebody ended meanwhile, or it took too long.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not ready(await self._parties.witness.hear()):
                    self._parties.check_alive()
                    self._tell(note)
        except TimeoutError:
            raise PartyFailed(f"{note}: not ready after {_READY_SECONDS:.0f} s") from None

    # --- the script ----------------------------------------------------------------------------

    async def play(self, steps: Sequence[SiteStep]) -> None:
        """Carries out the steps; the last one waits until worker 1 has died after each step.

        Raises:
            PartyFailed: a process ended that was not killed.
        """
        loop = asyncio.get_running_loop()
        await self._parties.witness.say({"do": "start", "what": "start"})
        self._started = loop.time()
        note = "deciding"
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen())
                for step in steps:
                    due = self._started + step.at
                    while loop.time() < due or (step.act is SiteAct.STOP and self._is_dying()):
                        self._parties.check_alive()
                        self._tell(note)
                        await asyncio.sleep(min(max(due - loop.time(), 0.01), _SAMPLE_SECONDS))
                    await self._act(step.act, tasks)
                    note = step.act.value
                listening.cancel()
        except* PartyFailed as failures:
            raise failures.exceptions[0] from None

    def _is_dying(self) -> bool:
        return self._dying is not None and not self._dying.done()

    async def _listen(self) -> None:
        while True:
            await self._parties.witness.hear()

    async def _act(self, act: SiteAct, tasks: asyncio.TaskGroup) -> None:
        parties, what = self._parties, act.value
        match act:
            case SiteAct.CUT:
                await self._wan.cut()
                self._up = False
            case SiteAct.RESTORE:
                await self._wan.restore()
                self._up = True
            case SiteAct.KILL_WORKER:
                self._dying = tasks.create_task(self._die_by_steps())
            case SiteAct.KILL_SERVER:
                leader = await self._cluster.leader()
                self._cluster.kill(leader)
                what = f"kill {leader}, the leader of the stream"
            case SiteAct.KILL_GATEWAY:
                parties.away.add(parties.gateway.name)
                what = f"kill the gateway: {await self._kill_in_handover()}"
            case SiteAct.RESTART_GATEWAY:
                await parties.gateway.ended()
                await parties.gateway.start()
                parties.away.discard(parties.gateway.name)
            case SiteAct.STOP:
                pass
        await parties.witness.say({"do": "stop" if act is SiteAct.STOP else "mark", "what": act})
        self._note(what)

    async def _kill_in_handover(self) -> str:
        """Kills the gateway when a batch has just come in, and it has given no receipt for it."""
        said = "it took nothing"
        async with Tap(self._gateway_url, "mesh.v1.*.*.up.*") as tap:
            try:
                async with asyncio.timeout(_HANDOVER_SECONDS):
                    async for message in tap.messages():
                        self._parties.gateway.kill()
                        _, _, _, node, _, lane = message.subject.split(".")
                        said = f"{lane} of {node} had just come in"
                        break
            except TimeoutError:
                self._parties.gateway.kill()
        held = self._parties.witness.last.get("at_gateway", 0)
        return f"{said}, {held:,} records were on their way out"

    async def _die_by_steps(self) -> None:
        """Worker 1 dies after the first step of a commit, then after the second, and so on."""
        worker = self._parties.workers[0]
        self._parties.away.add(worker.name)
        worker.kill()
        await worker.ended()
        for step in CommitStep:
            doomed = self._parties.doomed(step)
            async with running(doomed):
                try:
                    async with asyncio.timeout(_DEATH_SECONDS):
                        code = await doomed.ended()
                except TimeoutError:
                    self._note(f"worker-1 had no occasion to die after {step}")
                    continue
            if code != _KILLED_BY:
                raise doomed.failed(f"ended with code {code}, and was to be killed after {step}")
            self.died_after.append(step)
            self._note(f"worker-1 was killed after {step}")
        await worker.start()
        self._parties.away.discard(worker.name)

    # --- the end -------------------------------------------------------------------------------

    async def end(self) -> None:
        """Waits for the drain; then edges, gateway and headquarters end in this order.

        Raises:
            PartyFailed: one of them did not end well.
        """
        parties = self._parties
        await self._drain("draining", lambda it: bool(it["caught_up"]))
        parties.check_alive()
        self._tell("closing the edges: their last accounts go out")
        # The witness is heard meanwhile: what it said before they had ended counts for nothing.
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(self._listen())
            codes = [(edge, tasks.create_task(edge.stop())) for edge in parties.edges]
            await asyncio.wait([code for _, code in codes])
            listening.cancel()
        for edge, code in codes:
            if code.result():
                raise edge.failed(f"ended with code {code.result()}")
            parties.away.add(edge.name)
        await parties.witness.hear()
        await self._drain("the gateway hands over the rest", lambda it: not it["at_gateway"])
        for party in (parties.gateway, *parties.workers):
            if code_of := await party.stop():
                raise party.failed(f"ended with code {code_of}")
        await parties.witness.stop()

    async def _drain(self, note: str, done: Callable[[Mapping[str, Any]], bool]) -> None:
        """Until the witness has said so twice; not for ever."""
        parties, agreed = self._parties, 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while agreed < 2:  # noqa: PLR2004 - see above
                    agreed = agreed + 1 if done(await parties.witness.hear()) else 0
                    parties.check_alive()
                    self._tell(note)
        except TimeoutError:
            self._note(f"{note}: not done after {_DRAIN_SECONDS:.0f} s")

    # --- what is told --------------------------------------------------------------------------

    def _elapsed(self) -> float:
        now = asyncio.get_running_loop().time()
        return 0.0 if self._started is None else now - self._started

    def _note(self, what: str) -> None:
        self.happened.append(Happened(round(self._elapsed(), 2), what))

    def _tell(self, note: str) -> None:
        parties = self._parties
        there = {
            party.name: party.pid is not None and party.name not in parties.away
            for party in parties.everybody
            if party.started
        }
        self._show(
            SiteProgress(
                self._elapsed(),
                note,
                parties.witness.last,
                self._up,
                {**self._cluster.states(), **there},
                tuple(self.happened),
            )
        )
