"""The runtime: models that fit run, others are refused with what was found and what is right."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nodes.edge.model import ModelFailed
from nodes.edge.runtime import OnnxModel
from nodes.edge.tensors import BrokenModelError, external_tensors
from schemas.errors import ModelUnusable
from schemas.limits import MODEL_ROWS_MAX

PUMP = Path("simulator/models/pump.onnx")
METADATA = {
    "holdfast.name": "tiny",
    "holdfast.version": "7",
    "holdfast.fields": '["a", "b"]',
    "holdfast.labels": '["normal", "anomaly"]',
    "holdfast.values": '["mean"]',
}


def tiny(
    *,
    names: tuple[str, str, str] = ("window", "probabilities", "values"),
    shape: Sequence[object] = ("N", 3, 2),
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] = METADATA,
) -> onnx.ModelProto:
    """A model whose probabilities are the mean over the window."""
    window, probabilities, values = names
    mean = helper.make_node("ReduceMean", [window], ["mean"], axes=[1], keepdims=0)
    same = helper.make_node("Identity", ["mean"], [probabilities])
    one = helper.make_node("ReduceMean", ["mean"], [values], axes=[1], keepdims=1)
    graph = helper.make_graph(
        [mean, same, one],
        "tiny",
        [helper.make_tensor_value_info(window, kind, list(shape))],
        [
            helper.make_tensor_value_info(probabilities, kind, [shape[0], 2]),
            helper.make_tensor_value_info(values, kind, [shape[0], 1]),
        ],
    )
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], producer_name="test"
    )
    helper.set_model_props(model, metadata)
    return model


def write(folder: Path, model: onnx.ModelProto) -> Path:
    """The model as a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_the_shipped_model_runs() -> None:
    """It says what it is, and normal running is normal."""
    model = OnnxModel.load(PUMP)
    contract = model.contract
    assert (contract.name, contract.window, contract.width) == ("pump", 10, 8)
    assert contract.labels == ("normal", "anomaly")
    assert contract.digest == sha256(PUMP.read_bytes()).digest()
    outputs = model.run(np.zeros((3, 10, 8), np.float32))
    assert outputs.probabilities.shape == (3, 2)
    assert outputs.values.shape == (3, 2)
    assert outputs.probabilities.dtype == np.float32


def test_large_batches_run_in_pieces(tmp_path: Path) -> None:
    """More rows than one run takes come out complete and in order."""
    model = OnnxModel.load(write(tmp_path, tiny()))
    rows = MODEL_ROWS_MAX * 2 + 5
    batch = np.repeat(np.arange(rows, dtype=np.float32), 6).reshape(rows, 3, 2)
    outputs = model.run(batch)
    assert outputs.values[:, 0].tolist() == list(range(rows))


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    """A wrong shape at run time is an error of the run, and the next run is fine."""
    model = OnnxModel.load(write(tmp_path, tiny()))
    with pytest.raises(ModelFailed, match="tiny 7"):
        model.run(np.zeros((1, 4, 2), np.float32))
    assert len(model.run(np.zeros((1, 3, 2), np.float32)).values) == 1


def test_names_may_be_missing(tmp_path: Path) -> None:
    """Without metadata a model goes by its file's name, and its columns by number."""
    path = write(tmp_path, tiny(metadata={}, shape=("N", "W", "F")))
    contract = OnnxModel.load(path, window=5, width=2).contract
    assert (contract.name, contract.fields, contract.window) == ("model", (), None)
    assert (contract.labels, contract.values) == (("0", "1"), ("0",))


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    """No file, an empty one, a folder, any truncation: one clear message each."""
    with pytest.raises(ModelUnusable, match="there is no such file"):
        OnnxModel.load(tmp_path / "none.onnx")
    with pytest.raises(ModelUnusable, match="no regular file"):
        OnnxModel.load(tmp_path)
    data = PUMP.read_bytes()
    path = tmp_path / "cut.onnx"
    for size in (0, 1, 17, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ModelUnusable, match=r"empty|truncated"):
            OnnxModel.load(path)
    path.write_bytes(b"PK\x03\x04" + data)
    with pytest.raises(ModelUnusable, match="truncated, or no ONNX file"):
        OnnxModel.load(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny(names=("x", "probabilities", "values")), "inputs x; window would be right"),
        (tiny(names=("window", "p", "values")), "outputs p, values; probabilities, values would"),
        (tiny(kind=TensorProto.DOUBLE), r"window is tensor\(double\).*tensor\(float\) \[N, W, F\]"),
        (tiny(shape=(4, 3, 2)), "window takes exactly 4 rows"),
        (tiny(metadata={**METADATA, "holdfast.labels": '["a"]'}), "labels has 1 names for 2"),
        (tiny(metadata={**METADATA, "holdfast.fields": '["a"]'}), "fields has 1 names for 2"),
        (tiny(metadata={**METADATA, "holdfast.values": "score"}), "a JSON list of different names"),
        (tiny(metadata={**METADATA, "holdfast.fields": '["a","a"]'}), "a JSON list of different"),
        (tiny(shape=("N", 5000, 2)), "5000 readings in a window; 1 to 4096"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, model: onnx.ModelProto, message: str) -> None:
    """What does not keep the contract is refused: what was found, what would be right."""
    with pytest.raises(ModelUnusable, match=message) as refused:
        OnnxModel.load(write(tmp_path, model))
    assert str(tmp_path) in str(refused.value)


def test_tensors_in_other_files_are_refused(tmp_path: Path) -> None:
    """A model that would open another file is refused before the runtime sees it."""
    model = tiny()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    hidden = helper.make_node("Constant", [], ["c"], value=tensor)
    for place in (model.graph.initializer, hidden):
        other = tiny()
        if place is hidden:
            other.graph.node.insert(0, hidden)
        else:
            other.graph.initializer.append(tensor)
        assert external_tensors(other.SerializeToString()) == ["secret"]
        with pytest.raises(ModelUnusable, match=r"1 tensors lie in other files.*'secret'"):
            OnnxModel.load(write(tmp_path, other))


def test_every_truncation_of_a_model_is_found_or_harmless() -> None:
    """The scan never raises anything but its own error, at any length."""
    data = PUMP.read_bytes()
    broken = 0
    for size in range(len(data)):
        try:
            external_tensors(data[:size])
        except BrokenModelError:
            broken += 1
    assert broken > len(data) * 0.98


def test_metadata_are_json(tmp_path: Path) -> None:
    """The names come from the metadata as written."""
    path = write(tmp_path, tiny())
    assert OnnxModel.load(path).contract.fields == tuple(json.loads(METADATA["holdfast.fields"]))
