"""Real sensor data through a real broker: replay, decide, compare with the labels."""

import csv
import json
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from simulator.train import export, train
from tests.brokers import nats_mqtt
from tests.integration.test_bad_start import configuration
from tests.processes import ROOT, holdfast, run

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DATA = ROOT.parent / "shared" / "data" / "skab"
TRAINING_ROWS = 400
LABELS = {"anomaly", "changepoint"}


def read(path: Path) -> tuple[list[str], list[list[float]], list[bool]]:
    """Fields, rows and labels of an experiment."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    fields = [name for name in rows[0] if name not in LABELS | {"datetime"}]
    values = [[float(row[name]) for name in fields] for row in rows]
    return fields, values, [row["anomaly"] == "1.0" for row in rows]


class Verdicts:
    """Hears decisions and keeps the verdict on each input, by its digest."""

    def __init__(self, port: int) -> None:
        self.by_digest: dict[str, str] = {}
        self._changed = threading.Condition()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="verdicts")
        self._client.on_message = self._take
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("mesh/v1/test/edge-1/decision/pump", 1)
        self._client.loop_start()
        assert subscribed.wait(20)

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        decision = json.loads(message.payload)
        assert decision["replay"] is True
        with self._changed:
            self.by_digest[decision["input_digest"]] = decision["verdict"]
            self._changed.notify_all()

    def wait_for(self, digest: str) -> None:
        """Until the decision on an input has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: digest in self.by_digest, 60)

    def close(self) -> None:
        """Ends it."""
        self._client.disconnect()
        self._client.loop_stop()


def decide(folder: Path, experiment: Path) -> tuple[dict[int, str], list[bool]]:
    """The verdict on each row of an experiment, by a model of its first rows, and its labels."""
    fields, values, labels = read(experiment)
    folder.mkdir()
    model = folder / "model.onnx"
    trained = train(np.array(values[:TRAINING_ROWS]), fields, name="skab", version="1")
    model.write_bytes(export(trained))
    digests = inputs(values, trained.window)
    with nats_mqtt(folder / "broker") as broker:
        url = f'url = "mqtt://127.0.0.1:{broker.port}"'
        path = configuration(folder, broker=url, model=model, extra="qos = 1\npublish_qos = 1\n")
        verdicts = Verdicts(broker.port)
        with holdfast(folder / "edge.log", "edge", "--config", str(path)):
            online(broker.port)
            done = run(
                *("replay", str(experiment), "--fast", "--broker", f"127.0.0.1:{broker.port}"),
            )
            assert done.returncode == 0, done.stderr
            verdicts.wait_for(digests[-1])
        verdicts.close()
    first = trained.window - 1
    return {first + n: verdicts.by_digest[digest] for n, digest in enumerate(digests)}, labels


def inputs(values: list[list[float]], window: int) -> list[str]:
    """The digest of the model's input for each row, from the first full window on."""
    rows = np.array(values).astype(np.float32)
    return [
        sha256(rows[stop - window : stop].tobytes()).hexdigest()[:32]
        for stop in range(window, len(rows) + 1)
    ]


def online(port: int) -> None:
    """Until the edge has subscribed: its birth comes after its subscriptions."""
    heard = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="waits")
    client.on_message = lambda *args: heard.set() if json.loads(args[2].payload)["online"] else None
    client.connect("127.0.0.1", port)
    client.subscribe("mesh/v1/test/edge-1/state/+", 1)
    client.loop_start()
    assert heard.wait(30)
    client.disconnect()
    client.loop_stop()


def test_real_anomalies_are_found_through_a_real_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark's protocol over valve1-0..5.

    F1 at least 0.65, and better than an alarm that never ends.

    Each experiment's model is trained on its first 400 rows; the rows after them are judged point
    by point, counts pooled. A permanent alarm would reach an F1 near 0.69 on these rows, so the
    false-alarm rate is bounded as well.
    """
    if not DATA.is_dir():
        pytest.skip(f"the SKAB data is not at {DATA}")
    hits = false_alarms = misses = quiet = 0
    for index in range(6):
        verdicts, labels = decide(tmp_path / str(index), DATA / f"valve1-{index}.csv")
        for row in range(TRAINING_ROWS, len(labels)):
            alarm = verdicts[row] == "anomaly"
            hits += alarm and labels[row]
            false_alarms += alarm and not labels[row]
            misses += not alarm and labels[row]
            quiet += not alarm and not labels[row]
    f1 = 2 * hits / (2 * hits + false_alarms + misses)
    false_alarm_rate = false_alarms / (false_alarms + quiet)
    miss_rate = misses / (misses + hits)
    with capsys.disabled():
        print(
            f"\nSKAB valve1-0..5 through a broker: F1 {f1:.3f},"
            f" false alarms {false_alarm_rate:.1%}, misses {miss_rate:.1%}"
        )
    assert f1 >= 0.65
    assert false_alarm_rate < 0.4
