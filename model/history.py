"""A history: what concurrent clients asked of a device, when, and what they were told. Data only.

A history is kept in columns, one list for each property of a request, so that a million requests are a dozen lists and
not a million objects; an operation is an index into them. `Operation` is one row of it, for people and for tests.

Source:  HISTORY below is the format of the files, `cowproof-history`, version 1; its schema is
         specs/history.schema.json. Herlihy and Wing, "Linearizability", 1990, for the words.
Shapes:  all columns are of one length. A write's value names it, uniquely in the history; a read's value is runs of
         (who wrote it, bytes), in order, which come to its length: a write's value, BASE, ZERO, or TORN for bytes that
         nobody wrote so.
Units:   times in nanoseconds of one monotonic clock, or counts; offsets and lengths in bytes.
Errors:  ValueError from `append` and `answer` for what no client can have seen; loading says which line it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

Level = Literal["request", "block", "sector"]
LEVELS: Final[tuple[Level, ...]] = ("request", "block", "sector")

Op = Literal["read", "write", "zero", "trim", "cache", "flush", "status"]
OPS: Final[tuple[Op, ...]] = ("read", "write", "zero", "trim", "cache", "flush", "status")
RANGED: Final = frozenset({"read", "write", "zero", "trim", "cache", "status"})

BASE: Final = "base"
ZERO: Final = "zero"
TORN: Final = "?"

# How a request ended. Errors of NOT_DONE say that nothing has happened; any other may have, granule by granule.
OK: Final = "ok"
PENDING: Final = "pending"
NOT_DONE: Final = frozenset({"EINVAL", "EPERM"})

# When a request returned that never did.
NEVER: Final = 1 << 62

Runs = tuple[tuple[str, int], ...]
Value = str | Runs | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, whole. `outcome` is OK, PENDING, or the name of an errno."""

    client: str
    id: int
    op: Op
    offset: int
    length: int
    call: int
    ret: int
    outcome: str
    value: Value = None
    flags: tuple[str, ...] = ()


@dataclass(slots=True)
class History:
    """Requests in order of their invocation in the file, and what is known of the device.

    level:            what the server claims takes effect at an instant
    trim_reads_zero:  whether trimmed bytes are promised to read as zeroes; if not, they may read as anything
    base_is_zero:     whether what nobody has written reads as ZERO, not as BASE
    notes:            by client and id of a read, lines of what was wrong with its bytes, '512: torn'
    """

    size: int
    block_size: int = 65536
    granule: int = 512
    level: Level = "request"
    trim_reads_zero: bool = True
    base_is_zero: bool = False
    client: list[str] = field(default_factory=list)
    id: list[int] = field(default_factory=list)
    op: list[str] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    call: list[int] = field(default_factory=list)
    ret: list[int] = field(default_factory=list)
    outcome: list[str] = field(default_factory=list)
    value: list[Value] = field(default_factory=list)
    flags: list[tuple[str, ...]] = field(default_factory=list)
    notes: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.op)

    def append(self, operation: Operation) -> int:
        """Add a request that is known whole; its index."""
        self.client.append(operation.client)
        self.id.append(operation.id)
        self.op.append(operation.op)
        self.offset.append(operation.offset)
        self.length.append(operation.length)
        self.call.append(operation.call)
        self.ret.append(operation.ret)
        self.outcome.append(operation.outcome)
        self.value.append(operation.value)
        self.flags.append(operation.flags)
        return len(self.op) - 1

    def operation(self, index: int) -> Operation:
        """One row."""
        return Operation(
            self.client[index],
            self.id[index],
            self.op[index],  # type: ignore[arg-type]
            self.offset[index],
            self.length[index],
            self.call[index],
            self.ret[index],
            self.outcome[index],
            self.value[index],
            self.flags[index],
        )

    def __iter__(self) -> Iterator[Operation]:
        return (self.operation(index) for index in range(len(self)))
