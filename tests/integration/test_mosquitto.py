"""The lines of the README: a sensor and an actuator that are mosquitto's own programs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.brokers import mosquitto
from tests.processes import ROOT, holdfast

pytestmark = pytest.mark.integration

READING = (
    '{"accelerometer_1_rms": 0.0271, "accelerometer_2_rms": 0.0401, "current": 1.3,'
    ' "pressure": 2.41, "temperature": 71.99, "thermocouple": 25.49,'
    ' "voltage": 231.01, "flow_rate": 32.05}'
)
SAMPLE = ROOT / "nodes" / "samples" / "edge-mosquitto.toml"


def test_a_reading_by_mosquitto_pub_brings_a_decision_to_mosquitto_sub(tmp_path: Path) -> None:
    """With the sample for mosquitto a reading brings a decision."""
    if shutil.which("mosquitto_pub") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto_pub is not installed")
        pytest.skip("mosquitto_pub is not installed")
    with mosquitto(tmp_path / "broker") as broker:
        where = ("-h", "127.0.0.1", "-p", str(broker.port))
        environment = {
            "HOLDFAST_BROKER__URL": f"mqtt://127.0.0.1:{broker.port}",
            "HOLDFAST_NODE__STATE_DIRECTORY": str(tmp_path / "state"),
        }
        with holdfast(tmp_path / "edge.log", "edge", "--config", str(SAMPLE), **environment):
            state = "mesh/v1/demo/edge-1/state/+"
            command = ["mosquitto_sub", *where, "-t", state, "-C", "1", "-W", "20"]
            online = subprocess.run(command, capture_output=True, check=True)
            assert json.loads(online.stdout)["online"] is True
            actuator = subprocess.Popen(
                ["mosquitto_sub", *where, "-t", "mesh/v1/+/+/decision/+", "-C", "1", "-W", "20"],
                stdout=subprocess.PIPE,
            )
            sensor = ["mosquitto_pub", *where, "-t", "plant/pump-1/telemetry", "-m", READING]
            # Until the actuator is subscribed decisions pass unheard.
            for _ in range(200):
                subprocess.run(sensor, check=True)
                if actuator.poll() is not None:
                    break
            said, _ = actuator.communicate(timeout=20)
    decision = json.loads(said)
    assert decision["verdict"] == "normal"
    assert decision["topic"] == "plant/pump-1/telemetry"
    assert decision["identity"]["lane"] == "decisions"
    assert decision["valid_until"] == decision["decided_at"] + decision["valid_for_ms"]
