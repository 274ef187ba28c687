"""The files that histories are kept in, `cowproof-history`, version 1: JSON Lines, a header and then events.

Reading believes nothing: whatever is not as the format has it is refused with the file, the number of the line and what
was expected, because a checker that judges half of what was recorded would find it in order.

Source:  specs/history.schema.json, of a single line. What no schema can say of several lines is here: events are in the
         order of their times; an answer follows its invocation, and there is one at most; a client uses an id once; a
         write's value names no other write; what a read says comes to its length.
Shapes:  a History in columns. A read of which a part cannot be told (runs of UNKNOWN) becomes as many reads as it has
         parts that can, with the same times: less is then known than was seen, and nothing that was not. Requests of
         no bytes are left out, for there is nothing that they could say.
Units:   lines counted from 1; times, offsets and lengths as in model/history.py.
Errors:  UsageError, one line.
Omits:   extra keys, which are ignored; but `events` in the header, if it is there, has to be their number.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from impl.errors import UsageError
from impl.history_tags import UNKNOWN
from impl.sizes import quoted
from model.history import BASE, LEVELS, NEVER, OK, OPS, PENDING, RANGED, TORN, ZERO, History, Operation, Runs

FORMAT: Final = "cowproof-history"
VERSION: Final = 1
CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]  # bytes read so far, and in all

ALIGNED: Final = frozenset({"read", "write", "zero", "trim"})
RESERVED: Final = frozenset({BASE, ZERO, TORN, UNKNOWN})
EVENTS: Final = ("invoke", "ok", "error")
_OPS: Final[dict[str, str]] = {op: op for op in OPS}


def no_progress(done_bytes: int, all_bytes: int) -> None:
    """For those who need not be told."""


# Reading


def load(path: str | Path, allow_truncated: bool = False, progress: Progress = no_progress) -> History:
    """The history in a file. With `allow_truncated`, a last line that was cut off is the end of the file."""
    try:
        with open(path, "rb") as file, _no_collection():
            return _Loader(str(path), file, allow_truncated, progress).load()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of tuples are made, and none of them is part of a cycle: looking for cycles took half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Client:
    """What is known of a client: the ids it has used, and where those are that wait for their answers."""

    __slots__ = ("name", "used", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.used: set[int] = set()
        self.waiting: dict[int, int] = {}


class _Loader:
    """One reading of one file."""

    def __init__(self, path: str, file: BinaryIO, allow_truncated: bool, progress: Progress) -> None:
        self._path = path
        self._file = file
        self._allow_truncated = allow_truncated
        self._progress = progress
        self._line = 0
        decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        # As raw_decode, without a call of Python's for each line.
        self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
        self._promised: int | None = None
        self._names: dict[str, str] = {}  # of writes, each to itself, so that the reads of it share one string
        self._numbers: dict[int, int] = {}  # Offsets and lengths come again and again: each is one object.
        self._partial: list[int] = []  # the rows of reads of which a part is UNKNOWN, or that say nothing

    def load(self) -> History:
        """The history."""
        lines = self._lines()
        history = self._header(next(lines, None))
        self._events(history, lines)
        count = self._line - 1
        if self._promised is not None and count != self._promised and not self._allow_truncated:
            self._line += 1
            self._fail(f"expected {self._promised} events in all, as the header has it, found {count}")
        return _without(history, self._partial) if self._partial else history

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The objects, one to a line."""
        scan = self._scan
        all_bytes = os.fstat(self._file.fileno()).st_size
        done_bytes = 0
        rest = b""
        while True:
            read = self._file.read(CHUNK_BYTES)
            chunk = rest + read
            if read:
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest = chunk
                    continue
                chunk, rest = chunk[:end], chunk[end:]
            elif not chunk:
                return
            text = self._text(chunk, is_last=not read)
            at, size = 0, len(text)
            while at < size:
                self._line += 1
                try:
                    found, after = scan(text, at)
                    end = text.find("\n", at)
                    is_whole = type(found) is dict and (end == after or (end < 0 and after == size))
                except (ValueError, StopIteration, RecursionError):
                    is_whole = False
                if not is_whole:
                    line, _, _ = text[at:].partition("\n")
                    whole = self._look_closer(line, is_last=not read)
                    if whole is None:
                        return
                    found, after = whole, at + len(line)
                yield found
                at = after + 1
            done_bytes += len(chunk)
            self._progress(done_bytes, all_bytes)
            if not read:
                return

    def _text(self, chunk: bytes, is_last: bool) -> str:
        try:
            return chunk.decode()
        except UnicodeDecodeError as error:
            if is_last and self._allow_truncated:
                return chunk[: error.start].decode()
            self._line += 1 + chunk.count(b"\n", 0, error.start)
            self._fail(f"expected UTF-8, found the byte {chunk[error.start]:#04x}")

    def _look_closer(self, line: str, is_last: bool) -> dict[str, Any] | None:
        """The object in a line that is not just that: there may be blanks around it. None: take it as cut off."""
        if not line.strip():
            self._fail("expected a JSON object, found an empty line")
        try:
            found = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            if not is_last:
                self._fail(f"expected a JSON object, found {quoted(line)}: {error}")
            if self._allow_truncated and self._line > 1:
                self._line -= 1
                return None
            self._fail(
                f"expected a whole JSON object, but the file ends in the middle of it: {quoted(line)}"
                + (" (--allow-truncated takes what is before it as all there is)" if self._line > 1 else "")
            )
        if not isinstance(found, dict):
            self._fail(f"expected a JSON object, found {quoted(line)}")
        return found

    def _fail(self, message: str) -> NoReturn:
        raise UsageError(f"{self._path}: line {self._line}: {message}")

    # The header

    def _header(self, found: dict[str, Any] | None) -> History:
        if found is None:
            self._line = 1
            self._fail(f'expected a header, {{"format": "{FORMAT}", ...}}, found an empty file')
        if found.get("format") != FORMAT:
            self._fail(f'expected a header with "format": "{FORMAT}", found {_shown(found.get("format"))}')
        if type(found.get("version")) is not int or found["version"] != VERSION:
            self._fail(f"expected version {VERSION}, found {_shown(found.get('version'))}")
        size = self._number(found, "size", None, 1)
        granule = self._number(found, "granule", 512, 1)
        block_size = self._number(found, "block_size", 65536, 1)
        if block_size % granule:
            self._fail(f"expected a block_size that is a multiple of the granule, {granule}, found {block_size}")
        level = found.get("level", "request")
        if level not in LEVELS:
            self._fail(f"expected level {', '.join(LEVELS)}, found {_shown(level)}")
        if "events" in found:
            self._promised = self._number(found, "events", None, 0)
        trim_reads_zero = self._truth(found, "trim_reads_zero", True)
        base_is_zero = self._truth(found, "base_is_zero", False)
        return History(size, block_size, granule, level, trim_reads_zero, base_is_zero)

    def _number(self, found: dict[str, Any], key: str, default: int | None, least: int) -> int:
        number = found.get(key, default)
        if type(number) is not int or not least <= number < NEVER:
            self._fail(f"expected {key}, a whole number of at least {least}, found {_shown(number)}")
        return number

    def _truth(self, found: dict[str, Any], key: str, default: bool) -> bool:
        truth = found.get(key, default)
        if type(truth) is not bool:
            self._fail(f"expected {key}, true or false, found {_shown(truth)}")
        return truth

    # Events: this runs millions of times, so what is wrong is put into words elsewhere.

    def _events(self, history: History, lines: Iterator[dict[str, Any]]) -> None:
        clients: dict[str, _Client] = {}
        last = 0
        for event in lines:
            t, id_, who, kind = event.get("t"), event.get("id"), event.get("client"), event.get("event")
            if type(t) is not int or not last <= t < NEVER:
                self._refuse_time(t, last)
            last = t
            if type(who) is not str:
                self._fail(f"expected client, a name, found {_shown(who)}")
            client = clients.get(who)
            if client is None:
                client = clients[who] = _Client(who)
            if type(id_) is not int:
                self._fail(f"expected id, a whole number, found {_shown(id_)}")
            if kind == "invoke":
                self._invoked(history, event, t, client, id_)
            elif kind in ("ok", "error"):
                self._answered(history, event, t, client, id_)
            else:
                self._fail(f"expected event {', '.join(EVENTS)}, found {_shown(kind)}")
        lengths, ops = history.length, history.op
        self._partial += [row for row, length in enumerate(lengths) if length == 0 and ops[row] in RANGED]

    def _invoked(self, history: History, event: dict[str, Any], t: int, client: _Client, id_: int) -> None:
        asked = event.get("op")
        op = _OPS.get(asked) if type(asked) is str else None
        if op is None:
            self._fail(f"expected op {', '.join(OPS)}, found {_shown(asked)}")
        if id_ in client.used:
            self._fail(f"expected a new id, but client {client.name} has invoked {id_} before")
        client.used.add(id_)
        client.waiting[id_] = len(history.op)
        offset, length = event.get("offset"), event.get("length")
        if type(offset) is not int or type(length) is not int:
            offset, length = self._no_range(event, op)
        if offset < 0 or length < 0 or offset + length > history.size:
            self._fail(f"expected a range within {history.size} bytes, found {offset}+{length}")
        if (offset % history.granule or length % history.granule) and op in ALIGNED:
            self._check_edges(op, offset, length, history)
        value = self._written(event) if op == "write" else None
        same = self._numbers.setdefault
        history.client.append(client.name)
        history.id.append(id_)
        history.op.append(op)
        history.offset.append(same(offset, offset))
        history.length.append(same(length, length))
        history.call.append(t)
        history.ret.append(NEVER)
        history.outcome.append(PENDING)
        history.value.append(value)
        history.flags.append(self._flags(event) if "flags" in event else ())

    def _written(self, event: dict[str, Any]) -> str:
        value = event.get("value")
        if type(value) is not str or value in RESERVED:
            self._fail(f"expected value, a name for what is written, found {_shown(value)}")
        if value in self._names:
            self._fail(f"expected a value that no other write has, found {_shown(value)} again")
        self._names[value] = value
        return value

    def _answered(self, history: History, event: dict[str, Any], t: int, client: _Client, id_: int) -> None:
        row = client.waiting.pop(id_, None)
        if row is None:
            self._refuse_answer(client, id_)
        history.ret[row] = t
        if event["event"] == "error":
            history.outcome[row] = self._errno(event)
            return
        history.outcome[row] = OK
        if history.op[row] == "read":
            history.value[row] = self._runs(event.get("value"), row, history)
            if "notes" in event:
                history.notes[client.name, id_] = self._notes(event["notes"])

    def _notes(self, told: object) -> tuple[str, ...]:
        if type(told) is not list or not all(type(note) is str for note in told):
            self._fail(f"expected notes, a list of lines, found {_shown(told)}")
        return tuple(told)

    def _refuse_time(self, t: object, last: int) -> NoReturn:
        if type(t) is int and 0 <= t < last:
            self._fail(f"expected events in the order of their times, found t {t} behind {last}")
        self._fail(f"expected t, a whole number from 0 to {NEVER - 1}, found {_shown(t)}")

    def _refuse_answer(self, client: _Client, id_: int) -> NoReturn:
        if id_ in client.used:
            self._fail(f"expected one answer only, found a second one to {id_} of client {client.name}")
        self._fail(f"expected an invocation first, found an answer to {id_} of client {client.name}")

    def _no_range(self, event: dict[str, Any], name: str) -> tuple[int, int]:
        """Of a flush, offset and length may be left out."""
        numbers = [event.get(key, None if name in RANGED else 0) for key in ("offset", "length")]
        for key, number in zip(("offset", "length"), numbers, strict=True):
            if type(number) is not int:
                self._fail(f"expected {key}, a whole number, found {_shown(number)}")
        return numbers[0], numbers[1]  # type: ignore[return-value]

    def _check_edges(self, op: str, offset: int, length: int, history: History) -> None:
        """Ranges end where granules do, or where the device does."""
        end = offset + length
        if offset % history.granule or (end % history.granule and end != history.size):
            self._fail(f"expected a {op} of whole granules of {history.granule} bytes, found {offset}+{length}")

    def _flags(self, event: dict[str, Any]) -> tuple[str, ...]:
        flags = event["flags"]
        if type(flags) is not list or not all(type(flag) is str for flag in flags):
            self._fail(f"expected flags, a list of names, found {_shown(flags)}")
        return tuple(flags)

    def _errno(self, event: dict[str, Any]) -> str:
        errno = event.get("errno")
        if type(errno) is not str or not errno or errno in (OK, PENDING):
            self._fail(f"expected errno, a name such as EIO, found {_shown(errno)}")
        return errno

    def _runs(self, found: object, row: int, history: History) -> Runs:
        """What a read says, checked; neighbours by the same become one."""
        if type(found) is not list:
            self._fail(f"expected value, a list of [who, bytes], found {_shown(found)}")
        names, granule = self._names, history.granule
        runs: list[tuple[str, int]] = []
        offset, length = history.offset[row], history.length[row]
        at, end, last = offset, offset + length, ""
        for run in found:
            if type(run) is not list or len(run) != 2 or type(run[0]) is not str or type(run[1]) is not int:
                self._fail(f"expected [who, bytes] in value, found {_shown(run)}")
            who: str = run[0]
            run_length: int = run[1]
            at += run_length
            if run_length <= 0 or (at % granule and at != end):
                self._fail(f"expected runs of whole granules in value, found {_shown(run)}")
            if runs and who == last:
                runs[-1] = (runs[-1][0], runs[-1][1] + run_length)
                continue
            last = who
            if who == UNKNOWN:
                self._partial.append(row)
            runs.append((names.get(who, who), run_length))
        if at != end:
            self._fail(f"expected a value of {length} bytes, as the read has it, found {at - offset}")
        return tuple(runs)


def _without(history: History, rows: list[int]) -> History:
    """The history in which these rows are the parts of them that say something."""
    split = set(rows)
    made = History(
        history.size,
        history.block_size,
        history.granule,
        history.level,
        history.trim_reads_zero,
        history.base_is_zero,
    )
    for index in range(len(history)):
        operation = history.operation(index)
        for part in _parts(operation) if index in split else (operation,):
            made.append(part)
    made.notes = history.notes
    return made


def _parts(operation: Operation) -> Iterator[Operation]:
    """Reads of those parts of a read that are known."""
    if operation.op != "read" or not isinstance(operation.value, tuple):
        return
    at = operation.offset
    start, known = at, []
    for who, length in (*operation.value, (UNKNOWN, 0)):
        if who != UNKNOWN:
            known.append((who, length))
        elif known:
            yield _part(operation, start, at - start, tuple(known))
        at += length
        if who == UNKNOWN:
            start, known = at, []


def _part(operation: Operation, offset: int, length: int, runs: Runs) -> Operation:
    return Operation(
        operation.client,
        operation.id,
        operation.op,
        offset,
        length,
        operation.call,
        operation.ret,
        operation.outcome,
        runs,
        operation.flags,
    )


def _shown(value: object) -> str:
    return "nothing" if value is None else quoted(json.dumps(value)[:200])


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Writing


def header_line(history: History, events: int | None = None) -> str:
    """The first line."""
    header: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "size": history.size,
        "block_size": history.block_size,
        "granule": history.granule,
        "level": history.level,
        "trim_reads_zero": history.trim_reads_zero,
        "base_is_zero": history.base_is_zero,
    }
    if events is not None:
        header["events"] = events
    return json.dumps(header) + "\n"


def lines(history: History) -> Iterator[str]:
    """The file's lines: what happened at the same time is told in an order in which it can be read back."""
    events: list[tuple[int, int, int, str]] = []
    for index, operation in enumerate(history):
        events.append((operation.call, 0, index, json.dumps(invocation(operation))))
        if operation.outcome != PENDING:
            told = answer(operation)
            if notes := history.notes.get((operation.client, operation.id)):
                told["notes"] = list(notes)
            events.append((operation.ret, 1, index, json.dumps(told)))
    events.sort()
    yield header_line(history, len(events))
    for _, _, _, line in events:
        yield line + "\n"


def invocation(operation: Operation) -> dict[str, object]:
    """The event of a request's beginning."""
    event: dict[str, object] = {
        "t": operation.call,
        "client": operation.client,
        "id": operation.id,
        "event": "invoke",
        "op": operation.op,
        "offset": operation.offset,
        "length": operation.length,
    }
    if operation.op == "write":
        event["value"] = operation.value
    if operation.flags:
        event["flags"] = list(operation.flags)
    return event


def answer(operation: Operation) -> dict[str, object]:
    """The event of its end."""
    event: dict[str, object] = {"t": operation.ret, "client": operation.client, "id": operation.id, "event": "ok"}
    if operation.outcome != OK:
        return {**event, "event": "error", "errno": operation.outcome}
    if operation.op == "read":
        event["value"] = [list(run) for run in operation.value or ()]
    return event


def save(history: History, path: str | Path) -> None:
    """Write a history to a file."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines(history))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
