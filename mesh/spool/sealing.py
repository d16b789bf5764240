"""What runs in the worker thread: reading frames back, packing them, sealing a journal. Blocking.

Holds no state.

Reading back is where a lost write shows: the disk said that a frame was there, and it is not. Such
frames are returned as *damaged* and never passed over in silence. Compression and digests release
the interpreter, so none of this delays a decision.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from mesh.ports import Disk, DiskFile
from mesh.spool import batch, shelf
from mesh.spool.backlog import runs
from mesh.spool.batch import Batch, Labels
from mesh.spool.commit import Located
from mesh.spool.frame import FrameHeader
from mesh.spool.journal import journal_path
from mesh.spool.shelf import Sealed
from schemas.errors import DiskFailed
from schemas.messages import Lane

__all__ = ["Packed", "Packer", "SealedJournal", "pack", "seal"]


class Packer(Protocol):
    """Makes a batch of frames, perhaps in another process; blocks until it is made."""

    def pack(self, labels: Labels, frames: Sequence[FrameHeader], bodies: Sequence[bytes]) -> Batch:
        """As ``mesh.spool.batch.pack``."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """Batches made of frames, and the frames that the disk no longer gives back."""

    batches: tuple[Batch, ...]
    damaged: tuple[Located, ...]


@dataclass(frozen=True, slots=True)
class SealedJournal:
    """What became of the pending frames of one journal, by lane."""

    batches: Mapping[Lane, tuple[Sealed, ...]]
    damaged: Mapping[Lane, tuple[Located, ...]]


def pack(
    disk: Disk, labels: Labels, frames: Sequence[Located], packer: Packer | None = None
) -> Packed:
    """Reads frames of one journal and makes batches of them: one, unless some are damaged.

    Raises:
        DiskFailed: the journal cannot be opened.
    """
    whole: list[Located] = []
    damaged: list[Located] = []
    bodies: dict[int, bytes] = {}
    try:
        file = disk.open(journal_path(frames[0].journal), "read")
    except FileNotFoundError:
        return Packed((), tuple(frames))
    try:
        for item in frames:
            header = item.frame.header
            body = _read(file, item.frame.body_offset, header.body_bytes)
            if header.verifies(body):
                whole.append(item)
                bodies[header.first] = body
            else:
                damaged.append(item)
    finally:
        file.close()
    batches = []
    make = batch.pack if packer is None else packer.pack
    for run in runs(whole):
        headers = [item.frame.header for item in run]
        batches.append(make(labels, headers, [bodies[header.first] for header in headers]))
    return Packed(tuple(batches), tuple(damaged))


def _read(file: DiskFile, offset: int, size: int) -> bytes:
    """Reads, and once more where the medium failed: many a bad read is gone the second time."""
    for _ in range(2):
        with suppress(DiskFailed):
            return file.read(offset, size)
    return b""


def seal(
    disk: Disk,
    labels: Labels,
    frames_by_lane: Mapping[Lane, Sequence[Located]],
    packer: Packer | None = None,
) -> SealedJournal:
    """Puts the pending frames of one journal on the shelf; durable on return.

    Raises:
        DiskFailed: not all are there; the journal must stay, and sealing it again is harmless.
    """
    batches: dict[Lane, tuple[Sealed, ...]] = {}
    damaged: dict[Lane, tuple[Located, ...]] = {}
    for lane, frames in frames_by_lane.items():
        shelf.prepare(disk, lane, frames[0].frame.header.owner.epoch)
        shelved: list[Sealed] = []
        lost: list[Located] = []
        for run in runs(frames):
            packed = pack(disk, labels, run, packer)
            shelved += [shelf.put(disk, item) for item in packed.batches]
            lost += packed.damaged
        batches[lane] = tuple(shelved)
        damaged[lane] = tuple(lost)
    return SealedJournal(batches, damaged)
