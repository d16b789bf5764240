"""The verdict on a spool: as a document for programs, as lines for people. Pure."""

from collections.abc import Iterator

from mesh.spool.view.findings import Finding
from mesh.spool.view.verdict import Verdict
from nodes.commands.amounts import numbers_document, size
from nodes.commands.process import escaped

__all__ = ["verdict_document", "verdict_lines"]


def verdict_document(verdict: Verdict) -> dict[str, object]:
    """A verdict, in what JSON can say."""
    return {
        "sound": verdict.sound,
        "node": verdict.node,
        "journals": verdict.journals,
        "frames": verdict.frames,
        "batches": verdict.batches,
        "bytes": verdict.bytes,
        "findings": [_finding_document(finding) for finding in verdict.findings],
        "further_findings": verdict.further,
    }


def _finding_document(finding: Finding) -> dict[str, object]:
    return {
        "grade": finding.grade,
        "file": finding.file,
        "what": finding.what,
        "then": finding.then,
        "lost": {str(lane): numbers_document(numbers) for lane, numbers in finding.lost.items()},
    }


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """A verdict for a person: the last line says it in one word."""
    for finding in verdict.findings:
        yield escaped(f"{finding.grade}: {finding}")
    if verdict.further:
        yield f"and {verdict.further} more findings"
    read = (
        f"{verdict.node}: {verdict.journals} journals with {verdict.frames:,} frames, "
        f"{verdict.batches:,} batches, {size(verdict.bytes)} read"
    )
    yield escaped(f"{'sound' if verdict.sound else 'DAMAGED'}: {read}")
