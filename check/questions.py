"""The questions that `specs/*.cfg` ask, and the answers that `specs/manifest.toml` expects.

Source:  `specs/manifest.toml`, where the keys are explained; docs/tla.md.
Shapes:  a configuration is read from the file that TLC reads, so twin and TLC are asked the same.
Errors:  ValueError for a configuration or an entry that is not understood: nothing is passed over.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specs.disk import REQUESTS, Constants
from specs.twin import Twin

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "specs"

TWINS = {
    "Device": "specs.device",
    "GlobalLock": "specs.global_lock",
    "BitmapLock": "specs.bitmap_lock",
    "RangeLock": "specs.range_lock",
}

COMMENT = re.compile(r"\\\*.*$", re.MULTILINE)
SECTION = re.compile(r"^(SPECIFICATION|CONSTANTS|INVARIANTS|PROPERTIES)\b", re.MULTILINE)
CONSTANT = re.compile(r'\s*(\w+)\s*(=|<-)\s*(\{[^}]*\}|"[^"]*"|\w+)')


# Answers


@dataclass(frozen=True)
class Counts:
    """How large the whole state graph is, in TLC's words: states generated, distinct states found, depth."""

    generated: int
    distinct: int
    depth: int


@dataclass(frozen=True)
class Holds:
    """All reachable states were seen, and all is true of them."""

    counts: Counts


@dataclass(frozen=True)
class Violates:
    """A behaviour was found that violates what is named; it has so many states, and none has fewer."""

    name: str
    trace_length: int


@dataclass(frozen=True)
class Undecided:
    """Neither: the tool failed, or ran out of time."""

    reason: str


Answer = Holds | Violates | Undecided

DEADLOCK = "Deadlock"  # the name under which a state without successors is reported


# Questions


@dataclass(frozen=True)
class Config:
    """A configuration: `specs/NAME.cfg`, for the module that its name begins with."""

    name: str
    module: str
    constants: Mapping[str, object]
    invariants: tuple[str, ...]
    properties: tuple[str, ...]


def module_of(name: str) -> str:
    """The module a configuration is for."""
    for module in TWINS:
        if name.startswith(module):
            return module
    raise ValueError(f"{name}: no module has a name that this begins with")


def read_config(path: Path) -> Config:
    """What a configuration asks."""
    name = path.stem
    text = COMMENT.sub("", path.read_text(encoding="utf-8"))
    pieces = SECTION.split(text)
    if pieces[0].strip():
        raise ValueError(f"{path.name}: {pieces[0].strip()!r} is in no section")
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    if sections.get("SPECIFICATION", "").strip() != "Spec" or len(sections) * 2 + 1 != len(pieces):
        raise ValueError(f"{path.name}: sections have to be there once, and the specification to be Spec")
    return Config(
        name=name,
        module=module_of(name),
        constants=_constants(path.name, sections.get("CONSTANTS", "")),
        invariants=tuple(sections.get("INVARIANTS", "").split()),
        properties=tuple(sections.get("PROPERTIES", "").split()),
    )


def _constants(name: str, text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    at = 0
    while text[at:].strip():
        match = CONSTANT.match(text, at)
        if match is None:
            raise ValueError(f"{name}: {text[at:].strip()!r} is not understood")
        found[match[1]] = _value(name, match[2], match[3])
        at = match.end()
    return found


def _value(name: str, sign: str, text: str) -> object:
    if sign == "<-":
        return REQUESTS[text]
    if text in ("TRUE", "FALSE"):
        return text == "TRUE"
    if text.isdigit():
        return int(text)
    if text.startswith('"'):
        return text.strip('"')
    if text.startswith("{"):
        return tuple(re.findall(r'"([^"]*)"', text))
    raise ValueError(f"{name}: {text!r} is no value")


def twin_of(module: str) -> Twin[Any, Any]:
    """The Python side of a module."""
    twin: Twin[Any, Any] = importlib.import_module(TWINS[module]).TWIN
    return twin


def constants_for(config: Config, twin: Twin[Any, Any]) -> Constants:
    """The twin's constants as a configuration has them: all of them, and no others."""
    given = {_snake_case(name): value for name, value in config.constants.items()}
    wanted = {field.name for field in dataclasses.fields(twin.constants)}
    if set(given) != wanted:
        raise ValueError(f"{config.name}: these constants are on one side only: {sorted(set(given) ^ wanted)}")
    constants: Constants = twin.constants(**given)
    return constants


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# Expectations


@dataclass(frozen=True)
class Expected:
    """An entry of the manifest: what a configuration has to come to, and whether the tests have the time for it.

    probe:  what is violated says "never", of something that has to be reachable
    """

    name: str
    answer: Holds | Violates
    probe: bool
    small: bool


def manifest(path: Path = SPECS / "manifest.toml") -> list[Expected]:
    """All that is expected, in the order of the file."""
    return [_expected(name, entry) for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()]


def _expected(name: str, entry: Mapping[str, Any]) -> Expected:
    verdicts = {"holds", "violates", "reaches"} & set(entry)
    if len(verdicts) != 1 or entry["size"] not in ("small", "large"):
        raise ValueError(f"{name}: has not one verdict, or no known size")
    verdict = verdicts.pop()
    unknown = set(entry) - {verdict, "size"} - ({"states"} if verdict != "holds" else set())
    if unknown:
        raise ValueError(f"{name}: has unknown keys {sorted(unknown)}")
    answer = Holds(Counts(**entry["holds"])) if verdict == "holds" else Violates(entry[verdict], entry["states"])
    return Expected(name, answer, verdict == "reaches", entry["size"] == "small")
