"""Every bound, its unit in its name, and the relations between them.

A limit stands here or it does not exist. The assertions at the end run at import: a change that
breaks a relation cannot start.
"""

from typing import Final

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_HEADER_BYTES_MAX",
    "BATCH_RAW_BYTES_MAX",
    "BLOCK_BYTES",
    "BROKER_GROUP_MESSAGES_MAX",
    "CARRIED_FILES_MAX",
    "CARRIED_MANIFESTS_MAX",
    "CARRIED_NODES_MAX",
    "CARRIED_RECEIPTS_MAX",
    "COMMIT_GROUP_BYTES_MAX",
    "CURSOR_BYTES_MAX",
    "CUSTODY_BATCHES_MAX",
    "CUSTODY_GROUP_BYTES_MAX",
    "CUSTODY_JOURNALS_MAX",
    "CUSTODY_JOURNAL_BYTES_MAX",
    "CUSTODY_LANES_MAX",
    "CUSTODY_LANE_BYTES_MAX",
    "CUSTODY_SPANS_MAX",
    "DECISION_REASONS_MAX",
    "DECISION_VALUES_MAX",
    "DIRECTORY_ENTRIES_MAX",
    "EXPLAINED_SPANS_MAX",
    "EXTENSIONS_MAX",
    "FRAMES_PER_BATCH_MAX",
    "FRAME_BODY_BYTES_MAX",
    "HOLDERS_MAX",
    "IDENTIFIER_CHARS_MAX",
    "INGEST_RAW_BYTES_MAX",
    "INTAKE_BATCHES_MAX",
    "JOURNALS_CLOSED_MAX",
    "JOURNALS_WAITING_MAX",
    "JOURNAL_BYTES_MAX",
    "JOURNAL_HEADER_BYTES_MAX",
    "KIB",
    "LEDGER_FILES_MAX",
    "LEDGER_LANES_MAX",
    "LEDGER_SPANS_MAX",
    "MANIFEST_BYTES_MAX",
    "MIB",
    "MODEL_BYTES_MAX",
    "MODEL_FIELDS_MAX",
    "MODEL_ROWS_MAX",
    "NESTING_DEPTH_MAX",
    "NUMBERS_RESERVED",
    "PARTITIONS",
    "PARTS_MAX",
    "PART_BYTES_MIN",
    "PAST_EPOCHS_MAX",
    "PENDING_BYTES_MAX",
    "PUBLISH_QUEUE_BYTES_MAX",
    "PUBLISH_WINDOW_MAX",
    "QUARANTINE_FILES_MAX",
    "RANGES_MAX",
    "READING_BYTES_MAX",
    "READ_AHEAD_BATCHES_MAX",
    "READ_AHEAD_BYTES_MAX",
    "RECEIPT_BYTES_MAX",
    "RECORDS_PER_FRAME_MAX",
    "RECORD_BYTES_MAX",
    "SEND_WINDOW_BATCHES",
    "SEQ_JUMP_MAX",
    "SEQ_MAX",
    "SOURCES_MAX",
    "SPARE_BYTES_MIN",
    "STORE_BYTES_MAX",
    "TEXT_CHARS_MAX",
    "TOPIC_BYTES_MAX",
    "TORN_TAIL_BYTES_KEPT",
    "WINDOW_READINGS_MAX",
]

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What is said.
IDENTIFIER_CHARS_MAX: Final = 63
TOPIC_BYTES_MAX: Final = 1024
TEXT_CHARS_MAX: Final = 4096
NESTING_DEPTH_MAX: Final = 8
READING_BYTES_MAX: Final = 64 * KIB
RECORD_BYTES_MAX: Final = 64 * KIB
DECISION_VALUES_MAX: Final = 256
DECISION_REASONS_MAX: Final = 16
EXTENSIONS_MAX: Final = 16
SEQ_MAX: Final = 2**63 - 1
RANGES_MAX: Final = 4096

# What is decided.
MODEL_BYTES_MAX: Final = 256 * MIB
MODEL_FIELDS_MAX: Final = 256
MODEL_ROWS_MAX: Final = 1024
WINDOW_READINGS_MAX: Final = 4096
SOURCES_MAX: Final = 1024

# The local broker.
BROKER_GROUP_MESSAGES_MAX: Final = 1024
PUBLISH_WINDOW_MAX: Final = 64
PUBLISH_QUEUE_BYTES_MAX: Final = 8 * MIB

# The spool.
BLOCK_BYTES: Final = 4 * KIB
RECORDS_PER_FRAME_MAX: Final = 4096
FRAME_BODY_BYTES_MAX: Final = 128 * KIB
COMMIT_GROUP_BYTES_MAX: Final = 4 * MIB
PENDING_BYTES_MAX: Final = 32 * MIB
JOURNAL_HEADER_BYTES_MAX: Final = 256 * KIB
JOURNAL_BYTES_MAX: Final = 8 * MIB
JOURNALS_CLOSED_MAX: Final = 4
JOURNALS_WAITING_MAX: Final = 32
SPARE_BYTES_MIN: Final = MIB
TORN_TAIL_BYTES_KEPT: Final = 64 * KIB
NUMBERS_RESERVED: Final = 65_536
EXPLAINED_SPANS_MAX: Final = 1024
HOLDERS_MAX: Final = 16
PAST_EPOCHS_MAX: Final = 4
STORE_BYTES_MAX: Final = 2 * MIB
QUARANTINE_FILES_MAX: Final = 1000
CURSOR_BYTES_MAX: Final = 256 * KIB
DIRECTORY_ENTRIES_MAX: Final = 1_000_000
BATCH_RAW_BYTES_MAX: Final = 256 * KIB
FRAMES_PER_BATCH_MAX: Final = 1024
BATCH_HEADER_BYTES_MAX: Final = 16 * KIB
BATCH_BYTES_MAX: Final = 288 * KIB

# The transfer.
SEND_WINDOW_BATCHES: Final = 32
READ_AHEAD_BATCHES_MAX: Final = 8
READ_AHEAD_BYTES_MAX: Final = 4 * MIB
PART_BYTES_MIN: Final = 512
INTAKE_BATCHES_MAX: Final = 256
RECEIPT_BYTES_MAX: Final = 256 * KIB
PARTITIONS: Final = 256
PARTS_MAX: Final = 1024
LEDGER_LANES_MAX: Final = 8192
LEDGER_FILES_MAX: Final = 1024
LEDGER_SPANS_MAX: Final = 2048
INGEST_RAW_BYTES_MAX: Final = 8 * MIB
SEQ_JUMP_MAX: Final = 2**48

# What a gateway holds for others.
CUSTODY_BATCHES_MAX: Final = 262_144
CUSTODY_GROUP_BYTES_MAX: Final = 4 * MIB
CUSTODY_JOURNALS_MAX: Final = 4096
CUSTODY_JOURNAL_BYTES_MAX: Final = 16 * MIB
CUSTODY_LANES_MAX: Final = 65_536
CUSTODY_LANE_BYTES_MAX: Final = 128 * KIB
CUSTODY_SPANS_MAX: Final = 131_072

# The carried directory. A folder of FAT holds 65,536 entries, and a long name takes several.
CARRIED_FILES_MAX: Final = 8192
CARRIED_MANIFESTS_MAX: Final = 64
CARRIED_NODES_MAX: Final = 4096
CARRIED_RECEIPTS_MAX: Final = 1024
MANIFEST_BYTES_MAX: Final = 4 * MIB

assert RECORD_BYTES_MAX <= FRAME_BODY_BYTES_MAX, "a record fits into a frame"
assert FRAME_BODY_BYTES_MAX <= BATCH_RAW_BYTES_MAX, "a frame fits into a batch"
assert BATCH_RAW_BYTES_MAX + BATCH_HEADER_BYTES_MAX <= BATCH_BYTES_MAX, (
    "a batch that does not shrink fits"
)
assert 3 * FRAMES_PER_BATCH_MAX < BATCH_HEADER_BYTES_MAX // 2, "the counts of all frames fit"
assert 18 * EXPLAINED_SPANS_MAX <= RECORD_BYTES_MAX // 2, "what is explained fits into an account"
assert 8 * 18 * EXPLAINED_SPANS_MAX <= JOURNAL_HEADER_BYTES_MAX, (
    "what is explained of each lane fits into a journal's header"
)
assert 2 * PAST_EPOCHS_MAX * 7 * 18 * EXPLAINED_SPANS_MAX <= STORE_BYTES_MAX // 2, (
    "what is explained of all past lives fits into STORE"
)
assert JOURNAL_HEADER_BYTES_MAX + RECORD_BYTES_MAX <= SPARE_BYTES_MIN, (
    "a full disk leaves room to state a loss"
)
assert 4 * BATCH_BYTES_MAX <= READ_AHEAD_BYTES_MAX, "a few batches can be read ahead"
assert PART_BYTES_MIN <= BATCH_BYTES_MAX, "a batch is at least one part"
assert 2 * 18 * LEDGER_SPANS_MAX + 2 * KIB <= CUSTODY_LANE_BYTES_MAX, (
    "what is held of a lane, and what was released, fits into an entry"
)
assert BATCH_BYTES_MAX <= CUSTODY_GROUP_BYTES_MAX <= CUSTODY_JOURNAL_BYTES_MAX, (
    "a batch fits into a group, and a group into a journal of custody"
)
assert LEDGER_SPANS_MAX <= RANGES_MAX, "what a ledger holds can be written"
assert COMMIT_GROUP_BYTES_MAX <= JOURNAL_BYTES_MAX, "a group fits into a journal"
assert COMMIT_GROUP_BYTES_MAX <= PENDING_BYTES_MAX, "a group can be waiting"
assert BATCH_BYTES_MAX < MIB, (
    "a batch is one message of a nats-server at its default limit of 1 MiB"
)
assert BATCH_BYTES_MAX <= PARTS_MAX * PART_BYTES_MIN, "the parts of a batch can be counted"
assert READING_BYTES_MAX <= PUBLISH_QUEUE_BYTES_MAX, "what was read can be said"
assert 2 * RANGES_MAX * 9 <= CURSOR_BYTES_MAX, (
    "a full set of ranges, nine bytes a bound, fits into a cursor"
)
