"""SIGHUP: a configuration that is right is taken over, one that is not changes nothing."""

import signal
import subprocess  # noqa: TC003 - one import, not two
import time
from pathlib import Path

import pytest

from tests.brokers import nats_mqtt
from tests.integration.test_bad_start import configuration
from tests.processes import holdfast

pytestmark = pytest.mark.integration


def wait_for(log: Path, text: str, process: "subprocess.Popen[bytes]", times: int = 1) -> None:
    """Until the log says it, so many times."""
    deadline = time.monotonic() + 30  # noqa: TID251 - a real process
    while log.read_text("utf-8", "replace").count(text) < times:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        assert time.monotonic() < deadline, log.read_text("utf-8", "replace")  # noqa: TID251
        time.sleep(0.02)


def test_a_wrong_configuration_leaves_the_edge_as_it_was(tmp_path: Path) -> None:
    """A missing model, another name, an unknown key are told; then a right one is taken."""
    with nats_mqtt(tmp_path / "broker") as broker:
        path = configuration(tmp_path, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        right, log = path.read_text(), tmp_path / "edge.log"
        with holdfast(log, "edge", "--config", str(path)) as process:
            wait_for(log, "decides pump", process)
            wrongs = (
                right.replace("pump.onnx", "nowhere.onnx"),
                right.replace('name = "edge-1"', 'name = "edge-2"'),
                right + "colour = 3\n",
            )
            for count, wrong in enumerate(wrongs, start=1):
                path.write_text(wrong)
                process.send_signal(signal.SIGHUP)
                wait_for(log, "SIGHUP: going on as before", process, count)
            assert log.read_text().count("decides pump") == 1
            path.write_text(right.replace('name = "pump"', 'name = "pump-two"'))
            process.send_signal(signal.SIGHUP)
            wait_for(log, "decides pump-two", process)
