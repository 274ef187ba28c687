"""A history in columns for the page: few bytes for each request, and nothing that a script has to parse twice.

Shapes:  `times` are differences: of invocations to the one before in the file, of responses to their own invocation.
         What repeats (clients, values, flags, outcomes) stands once in a table, and in the column as its index there.
         A read's value is [name, bytes, name, bytes, ...], each name an index into the table of names.
Units:   as in the history; times count from the first invocation.
Errors:  UsageError for numbers that a script cannot hold exactly.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import Generic, TypeVar

from impl.errors import UsageError
from model.history import NEVER, OPS, History, Value

# Beyond it, two neighbouring integers may be one number to JavaScript (ECMAScript, Number.MAX_SAFE_INTEGER).
EXACT_MAX = (1 << 53) - 1
NO_VALUE = -1
NO_RESPONSE = -1

T = TypeVar("T", bound=Hashable)


class Table(Generic[T]):
    """Things that repeat, each once, in order of their first use."""

    def __init__(self, first: Iterable[T] = ()) -> None:
        self._index = {each: at for at, each in enumerate(first)}

    def index(self, thing: T) -> int:
        """Where it stands; new things go to the end."""
        return self._index.setdefault(thing, len(self._index))

    def all(self) -> list[T]:
        """The table."""
        return list(self._index)


def columns(history: History) -> dict[str, object]:
    """All that the page has to know of the requests."""
    _refuse_what_is_not_exact(history)
    clients: Table[str] = Table(sorted(set(history.client), key=_natural))
    names: Table[str] = Table()
    values: Table[tuple[int, ...]] = Table()
    flags: Table[tuple[str, ...]] = Table()
    outcomes: Table[str] = Table()
    origin = min(history.call, default=0)
    return {
        "origin": str(origin),
        "client": [clients.index(each) for each in history.client],
        "id": [each if abs(each) <= EXACT_MAX else str(each) for each in history.id],
        "op": [OPS.index(each) for each in history.op],
        "offset": history.offset,
        "length": history.length,
        "call": [later - earlier for earlier, later in pairwise([origin, *history.call])],
        "took": [
            NO_RESPONSE if ret == NEVER else ret - call for call, ret in zip(history.call, history.ret, strict=True)
        ],
        "outcome": [outcomes.index(each) for each in history.outcome],
        "value": [_value(each, names, values) for each in history.value],
        "flags": [flags.index(each) for each in history.flags],
        "tables": {
            "client": clients.all(),
            "op": list(OPS),
            "outcome": outcomes.all(),
            "name": names.all(),
            "value": values.all(),
            "flags": flags.all(),
        },
    }


def _value(value: Value, names: Table[str], values: Table[tuple[int, ...]]) -> int:
    if value is None:
        return NO_VALUE
    if isinstance(value, str):
        return values.index((names.index(value),))
    return values.index(tuple(number for name, length in value for number in (names.index(name), length)))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts client 10 behind client 9."""
    parts: list[tuple[int, int, str]] = []
    rest = name
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if digits:
            parts.append((0, int(rest[:digits]), rest[:digits]))
            rest = rest[digits:]
        else:
            text = rest[: next((at for at, char in enumerate(rest) if char in "0123456789"), len(rest))]
            parts.append((1, 0, text))
            rest = rest[len(text) :]
    return tuple(parts)


def _refuse_what_is_not_exact(history: History) -> None:
    """A picture that is off by a byte or a nanosecond would lie where it matters."""
    times = [*history.call, *(ret for ret in history.ret if ret != NEVER)]
    if times and max(times) - min(times) > EXACT_MAX:
        raise UsageError(f"the history's times are {max(times) - min(times)} apart; a page shows {EXACT_MAX} at most")
    if history.size > EXACT_MAX:
        raise UsageError(f"the device has {history.size} bytes; a page shows {EXACT_MAX} at most")
