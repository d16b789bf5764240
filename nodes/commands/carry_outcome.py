"""What a carrying came to: a document for programs, lines for a person, an exit code. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mesh.transfer.carried import CarriedFile, Flaw
from schemas.errors import ExitCode
from schemas.messages import Lane

__all__ = ["CarryOutcome", "Tell", "by_lane", "flaw_documents", "flaw_lines"]

Tell = Callable[[str, int, int | None], object]
"""Is told what happens, how much is done, and of how much where that is known."""
_SHOWN_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class CarryOutcome:
    """What a carrying came to.

    Args:
        document: in what JSON can say.
        lines: for a person.
        exit_code: how the command ends.
    """

    document: dict[str, object]
    lines: list[str]
    exit_code: int = ExitCode.FINE


def by_lane(files: Iterable[CarriedFile]) -> dict[Lane, dict[str, int]]:
    """How many batches, records and bytes of each lane."""
    lanes: dict[Lane, dict[str, int]] = {}
    for file in files:
        counts = lanes.setdefault(file.lane, {"batches": 0, "records": 0, "bytes": 0})
        counts["batches"] += 1
        counts["records"] += file.records
        counts["bytes"] += file.size_bytes
    return {lane: lanes[lane] for lane in Lane if lane in lanes}


def flaw_documents(flaws: Iterable[Flaw]) -> list[dict[str, object]]:
    """What was not taken, and why."""
    return [{"path": flaw.path, "why": flaw.what, "harmless": flaw.harmless} for flaw in flaws]


def flaw_lines(flaws: list[Flaw]) -> list[str]:
    """What was not taken, and why, the first of very many."""
    lines = [f"not taken: {flaw}" for flaw in flaws[:_SHOWN_MAX]]
    if len(flaws) > _SHOWN_MAX:
        lines.append(f"not taken: {len(flaws) - _SHOWN_MAX} more, which --json names")
    return lines
