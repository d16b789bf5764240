"""``holdfast spool`` beside a running node, and beside a process that never stops appending."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.brokers import nats_mqtt
from tests.integration.test_bad_start import configuration
from tests.integration.test_renewal import wait_for
from tests.processes import ROOT, holdfast, run

pytestmark = pytest.mark.integration

ROUNDS = 2


def _lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_all_four_work_beside_a_running_edge(tmp_path: Path) -> None:
    """Row 26: a node's spool is read while the node has its lock, and the node goes on.

    It answers whether it is degraded, over its local broker.
    """
    with nats_mqtt(tmp_path / "broker") as broker:
        path = configuration(tmp_path, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        path.write_text(path.read_text() + "[health]\ninterval_seconds = 0.3\n")
        store, log = tmp_path / "state" / "spool", tmp_path / "edge.log"
        with holdfast(log, "edge", "--config", str(path)) as edge:
            wait_for(log, "decides pump", edge)
            document = _answered(path)
            assert document["owner"] == {"known": True, "pid": edge.pid}
            assert document["degraded"] == ""
            assert document["bytes_max"] == 1 << 30
            assert document["lanes"]["account"]["pending_records"] > 0
            assert document["lanes"]["account"]["losses_at_next_opening"] == {}
            table = run("spool", "status", "--config", str(path))
            assert f"owned by process {edge.pid}" in table.stdout
            assert "degraded: no" in table.stdout
            checked = run("spool", "check", "--config", str(path), "--json")
            assert checked.returncode == 0, checked.stdout
            assert json.loads(checked.stdout)["findings"] == []
            exported = run("spool", "export", "--config", str(path))
            assert exported.returncode == 0, exported.stderr
            assert {"account", "metrics"} <= {line["lane"] for line in _lines(exported.stdout)}
            journal = max((store / "journal").glob("[0-9]*"))
            inspected = run("spool", "inspect", str(journal), "--records", "--json")
            assert inspected.returncode == 0, inspected.stdout
            assert _lines(inspected.stdout)[0]["kind"] == "journal"
            assert edge.poll() is None
        after = run("spool", "status", "--config", str(path), "--json")
        assert json.loads(after.stdout)["owner"] == {"known": True, "pid": None}


def _answered(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    """The status, once the edge has reached its broker and told its health."""
    deadline = time.monotonic() + 60  # noqa: TID251 - a real process
    while True:
        done = run("spool", "status", "--config", str(path), "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, dict[str, dict[str, object]]] = json.loads(done.stdout)
        if document["degraded"] is not None:
            return document
        assert time.monotonic() < deadline, document["degraded_unknown_because"]  # noqa: TID251


@contextmanager
def _appending(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.appending", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.stdin.close()


def test_all_four_tell_the_truth_while_files_come_and_go(tmp_path: Path) -> None:
    """Journals are sealed, batches released and evicted under our eyes: nothing is called damage.

    What is exported is in order, without a gap that is not evicted or released.
    """
    store = tmp_path / "spool"
    with _appending(store) as process:
        ends: list[int] = []
        for _ in range(ROUNDS):
            told = run("spool", "status", "--directory", str(store), "--json")
            assert told.returncode == 0, told.stderr
            document = json.loads(told.stdout)
            assert document["owner"]["pid"] == process.pid
            assert set(document["lanes"]["logs"]["losses"]) <= {"evicted"}
            ends.append(document["lanes"]["events"]["end"])
            checked = run("spool", "check", "--directory", str(store), "--json")
            assert checked.returncode == 0, checked.stdout
            assert json.loads(checked.stdout)["sound"]
            exported = run("spool", "export", "--directory", str(store), "--lane", "events")
            assert exported.returncode == 0, exported.stderr
            numbers = [line["seq"] for line in _lines(exported.stdout)]
            assert numbers
            assert all(low < high for low, high in pairwise(numbers))  # type: ignore[operator]
            journal = min((store / "journal").iterdir())
            inspected = run("spool", "inspect", str(journal))
            assert inspected.returncode in {0, 2}, inspected.stdout
        assert process.poll() is None
        assert ends == sorted(set(ends)), "it appended all the time"
    checked = run("spool", "check", "--directory", str(store), "--json")
    assert json.loads(checked.stdout)["findings"] == []
