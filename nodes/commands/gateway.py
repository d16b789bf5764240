"""``holdfast gateway``: takes custody for the edges of a site, and forwards what it holds."""

import asyncio
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.mqtt.intake import MqttIntake, MqttIntakeSettings
from mesh.adapters.registry import TinyRegistry
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemClock, SystemDisk, entropy, machine_id
from mesh.adapters.thread import LoopThread
from mesh.transfer.custody.custody import Custody
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.delivery import DeliverySettings
from nodes import config
from nodes.commands.endpoints import password, tls_context
from nodes.commands.process import Ending, LogObserver, fail, first_of, log_to_stderr, run_role
from nodes.commands.uplinks import mqtt_settings, open_link
from nodes.forwarder import Forwarder, Uplink
from nodes.gateway.entrance import Entrance
from nodes.gateway.events import Received
from nodes.gateway.gateway import Gateway
from nodes.gateway.hearing import Hearing
from nodes.links_file import LinksFile, read_spent
from nodes.settings import GatewaySection, GatewaySettings
from schemas.errors import (
    ConfigurationInvalid,
    DiskFailed,
    DiskReadOnly,
    MeshError,
    StoreUnusable,
)
from schemas.messages import Severity

__all__ = ["check_renewal", "gateway"]

_LOGGER: Final = logging.getLogger("holdfast.gateway")
_ID_BYTES: Final = 16
_DAY_SECONDS: Final = 86_400.0
_Intake = JetStreamIntake | MqttIntake


def gateway(
    file: Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")],
) -> None:
    """Takes custody of what the edges of a site send, and forwards it."""
    try:
        log_to_stderr(config.load(file).log.level)
        first = _settings(file)
        run_role(
            lambda ending: _serve(_settings(file), ending),
            lambda: check_renewal(first, _settings(file)),
        )
    except* MeshError as errors:
        fail(first_of(errors))


def _settings(file: Path) -> GatewaySettings:
    settings = config.load(file).for_gateway()
    settings.gateway.check_uplinks(settings.uplinks)
    return settings


def check_renewal(now: GatewaySettings, new: GatewaySettings) -> None:
    """What a new beginning could fail at.

    Raises:
        MeshError: what is wrong with the new settings, or cannot change without a restart.
    """
    for what in ("site", "name", "state_directory"):
        if getattr(now.gateway, what) != getattr(new.gateway, what):
            problem = f"gateway.{what} cannot change while it runs: stop it, then start it anew"
            raise ConfigurationInvalid((problem,))
    broker = new.gateway.mqtt()
    for endpoint in (new.gateway, *new.uplinks, *((broker,) if broker else ())):
        tls_context(endpoint)
        password(endpoint)


async def _serve(settings: GatewaySettings, ending: Ending) -> None:
    section = settings.gateway
    clock = SystemClock()
    rng = random.Random(entropy(_ID_BYTES))  # noqa: S311 - jitter, not a secret
    observer = _Log()
    disk = _folder(section.state_directory)
    async with AsyncExitStack() as stack:
        custody = await _open_custody(section, clock, rng, observer, stack)
        stack.push_async_callback(custody.close)
        intakes = await _intakes(section, clock, rng, stack)
        entrances = [Entrance(url, intake, observer) for url, intake in intakes.items()]
        uplinks = []
        for uplink in settings.uplinks:
            client_id = f"holdfast-gateway-{section.name}-{uplink.name}"
            link = await open_link(uplink, client_id, (None, None), clock, rng, stack)
            uplinks.append(Uplink(Hearing(link, custody), uplink.rule()))
        forwarder = Forwarder(
            custody,
            uplinks,
            settings.transfer.lane_rules(),
            DeliverySettings(),
            clock,
            observer,
            spent=read_spent(disk),
            relays=True,
        )
        worker = stack.enter_context(ThreadPoolExecutor(1, "links"))
        links = LinksFile(disk, worker, forwarder, clock, observer)
        _LOGGER.info(
            "%s/%s takes custody in life %s, forwards over %s",
            *(section.site, section.name, custody.life),
            ", ".join(uplink.name for uplink in settings.uplinks),
        )
        role = Gateway(custody, list(intakes.values()), forwarder, observer)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(role.run(), name="gateway")
            waiting = tasks.create_task(ending.wanted.wait(), name="signals")
            beside = [
                tasks.create_task(links.run(), name="links"),
                *(tasks.create_task(each.run(), name="entrance") for each in entrances),
            ]
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            for task in (running, waiting, *beside):
                task.cancel()
        await links.end()


async def _open_custody(
    section: GatewaySection,
    clock: SystemClock,
    rng: random.Random,
    observer: "_Log",
    stack: AsyncExitStack,
) -> Custody:
    resources = CustodyResources(
        _folder(section.state_directory / "custody"),
        clock,
        stack.enter_context(LoopThread("custody-writer")),
        stack.enter_context(LoopThread("custody-worker")),
        entropy,
        rng,
        machine_id() or bytes(_ID_BYTES),
        observer,
    )
    days = section.max_age_days
    return await Custody.open(
        resources,
        CustodySettings(
            section.name,
            int(section.bytes_max),
            max_age_seconds=None if days is None else days * _DAY_SECONDS,
        ),
    )


def _folder(path: Path) -> SystemDisk:
    """A folder of this gateway's, made where it is not there.

    Raises:
        StoreUnusable: it cannot be made.
    """
    disk = SystemDisk(path)
    try:
        disk.make_directory("")
    except DiskFailed as refused:
        problem = StoreUnusable(f"gateway.state_directory cannot be used: {refused}")
        if isinstance(refused, DiskReadOnly):
            problem.exit_code = refused.exit_code
        raise problem from refused
    return disk


async def _intakes(
    section: GatewaySection, clock: SystemClock, rng: random.Random, stack: AsyncExitStack
) -> dict[str, _Intake]:
    """The ways by which edges come, by their URLs, and a note of where they listen."""
    intakes: dict[str, _Intake] = {}
    urls = (await _start_server(section, rng, stack),) if section.embedded else section.urls
    if urls:
        session = SessionSettings(
            section.name,
            urls,
            section.username or "",
            password(section),
            tls_context(section),
        )
        intakes[urls[0]] = await stack.enter_async_context(
            JetStreamIntake(
                IntakeSettings(session, up_bytes_max=int(section.jetstream_bytes_max) // 4),
                clock,
                rng,
            )
        )
    broker = section.mqtt()
    if broker is not None and section.mqtt_url is not None:
        settings = MqttIntakeSettings(
            section.name, mqtt_settings(broker, f"holdfast-gateway-{section.name}")
        )
        intake = MqttIntake(settings, clock, rng)
        intakes[section.mqtt_url] = await stack.enter_async_context(intake)
    registry = TinyRegistry(SystemDisk(section.state_directory), "registry.json", LogObserver())
    registry.put("gateway", {"url": next(iter(urls), ""), "mqtt_url": section.mqtt_url or ""})
    return intakes


async def _start_server(section: GatewaySection, rng: random.Random, stack: AsyncExitStack) -> str:
    """The URL of a server of our own: JetStream, each write synced before it is acknowledged."""
    settings = ServerSettings(
        f"{section.site}-{section.name}"[:63],
        section.data_directory or section.state_directory / "server",
        binary=section.server_binary,
        host=section.listen,
        client_port=section.client_port,
        jetstream_bytes_max=section.jetstream_bytes_max,
    )
    server = await stack.enter_async_context(EmbeddedServer(settings, rng))
    return server.client_url


class _Log:
    """Tells the log what the gateway observes."""

    def observe(self, event: object) -> None:
        """Logs one event."""
        if isinstance(event, Received):
            _LOGGER.debug("%d batches, %d new records", event.batches, event.records)
            return
        severity = getattr(event, "severity", Severity.NOTICE)
        level = logging.INFO
        if severity <= Severity.WARNING:
            level = logging.ERROR if severity <= Severity.ERROR else logging.WARNING
        _LOGGER.log(level, "%s", event)
