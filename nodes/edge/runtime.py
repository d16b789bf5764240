"""Models that run in ONNX Runtime. The only importer of onnxruntime.

A model file is an ONNX file, complete in itself. Its input is ``window``, float32 [N, W, F]; its
outputs are ``probabilities``, float32 [N, L], and ``values``, float32 [N, K]. Its metadata say what
the columns mean: ``holdfast.name``, ``holdfast.version``, and as JSON lists ``holdfast.fields``
(F), ``holdfast.labels`` (L) and ``holdfast.values`` (K). Where ``fields`` are missing, the
configuration says them; where ``labels`` or ``values`` are, the columns go by number.

A session runs on the caller's thread alone, without spinning, without an arena and without memory
patterns: a small model is as fast without them, and memory stays flat however groups vary. Batches
larger than ``MODEL_ROWS_MAX`` run in pieces. All that is wrong with a file is found before the
first reading: the file is judged, loaded, and run once.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nodes.edge.model import Contract, ModelFailed, Outputs
from nodes.edge.tensors import BrokenModelError, external_tensors
from schemas.errors import ModelUnusable
from schemas.limits import (
    DECISION_VALUES_MAX,
    MODEL_BYTES_MAX,
    MODEL_FIELDS_MAX,
    MODEL_ROWS_MAX,
    WINDOW_READINGS_MAX,
)

__all__ = ["OnnxModel"]

_INPUT: Final = "window"
_PROBABILITIES: Final = "probabilities"
_VALUES: Final = "values"
_OUTPUTS: Final = [_PROBABILITIES, _VALUES]
_FLOAT: Final = "tensor(float)"
_NAME_CHARS_MAX: Final = 256
_FATAL_ONLY: Final = 4


class OnnxModel:
    """A model, loaded and warm. Made by ``OnnxModel.load``."""

    def __init__(self, session: Any, contract: Contract) -> None:  # noqa: ANN401 - untyped library
        self._session = session
        self.contract = contract

    def __repr__(self) -> str:
        contract = self.contract
        return f"<OnnxModel {contract.name} {contract.version} {contract.digest.hex()[:12]}>"

    @classmethod
    def load(
        cls, path: Path, *, window: int | None = None, width: int | None = None
    ) -> "OnnxModel":
        """Loads a model file and runs it once.

        Args:
            path: the file.
            window: readings in a window, where the model takes any number.
            width: fields of a reading, where the model takes any number.

        Raises:
            ModelUnusable: what was found, and what would be right.
        """
        data = _read(path)
        _check_complete(path, data)
        session = _open_session(path, data)
        contract = _contract(path, sha256(data).digest(), session)
        model = cls(session, contract)
        model._warm_up(path, contract.window or window, contract.width or width)
        return model

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """As the port says."""
        if len(batch) <= MODEL_ROWS_MAX:
            return self._run_piece(batch)
        pieces = [
            self._run_piece(batch[start : start + MODEL_ROWS_MAX])
            for start in range(0, len(batch), MODEL_ROWS_MAX)
        ]
        return Outputs(
            np.concatenate([piece.probabilities for piece in pieces]),
            np.concatenate([piece.values for piece in pieces]),
        )

    def _run_piece(self, batch: NDArray[np.float32]) -> Outputs:
        try:
            probabilities, values = self._session.run(_OUTPUTS, {_INPUT: batch})
        except Exception as failure:  # the library's errors have no ancestor of their own
            raise ModelFailed(f"{self!r}: {_first_line(failure)}") from failure
        if len(probabilities) != len(batch) or len(values) != len(batch):
            raise ModelFailed(
                f"{self!r}: {len(probabilities)} and {len(values)} rows out for {len(batch)} in"
            )
        return Outputs(probabilities, values)

    def _warm_up(self, path: Path, window: int | None, width: int | None) -> None:
        """Runs it once on zeros: memory is taken, and what it says has the shape it promised."""
        contract = self.contract
        shape = (2, window or 1, width or len(contract.fields) or 1)
        try:
            outputs = self.run(np.zeros(shape, np.float32))
        except ModelFailed as failure:
            raise ModelUnusable(
                f"model {path}: a first run on zeros failed: {failure}"
            ) from failure
        for name, found, columns in zip(
            _OUTPUTS, outputs, (len(contract.labels), len(contract.values)), strict=True
        ):
            if found.shape != (2, columns) or found.dtype != np.float32:
                raise ModelUnusable(
                    f"model {path}: a first run gave {name} as {found.dtype} {list(found.shape)}; "
                    f"float32 {[2, columns]} would be right"
                )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelUnusable(f"model {path}: no regular file; an ONNX file would be right")
        if size > MODEL_BYTES_MAX:
            raise ModelUnusable(
                f"model {path}: {size} bytes; at most {MODEL_BYTES_MAX} would be right"
            )
        data = path.read_bytes()
    except FileNotFoundError as missing:
        raise ModelUnusable(
            f"model {path}: there is no such file; check the key model of [[decisions]]"
        ) from missing
    except OSError as failure:
        raise ModelUnusable(f"model {path}: cannot be read: {failure.strerror}") from failure
    if not data:
        raise ModelUnusable(f"model {path}: the file is empty; an ONNX file would be right")
    return data


def _check_complete(path: Path, data: bytes) -> None:
    try:
        outside = external_tensors(data)
    except BrokenModelError as broken:
        raise ModelUnusable(
            f"model {path}: truncated, or no ONNX file ({broken}, of {len(data)} bytes); "
            "copy it again and compare its SHA-256"
        ) from broken
    if outside:
        raise ModelUnusable(
            f"model {path}: {len(outside)} tensors lie in other files, the first is "
            f"{outside[0][:80]!r}; a model that is one file would be right"
        )


def _open_session(path: Path, data: bytes) -> Any:  # noqa: ANN401 - untyped library
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # the library's errors have no ancestor of their own
        raise ModelUnusable(
            f"model {path}: ONNX Runtime {onnxruntime.__version__} cannot load it: "
            f"{_first_line(failure)}"
        ) from failure


def _contract(path: Path, digest: bytes, session: Any) -> Contract:  # noqa: ANN401 - untyped library
    """What the model says of itself, or everything that is wrong with it."""
    problems: list[str] = []
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = {item.name: item for item in session.get_outputs()}
    _check_names(problems, "inputs", inputs, [_INPUT])
    _check_names(problems, "outputs", outputs, _OUTPUTS)
    shapes: dict[str, Sequence[int | None]] = {}
    for name, wanted in ((_INPUT, "[N, W, F]"), (_PROBABILITIES, "[N, L]"), (_VALUES, "[N, K]")):
        item = inputs.get(name) if name == _INPUT else outputs.get(name)
        if item is not None:
            shapes[name] = _check_tensor(problems, item, wanted)
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    names = {
        key: _names(problems, metadata, f"holdfast.{key}") for key in ("fields", "labels", "values")
    }
    if problems:
        raise ModelUnusable(f"model {path}: " + "; ".join(problems))
    _, window, width = shapes[_INPUT]
    fields = names["fields"] or ()
    labels = _columns(problems, "holdfast.labels", names["labels"], shapes[_PROBABILITIES][1])
    values = _columns(problems, "holdfast.values", names["values"], shapes[_VALUES][1])
    if fields and width is not None and len(fields) != width:
        problems.append(f"holdfast.fields has {len(fields)} names for {width} columns")
    for what, size, most in (
        ("readings in a window", window, WINDOW_READINGS_MAX),
        ("fields", width or len(fields) or None, MODEL_FIELDS_MAX),
    ):
        if size is not None and not 1 <= size <= most:
            problems.append(f"{size} {what}; 1 to {most} would be right")
    if not labels:
        problems.append("no labels; at least one column of probabilities would be right")
    if problems:
        raise ModelUnusable(f"model {path}: " + "; ".join(problems))
    name = metadata.get("holdfast.name") or path.stem
    version = metadata.get("holdfast.version") or digest.hex()[:12]
    return Contract(
        name[:_NAME_CHARS_MAX],
        version[:_NAME_CHARS_MAX],
        digest,
        fields,
        window,
        width,
        labels,
        values,
    )


def _check_names(
    problems: list[str], what: str, found: Mapping[str, object], wanted: Sequence[str]
) -> None:
    if set(found) != set(wanted):
        problems.append(
            f"{what} {', '.join(sorted(found)) or 'none'}; {', '.join(wanted)} would be right"
        )


def _check_tensor(problems: list[str], item: Any, wanted: str) -> list[int | None]:  # noqa: ANN401 - untyped library
    """The shape of an input or output; ``None`` for a dimension that may vary."""
    shape = [size if isinstance(size, int) else None for size in item.shape]
    rank = wanted.count(",") + 1
    if item.type != _FLOAT or len(shape) != rank:
        problems.append(
            f"{item.name} is {item.type} {item.shape}; tensor(float) {wanted} would be right"
        )
        return [None] * rank
    if shape[0] is not None:
        problems.append(
            f"{item.name} takes exactly {shape[0]} rows; a first dimension that may vary would "
            "be right"
        )
    return shape


def _names(problems: list[str], metadata: Mapping[str, str], key: str) -> tuple[str, ...] | None:
    """A list of names from the metadata; ``None`` where there is none."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if (
        not isinstance(names, list)
        or len(set(map(str, names))) != len(names)
        or not all(isinstance(name, str) and 0 < len(name) <= _NAME_CHARS_MAX for name in names)
    ):
        problems.append(f"{key} is {text[:80]!r}; a JSON list of different names would be right")
        return None
    return tuple(names)


def _columns(
    problems: list[str], key: str, names: tuple[str, ...] | None, columns: int | None
) -> tuple[str, ...]:
    """One name for each column of an output."""
    if names is None:
        if columns is None:
            problems.append(f"{key} is missing, and the number of columns varies; name them")
        return tuple(map(str, range(min(columns or 0, DECISION_VALUES_MAX))))
    if columns is not None and len(names) != columns:
        problems.append(f"{key} has {len(names)} names for {columns} columns")
    if len(names) > DECISION_VALUES_MAX:
        problems.append(f"{key} has {len(names)} names; at most {DECISION_VALUES_MAX} are right")
    return names


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:300]
