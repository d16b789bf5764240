"""What is carried by a person: batches, manifests, receipts, and their names. Pure.

A carried directory is a link whose cable is a person. It lies below ``holdfast/`` of whatever is
carried, a folder for each node::

    <site>.<node>/<lane>.<first>-<last>.<digest>.batch     batches, as links carry them
    <site>.<node>/<number>.manifest                        what belongs to a load, written last
    <site>.<node>/receipts/<lane>.<digest>.receipt         what goes back

Manifests and receipts begin with a line that tells what they are and proves the rest::

    holdfast-<kind> <version> <SHA-256 of what follows, 64 hex digits>

After it a manifest is JSON, a receipt is a ``Receipt`` in canonical bytes.

Invariants. A file is named by what is in it, ``<digest>`` being the first sixteen hex digits of its
SHA-256, so a name never means two things, and writing it twice changes nothing. No name holds what
FAT does not (letter case, colons, links). A batch that no whole manifest names is not part of a
load. The highest manifest names all that its writer found whole. Nothing that is carried releases
anything: a stick is never a holder, and what was on it comes again.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.spool import batch
from mesh.spool.batch import Batch
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, CARRIED_FILES_MAX, MANIFEST_BYTES_MAX, SEQ_MAX
from schemas.messages import Lane, Receipt
from schemas.ranges import Ranges
from schemas.topics import is_identifier

__all__ = [
    "BATCH",
    "FOLDER",
    "MANIFEST",
    "RECEIPT",
    "RECEIPTS",
    "CarriedFile",
    "Flaw",
    "Manifest",
    "check_batch",
    "file_of",
    "is_batch_name",
    "manifest_name",
    "manifest_number",
    "node_folder",
    "node_of",
    "numbers_of",
    "read_manifest",
    "read_receipt",
    "receipt_name",
    "sound_files",
    "write_manifest",
    "write_receipt",
]

FOLDER: Final = "holdfast"
RECEIPTS: Final = "receipts"
BATCH: Final = ".batch"
MANIFEST: Final = ".manifest"
RECEIPT: Final = ".receipt"
_VERSION: Final = 1
_DIGEST_CHARS: Final = 16
_BATCH_NAME: Final = re.compile(r"[a-z]+\.\d+-\d+\.[0-9a-f]{16}\.batch", re.ASCII)
_NUMBER_DIGITS: Final = 8
_NUMBER_MAX: Final = 10**_NUMBER_DIGITS - 1
_HEAD_BYTES_MAX: Final = 128
_SHOWN_CHARS: Final = 100

_Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Seq = Annotated[int, Field(ge=0, le=SEQ_MAX)]


class CarriedFile(BaseModel):
    """One batch, as a manifest names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: Annotated[str, Field(min_length=1, max_length=255)]
    size_bytes: Annotated[int, Field(ge=1)]
    sha256: _Hex32
    lane: Lane
    epoch: Annotated[str, Field(max_length=64)]
    first: _Seq
    last: _Seq
    records: _Seq


class Manifest(BaseModel):
    """What a load holds: the last thing that is written of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    number: Annotated[int, Field(ge=1, le=_NUMBER_MAX)]
    site: Annotated[str, Field(max_length=63)]
    node: Annotated[str, Field(max_length=63)]
    store: _Hex16
    created_ms: Annotated[int, Field(ge=0)]
    files: Annotated[tuple[CarriedFile, ...], Field(max_length=CARRIED_FILES_MAX)]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is not taken: where it stands, and why.

    Args:
        path: where.
        what: why.
        harmless: whether nothing that was meant to be taken is missing for it.
    """

    path: str
    what: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


# --- names ------------------------------------------------------------------------------------


def node_folder(site: str, node: str) -> str:
    """The name of a node's folder: both are identifiers, and no identifier holds a dot."""
    return f"{site}.{node}"


def node_of(name: str) -> tuple[str, str] | None:
    """The site and node of a folder's name; ``None`` for the name of something else."""
    site, _, node = name.partition(".")
    return (site, node) if is_identifier(site) and is_identifier(node) else None


def manifest_name(number: int) -> str:
    """The name of a manifest; a later one has a higher number."""
    return f"{number:0{_NUMBER_DIGITS}d}{MANIFEST}"


def manifest_number(name: str) -> int | None:
    """The number in a manifest's name; ``None`` for the name of something else."""
    digits = name.removesuffix(MANIFEST)
    right = len(digits) == _NUMBER_DIGITS and digits.isascii() and digits.isdecimal()
    return int(digits) if right and name == manifest_name(int(digits)) else None


def receipt_name(data: bytes, receipt: Receipt) -> str:
    """The name of a receipt, whose file these bytes are."""
    return f"{receipt.lane}.{sha256(data).hexdigest()[:_DIGEST_CHARS]}{RECEIPT}"


def _batch_name(lane: Lane, first: int, last: int, digest: str) -> str:
    return f"{lane}.{first}-{last}.{digest[:_DIGEST_CHARS]}{BATCH}"


def is_batch_name(name: str) -> bool:
    """Whether a name is that of some batch."""
    return _BATCH_NAME.fullmatch(name) is not None


def file_of(found: Batch) -> CarriedFile:
    """How a manifest names a batch."""
    header, digest = found.header, found.digest.hex()
    return CarriedFile(
        name=_batch_name(header.lane, header.first, header.last, digest),
        size_bytes=len(found.data),
        sha256=digest,
        lane=header.lane,
        epoch=str(header.epoch),
        first=header.first,
        last=header.last,
        records=header.count,
    )


def numbers_of(files: Iterable[CarriedFile]) -> dict[tuple[str, Lane], Ranges]:
    """The numbers that batches hold, by epoch and lane.

    One that has fewer records than its span is passed over: which it has, only its header says.
    """
    spans: dict[tuple[str, Lane], list[tuple[int, int]]] = {}
    for file in files:
        if file.records == file.last + 1 - file.first:
            spans.setdefault((file.epoch, file.lane), []).append((file.first, file.last + 1))
    return {key: Ranges.of(found) for key, found in spans.items()}


# --- what is written --------------------------------------------------------------------------


def _sealed(kind: str, body: bytes) -> bytes:
    return f"holdfast-{kind} {_VERSION} {sha256(body).hexdigest()}\n".encode() + body


def _unsealed(kind: str, data: bytes, size_max: int) -> bytes:
    """What follows the first line, which proves it.

    Raises:
        Refused: ``too_large``, ``malformed``, ``bad_version`` or ``bad_checksum``.
    """
    if len(data) > size_max:
        raise Refused(RefusedBecause.TOO_LARGE, f"{len(data)} bytes, at most {size_max}")
    line, end, body = data.partition(b"\n")
    words = line[:_HEAD_BYTES_MAX].split(b" ")
    if not end or len(words) != 3 or words[0] != f"holdfast-{kind}".encode():  # noqa: PLR2004
        raise Refused(RefusedBecause.MALFORMED, f"it does not begin as a {kind} does")
    if words[1] != str(_VERSION).encode():
        told = words[1].decode("ascii", "backslashreplace")
        raise Refused(RefusedBecause.BAD_VERSION, f"{kind} version {told}, known is {_VERSION}")
    if words[2] != sha256(body).hexdigest().encode():
        raise Refused(RefusedBecause.BAD_CHECKSUM, "it does not have the digest that it states")
    return body


def write_manifest(manifest: Manifest) -> bytes:
    """A manifest as it is carried."""
    data = _sealed("manifest", manifest.model_dump_json(indent=0).encode())
    assert len(data) <= MANIFEST_BYTES_MAX, "its files are bounded"
    return data


def read_manifest(data: bytes) -> Manifest:
    """The manifest that these bytes are, all of them; its files are judged by ``sound_files``.

    Raises:
        Refused: ``too_large``, ``malformed``, ``bad_version`` or ``bad_checksum``.
    """
    body = _unsealed("manifest", data, MANIFEST_BYTES_MAX)
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(level) for level in first["loc"])[:_SHOWN_CHARS]
        raise Refused(RefusedBecause.MALFORMED, f"manifest: {where}: {first['msg']}") from None


def write_receipt(receipt: Receipt) -> bytes:
    """A receipt as it is carried."""
    return _sealed("receipt", wire.encode(receipt))


def read_receipt(data: bytes, size_max: int) -> Receipt:
    """The receipt that these bytes are, all of them.

    Args:
        data: the file.
        size_max: how long it may be, bytes.

    Raises:
        Refused: ``too_large``, ``malformed``, ``bad_version``, ``bad_checksum``, or what
            ``schemas.wire.decode`` says of the receipt.
    """
    return wire.decode_as(Receipt, _unsealed("receipt", data, size_max))


# --- what is judged ---------------------------------------------------------------------------


def sound_files(manifest: Manifest) -> tuple[list[CarriedFile], list[Flaw]]:
    """The files of a manifest that can be what it says, and why the others cannot.

    A name must be the one that the rest of its line gives, so that none leads out of the folder, is
    a path, or differs from another in letter case only.
    """
    sound: dict[str, CarriedFile] = {}
    flaws = []
    for file in manifest.files:
        shown = file.name[:_SHOWN_CHARS]
        if file.name != _batch_name(file.lane, file.first, file.last, file.sha256):
            what = "not the name of this batch"
            if any(file.name.casefold() == known for known in sound):
                what = "the same name as another file's but for letter case"
            elif "/" in file.name or "\\" in file.name:
                what = "a path, where a name belongs"
            flaws.append(Flaw(shown, f"the manifest names it wrongly: {what}"))
        elif file.name in sound:
            flaws.append(Flaw(shown, "the manifest names it twice"))
        elif file.size_bytes > BATCH_BYTES_MAX:
            size = f"{file.size_bytes} bytes; a batch has at most {BATCH_BYTES_MAX}"
            flaws.append(Flaw(shown, size))
        else:
            sound[file.name] = file
    return list(sound.values()), flaws


def check_batch(site: str, node: str, file: CarriedFile, data: bytes) -> Batch:
    """The batch that a manifest names, opened to its last record and found whole.

    Args:
        site: of the folder that it lies in.
        node: of the folder that it lies in.
        file: what the manifest says.
        data: what the file holds.

    Raises:
        Refused: ``bad_checksum``, ``foreign``, or what ``mesh.spool.batch`` says of it.
    """
    if len(data) != file.size_bytes or sha256(data).hexdigest() != file.sha256:
        raise Refused(
            RefusedBecause.BAD_CHECKSUM,
            f"{len(data)} bytes that do not have the digest of the manifest; it states"
            f" {file.size_bytes} bytes",
        )
    found = batch.parse(data)
    header = found.header
    if (header.site, header.node) != (site, node) or file_of(found) != file:
        raise Refused(
            RefusedBecause.FOREIGN, f"it is {header} of {header.site}, not what the manifest says"
        )
    batch.open_records(found)
    return found
