"""One tree of errors, its children named by what the caller should do.

``RetryLater``
    Nothing is wrong with what was asked; ask again.
``Refused``
    What was handed over is wrong and will stay wrong: say so to whoever sent it, count it, go on.
``SetAside``
    Bytes that once were good no longer are: keep them, name what they held, go on with the rest.
``DiskFailed``
    The disk did not do what was asked; nothing may be promised on the strength of that call.
``Stop``
    The process cannot do its work; tell the person who started it, and end with ``exit_code``.

Each message carries the identifiers and numbers that a person needs at three in the morning.
"""

from enum import StrEnum

__all__ = [
    "ConfigurationInvalid",
    "Conflict",
    "Damaged",
    "DiskFailed",
    "DiskFull",
    "DiskReadOnly",
    "ExitCode",
    "LinkDown",
    "MeshError",
    "ModelUnusable",
    "Overloaded",
    "Refused",
    "RefusedBecause",
    "RetryLater",
    "ServerUnusable",
    "SetAside",
    "Stop",
    "StoreInUse",
    "StoreUnusable",
]


class ExitCode:
    """Exit codes of the command; the higher ones are those of BSD ``sysexits.h``."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    TRY_LATER = 75
    PERMISSION = 77
    CONFIGURATION = 78


class RefusedBecause(StrEnum):
    """The fixed list of reasons for which something handed over is refused."""

    MALFORMED = "malformed"
    """Not in the encoding that it should be in."""
    WRONG_TYPE = "wrong_type"
    """A value of another type than its field has."""
    MISSING_FIELD = "missing_field"
    """A field that must be there is not."""
    NOT_A_NUMBER = "not_a_number"
    """NaN or an infinity, where a number is needed."""
    TOO_LARGE = "too_large"
    """Larger than the bound in ``schemas.limits``."""
    BAD_NAME = "bad_name"
    """An identifier or topic outside the grammar."""
    BAD_VERSION = "bad_version"
    """A format version that this program does not know."""
    BAD_CHECKSUM = "bad_checksum"
    """Bytes and their checksum or digest disagree."""
    BAD_CHAIN = "bad_chain"
    """The chain says that these are not the records that were meant."""
    BEYOND_SENT = "beyond_sent"
    """A receipt for records that were never sent."""
    FOREIGN = "foreign"
    """Meant for another node, store or epoch."""
    OUT_OF_RANGE = "out_of_range"
    """A number outside what is allowed for it."""
    UNKNOWN_EXTENSION = "unknown_extension"
    """A critical extension that this program does not know."""
    FULL = "full"
    """The receiver has no room; it may be offered again."""


class MeshError(Exception):
    """Everything that Holdfast raises on purpose."""

    exit_code: int = ExitCode.FAILED


class RetryLater(MeshError):
    """Nothing is wrong with what was asked; ask again later."""

    exit_code = ExitCode.TRY_LATER


class Overloaded(RetryLater):
    """A bounded queue is full."""


class LinkDown(RetryLater):
    """The link is not up, broke, or did not answer within its deadline."""


class Conflict(RetryLater):
    """A compare-and-set met another version than it expected."""


class Refused(MeshError):
    """What was handed over is wrong and will stay wrong.

    Args:
        reason: one of the fixed list; what is counted.
        detail: what, where, and what would be right.
    """

    def __init__(self, reason: RefusedBecause, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SetAside(MeshError):
    """Bytes that once were good no longer are; they are kept, and the rest goes on."""


class Damaged(SetAside):
    """A stored frame, batch or cursor does not verify."""


class DiskFailed(MeshError):
    """The disk did not do what was asked."""


class DiskFull(DiskFailed):
    """No space, no quota, or no inode is left."""


class DiskReadOnly(DiskFailed):
    """The file system is mounted read-only, or permission is missing."""

    exit_code = ExitCode.PERMISSION


class Stop(MeshError):
    """The process cannot do its work."""


class ConfigurationInvalid(Stop):
    """The configuration is wrong; all of its errors at once.

    Args:
        problems: one line each: file, key, value, what would be right.
    """

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ModelUnusable(Stop):
    """A model file is missing, cannot be read, or has other inputs and outputs than configured."""

    exit_code = ExitCode.CONFIGURATION


class ServerUnusable(Stop):
    """The embedded server cannot be found, is too old, or does not start."""

    exit_code = ExitCode.TRY_LATER


class StoreInUse(Stop):
    """Another process owns the spool."""

    exit_code = ExitCode.TRY_LATER


class StoreUnusable(Stop):
    """The spool belongs to another node, or has a format that this program does not know."""

    exit_code = ExitCode.CONFIGURATION
