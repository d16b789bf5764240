"""What a person gets wrong at the start.

Each a clear message, and the exit code that says whose turn it is.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.brokers import free_port, nats_mqtt
from tests.processes import ROOT, holdfast, run

pytestmark = pytest.mark.integration

MODEL = ROOT / "simulator" / "models" / "pump.onnx"


def configuration(folder: Path, *, broker: str, model: Path = MODEL, extra: str = "") -> Path:
    """An edge's configuration."""
    path = folder / "edge.toml"
    path.write_text(
        f'[node]\nsite = "test"\nname = "edge-1"\nstate_directory = "{folder}/state"\n'
        f"[broker]\n{broker}\n"
        f'[[decisions]]\nname = "pump"\ntopics = ["plant/+/telemetry"]\nmodel = "{model}"\n{extra}'
    )
    return path


def nowhere() -> str:
    """A broker that is not there: enough for what fails before."""
    return f'url = "mqtt://127.0.0.1:{free_port()}"'


def test_an_unknown_key_ends_with_78_and_names_it(tmp_path: Path) -> None:
    """All errors at once, each with file, key and what would be right."""
    path = configuration(tmp_path, broker=nowhere(), extra='colour = "red"\nhop = 0\n')
    done = run("edge", "--config", str(path))
    assert done.returncode == 78
    assert "colour" in done.stderr
    assert "hop" in done.stderr
    assert str(path) in done.stderr


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "model"),
        (lambda path: path.write_bytes(MODEL.read_bytes()[:400]), "model"),
        (lambda path: path.write_bytes(b"not a model at all"), "model"),
    ],
    ids=["missing", "truncated", "something else"],
)
def test_a_model_that_cannot_be_used_ends_with_78(
    tmp_path: Path, damage: "object", said: str
) -> None:
    """A model file that is missing, cut short or something else is named."""
    model = tmp_path / "model.onnx"
    shutil.copy(MODEL, model)
    damage(model)  # type: ignore[operator]
    done = run("edge", "--config", str(configuration(tmp_path, broker=nowhere(), model=model)))
    assert done.returncode == 78
    assert str(model) in done.stderr
    assert said in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """The embedded broker's port is taken: the message says which one, and the exit code: later."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = f"embedded = true\nmqtt_port = {port}"
        done = run("edge", "--config", str(configuration(tmp_path, broker=broker)))
    assert done.returncode == 75
    assert str(port) in done.stderr


def test_a_second_process_on_a_spool_is_refused(tmp_path: Path) -> None:
    """One writer: the second one is told who has it, and the first one goes on."""
    with nats_mqtt(tmp_path / "broker") as broker:
        path = configuration(tmp_path, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        with holdfast(tmp_path / "first.log", "edge", "--config", str(path)) as first:
            store = tmp_path / "state" / "spool" / "STORE"
            while not store.exists():
                assert first.poll() is None
            second = run("edge", "--config", str(path))
            assert second.returncode == 75
            assert str(first.pid) in second.stderr
            assert first.poll() is None


def test_a_state_directory_that_cannot_be_written_ends_with_77(tmp_path: Path) -> None:
    """A read-only state directory is named, with the exit code for permission."""
    if os.geteuid() == 0:
        # Root may write everywhere but where there is no folder to write to.
        state = Path("/proc/holdfast")
    else:
        state = tmp_path / "state"
        state.mkdir(mode=0o500)
    path = configuration(tmp_path, broker=nowhere())
    path.write_text(path.read_text().replace(f"{tmp_path}/state", str(state)))
    done = run("edge", "--config", str(path))
    assert done.returncode in {77, 78}
    assert str(state) in done.stderr
