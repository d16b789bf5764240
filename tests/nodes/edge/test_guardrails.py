"""Guardrails: each reason, row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.edge.fallback import fall_back
from nodes.edge.guardrails import Guardrails, Limits, Reason, is_stale, policy_digest
from nodes.edge.model import Outputs
from schemas.errors import Refused

FIELDS = ("a", "b")
VALUES = ("score",)
BATCH = np.zeros((2, 3, 2), np.float32)


def outputs(*rows: tuple[float, float, float]) -> Outputs:
    """Rows of two probabilities and a value."""
    said = np.array(rows, np.float32)
    return Outputs(said[:, :2], said[:, 2:])


FINE = outputs((0.9, 0.1, 1.0), (0.1, 0.9, 1.0))


def judge(limits: Limits, said: Outputs = FINE, batch: object = BATCH, run_ns: int = 0) -> object:
    """What the rules have against it."""
    return Guardrails(limits, FIELDS, VALUES).judge(np.asarray(batch), said, run_ns)


def test_nothing_against_what_is_fine() -> None:
    """Without a breach no row is named."""
    limits = Limits(0.9, {"a": (0.0, 0.0)}, {"score": (1.0, 1.0)})
    assert judge(limits) == {}


def test_limits_hold_at_their_ends_in_float32() -> None:
    """A value exactly at a limit that float32 cannot hold is within it."""
    batch = np.full((1, 1, 2), 0.1, np.float64).astype(np.float32)
    said = outputs((0.7, 0.3, 0.1))
    limits = Limits(0.7, {"a": (0.1, 0.1)}, {"score": (0.1, 0.1)})
    assert judge(limits, said, batch) == {}


def test_any_reading_of_the_window_counts() -> None:
    """One reading outside its range takes the word from the whole window, and only from it."""
    batch = BATCH.copy()
    batch[1, 0, 1] = 5
    assert judge(Limits(input_range={"b": (0, 4)}), batch=batch) == {
        1: (Reason.INPUT_OUT_OF_RANGE,)
    }


@pytest.mark.parametrize(
    ("said", "reasons"),
    [
        ((0.5, 0.4, 1.0), (Reason.LOW_CONFIDENCE,)),
        ((0.9, 0.1, 9.0), (Reason.OUTPUT_OUT_OF_RANGE,)),
        ((1.5, 0.1, 1.0), (Reason.OUTPUT_OUT_OF_RANGE,)),
        ((0.9, -0.1, 1.0), (Reason.OUTPUT_OUT_OF_RANGE,)),
        ((float("nan"), 0.1, 1.0), (Reason.MODEL_NOT_FINITE,)),
        ((0.9, 0.1, float("nan")), (Reason.MODEL_NOT_FINITE,)),
        ((0.9, 0.1, float("inf")), (Reason.MODEL_NOT_FINITE, Reason.OUTPUT_OUT_OF_RANGE)),
        ((0.2, 0.1, 9.0), (Reason.LOW_CONFIDENCE, Reason.OUTPUT_OUT_OF_RANGE)),
    ],
)
def test_what_the_model_says_is_judged(
    said: tuple[float, float, float], reasons: tuple[Reason, ...]
) -> None:
    """Each breach has its reason, and the row beside it keeps its word."""
    limits = Limits(0.6, output_range={"score": (0, 2)})
    assert judge(limits, outputs((0.9, 0.1, 1.0), said)) == {1: reasons}


FLOAT = st.floats(width=32) | st.floats(-0.125, 1.125, width=32)


@given(st.lists(st.tuples(FLOAT, FLOAT, FLOAT), min_size=1, max_size=4), st.booleans())
def test_few_and_many_are_judged_alike(
    rows: list[tuple[float, float, float]],
    slow: bool,  # noqa: FBT001 - drawn
) -> None:
    """Number by number or as arrays: the same reasons, whatever the model says."""
    limits = Limits(0.6, {"a": (0, 1)}, {"score": (0, 0.5)}, slow_after_ms=1)
    run_ns = 2_000_000 if slow else 0
    batch = np.zeros((len(rows), 1, 2), np.float32)
    few = judge(limits, outputs(*rows), batch, run_ns)
    times = 9
    many = judge(limits, outputs(*rows * times), np.concatenate([batch] * times), run_ns)
    assert isinstance(few, dict)
    repeated = {row + k * len(rows): few[row] for k in range(times) for row in few}
    assert many == repeated


def test_a_slow_run_takes_the_word_from_all() -> None:
    """A run that takes longer than allowed is not listened to."""
    limits = Limits(slow_after_ms=10)
    assert judge(limits, run_ns=10_000_000) == {}
    assert judge(limits, run_ns=10_000_001) == {0: (Reason.MODEL_SLOW,), 1: (Reason.MODEL_SLOW,)}


def test_a_failed_run_is_judged_by_its_input() -> None:
    """Without outputs each row has failed, and its input is still judged."""
    batch = BATCH.copy()
    batch[0, 0, 0] = -1
    rails = Guardrails(Limits(input_range={"a": (0, 1)}), FIELDS, VALUES)
    assert rails.judge_input(batch) == {
        0: (Reason.MODEL_FAILED, Reason.INPUT_OUT_OF_RANGE),
        1: (Reason.MODEL_FAILED,),
    }


def test_limits_for_unknown_names_are_refused() -> None:
    """A limit that nothing would ever check is refused."""
    with pytest.raises(Refused, match="pressure is none of a, b"):
        Guardrails(Limits(input_range={"pressure": (0, 1)}), FIELDS, VALUES)
    with pytest.raises(Refused, match="output_range"):
        Guardrails(Limits(output_range={"a": (0, 1)}), FIELDS, VALUES)


def test_staleness() -> None:
    """Older than allowed is stale; exactly as old, and from the future, is not."""
    assert is_stale(1000, 2001, 1000)
    assert not is_stale(1000, 2000, 1000)
    assert not is_stale(9000, 2000, 1000)


def test_policy_digest_follows_the_settings_alone() -> None:
    """Equal settings in any order have one digest; another value has another."""
    assert policy_digest({"a": 1, "b": [2]}) == policy_digest({"b": [2], "a": 1})
    assert policy_digest({"a": 1}) != policy_digest({"a": 2})
    assert len(policy_digest({})) == 32


def test_fallback_keeps_only_numbers() -> None:
    """Confidence is 0 where it is none; values are left out where one is not finite."""
    nan = float("nan")
    said = fall_back("stop", [Reason.LOW_CONFIDENCE], confidence=0.4, values=(1.0, 2.0))
    assert said == ("stop", 0.4, (1.0, 2.0), ("low_confidence",))
    said = fall_back("stop", [Reason.MODEL_NOT_FINITE], confidence=nan, values=(1.0, nan))
    assert said == ("stop", 0.0, (), ("model_not_finite",))
