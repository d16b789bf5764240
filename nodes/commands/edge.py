"""``holdfast edge``: builds an edge out of its adapters, and runs it.

The order of start, each step as early as it can be: the embedded broker's process and the models
load while the spool opens; the broker connection and the links come up by themselves, and nothing
waits for them.
"""

import asyncio
import gc
import logging
import random
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.adapters.carrier.inbox import CarriedReceipts
from mesh.adapters.carrier.medium import SystemMedium
from mesh.adapters.mqtt.broker import MqttBroker
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.adapters.thread import LoopThread
from mesh.spool.batch import Labels
from mesh.spool.events import PackerLost
from mesh.spool.packing import Packer
from mesh.spool.spool import Resources, Spool, SpoolSettings
from mesh.transfer.delivery import DeliverySettings
from nodes import config
from nodes.commands.endpoints import password, registry, tls_context
from nodes.commands.process import Ending, fail, first_of, log_to_stderr, run_role
from nodes.commands.uplinks import open_link
from nodes.edge.edge import Edge, EdgeParts, state_publication
from nodes.edge.inference import Inference, Place
from nodes.edge.loading import load_rules
from nodes.edge.recorder import Recorder
from nodes.forwarder import Forwarder, Uplink
from nodes.links_file import LinksFile, read_spent
from nodes.settings import BrokerSection, EdgeSettings, UplinkSection
from nodes.spool_source import SpoolSource
from schemas.errors import ConfigurationInvalid, MeshError
from schemas.messages import Severity

__all__ = ["edge"]

_LOGGER: Final = logging.getLogger("holdfast.edge")
_EVENTS: Final = logging.getLogger("holdfast.events")
_ID_BYTES: Final = 16
_PAGE_BYTES: Final = resource.getpagesize()


def edge(
    file: Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")],
) -> None:
    """Reads sensors, decides, publishes decisions, keeps everything until headquarters has it."""
    try:
        log_to_stderr(config.load(file).log.level)

        first = config.load(file).for_edge()

        def check() -> None:
            _check_renewal(first, config.load(file).for_edge())

        run_role(lambda ending: _run(config.load(file).for_edge(), ending), check)
    except* MeshError as errors:
        fail(first_of(errors))


def _check_renewal(now: EdgeSettings, new: EdgeSettings) -> None:
    """Does all that a new beginning could fail at, as far as it can be done beside the old one.

    Raises:
        MeshError: what is wrong with the new settings, or cannot change without a restart.
    """
    for what in ("site", "name", "state_directory"):
        if getattr(now.node, what) != getattr(new.node, what):
            problem = f"node.{what} cannot change while the node runs: stop it, then start it anew"
            raise ConfigurationInvalid((problem,))
    load_rules(new.decisions)
    endpoints: list[BrokerSection | UplinkSection] = [new.broker, *new.uplinks]
    for endpoint in endpoints:
        tls_context(endpoint)
        password(endpoint)


async def _run(settings: EdgeSettings, ending: Ending) -> None:
    clock = SystemClock()
    rng = random.Random(entropy(_ID_BYTES))  # noqa: S311 - jitter and session ids, not secrets
    node = settings.node
    place = Place(node.site, node.name, f"{rng.getrandbits(64):016x}")
    recorder = Recorder(clock, tell=_tell)
    async with AsyncExitStack() as stack:
        handler = recorder.log_handler()
        handler.addFilter(lambda record: record.name != _EVENTS.name)  # recorded as events already
        logging.getLogger().addHandler(handler)
        stack.callback(logging.getLogger().removeHandler, handler)
        async with asyncio.TaskGroup() as starting:
            loading = starting.create_task(asyncio.to_thread(load_rules, settings.decisions))
            opening = starting.create_task(_open_spool(settings, recorder, stack))
            local = starting.create_task(_local_broker(settings, rng, stack))
        spool = opening.result()
        stack.push_async_callback(spool.close)
        recorder.attach(spool)
        stack.callback(recorder.detach)
        mqtt = _mqtt_settings(settings, place, clock, str(spool.epoch), local.result())
        broker = await stack.enter_async_context(MqttBroker(mqtt, clock, rng))
        inference = Inference(place, loading.result(), spool, broker, clock, recorder, rng)
        forwarder = await _forwarder(settings, spool, recorder, clock, rng, stack, ending.renew)
        parts = EdgeParts(
            place,
            inference,
            spool,
            broker,
            recorder,
            clock,
            [forwarder],
            _resident_bytes,
            settings.health.interval_seconds,
            node.drain_seconds,
        )
        _LOGGER.info(
            "%s/%s decides %s, session %s, epoch %s, broker %s",
            *(node.site, node.name, ", ".join(rule.name for rule in settings.decisions)),
            *(place.session, spool.epoch, mqtt.address),
        )
        role = Edge(parts)
        disk = SystemDisk(node.state_directory)
        writer = stack.enter_context(ThreadPoolExecutor(1, "links"))
        links_file = LinksFile(disk, writer, forwarder, clock, recorder)
        # What is there now stays: the collector need not look at it again while decisions are made.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(role.run(), name="edge")
            waiting = tasks.create_task(ending.wanted.wait(), name="signals")
            telling = tasks.create_task(links_file.run(), name="links file")
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not running.done():
                _LOGGER.info("ending: at most %.0f s to drain", node.drain_seconds)
                await role.drain()
            telling.cancel()
            await links_file.end()


async def _open_spool(settings: EdgeSettings, recorder: Recorder, stack: AsyncExitStack) -> Spool:
    writer = stack.enter_context(LoopThread("spool-writer"))
    worker = stack.enter_context(ThreadPoolExecutor(1, "spool-worker"))
    packer = Packer(lambda reason: recorder.observe(PackerLost(reason)))
    # Its child is waited for, which is for the worker to do, and the last thing that it does.
    stack.push_async_callback(asyncio.get_running_loop().run_in_executor, worker, packer.close)
    node, spool = settings.node, settings.spool
    resources = Resources(
        SystemDisk(node.state_directory / "spool"),
        SystemClock(),
        writer,
        worker,
        entropy,
        boot_id(),
        machine_id() or bytes(_ID_BYTES),
        recorder,
        packer,
    )
    for warning in spool.warnings:
        _LOGGER.warning("%s", warning)
    return await Spool.open(
        resources,
        SpoolSettings(
            Labels(node.site, node.name, node.region, node.tenant),
            int(spool.bytes_max),
            spool.lane_settings(),
            headroom_bytes=int(spool.headroom),
            retained_bytes_max=spool.retained_bytes_max,
        ),
    )


async def _local_broker(
    settings: EdgeSettings, rng: random.Random, stack: AsyncExitStack
) -> tuple[str, int]:
    """Host and port of the local broker; started here where it is embedded."""
    broker, node = settings.broker, settings.node
    if not broker.embedded:
        return broker.host, broker.port
    server = await stack.enter_async_context(
        EmbeddedServer(
            ServerSettings(
                f"{node.site}-{node.name}",
                broker.data_directory or node.state_directory / "broker",
                binary=broker.server_binary,
                mqtt_port=broker.mqtt_port,
                sync_always=False,
            ),
            rng,
        )
    )
    assert server.mqtt_port is not None, "it was asked for"
    registry(node).put("broker", {"mqtt_port": server.mqtt_port})
    return broker.host, server.mqtt_port


def _mqtt_settings(
    settings: EdgeSettings, place: Place, clock: SystemClock, epoch: str, address: tuple[str, int]
) -> MqttSettings:
    broker = settings.broker
    now = clock.now()
    return MqttSettings(
        *address,
        broker.client_id or f"holdfast-{place.site}-{place.node}",
        broker.username,
        password(broker) or None,
        tls_context(broker),
        broker.keepalive_seconds,
        broker.protocol,
        will=state_publication(place, now, online=False, epoch=epoch),
        birth=state_publication(place, now, online=True, epoch=epoch),
        session_seconds=broker.session_seconds,
    )


async def _forwarder(
    settings: EdgeSettings,
    spool: Spool,
    recorder: Recorder,
    clock: SystemClock,
    rng: random.Random,
    stack: AsyncExitStack,
    outdated: Callable[[], None],
) -> Forwarder:
    node = settings.node
    uplinks = []
    for uplink in settings.uplinks:
        client_id = f"holdfast-{node.site}-{node.name}-{uplink.name}"
        link = await open_link(uplink, client_id, (node.site, node.name), clock, rng, stack)
        uplinks.append(Uplink(link, uplink.rule()))
    source = SpoolSource(node.site, node.name, spool)
    state, worker = node.state_directory, stack.enter_context(ThreadPoolExecutor(1, "carried"))
    disk = SystemDisk(state)
    carried = CarriedReceipts(
        *(disk, SystemMedium(state), worker, node.site, node.name, clock, recorder)
    )
    return Forwarder(
        *(source, uplinks, settings.transfer.lane_rules(), DeliverySettings()),
        *(clock, recorder, outdated),
        spent=read_spent(disk),
        inboxes=[carried],
    )


def _tell(severity: Severity, text: str) -> None:
    """Tells a person of an event, on standard error."""
    level = logging.INFO
    if severity <= Severity.WARNING:
        level = logging.ERROR if severity <= Severity.ERROR else logging.WARNING
    _EVENTS.log(level, "%s", text)


def _resident_bytes() -> int | None:
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * _PAGE_BYTES
