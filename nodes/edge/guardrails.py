"""Whether the model may speak, and why not: the rules that stand round it. Pure.

Each rule looks at numbers and gives a reason of the fixed list ``Reason``; a decision with a reason
is a fallback. The rules never make a verdict of their own, and they only ever take the word away.

Limits are compared in float32, the model's own type: rounding keeps order, so a value that is
within its limits stays within them. NaN is not finite, and nothing else is said of it.

A few rows are judged number by number, many as arrays: numpy's fixed cost, some 15 µs for these
rules, is what a single reading would mostly wait for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from nodes.edge.model import Outputs
from schemas.errors import Refused, RefusedBecause

__all__ = ["Guardrails", "Limits", "Reason", "is_stale", "policy_digest"]

Range = tuple[float, float]

_CERTAIN: Final = 1.0009765625  # a probability, as far as float32 sums are exact
_FEW: Final = 8
_FEW_NUMBERS: Final = 64


class Reason(StrEnum):
    """Why the model did not speak, or was not listened to. Never renamed, never reused."""

    INPUT_OUT_OF_RANGE = "input_out_of_range"
    """A reading of the window is outside ``input_range``."""
    INPUT_STALE = "input_stale"
    """The source says nothing newer than ``stale_after_ms``."""
    INPUT_SILENT = "input_silent"
    """The source has said nothing for ``silent_after_ms``."""
    LOW_CONFIDENCE = "low_confidence"
    """No label reaches ``confidence_min``."""
    OUTPUT_OUT_OF_RANGE = "output_out_of_range"
    """A value is outside ``output_range``, or a probability outside 0 to 1."""
    MODEL_NOT_FINITE = "model_not_finite"
    """The model said NaN or an infinity."""
    MODEL_FAILED = "model_failed"
    """The run ended with an error."""
    MODEL_SLOW = "model_slow"
    """The run took longer than ``slow_after_ms``: what it says comes too late."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rule's owner allows.

    Args:
        confidence_min: 0 to 1; the best label must reach it.
        input_range: lowest and highest value by field name.
        output_range: lowest and highest value by the name of a value of the model.
        stale_after_ms: a reading whose own time is older is not decided on; ``None`` for never.
        silent_after_ms: a source without a reading for so long gets a fallback; ``None`` for never.
        slow_after_ms: a run that takes longer is not listened to.
        valid_for_ms: how long a decision holds.
    """

    confidence_min: float = 0.0
    input_range: Mapping[str, Range] = field(default_factory=dict)
    output_range: Mapping[str, Range] = field(default_factory=dict)
    stale_after_ms: int | None = None
    silent_after_ms: int | None = None
    slow_after_ms: int = 1000
    valid_for_ms: int = 1000


class Guardrails:
    """The limits of one rule, laid out for the columns of its model.

    Args:
        limits: as configured.
        fields: F names, the columns of the input.
        values: K names, the columns of the model's values.

    Raises:
        Refused: ``missing_field``: a limit is set for a name that the model does not have.
    """

    def __init__(self, limits: Limits, fields: Sequence[str], values: Sequence[str]) -> None:
        self._input = _columns("input_range", limits.input_range, fields)
        self._output = _columns("output_range", limits.output_range, values)
        # The limited columns alone, for few numbers.
        self._limited = (
            []
            if self._input is None
            else [
                (column, low, high)
                for column, (low, high) in enumerate(
                    zip(self._input[0].tolist(), self._input[1].tolist(), strict=True)
                )
                if (low, high) != (-math.inf, math.inf)
            ]
        )
        # As plain floats for single values: exactly the float32 that arrays are compared with.
        self._output_pairs = (
            []
            if self._output is None
            else list(zip(self._output[0].tolist(), self._output[1].tolist(), strict=True))
        )
        self._confidence_min = float(np.float32(limits.confidence_min))
        self._slow_after_ns = limits.slow_after_ms * 1_000_000

    def judge(
        self, batch: NDArray[np.float32], outputs: Outputs, run_ns: int
    ) -> Mapping[int, tuple[Reason, ...]]:
        """The reasons against each decision of a group; those without any are not in it.

        Args:
            batch: [n, W, F], what the model was shown.
            outputs: what it said: probabilities [n, L], values [n, K].
            run_ns: how long the run took.
        """
        slow = run_ns > self._slow_after_ns
        if len(batch) <= _FEW:
            return self._judge_each(batch, outputs, slow=slow)
        return self._judge_all(batch, outputs, slow=slow)

    def _judge_all(
        self, batch: NDArray[np.float32], outputs: Outputs, *, slow: bool
    ) -> Mapping[int, tuple[Reason, ...]]:
        """As arrays."""
        probabilities, values = outputs
        best = probabilities.max(axis=1)
        against: list[tuple[Reason, NDArray[np.bool_]]] = []
        if self._input is not None:
            against.append((Reason.INPUT_OUT_OF_RANGE, self._outside_input(batch)))
        if not (np.isfinite(probabilities).all() and np.isfinite(values).all()):
            finite = np.isfinite(probabilities).all(axis=1) & np.isfinite(values).all(axis=1)
            against.append((Reason.MODEL_NOT_FINITE, np.asarray(~finite)))
        against.append((Reason.LOW_CONFIDENCE, best < self._confidence_min))
        outside = (best > _CERTAIN) | (probabilities < 0).any(axis=1)
        if self._output is not None:
            low, high = self._output
            outside |= ((values < low) | (values > high)).any(axis=1)
        against.append((Reason.OUTPUT_OUT_OF_RANGE, outside))
        if slow:
            against.append((Reason.MODEL_SLOW, np.ones(len(batch), np.bool_)))
        return _by_row(against)

    def _judge_each(
        self, batch: NDArray[np.float32], outputs: Outputs, *, slow: bool
    ) -> Mapping[int, tuple[Reason, ...]]:
        """Number by number; says the same."""
        against: dict[int, tuple[Reason, ...]] = {}
        outside = self._outside_input_each(batch) if self._limited else None
        rows = zip(outputs.probabilities.tolist(), outputs.values.tolist(), strict=True)
        for row, (probabilities, values) in enumerate(rows):
            reasons = []
            known = all(map(math.isfinite, probabilities))
            best = max(probabilities) if known else float(np.max(probabilities))
            if outside and outside[row]:
                reasons.append(Reason.INPUT_OUT_OF_RANGE)
            if not known or not all(map(math.isfinite, values)):
                reasons.append(Reason.MODEL_NOT_FINITE)
            if best < self._confidence_min:
                reasons.append(Reason.LOW_CONFIDENCE)
            if (
                best > _CERTAIN
                or any(probability < 0 for probability in probabilities)
                or self._is_outside_output(values)
            ):
                reasons.append(Reason.OUTPUT_OUT_OF_RANGE)
            if slow:
                reasons.append(Reason.MODEL_SLOW)
            if reasons:
                against[row] = tuple(reasons)
        return against

    def judge_input(self, batch: NDArray[np.float32]) -> Mapping[int, tuple[Reason, ...]]:
        """As ``judge``, when the model failed and there is nothing but its input [n, W, F]."""
        against = [(Reason.MODEL_FAILED, np.ones(len(batch), np.bool_))]
        if self._input is not None:
            against.append((Reason.INPUT_OUT_OF_RANGE, self._outside_input(batch)))
        return _by_row(against)

    def _outside_input(self, batch: NDArray[np.float32]) -> NDArray[np.bool_]:
        assert self._input is not None, "asked only where there are limits"
        low, high = self._input
        return np.asarray(((batch < low) | (batch > high)).any(axis=(1, 2)))

    def _outside_input_each(self, batch: NDArray[np.float32]) -> Sequence[bool]:
        """As ``_outside_input``, number by number where there are few."""
        if batch.size > _FEW_NUMBERS:
            found: list[bool] = self._outside_input(batch).tolist()
            return found
        return [
            any(
                reading[column] < low or reading[column] > high
                for reading in window
                for column, low, high in self._limited
            )
            for window in batch.tolist()
        ]

    def _is_outside_output(self, values: Sequence[float]) -> bool:
        return any(
            value < low or value > high
            for value, (low, high) in zip(values, self._output_pairs, strict=False)
        )


def is_stale(time_ms: float, now_ms: float, stale_after_ms: int) -> bool:
    """Whether a reading is too old to be decided on; one from the future is not."""
    return now_ms - time_ms > stale_after_ms


def policy_digest(policy: Mapping[str, object]) -> bytes:
    """SHA-256 of a rule's settings as JSON with sorted keys: equal settings, equal digest."""
    return sha256(orjson.dumps(policy, option=orjson.OPT_SORT_KEYS)).digest()


def _columns(
    what: str, ranges: Mapping[str, Range], names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Lowest and highest value for each column; infinite where nothing is set."""
    if not ranges:
        return None
    unknown = sorted(set(ranges) - set(names))
    if unknown:
        raise Refused(
            RefusedBecause.MISSING_FIELD,
            f"{what}: {', '.join(unknown)} is none of {', '.join(names) or 'no names'}",
        )
    everything = (-np.inf, np.inf)
    with np.errstate(over="ignore"):  # beyond float32 is as good as no limit
        pairs = np.array([ranges.get(name, everything) for name in names]).astype(np.float32)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _by_row(
    against: Sequence[tuple[Reason, NDArray[np.bool_]]],
) -> Mapping[int, tuple[Reason, ...]]:
    rows: dict[int, tuple[Reason, ...]] = {}
    for reason, where in against:
        for row in np.flatnonzero(where).tolist():
            rows[row] = (*rows.get(row, ()), reason)
    return rows
