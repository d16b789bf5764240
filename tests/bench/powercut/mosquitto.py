"""Mosquitto on the bench: a subscriber that is away, publications at QoS 1, PUBACK acknowledges.

With ``persistence true`` it keeps what waits for that subscriber in memory and writes it to its
database every ``autosave_interval`` seconds, 1800 by default, and at its end (mosquitto.conf(5)).
It syncs that file before it renames it, but not the folder after (2.0.11, seen by ``strace``), so
a save holds only from the next commit of the file system's journal on: often from the next save.
Its bound of 1,000 waiting messages is lifted, so that what is missing was taken by the cut alone.
The session is made and synced before the work begins. As a program: ``python -m
tests.bench.powercut.mosquitto PORT SEED ROUND``.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from mesh.adapters.child import bound_to_parent
from tests.bench.powercut.work import PRODUCERS, Name, Told, Verdict, compare, record
from tests.bench.powercut.writer import Writer, say, writing
from tests.brokers import RunningBroker, free_port

__all__ = ["Mosquitto"]

_TOPIC: Final = "cut/records"
_END: Final = b"the end"
_READ_SECONDS_MAX: Final = 60.0
_TICKS: Final = 2
"""It saves once more than ``autosave_interval`` whole seconds have passed: with 1, every other."""


class Mosquitto:
    """A mosquitto whose database is on the disk.

    Args:
        seed: of the records.
        autosave_seconds: its ``autosave_interval``; ``None`` for the default.
    """

    lasting = False

    def __init__(self, seed: int, autosave_seconds: int | None = None) -> None:
        variant = "default" if autosave_seconds is None else f"autosave_interval {autosave_seconds}"
        self.name = f"mosquitto persistence, {variant}"
        self._seed = seed
        self._autosave_seconds = autosave_seconds
        self._rng = random.Random(seed)

    def obstacle(self) -> str:
        """Why it cannot be tried; empty when it can."""
        return "" if _binary() else "mosquitto is not installed"

    @contextmanager
    def running(
        self, root: Path, scratch: Path, cut_round: int, settle: Callable[[], None]
    ) -> Iterator[Writer]:
        """Makes a session durable and leaves it, then runs the broker and the writer."""
        with self._broker(root, scratch, signal.SIGTERM) as port:
            _read_session(port)
        settle()
        with self._broker(root, scratch, signal.SIGKILL) as port:
            # The cut is to come at any moment of the interval, not always early in the first.
            time.sleep(self._rng.uniform(0, _TICKS * (self._autosave_seconds or 0)))
            arguments = (port, self._seed, cut_round)
            with writing(scratch / "mosquitto-writer.log", "mosquitto", arguments) as it:
                yield it

    def judge(self, root: Path, scratch: Path, told: Told) -> Verdict:
        """Starts the broker again, and is the subscriber that comes back."""
        try:
            with self._broker(root, scratch, signal.SIGKILL) as port:
                found = _read_session(port)
        except (AssertionError, OSError) as problem:
            lost = compare(self._seed, told, ()).lost
            return Verdict(lost, lost, opened=False, note=repr(problem))
        return compare(self._seed, told, found)

    @contextmanager
    def _broker(self, root: Path, scratch: Path, end: signal.Signals) -> Iterator[int]:
        """A running broker; gives its port."""
        port = free_port()
        configuration = scratch / "mosquitto.conf"
        autosave = (
            "" if self._autosave_seconds is None else f"autosave_interval {self._autosave_seconds}"
        )
        configuration.write_text(
            f"persistence true\npersistence_location {root}/\n{autosave}\n"
            "max_queued_messages 0\nset_tcp_nodelay true\n"
            f"user {'root' if os.geteuid() == 0 else os.environ.get('USER', 'nobody')}\n"
            f"listener {port} 127.0.0.1\nallow_anonymous true\n"
        )
        command = bound_to_parent((_binary(), "-c", str(configuration)))
        broker = RunningBroker(list(command), port, scratch / "mosquitto.log")
        try:
            broker.start()
            yield port
        finally:
            broker.end(end)


def _binary() -> str:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def _read_session(port: int) -> list[bytes]:
    """All that waits for the subscriber; makes its session where there is none.

    Raises:
        AssertionError: the broker does not hand over what waits.
    """
    found: list[bytes] = []
    ended = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False)

    def on_connect(*_: object) -> None:
        client.subscribe(_TOPIC, 1)

    def on_subscribe(*_: object) -> None:
        # Queues behind all that waits, so when it comes everything has come.
        client.publish(_TOPIC, _END, 1)

    def on_message(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.payload == _END:
            ended.set()
        else:
            found.append(bytes(message.payload))

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert ended.wait(_READ_SECONDS_MAX), f"{len(found)} messages, and no end"
    finally:
        client.disconnect()
        client.loop_stop()
    return found


def _work(port: int, seed: int, cut_round: int) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="writer")
    under_way: dict[int, tuple[int, int]] = {}

    def publish(producer: int, number: int) -> None:
        data = record(seed, Name(cut_round, producer, number))
        under_way[client.publish(_TOPIC, data, 1).mid] = (producer, number)

    def on_connect(*_: object) -> None:
        for producer in range(PRODUCERS):
            publish(producer, 0)

    def on_publish(_client: object, _data: object, mid: int, *_: object) -> None:
        producer, number = under_way.pop(mid)
        say("A", producer, number)
        publish(producer, number + 1)

    client.on_connect = on_connect
    client.on_publish = on_publish
    client.connect("127.0.0.1", port)
    # One thread does it all, so no PUBACK comes between a publication and its note.
    client.loop_forever()


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
