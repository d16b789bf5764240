"""The model of the benches.

A perceptron 8-32-16-8 with seeded weights, its last layer a softmax.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FIELDS", "write"]

FIELDS = tuple(f"f{n}" for n in range(8))
_LAYERS = ((8, 32), (32, 16), (16, 8))


def write(path: Path) -> None:
    """Writes the model.

    ``window`` float32 ``[N, 1, 8]`` to ``probabilities`` ``[N, 8]`` and ``values`` ``[N, 1]``.
    """
    rng = np.random.default_rng(1)
    nodes = [helper.make_node("Flatten", ["window"], ["x0"], axis=1)]
    weights = []
    for index, (fan_in, fan_out) in enumerate(_LAYERS):
        matrix = rng.normal(0, 1 / np.sqrt(fan_in), (fan_in, fan_out)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"h{index}"]))
        if index < len(_LAYERS) - 1:
            nodes.append(helper.make_node("Relu", [f"h{index}"], [f"x{index + 1}"]))
    last = f"h{len(_LAYERS) - 1}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ReduceMax", [last], ["values"], axes=[1], keepdims=1))
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 1, 8])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 8]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["N", 1]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in {
        "holdfast.name": "bench",
        "holdfast.version": "1",
        "holdfast.fields": json.dumps(FIELDS),
        "holdfast.labels": json.dumps([f"class-{n}" for n in range(8)]),
        "holdfast.values": json.dumps(["margin"]),
    }.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
