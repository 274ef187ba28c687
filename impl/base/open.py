"""From what the user typed to a base: the one place that reads the BASE argument.

Shapes:  nothing at all is the demonstration disk; `scheme:rest` is looked up in SCHEMES; all else is a path. A name
         that exists is a path even if it looks like a scheme, and so is one with a slash before its colon (`./a:b`).
Errors:  UsageError for a text that makes no sense, StartError for a file that cannot be served.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from impl.base.demo import DemoBase
from impl.base.file import FileBase
from impl.base.interface import Base
from impl.base.memory import MemoryBase
from impl.base.pattern import SEED_MAX, PatternBase
from impl.errors import UsageError
from impl.sizes import parse_duration, parse_size, quoted

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_SEED = re.compile(r"[0-9]{1,20}")


def open_base(text: str | None) -> Base:
    """The base that `text` names; None stands for the demonstration disk."""
    if text is None:
        return DemoBase()
    if not text:
        raise UsageError(f"base '' is empty: expected {known_forms()}")
    match = _SCHEME.fullmatch(text)
    if match is None and text.lower() in SCHEMES and not _exists(text):
        form = SCHEMES[text.lower()].form
        raise UsageError(f"base {quoted(text)} has no size: expected {form} (./ in front of it makes it a path)")
    if match is None or _exists(text):
        return FileBase(text)
    name, rest = match.groups()
    scheme = SCHEMES.get(name.lower())
    if scheme is None:
        raise UsageError(
            f"base {quoted(text)} has the unknown scheme {quoted(name)}: expected {known_forms()} "
            f"(./ in front of it makes it a path)"
        )
    return scheme.open(rest)


def known_forms() -> str:
    """The forms a base can take, for messages and for help."""
    return ", ".join(["a path", *(scheme.form for scheme in SCHEMES.values())])


def _open_memory(rest: str) -> Base:
    size_text, _ = _split(rest, "memory:", known=())
    return MemoryBase(_parse_disk_size(size_text, "memory:"))


def _open_nbd(scheme: str) -> Callable[[str], Base]:
    def open_uri(rest: str) -> Base:
        from impl.base.nbd import NbdBase  # noqa: PLC0415 - the client takes long to load, and few need it

        return NbdBase(f"{scheme}:{rest}")

    return open_uri


def _open_pattern(rest: str) -> Base:
    size_text, query = _split(rest, "pattern:", known=("seed", "latency", "jitter"))
    return PatternBase(
        _parse_disk_size(size_text, "pattern:"),
        seed=_parse_seed(query.get("seed", "0")),
        latency_s=parse_duration(query.get("latency", "0s"), "pattern: latency"),
        jitter_s=parse_duration(query.get("jitter", "0s"), "pattern: jitter"),
    )


class Scheme(NamedTuple):
    """How a scheme is written, and what opens it, given the text after its colon."""

    form: str
    open: Callable[[str], Base]


SCHEMES = {
    "memory": Scheme("memory:SIZE", _open_memory),
    "pattern": Scheme("pattern:SIZE[?seed=N&latency=10ms&jitter=5ms]", _open_pattern),
    "nbd": Scheme("nbd://HOST[:PORT][/EXPORT]", _open_nbd("nbd")),
    "nbd+unix": Scheme("nbd+unix:///[EXPORT]?socket=PATH", _open_nbd("nbd+unix")),
    "nbds": Scheme("nbds://HOST[:PORT][/EXPORT]", _open_nbd("nbds")),
    "nbds+unix": Scheme("nbds+unix:///[EXPORT]?socket=PATH", _open_nbd("nbds+unix")),
}


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except ValueError:  # A zero byte in it: no file has such a name.
        return False


def _split(rest: str, what: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The part before the question mark, and the parameters after it, each known and given once."""
    head, question_mark, tail = rest.partition("?")
    if not question_mark:
        return head, {}
    if not known:
        raise UsageError(f"{what} takes no parameters, not {quoted(tail)}")
    parameters: dict[str, str] = {}
    for item in tail.split("&"):
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            raise UsageError(
                f"{what} parameter {quoted(item)} is unknown: expected {', '.join(f'{k}=' for k in known)}"
            )
        if key in parameters:
            raise UsageError(f"{what} parameter {key!r} is given twice: expected once")
        parameters[key] = value
    return head, parameters


def _parse_disk_size(text: str, what: str) -> int:
    size = parse_size(text, f"{what} size")
    if size == 0:
        raise UsageError(f"{what} size {quoted(text)} is zero: expected at least 1 byte")
    return size


def _parse_seed(text: str) -> int:
    if _SEED.fullmatch(text) is None or int(text) > SEED_MAX:
        raise UsageError(f"pattern: seed {quoted(text)} is not a seed: expected a whole number from 0 to {SEED_MAX}")
    return int(text)
