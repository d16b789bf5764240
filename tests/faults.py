"""The table of faults: each fault that is survived, and the tests that prove it.

A test names the rows that it proves in its docstring: ``Row 13: …``, ``Rows 4, 5 and 6: …``,
anywhere in it. ``python -m tests.faults --write`` collects these by reading the sources, imports
nothing, and puts the table into ``tests/README.md``; a test fails while the two differ. Words such
as ``Refusal 29`` belong to another list and are passed over.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["FAULTS", "FOLDER", "LATER", "README", "Proof", "proofs", "rows_of", "table", "written"]

FOLDER: Final = Path(__file__).parent
README: Final = FOLDER / "README.md"
_BEGIN: Final = "<!-- table of faults: python -m tests.faults --write -->"
_END: Final = "<!-- end of the table -->"
_ROWS: Final = re.compile(r"\bRows?\s+(\d+(?:\s*(?:,|and|to|-)\s*\d+)*)")
_SPAN: Final = re.compile(r"(\d+)(?:\s*(?:to|-)\s*(\d+))?")

FAULTS: Final = {
    1: "killed at any system call",
    2: "power cut: what was not synced is gone",
    3: "power cut on xfs, and on ext4 with weaker mount options",
    4: "record torn at any byte",
    5: "of one write a later block survives, an earlier one does not",
    6: "file grew, its data did not: zeros at the end",
    7: "stale records of a reused file behind the end",
    8: "any single bit flipped",
    9: "bit flipped in a length",
    10: "sector zeroed or unreadable in the middle",
    11: "misdirected write: something whole of another place stands here",
    12: "lost write: the disk says done and did nothing",
    13: "sync fails once, then works",
    14: "sync goes on failing",
    15: "read from the page cache after a failed sync",
    16: "disk full at write, create, rename or sync of a folder",
    17: "disk full that shows only at the sync",
    18: "quota used up, file too large, file system turned read-only",
    19: "no file descriptors left",
    20: "short write, interrupted call",
    21: "name of a new file lost",
    22: "unlinked before the cursor was durable",
    23: "cursor torn or lost",
    24: "file deleted by an operator",
    25: "store copied to another node",
    26: "two processes on one store",
    27: "disk stalls for 30 seconds",
    28: "process stopped, and goes on later",
    29: "out of memory",
    30: "wall clock jumps by years, either way",
    31: "link away for 90 days",
    32: "link flaps every few seconds for hours",
    33: "half-open connection, black hole",
    34: "next holder hangs",
    35: "next holder acknowledges, then loses",
    36: "acknowledgement lost, doubled or out of order",
    37: "slow and narrow link",
    38: "local broker killed, or its queue overflows",
    39: "gateway dies in the middle of taking custody",
    40: "ten thousand devices reconnect at once",
    41: "power cut within the update of a model",
    42: "new model crashes, is slow or says nonsense",
    43: "carried bundle truncated, out of order or twice there",
    44: "checkpoint of the decision log interrupted",
    45: "keys changed while the link is away",
    46: "poison: a batch that is refused for ever",
    47: "wear: writes and syncs stay within a budget",
    48: "another version of the program on a live store",
}
"""Each row, in few words."""

_OF_TRANSFER: Final = "belongs to links and receipts, whose tests do not name rows yet"
LATER: Final = {
    38: "belongs to the local broker, whose tests do not name rows yet",
    41: "models are not updated in the field yet",
    42: "models are not updated in the field yet",
    44: "decisions are not sealed into a log yet",
    45: "batches are not sealed yet",
}
"""Rows that are not proved here yet, and why; some have tests already."""


class Proof(NamedTuple):
    """A test, and the rows that it says it proves."""

    path: str
    name: str
    rows: tuple[int, ...]


def rows_of(text: str) -> tuple[int, ...]:
    """The rows that a docstring names, sorted, each once."""
    found: set[int] = set()
    for match in _ROWS.finditer(text):
        for first, last in _SPAN.findall(match[1]):
            found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def proofs(folder: Path = FOLDER) -> list[Proof]:
    """All tests below a folder that name rows, by path and place."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        for name, text in _documented(ast.parse(path.read_text(encoding="utf-8"))):
            rows = rows_of(text)
            if rows:
                found.append(Proof(path.relative_to(folder).as_posix(), name, rows))
    return found


def _documented(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The test functions of a module, those of its classes too, and their docstrings."""
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for node in (node for body in bodies for node in body):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if named and node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


def table(found: list[Proof]) -> str:
    """The table as Markdown."""
    lines = ["| row | fault | proved by |", "|---:|---|---|"]
    for row, fault in FAULTS.items():
        tests: dict[str, list[str]] = {}
        for proof in found:
            if row in proof.rows:
                tests.setdefault(proof.path, []).append(proof.name.removeprefix("test_"))
        told = [f"[{path}]({path}): {', '.join(names)}" for path, names in tests.items()]
        if row in LATER:
            told.append(f"*later: {LATER[row]}*")
        lines.append(f"| {row} | {fault} | {'<br>'.join(told) or '*none yet*'} |")
    return "\n".join(lines) + "\n"


def written(readme: str, made: str) -> str:
    """The text of the file with another table in its place.

    Raises:
        ValueError: it has no place for a table.
    """
    before, begin, rest = readme.partition(f"{_BEGIN}\n")
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{README} has no lines {_BEGIN!r} and {_END!r}")
    return f"{before}{begin}{made}{end}{after}"


def _main(arguments: list[str]) -> int:
    made = table(proofs())
    if arguments != ["--write"]:
        print(made, end="")
        return 0 if not arguments else 2
    README.write_text(written(README.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
