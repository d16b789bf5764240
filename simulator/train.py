"""Trains and exports a model that tells normal running from anything else.

The method is multivariate statistical process control by principal components. Readings of normal
running are standardised robustly, averaged over the window, and split by principal components into
a plane that normal running moves in and the rest. Two statistics judge a window: Hotelling's T²
says how far out in the plane it is, Q (the squared prediction error) how far off the plane. Each is
divided by its limit; the score is the larger ratio, and above 1 the window is called an anomaly:

    ratio_T² = Σ (t_i² / λ_i) / limit_T²        t = Pᵀz
    ratio_Q  = |z - Pt|² / limit_Q              z = (mean of the window - centre) / scale
    probability of an anomaly = s² / (1 + s²)   s = max(ratio_T², ratio_Q)

The limits are quantiles of what the training windows show, times a margin, and not the closed
forms, which presume that windows are independent and normal: these overlap. Slow sensors
(temperatures) wander beyond any short run, so a sensor's drift in training widens its scale.

Sources: J. E. Jackson and G. S. Mudholkar, "Control Procedures for Residuals Associated with
Principal Component Analysis", Technometrics 21 (1979) 341-349; J. F. MacGregor and T. Kourti,
"Statistical Process Control of Multivariate Processes", Control Engineering Practice 3 (1995)
403-414.

The file that `export` makes is ONNX (operator set 17, IR version 8). Input: ``window``, float32
[N, W, F], oldest reading first. Outputs: ``probabilities``, float32 [N, L], rows sum to one, and
``values``, float32 [N, K]. Its metadata: ``holdfast.name``, ``holdfast.version``, and as JSON lists
``holdfast.fields`` (F names), ``holdfast.labels`` (L) and ``holdfast.values`` (K). A window that
holds a NaN comes out as NaN, never as normal.

``python -m simulator.train --demo`` trains the model that is shipped; ``--csv`` trains from a file.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from simulator.plant import FIELDS, Plant

__all__ = ["LABELS", "VALUES", "TrainedModel", "demo", "export", "train"]

LABELS: Final = ("normal", "anomaly")
"""What the columns of ``probabilities`` mean."""

VALUES: Final = ("t2_ratio", "q_ratio")
"""What the columns of ``values`` mean: each statistic divided by its limit."""

# One choice for every experiment; how it was made stands in tests/simulator/test_train.py.
WINDOW: Final = 10
VARIANCE: Final = 0.8
QUANTILE: Final = 0.99
MARGIN: Final = 1.25
DRIFT: Final = 2.0

DEMO_FILE: Final = Path(__file__).parent / "models" / "pump.onnx"
SINGLE_FILE: Final = DEMO_FILE.with_name("pump-single.onnx")
_DEMO_SEED: Final = 2026
_DEMO_PUMPS: Final = 8
_DEMO_READINGS: Final = 3_600
_DEMO_MARGIN: Final = 1.5  # long runs show normal running well: false alarms can be rare
_OPERATOR_SET: Final = 17
_IR_VERSION: Final = 8
_DRIFT_PARTS: Final = 4
_IQR_OF_NORMAL: Final = 1.349
_SCORE_MAX: Final = 1e6  # squared it stays far inside float32


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training found; F fields, M directions.

    Attributes:
        name: What the model is called.
        version: Which one of that name.
        fields: The F fields of a reading, in order.
        window: W, readings in a window.
        centre: [F], in the fields' units.
        directions: [F, M], from a deviation in the fields' units to numbers whose squares add up
            to the two ratios.
        components: How many of the directions belong to T²; the others belong to Q.
    """

    name: str
    version: str
    fields: tuple[str, ...]
    window: int
    centre: NDArray[np.float64]
    directions: NDArray[np.float64]
    components: int


def train(
    rows: NDArray[np.float64],
    fields: Sequence[str],
    *,
    name: str = "pump",
    version: str = "1",
    window: int = WINDOW,
    variance: float = VARIANCE,
    quantile: float = QUANTILE,
    margin: float = MARGIN,
    drift: float = DRIFT,
) -> TrainedModel:
    """Learns what normal running is; the same rows give the same model.

    Args:
        rows: Readings of normal running in order of time, [n, F], or several runs of equal length,
            [runs, n, F]; no window crosses from one run to the next.
        fields: F names.
        name: What the model is called.
        version: Which one of that name.
        window: Readings that are averaged, at least 1.
        variance: Share of the variance that the plane of T² holds, in (0, 1).
        quantile: Share of the training windows below the limits before `margin`, in (0, 1].
        margin: What the limits are multiplied by, above 0.
        drift: How many times the drift between quarters of a run widens a sensor's scale, from 0.

    Returns:
        The model.

    Raises:
        ValueError: The rows do not fit the fields, are too few for the window, or are not finite.
    """
    runs = np.asarray(rows, dtype=np.float64)
    runs = runs[None] if runs.ndim == 2 else runs  # noqa: PLR2004 - one run, or several
    if runs.ndim != 3 or runs.shape[2] != len(fields):  # noqa: PLR2004 - runs, rows, fields
        raise ValueError(f"rows of shape {np.shape(rows)} do not hold {len(fields)} fields")
    if runs.shape[1] < window + len(fields) or window < 1:
        raise ValueError(f"{runs.shape[1]} rows are too few for a window of {window}")
    if not np.isfinite(runs).all():
        raise ValueError(f"{int((~np.isfinite(runs)).sum())} of the values are not finite")
    centre, scale = _standard(runs, drift)
    z = (_means(runs, window) - centre) / scale
    spread, axes = np.linalg.eigh(z.T @ z / len(z))
    spread, axes = spread[::-1], axes[:, ::-1]
    held = np.cumsum(spread) / spread.sum()
    components = max(1, min(int(np.searchsorted(held, variance)) + 1, len(fields) - 1))
    plane = axes[:, :components] / np.sqrt(np.maximum(spread[:components], np.finfo(float).eps))
    rest = axes[:, components:]
    parts = []
    for part in (plane, rest):
        statistic = np.square(z @ part).sum(axis=1)
        limit = max(float(np.quantile(statistic, quantile)) * margin, np.finfo(float).eps)
        parts.append(part / np.sqrt(limit))
    directions = np.concatenate(parts, axis=1) / scale[:, None]
    return TrainedModel(
        name, version, tuple(fields), window, centre, _upright(directions), components
    )


def export(model: TrainedModel) -> bytes:
    """The model as an ONNX file; the same model gives the same bytes.

    Args:
        model: What `train` found.

    Returns:
        The file, as the module describes it.
    """
    count = model.directions.shape[1]
    owner = np.zeros((count, len(VALUES)), dtype=np.float32)
    owner[: model.components, 0] = 1.0
    owner[model.components :, 1] = 1.0
    constants = {
        "centre": model.centre.astype(np.float32),
        "directions": model.directions.astype(np.float32),
        "owner": owner,
        "one": np.array(1.0, dtype=np.float32),
        "score_max": np.array(_SCORE_MAX, dtype=np.float32),
    }
    steps = [
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Sub", ["mean", "centre"], ["deviation"]),
        helper.make_node("MatMul", ["deviation", "directions"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "scaled"], ["squares"]),
        helper.make_node("MatMul", ["squares", "owner"], ["values"]),
        helper.make_node("ReduceMax", ["values"], ["larger"], axes=[1], keepdims=1),
        helper.make_node("Min", ["larger", "score_max"], ["score"]),
        helper.make_node("Mul", ["score", "score"], ["odds"]),
        helper.make_node("Add", ["odds", "one"], ["both"]),
        helper.make_node("Div", ["one", "both"], ["normal"]),
        helper.make_node("Sub", ["one", "normal"], ["anomaly"]),
        helper.make_node("Concat", ["normal", "anomaly"], ["probabilities"], axis=1),
    ]
    shape: list[str | int | None] = ["N", model.window, len(model.fields)]
    graph = helper.make_graph(
        steps,
        model.name,
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(LABELS)]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["N", len(VALUES)]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(
        graph,
        producer_name="holdfast",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPERATOR_SET)],
    )
    metadata = {
        "holdfast.name": model.name,
        "holdfast.version": model.version,
        "holdfast.fields": json.dumps(model.fields),
        "holdfast.labels": json.dumps(LABELS),
        "holdfast.values": json.dumps(VALUES),
    }
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def demo(window: int = 10) -> TrainedModel:
    """A model that is shipped: trained on pumps of `simulator.plant` that have no faults.

    Args:
        window: readings in a window: 10 for ``pump.onnx``, 1 for ``pump-single.onnx``, which
            decides on each reading alone and sees less.
    """
    pumps = tuple(f"pump-{number + 1}" for number in range(_DEMO_PUMPS))
    plant = Plant(seed=_DEMO_SEED, pumps=pumps, quiet_seconds=float("inf"))
    taken = islice(plant.readings(), _DEMO_PUMPS * _DEMO_READINGS)
    rows = np.array([list(reading.fields.values()) for reading in taken])
    runs = rows.reshape(_DEMO_READINGS, _DEMO_PUMPS, len(FIELDS)).swapaxes(0, 1)
    name = "pump" if window > 1 else "pump-single"
    return train(runs, FIELDS, name=name, window=window, margin=_DEMO_MARGIN)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: trains, writes the file, and says what it wrote on a line of JSON."""
    parser = argparse.ArgumentParser(
        prog="simulator.train", description="Trains a model on normal running."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--demo", action="store_true", help="train the models that are shipped")
    source.add_argument("--csv", type=Path, help="train on a file with a line of names")
    parser.add_argument("--rows", type=int, help="use only the first ROWS rows of the file")
    parser.add_argument("--delimiter", default=",", help="what is between the columns")
    parser.add_argument("--time", help="the column of the time, which is no field")
    parser.add_argument("--ignore", default="", help="other columns that are no fields: a,b")
    parser.add_argument("--name", default="pump", help="what the model is called")
    parser.add_argument("--version", default="1", help="which one of that name")
    parser.add_argument("--output", type=Path, default=Path("model.onnx"), help="for --csv")
    asked = parser.parse_args(arguments)
    if asked.demo:
        _write(demo(), DEMO_FILE)
        _write(demo(window=1), SINGLE_FILE)
    else:
        ignored = {asked.time, *asked.ignore.split(",")}
        fields, rows = _read(asked.csv, asked.delimiter, ignored, asked.rows)
        _write(train(rows, fields, name=asked.name, version=asked.version), asked.output)
    return 0


def _write(model: TrainedModel, path: Path) -> None:
    """Writes a model's file, and says so on a line of JSON."""
    content = export(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    told = {"output": str(path), "bytes": len(content), "fields": model.fields}
    sys.stdout.write(json.dumps(told) + "\n")


def _standard(
    runs: NDArray[np.float64], drift: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre [F] and scale [F] of runs [runs, n, F], in the fields' units."""
    rows = runs.reshape(-1, runs.shape[2])
    low, centre, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    scale = (high - low) / _IQR_OF_NORMAL
    # A sensor with few steps can have no interquartile range; one that never moved has no spread.
    scale = np.where(scale > 0, scale, rows.std(axis=0))
    quarters = np.array_split(runs, _DRIFT_PARTS, axis=1)
    medians = np.array([np.median(quarter, axis=1) for quarter in quarters])
    wandered = np.ptp(medians, axis=0).max(axis=0)
    scale = np.hypot(scale, drift * wandered)
    return centre, np.where(scale > 0, scale, np.maximum(np.abs(centre) * 1e-3, 1e-6))


def _means(runs: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of every whole window of runs [runs, n, F], as [windows, F]."""
    windows = np.lib.stride_tricks.sliding_window_view(runs, window, axis=1)
    return np.asarray(windows.mean(axis=-1)).reshape(-1, runs.shape[2])


def _upright(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same directions with the largest entry of each positive: their sign is arbitrary."""
    largest = np.abs(directions).argmax(axis=0)
    return np.asarray(directions * np.sign(directions[largest, range(directions.shape[1])]))


def _read(
    path: Path, delimiter: str, ignored: set[str | None], rows: int | None
) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the fields [F], and the first rows [n, F] of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, delimiter=delimiter)
        fields = [name for name in lines.fieldnames or () if name not in ignored]
        taken = [[float(line[field]) for field in fields] for line in islice(lines, rows)]
    return fields, np.array(taken)


if __name__ == "__main__":
    raise SystemExit(main())
