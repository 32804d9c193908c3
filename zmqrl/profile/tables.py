"""The tables that processes record, and their encoding in the files of ``DIR/profile``.

A file is a series of blocks. A block is the length and the CRC-32 of its body (two little-endian uint32), and the body:
a MessagePack map, compressed with zlib. Readers stop at a block that is cut off or damaged.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from zmqrl.observe.spans import SHARD_SPANS, WORKER_SPANS

Table: TypeAlias = "NDArray[np.int64]"
"""Rows of one table: int64 (rows, columns)."""

FORMAT = 1
# In the place of a version's closing rank: the shard only published the version, or no contribution closed it, because
# a change of the view made the quorum smaller.
NOT_MADE, NO_CONTRIBUTION = -1, -2
PREFIX = struct.Struct("<II")

# Columns in _at_us are times on the process's monotonic clock. All columns in _us, and all spans, are in microseconds.
COLUMNS: dict[str, tuple[str, ...]] = {
    # A row of a worker for each contribution, from the end of the previous push to the end of its own push.
    # queued_us is how long the worker's thread was ready but had no core, outside the span wait.
    "cycles": (
        "generation",
        "version",
        "began_at_us",
        "pulled_at_us",
        "pushed_at_us",
        "last_shard",
        *WORKER_SPANS,
        "cpu_us",
        "preempted",
        "major_faults",
        "queued_us",
    ),
    # A row of a shard for each contribution that arrived. The shard waited for messages until polled_at_us. Then it was
    # busy or did not run.
    "arrivals": ("generation", "version", "rank", "outcome", "polled_at_us", "arrived_at_us"),
    # A row of a shard for each publication. The closing rank is that of the contribution that completed the quorum.
    "versions": (
        "generation",
        "version",
        "quorum",
        "closing_rank",
        "closed_at_us",
        "published_at_us",
        *SHARD_SPANS,
        "cpu_us",
    ),
    # A row of a worker for each PONG. Sent and returned are on the worker's clock, the others on the shard's clock.
    "pings": ("shard", "sent_at_us", "received_at_us", "answered_at_us", "returned_at_us"),
    # A row at intervals: ``profiler.machine_totals``, and the resident memory of the process.
    "machine": ("at_us", "cpu_us", "queued_us", "process_cpu_us", "stolen_us", "throttled_us", "memory_kb"),
    # Single spans in nanoseconds: every span with --profile, otherwise only the newest spans at intervals.
    "spans": ("name", "start_ns", "duration_ns", "version"),
}

# Columns that older profiles lack. Their values are then read as -1.
ADDED: dict[str, tuple[str, ...]] = {"cycles": ("queued_us",), "machine": ("memory_kb",)}


def pack(block: Mapping[str, Any], tables: Mapping[str, Sequence[Sequence[int]]]) -> bytes:
    """One block of a file, with ``tables`` under the key ``tables``."""
    packed = {name: _pack_table(rows) for name, rows in tables.items() if rows}
    body = zlib.compress(msgpack.packb({**block, "tables": packed}), 6)
    return PREFIX.pack(len(body), zlib.crc32(body)) + body


def unpack(data: bytes, newest: int | None = None) -> Iterator[dict[str, Any]]:
    """The blocks of a file, up to the first one that is cut off, damaged or not of this format.

    With ``newest``: only the first block, which describes the process, and that number of the newest ones.
    """
    bodies = list(_bodies(data))
    if newest is not None:
        bodies[1:] = bodies[max(1, len(bodies) - newest) :]
    for body in bodies:
        try:
            block = msgpack.unpackb(zlib.decompress(body), strict_map_key=False)
            tables = block["tables"].items()
            block["tables"] = {name: _with_added(name, _unpack_table(packed)) for name, packed in tables}
        except Exception:  # another program wrote the block. msgpack alone raises a dozen kinds of errors
            return
        yield block


def _bodies(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + PREFIX.size <= len(data):
        length, crc32 = PREFIX.unpack_from(data, at)
        at += PREFIX.size
        body = data[at : at + length]
        at += length
        if len(body) < length or zlib.crc32(body) != crc32:
            return
        yield body


def _with_added(name: str, table: Table) -> Table:
    """``table`` with -1 in the columns that an older profile lacks."""
    added = len(ADDED.get(name, ()))
    if not added or table.shape[1] != len(COLUMNS[name]) - added:
        return table
    return np.pad(table, ((0, 0), (0, added)), constant_values=-1)


def _pack_table(rows: Sequence[Sequence[int]]) -> list[Any]:
    """Encode the differences between rows as byte planes, whose neighbouring bytes are similar and compress well."""
    table = np.asarray(rows, np.int64)
    differences = np.diff(table, axis=0, prepend=table[:1] * 0)
    planes = np.ascontiguousarray(differences.T.astype("<i8")).view(np.uint8)
    planes = planes.reshape(table.shape[1], len(table), 8).transpose(0, 2, 1)
    return [len(table), table.shape[1], planes.tobytes()]


def _unpack_table(packed: Sequence[Any]) -> Table:
    rows, columns, planes = packed
    shuffled = np.frombuffer(planes, np.uint8).reshape(columns, 8, rows).transpose(0, 2, 1)
    differences = np.ascontiguousarray(shuffled).view("<i8").reshape(columns, rows).T
    return np.cumsum(differences, axis=0, dtype=np.int64)
