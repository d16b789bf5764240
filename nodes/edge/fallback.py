"""What a node says when its model may not speak. Pure.

A fallback is a decision like any other: numbered, recorded, published, and it holds for a time. It
says why, keeps what the model said as far as that is a number, and leaves what to do to whoever
acts on it: the actuator knows its own safe position.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nodes.edge.guardrails import Reason

__all__ = ["Saying", "fall_back"]


class Saying(NamedTuple):
    """The part of a decision that the model, or its absence, gives."""

    verdict: str
    confidence: float
    values: tuple[float, ...]
    reasons: tuple[str, ...]


def fall_back(
    verdict: str,
    reasons: Sequence[Reason],
    *,
    confidence: float = 0.0,
    values: Sequence[float] = (),
) -> Saying:
    """The fallback for some reasons.

    Args:
        verdict: the rule's word for it.
        reasons: at least one.
        confidence: of the model's best label; taken as 0 where it is no probability.
        values: what else the model said; left out where one is not finite.
    """
    assert reasons, "a fallback says why"
    certain = confidence if 0.0 <= confidence <= 1.0 else 0.0
    told = tuple(values) if all(map(math.isfinite, values)) else ()
    # The words alone: a plain str is written faster than a member of an enumeration.
    return Saying(verdict, certain, told, tuple(reason.value for reason in reasons))
